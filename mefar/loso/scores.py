"""From folds to what a reader sees: pooled scores, predictions.csv, confusion matrices, the table.

Predictions of all folds are pooled before anything is scored: UF1 and UAR are never means over folds.
The columns of single databases are the same pooled predictions restricted to that database.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from mefar.loso.engine import TokenSet
from mefar.loso.folds import FoldResult
from mefar.metrics import confusion, scores

FULL = "full"
ORACLE_WARNING = "oracle (leaks; only to compare with published tables)"
COLUMN_TITLES: dict[str, str] = {
    "oracle": "oracle*",
    "pixels": "control: pixels",
    "shuffled": "control: shuffled labels",
}

Scores = dict[str, dict[str, dict[str, float]]]
"""selection -> `full` or a database -> {"uf1", "uar"}, with `_std` of each when there are several seeds."""


@dataclass(frozen=True)
class StudyTokens:
    """A study as LOSO needs it: tokens and labels, and whose they are.

    Attributes:
        protocol: composite, casme2, samm, smic, ...
        data: tokens (N, V, L, D), labels, subjects, class names.
        clips: N clip keys "database/subject/clip".
        tokenizer: checkpoint, sha256, pretrained_on.
        counts: per database and in all: clips, subjects, clips per class.
        dropped: (key, reason) of clips that are not in the study.
        control: "shuffled" where the labels are not the true ones; marks all that is written.
    """

    protocol: str
    data: TokenSet
    clips: tuple[str, ...]
    tokenizer: Mapping[str, str]
    counts: Mapping[str, Any]
    dropped: Sequence[tuple[str, str]] = ()
    control: str = ""

    def shuffled(self, seed: int = 0) -> StudyTokens:
        """The control: the same clips with their labels permuted over all of them."""
        order = torch.randperm(len(self.clips), generator=torch.Generator().manual_seed(seed))
        data = replace(self.data, labels=self.data.labels[order])
        return replace(self, data=data, control="shuffled")

    @property
    def places(self) -> list[str]:
        """Where scores are given: `full`, then every database."""
        return [FULL, *sorted(set(self.databases))]

    @property
    def databases(self) -> tuple[str, ...]:
        """N database ids, one per clip."""
        return tuple(clip.split("/", 1)[0] for clip in self.clips)


def _columns(
    study: StudyTokens, results: Sequence[FoldResult], selection: str
) -> tuple[list[int], list[int]]:
    """Rows and predictions of pooled folds."""
    rows = [row for result in results for row in result.rows]
    guesses = [guess for result in results for guess in result.predictions[selection]]
    return rows, guesses


def place_scores(study: StudyTokens, guesses: Tensor) -> dict[str, dict[str, float]]:
    """UF1 and UAR of one prediction per clip, in all and per database.

    Args:
        study: whose labels.
        guesses: (N,) class indices in the study's order.
    """
    found = {}
    for place in study.places:
        inside = torch.tensor([place in (FULL, database) for database in study.databases])
        labels = study.data.labels[inside]
        found[place] = scores(labels, guesses[inside], len(study.data.class_names))
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
            rows, guesses = _columns(study, [r for r in results if r.fold.seed == seed], selection)
            if sorted(rows) != list(range(len(study.clips))):
                raise RuntimeError(f"seed {seed}: {len(rows)} predictions for {len(study.clips)} clips")
            per_seed.append(place_scores(study, torch.tensor(guesses)[torch.tensor(rows).argsort()]))
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


def pooled_confusion(
    study: StudyTokens, results: Sequence[FoldResult]
) -> dict[str, dict[str, list[list[int]]]]:
    """Confusion matrices (rows truth) over all seeds: selection -> place -> C x C counts."""
    databases, C = study.databases, len(study.data.class_names)
    table: dict[str, dict[str, list[list[int]]]] = {}
    for selection in results[0].predictions:
        rows, guesses = _columns(study, results, selection)
        table[selection] = {}
        for place in study.places:
            kept = [(row, g) for row, g in zip(rows, guesses, strict=True) if place in (FULL, databases[row])]
            labels = study.data.labels[torch.tensor([row for row, _ in kept])]
            table[selection][place] = confusion(labels, torch.tensor([g for _, g in kept]), C).tolist()
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
    databases = study.databases
    rows = torch.tensor([row for result in results for row in result.rows])
    weights = torch.tensor([clip for result in results for clip in result.attention], dtype=torch.float64)
    table: dict[str, list[list[float] | None]] = {}
    for place in study.places:
        inside = torch.tensor([place in (FULL, databases[row]) for row in rows.tolist()])
        table[place] = []
        for label in range(len(study.data.class_names)):
            own = weights[inside & (study.data.labels[rows] == label)]
            table[place].append([round(w, 5) for w in own.mean(0).tolist()] if len(own) else None)
    return table


def predictions_csv(study: StudyTokens, results: Sequence[FoldResult]) -> str:
    """predictions.csv: one row per clip and seed, sorted by seed and clip.

    Columns: database, subject, clip, fold (number of the held-out subject among the sorted subject
    keys), seed, label, one column per selection (class indices), p_<class> of the last epoch; in a
    control also `control`, which says that the labels are not the true ones.
    """
    numbers = {subject: number for number, subject in enumerate(sorted(set(study.data.subjects)))}
    selections = list(results[0].predictions)
    mark = [study.control] if study.control else []
    rows = []
    for result in results:
        for i, row in enumerate(result.rows):
            chosen = [result.predictions[selection][i] for selection in selections]
            p = [f"{value:.6f}" for value in result.probabilities[i]]
            fold = numbers[result.fold.subject]
            label = int(study.data.labels[row])
            cells = [*study.clips[row].split("/", 2), fold, result.fold.seed, label, *chosen, *p, *mark]
            rows.append((result.fold.seed, row, cells))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"p_{name}" for name in study.data.class_names]
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
    title = f"{summary['protocol']}: {summary['clips']} clips, {summary['folds']} subjects; UF1/UAR"
    if summary.get("control"):
        title += f"; labels {summary['control']}, a CONTROL"
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


def _cell(values: Mapping[str, float]) -> str:
    """`.8943/.8967` as papers print it; with several seeds a second line gives the deviations."""
    text = "/".join(f"{values[name]:.4f}".removeprefix("0") for name in ("uf1", "uar"))
    if "uf1_std" in values:
        spread = "/".join(f"{values[f'{name}_std']:.4f}".removeprefix("0") for name in ("uf1", "uar"))
        text += f"\n±{spread}"
    return text
