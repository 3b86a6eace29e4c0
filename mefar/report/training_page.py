"""The page of a tokenizer's training: one self-contained HTML file from what `mefar fit` left.

Loss and gates over the steps, the codes in use, and a handful of validation pairs: what the tokens bring
back of them, and what another pair's tokens do to the same face. A training that learned nothing is told so.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mefar.report import figures
from mefar.report.page import code_usage, write_page
from mefar.report.training_results import FinishedTraining, read_training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GATES: dict[str, tuple[str, str, float | None]] = {
    "val/gain_over_copy": ("gain over copy, dB", "above 0: better than leaving the onset as it is", 0.0),
    "val/delta_psnr": ("delta PSNR, dB", "above 0: another pair's tokens are worse", 0.0),
    "val/psnr": ("PSNR, dB", "of the reconstruction, where the face moves", None),
    "val/code_usage": ("code usage", "share of the codes that are in use; 1 is all", 1.0),
    "val/perplexity": ("perplexity", "codes in use, weighted by how often", None),
    "val/perplexity_per_position": ("perplexity per position", "the same within each token, mean", None),
    "val/no_action_spread": ("no-action spread", "0: no motion is the same tokens on every face", 0.0),
}
"""Gate of quality.py -> title, what it says, level to draw."""


def write_training_report(run: Path) -> Path:
    """Write RUN/report.html of a tokenizer's training, finished or not.

    Raises:
        UserError: no training of a tokenizer there, or its samples cannot be read.
    """
    training = read_training(run)
    titles, rows = picture_rows(training)
    newest = {name: curve[-1] for name, curve in training.curves.items()}
    known = [name for name in GATES if name in newest]
    terms = [name for name in newest if not name.startswith("val/")]
    start = training.starts[-1] if training.starts else {}
    config = shlex.quote(str(training.folder / "config.yaml"))
    return write_page(
        training.folder / "report.html",
        "training.html",
        title=f"Tokenizer: {training.folder.resolve().name}",
        training=training,
        charts={name: figures.svg(chart, name) for name, chart in charts(training).items()},
        step=newest.get("val/gain_over_copy", next(iter(newest.values()), (-1, 0.0)))[0],
        newest={name: value for name, (_, value) in newest.items()},
        validated=[*known, *(name for name in newest if name.startswith("val/") and name not in known)],
        terms=sorted(terms, key=lambda name: (name != "train/loss", not name.startswith("train/"))),
        gates=GATES,
        titles=titles,
        rows=rows,
        usage=code_usage(training.newest.get("usage")),
        facts={
            "command": start.get("command"),
            "repeat with": f"mefar fit --config {config}" if training.config else None,
            "commit": start.get("commit"),
            "started": start.get("time"),
            **{name: start.get(name) for name in ("processes", "precision", "torch", "mefar")},
        },
    )


def write_training_figures(run: Path, folder: Path) -> list[Path]:
    """Write every curve of a training, its codes and its rows of pictures: each as PDF and as PNG.

    Raises:
        UserError: no training of a tokenizer there, or its samples cannot be read.
    """
    training = read_training(run)
    drawn = charts(training, paper=True)
    titles, rows = picture_rows(training)
    if rows:
        drawn["pictures"] = figures.sheet([(f"pair {i}", row) for i, (row, _) in enumerate(rows, 1)], titles)
    return figures.save(drawn, Path(folder))


def charts(training: FinishedTraining, paper: bool = False) -> dict[str, Figure]:
    """Every chart of a training: curves by their columns, and codes.

    For a `paper` they fit into a column and name what the page's captions name.
    """
    drawn = {}
    for column, curve in training.curves.items():
        name, _, level = GATES.get(column, (column, "", None))
        drawn[column] = figures.curve(curve, name if paper else "", level, training.resumed)
    if "usage" in training.newest:
        narrow = {"width": figures.COLUMN} if paper else {}
        drawn["codes"] = figures.code_usage(training.newest["usage"].tolist(), **narrow)
    return drawn


def picture_rows(training: FinishedTraining) -> tuple[list[str], list[tuple[list[figures.Picture], float]]]:
    """Titles of the columns; pictures of each pair, and the amplification of its changes."""
    newest, first = training.newest, training.first
    if "reconstruction" not in newest:
        return [], []
    step, before = int(newest["step"]), int(first.get("step", newest["step"]))
    progress = before != step and first["reconstruction"].shape == newest["reconstruction"].shape
    titles = ["onset", "apex", "reconstruction", "change", f"rebuilt, step {step:,}"]
    if progress:
        titles.insert(4, f"rebuilt, step {before:,}")
    rows = []
    for pair in range(len(newest["onset"])):
        pictures = [newest[name][pair] for name in ("onset", "apex", "reconstruction", "transferred")]
        if progress:
            pictures.append(first["reconstruction"][pair])
        made, gain = figures.with_changes(*pictures)
        onset, apex, rebuilt = made[:3]
        change, now, other, *early = made[len(pictures) :]
        rows.append(([onset, apex, rebuilt, change, *early, now, other], gain))
    return [*titles, "other tokens"], rows
