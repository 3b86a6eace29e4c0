"""`mefar report`: the page of a run, written anew from its files."""

from __future__ import annotations

from pathlib import Path

from mefar.errors import UserError
from mefar.report import loso_page, training_page
from mefar.report.training_results import is_training


def report(run: Path, *, figures: Path | None = None) -> None:
    """Write RUN/report.html from the files that `mefar loso`, or the `mefar fit` of a tokenizer, left there.

    Args:
        run: folder of a run, for example runs/loso-samm or runs/pretrain.
        figures: also write every chart and the rows of pictures into this folder, each as PDF and as PNG,
            as wide as a column of a paper.
    """
    if (run / "summary.json").is_file():
        page, draw = loso_page.write_report, loso_page.write_figures
    elif is_training(run):
        page, draw = training_page.write_training_report, training_page.write_training_figures
    else:
        raise UserError(
            f"{run}: holds neither a LOSO run (summary.json) nor the training of a tokenizer (metrics.csv); "
            "give the folder of a finished `mefar loso`, or of a `mefar fit` of a tokenizer"
        )
    print(page(run))
    if figures is not None:
        print(*draw(run, figures), sep="\n")
