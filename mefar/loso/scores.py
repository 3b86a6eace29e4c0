"""From folds to what a reader sees: pooled scores, predictions.csv, confusion matrices, the table.

Predictions of all folds are pooled before anything is scored: UF1 and UAR are never means over folds.
The columns of single databases are the same pooled predictions restricted to that database.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from mefar.loso.folds import FULL, FoldResult, StudyTokens
from mefar.metrics import confusion, scores

ORACLE_WARNING = "oracle (leaks; only to compare with published tables)"
COLUMN_TITLES: dict[str, str] = {
    "oracle": "oracle*",
    "pixels": "control: pixels",
    "shuffled": "control: shuffled labels",
}

Scores = dict[str, dict[str, dict[str, float]]]
"""selection -> `full` or a database -> {"uf1", "uar"}, with `_std` of each when there are several seeds."""


def place_scores(study: StudyTokens, guesses: Tensor, seed: int = 0) -> dict[str, dict[str, float]]:
    """UF1 and UAR of one prediction per clip, in all and per database.

    Args:
        study: whose labels.
        guesses: (N,) class indices in the study's order.
        seed: of the labels, where they are a control's.
    """
    found, every = {}, study.labels_of(seed)
    for place in study.places:
        inside = torch.tensor([place in (FULL, database) for database in study.databases])
        found[place] = scores(every[inside], guesses[inside], len(study.class_names))
    return found


def pool(study: StudyTokens, results: Sequence[FoldResult], seeds: Sequence[int]) -> Scores:
    """Scores of pooled predictions, per selection, in all and per database.

    With several seeds each is pooled by itself; the scores are their mean and standard deviation.

    Raises:
        RuntimeError: a clip is tested twice or never, which would be a bug here.
    """
    pooled: Scores = {}
    for selection in results[0].predictions:
        per_seed = []
        for seed in seeds:
            own = [result for result in results if result.fold.seed == seed]
            rows = [row for result in own for row in result.rows]
            guesses = [guess for result in own for guess in result.predictions[selection]]
            if sorted(rows) != list(range(len(study.clips))):
                raise RuntimeError(f"seed {seed}: {len(rows)} predictions for {len(study.clips)} clips")
            per_seed.append(place_scores(study, torch.tensor(guesses)[torch.tensor(rows).argsort()], seed))
        pooled[selection] = {}
        for place in study.places:
            cell: dict[str, float] = {}
            for name in ("uf1", "uar"):
                numbers = [values[place][name] for values in per_seed]
                cell[name] = statistics.fmean(numbers)
                if len(numbers) > 1:
                    cell[f"{name}_std"] = statistics.stdev(numbers)
            pooled[selection][place] = cell
    return pooled


def _inside(study: StudyTokens, results: Sequence[FoldResult], place: str) -> tuple[Tensor, Tensor]:
    """Of all tested clips, fold after fold: which lie in a place (bool), and their labels (int64)."""
    databases = study.databases
    inside = [place in (FULL, databases[row]) for result in results for row in result.rows]
    labels = [study.labels_of(result.fold.seed)[torch.tensor(result.rows)] for result in results]
    return torch.tensor(inside), torch.cat(labels)


def pooled_confusion(
    study: StudyTokens, results: Sequence[FoldResult]
) -> dict[str, dict[str, list[list[int]]]]:
    """Confusion matrices (rows truth) over all seeds: selection -> place -> C x C counts."""
    C = len(study.class_names)
    table: dict[str, dict[str, list[list[int]]]] = {}
    for selection in results[0].predictions:
        guesses = torch.tensor([guess for result in results for guess in result.predictions[selection]])
        table[selection] = {}
        for place in study.places:
            inside, labels = _inside(study, results, place)
            table[selection][place] = confusion(labels[inside], guesses[inside], C).tolist()
    return table


def pooled_attention(
    study: StudyTokens, results: Sequence[FoldResult]
) -> dict[str, list[list[float] | None]]:
    """Where the heads look: place -> per true class the mean pooling weight of each of the L tokens.

    Held-out clips at the last epoch, over all seeds. None for a class without clips in that place; no
    places where a result has no attention.
    """
    if not all(result.attention for result in results):
        return {}
    weights = torch.tensor([clip for result in results for clip in result.attention], dtype=torch.float64)
    table: dict[str, list[list[float] | None]] = {}
    for place in study.places:
        inside, labels = _inside(study, results, place)
        table[place] = []
        for label in range(len(study.class_names)):
            own = weights[inside & (labels == label)]
            table[place].append([round(w, 5) for w in own.mean(0).tolist()] if len(own) else None)
    return table


def predictions_csv(study: StudyTokens, results: Sequence[FoldResult]) -> str:
    """predictions.csv: one row per clip and seed, sorted by seed and clip.

    Columns: database, subject, clip, fold (number of the held-out subject among the sorted subject
    keys), seed, label, one column per selection (class indices), p_<class> of the last epoch; in a
    control also `control`, which says that the labels are not the true ones.
    """
    numbers = {subject: number for number, subject in enumerate(sorted(set(study.subjects)))}
    selections = list(results[0].predictions)
    mark = [study.control] if study.control else []
    rows = []
    for result in results:
        labels = study.labels_of(result.fold.seed).tolist()
        for i, row in enumerate(result.rows):
            chosen = [result.predictions[selection][i] for selection in selections]
            p = [f"{value:.6f}" for value in result.probabilities[i]]
            fold = numbers[result.fold.subject]
            cells = [*study.clips[row].split("/", 2), fold, result.fold.seed, labels[row], *chosen, *p, *mark]
            rows.append((result.fold.seed, row, cells))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"p_{name}" for name in study.class_names]
    writer.writerow(
        [
            "database",
            "subject",
            "clip",
            "fold",
            "seed",
            "label",
            *selections,
            *names,
            *["control"][: len(mark)],
        ]
    )
    writer.writerows(cells for _, _, cells in sorted(rows, key=lambda each: each[:2]))
    return text.getvalue()


def table(summary: Mapping[str, Any]) -> Table:
    """The composite table: UF1 / UAR in all and per database; selections and controls side by side."""
    counts, columns = summary["counts"], dict(summary["scores"]) | dict(summary.get("controls", {}))
    folds = "databases left out" if summary.get("leave_out") == "database" else "subjects"
    title = f"{summary['protocol']}: {summary['clips']} clips, {summary['folds']} {folds}; UF1/UAR"
    if summary.get("control"):
        title += f"; labels {summary['control']}, a CONTROL"
    if summary.get("zero_shot"):
        title += f"; {summary['zero_shot']} never trained on, known by its text"
    made = Table(title=title, caption=f"* {ORACLE_WARNING}", title_justify="left", caption_justify="left")
    made.add_column("")
    made.add_column("clips", justify="right")
    bounds = summary.get("intervals", {}).get("last", {})
    if bounds:
        low, high = (f"{bounds[FULL]['uf1'][end]:.3f}".removeprefix("0") for end in (0, 1))
        made.caption = f"{made.caption}\nlast, full: UF1 {low} to {high}, 95 % of draws of the subjects"
    for name in columns:
        made.add_column(COLUMN_TITLES.get(str(name), str(name)), justify="right")
    for place in summary["scores"]["last"]:
        clips = summary["clips"] if place == FULL else counts[place]["clips"]
        made.add_row(place, str(clips), *(_cell(values[place]) for values in columns.values()))
    return made


def units_table(summary: Mapping[str, Any]) -> Table:
    """Action units by databases, macro-F1 / F1 of `present`, last epoch; `-` where nobody shows the unit."""
    names = [name for name in summary["scores"] if name != "mean"]
    folds = "database" if summary.get("leave_out") == "database" else "subject"
    title = (
        f"{summary['protocol']}: {summary['clips']} coded clips, one {folds} left out; macro-F1/F1 of present"
    )
    made = Table("", *names, title=title, title_justify="left")

    def cell(values: Mapping[str, float] | None) -> str:
        return (
            "-"
            if values is None
            else "/".join(f"{values[k]:.3f}".removeprefix("0") for k in ("macro", "binary"))
        )

    for unit, each in summary["units"].items():
        made.add_row(unit, *(cell(each.get(name)) for name in names))
    made.add_row("mean", *(cell(summary["scores"][name]) for name in names))
    made.caption = f"mean over units, then databases: {cell(summary['scores']['mean'])}"
    return made


def _cell(values: Mapping[str, float]) -> str:
    """`.8943/.8967` as papers print it; with several seeds a second line gives the deviations."""
    text = "/".join(f"{values[name]:.4f}".removeprefix("0") for name in ("uf1", "uar"))
    if "uf1_std" in values:
        spread = "/".join(f"{values[f'{name}_std']:.4f}".removeprefix("0") for name in ("uf1", "uar"))
        text += f"\n±{spread}"
    return text
