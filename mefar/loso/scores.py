"""From folds to what a reader sees: pooled scores, predictions.csv, confusion matrices, the table.

Predictions of all folds are pooled before anything is scored: UF1 and UAR are never means over folds.
The columns of single databases are the same pooled predictions restricted to that database.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from mefar.files import csv_text
from mefar.loso.folds import FULL, FoldResult, StudyTokens
from mefar.loso.results import Predictions
from mefar.metrics import confusion, scores

ORACLE_WARNING = "oracle (leaks; only to compare with published tables)"
COLUMN_TITLES: dict[str, str] = {
    "oracle": "oracle*",
    "pixels": "control: pixels",
    "shuffled": "control: shuffled labels",
}

Scores = dict[str, dict[str, dict[str, float]]]
"""selection -> `full` or a database -> {"uf1", "uar"}, with `_std` of each when there are several seeds."""


def by_place(databases: Sequence[str]) -> dict[str, Tensor]:
    """Where scores are given, `full` and every database -> (N,) bool, which of N clips lie there."""
    found = {FULL: torch.ones(len(databases), dtype=torch.bool)}
    for name in sorted(set(databases)):
        found[name] = torch.tensor([each == name for each in databases])
    return found


def by_seed(
    rows: Predictions, selection: str, score: Callable[[Tensor, Tensor], dict[str, float]]
) -> dict[str, list[dict[str, float]]]:
    """A score of labels and guesses (n,), in all and per database: place -> one for every seed."""
    labels, guesses = torch.from_numpy(rows.labels), torch.from_numpy(rows.chosen[selection])
    seeds, table = torch.tensor(rows.seeds), {}
    for place, inside in by_place(rows.databases).items():
        own = [inside & (seeds == seed) for seed in sorted(set(rows.seeds))]
        table[place] = [score(labels[each], guesses[each]) for each in own]
    return table


def pool(rows: Predictions) -> Scores:
    """Scores of pooled predictions, per selection, in all and per database.

    With several seeds each is pooled by itself; the scores are their mean and standard deviation. A class
    that a database lacks counts 0 there.
    """
    pooled: Scores = {}
    uf1_and_uar = partial(scores, num_classes=len(rows.classes))
    for selection in rows.chosen:
        pooled[selection] = {}
        for place, per_seed in by_seed(rows, selection, uf1_and_uar).items():
            cell: dict[str, float] = {}
            for name in ("uf1", "uar"):
                numbers = [values[name] for values in per_seed]
                cell[name] = statistics.fmean(numbers)
                if len(numbers) > 1:
                    cell[f"{name}_std"] = statistics.stdev(numbers)
            pooled[selection][place] = cell
    return pooled


def pooled_confusion(rows: Predictions) -> dict[str, dict[str, list[list[int]]]]:
    """Confusion matrices (rows truth) over all seeds: selection -> place -> C x C counts."""
    labels, table = torch.from_numpy(rows.labels), {}
    for selection, chosen in rows.chosen.items():
        guesses = torch.from_numpy(chosen)
        table[selection] = {
            place: confusion(labels[inside], guesses[inside], len(rows.classes)).tolist()
            for place, inside in by_place(rows.databases).items()
        }
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
    labels = torch.cat([study.labels_of(result.fold.seed)[result.rows] for result in results])
    every = study.databases
    databases = [every[row] for result in results for row in result.rows]
    table: dict[str, list[list[float] | None]] = {}
    for place, inside in by_place(databases).items():
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

    Raises:
        RuntimeError: a clip is tested twice or never, which would be a bug here.
    """
    numbers = {subject: number for number, subject in enumerate(sorted(set(study.subjects)))}
    selections, mark = list(results[0].predictions), [study.control] if study.control else []
    found: dict[tuple[int, int], list[Any]] = {}
    for result in results:
        seed, labels = result.fold.seed, study.labels_of(result.fold.seed).tolist()
        for i, row in enumerate(result.rows):
            chosen = [result.predictions[selection][i] for selection in selections]
            p = [f"{value:.6f}" for value in result.probabilities[i]]
            about = [*study.clips[row].split("/", 2), numbers[result.fold.subject], seed, labels[row]]
            found[seed, row] = [*about, *chosen, *p, *mark]
    seeds = {result.fold.seed for result in results}
    if not len(found) == sum(len(result.rows) for result in results) == len(seeds) * len(study.clips):
        raise RuntimeError(f"{len(found)} predictions for {len(study.clips)} clips and {len(seeds)} seeds")
    names = [f"p_{name}" for name in study.class_names]
    header = ["database", "subject", "clip", "fold", "seed", "label", *selections, *names]
    return csv_text(header + ["control"][: len(mark)], [cells for _, cells in sorted(found.items())])


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
    fold = "database" if summary.get("leave_out") == "database" else "subject"
    title = f"{summary['protocol']}: {summary['clips']} coded clips, one {fold} left out"
    made = Table("", *names, title=f"{title}; macro-F1/F1 of present", title_justify="left")
    for unit, each in summary["units"].items():
        made.add_row(unit, *(_pair(each[name], "macro", "binary") if name in each else "-" for name in names))
    means = {name: _pair(each, "macro", "binary") for name, each in summary["scores"].items()}
    made.add_row("mean", *(means[name] for name in names))
    made.caption = f"mean over units, then databases: {means['mean']}"
    return made


def _cell(values: Mapping[str, float]) -> str:
    """`.8943/.8967`; with several seeds a second line gives the deviations."""
    text = _pair(values, "uf1", "uar", 4)
    return f"{text}\n±{_pair(values, 'uf1_std', 'uar_std', 4)}" if "uf1_std" in values else text


def _pair(values: Mapping[str, float], first: str, second: str, digits: int = 3) -> str:
    """Two numbers in [0, 1] as papers print them."""
    return "/".join(f"{values[name]:.{digits}f}".removeprefix("0") for name in (first, second))
