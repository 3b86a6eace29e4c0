"""The page of a tokenizer's training: one self-contained HTML file from what `mefar fit` left.

Loss and gates over the steps, the codes in use, and a handful of validation pairs: what the tokens bring
back of them, and what another pair's tokens do to the same face. A training that learned nothing is told so.
"""

from __future__ import annotations

import os
import shlex
from html import escape
from pathlib import Path

import numpy as np

from mefar.errors import UserError
from mefar.report import figures
from mefar.report.figures import Picture
from mefar.report.loso_tokens import code_usage, picture_cells
from mefar.report.page import LIGHTER_AND_DARKER, facts, note, plural, section, table, warning, write_page
from mefar.report.training_results import TrainingRecord, read_training

GATES: dict[str, tuple[str, str, float | None]] = {
    "gain_over_copy": ("gain over copy, dB", "above 0: better than leaving the onset as it is", 0.0),
    "delta_psnr": ("delta PSNR, dB", "above 0: another pair's tokens are worse", 0.0),
    "psnr": ("PSNR, dB", "of the reconstruction, where the face moves", None),
    "code_usage": ("code usage", "share of the codes that are in use; 1 is all", 1.0),
    "perplexity": ("perplexity", "codes in use, weighted by how often", None),
    "perplexity_per_position": ("perplexity per position", "the same within each token, mean", None),
    "no_action_spread": ("no-action spread", "0: no motion is the same tokens on every face", 0.0),
}
"""Gate of quality.py -> title, what it says, level to draw."""


def write_training_report(run: Path) -> Path:
    """Write RUN/report.html of a tokenizer's training.

    Args:
        run: folder of the training, finished or not.

    Returns:
        The page's path.

    Raises:
        UserError: no training of a tokenizer there, or its samples cannot be read.
    """
    record = read_training(run)
    makers = (_gates, _samples, _usage, _losses, _provenance)
    return write_page(
        record.folder / "report.html",
        f"Tokenizer: {record.folder.resolve().name}",
        _lead(record),
        [make(record) for make in makers],
    )


def write_training_figure(run: Path, path: Path) -> Path:
    """Write the rows of pictures of a tokenizer's training as one PNG.

    Args:
        run: folder of the training.
        path: file to write.

    Returns:
        The file's path.

    Raises:
        UserError: no training of a tokenizer there, or it kept no pictures.
    """
    record = read_training(run)
    titles, rows = _rows(record)
    if not rows:
        raise UserError(f"{record.folder}: no samples/newest.npz; the training has not been validated yet")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    named = [(f"pair {number}", row) for number, (row, _) in enumerate(rows, 1)]
    figures.sheet(named, titles).save(temporary, "PNG")
    os.replace(temporary, path)
    return path


def _lead(record: TrainingRecord) -> str:
    gain, delta, usage = (
        record.last(f"val/{name}") for name in ("gain_over_copy", "delta_psnr", "code_usage")
    )
    validated = record.curves.get("val/gain_over_copy") or next(iter(record.curves.values()), [(-1, 0.0)])
    done = f'<p class="lead">After {plural(validated[-1][0] + 1, "step")}'
    if gain is None:
        return done + ": not validated yet, so nobody knows what was learned.</p>"
    told = ""
    if gain <= 0:
        told += warning(
            f"This training has learned nothing: its reconstruction is {-gain:.2f} dB worse than a copy of "
            "the onset. Train longer, or on pairs that move more."
        )
    if delta is not None and delta <= 0:
        told += warning(
            "The tokens say nothing: with those of another pair the reconstruction is "
            f"{-delta:.2f} dB better."
        )
    against = (
        f", and <b>{delta:.2f} dB</b> better than with another pair's tokens"
        if delta is not None and delta > 0
        else ""
    )
    codes = f"; {usage:.0%} of the codes in use" if usage is not None else ""
    sign = "better" if gain > 0 else "worse"
    return told + (
        f"{done} the reconstruction is <b>{abs(gain):.2f} dB</b> {sign} than a copy of the onset"
        f"{against}{codes}.</p>"
    )


def _chart(record: TrainingRecord, column: str, name: str, about: str, level: float | None) -> str:
    curve = record.curves[column]
    drawing = figures.line_svg(curve, level, record.resumed)
    return (
        f"<figure><figcaption>{escape(name)} <b>{figures.short(curve[-1][1])}</b>"
        f"<small>{escape(about)}</small></figcaption>{drawing}</figure>"
    )


def _gates(record: TrainingRecord) -> str:
    columns = [name for name in record.curves if name.startswith("val/")]
    known = [f"val/{name}" for name in GATES if f"val/{name}" in columns]
    charts = [
        _chart(record, column, *GATES.get(column.removeprefix("val/"), (column, "", None)))
        for column in [*known, *(name for name in columns if name not in known)]
    ]
    if not charts:
        return ""
    return section(
        "Gates, at every validation",
        f'<div class="figures charts">{"".join(charts)}</div>',
        note("Over training steps, with the newest value; dashed: the level named. " + _breaks(record)),
    )


def _losses(record: TrainingRecord) -> str:
    columns = [name for name in record.curves if not name.startswith("val/")]
    columns.sort(key=lambda name: (name != "train/loss", not name.startswith("train/")))
    charts = [_chart(record, name, name.removeprefix("train/"), "", None) for name in columns]
    if not charts:
        return ""
    return section(
        "Loss and its terms",
        f'<div class="figures charts">{"".join(charts)}</div>',
        note("Terms as they enter the sum, weights included. " + _breaks(record)),
    )


def _breaks(record: TrainingRecord) -> str:
    if not record.resumed:
        return ""
    steps = ", ".join(f"{step:,}" for step in record.resumed)
    return f"Vertical lines: the training stopped and went on (logged again from step {steps})."


def _rows(record: TrainingRecord) -> tuple[list[str], list[tuple[list[Picture], float]]]:
    """Titles of the columns; pictures of each pair, and the amplification of its changes."""
    newest, first = record.newest, record.first
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


def _samples(record: TrainingRecord) -> str:
    titles, pairs = _rows(record)
    if not pairs:
        return ""
    width = 112 if len(titles) > 6 else 130
    lines = [
        f"<tr>{picture_cells(row, titles, width)}<td class=n>× {gain:.0f}</td></tr>" for row, gain in pairs
    ]
    head = "".join(
        f"<th>{name}<small>{step}</small></th>"
        for name, _, step in (title.partition(", ") for title in titles)
    )
    return section(
        "What the tokens say",
        table(f"<tr>{head}<th></th></tr>", lines, "pictures"),
        note(
            "The same pairs of faces that were never trained on, at every validation. Reconstruction: the "
            "onset, moved by the tokens alone. The maps show what became "
            f"{LIGHTER_AND_DARKER} since the onset, amplified alike by the factor on the right: in the "
            "recording, in the reconstruction, and when this onset is moved by the tokens of the pair in "
            "the row above (the first row: of the last). Where the last map shows the row above's change, "
            "tokens mean the same on every face."
        ),
    )


def _usage(record: TrainingRecord) -> str:
    if "usage" not in record.newest:
        return ""
    return code_usage([int(count) for count in np.asarray(record.newest["usage"])], "the validation pairs")


def _provenance(record: TrainingRecord) -> str:
    start = record.starts[-1] if record.starts else {}
    config = record.folder / "config.yaml"
    repeat = f"mefar fit --config {shlex.quote(str(config))}" if record.config else None
    listed = ""
    if len(record.starts) > 1:
        lines = "".join(
            f"<tr><td>{int(each.get('step', 0)):,}</td><td>{escape(str(each.get('time', '')))}</td>"
            f"<td class=words><code>{escape(str(each.get('command', '')))}</code></td></tr>"
            for each in record.starts
        )
        head = "<thead><tr><th>from step</th><th>time</th><th class=words>command</th></tr></thead>"
        name = f"All {len(record.starts)} starts"
        listed = f"<details><summary>{name}</summary><table>{head}<tbody>{lines}</tbody></table></details>"
    settings = (
        f"<details><summary>config.yaml, every setting</summary><pre>{escape(record.config)}</pre></details>"
    )
    return section(
        "How this was made",
        facts(
            {
                "command": start.get("command"),
                "repeat with": repeat,
                "commit": start.get("commit"),
                "started": start.get("time"),
                "processes": start.get("processes"),
                "precision": start.get("precision"),
                "torch": start.get("torch"),
                "mefar": start.get("mefar"),
            }
        ),
        listed,
        settings if record.config else "",
    )
