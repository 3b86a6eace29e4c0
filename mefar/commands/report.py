"""`mefar report`: the page of a run, written anew from its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mefar.commands import run_function
from mefar.errors import UserError
from mefar.report.loso_page import write_figure, write_report
from mefar.report.training_page import write_training_figure, write_training_report
from mefar.report.training_results import is_training


def report(run: Path, *, figure: Path | None = None) -> None:
    """Write RUN/report.html from the files that `mefar loso`, or the `mefar fit` of a tokenizer, left there.

    Args:
        run: folder of a run, for example runs/loso-samm or runs/pretrain.
        figure: also write the rows of pictures as one PNG to this file.
    """
    if (run / "summary.json").is_file():
        page, draw = write_report, write_figure
    elif is_training(run):
        page, draw = write_training_report, write_training_figure
    else:
        raise UserError(
            f"{run}: holds neither a LOSO run (summary.json) nor the training of a tokenizer (metrics.csv); "
            "give the folder of a finished `mefar loso`, or of a `mefar fit` of a tokenizer"
        )
    print(page(run))
    if figure is not None:
        print(draw(run, figure))


def main(argv: Sequence[str]) -> int:
    """Run `mefar report`."""
    return run_function(report, argv, "mefar report")
