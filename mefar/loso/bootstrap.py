"""How far a score would move with other subjects: bootstrap over subjects, not clips.

Clips of one face resemble each other, so resampling clips would promise more certainty than there is.
Subjects are drawn with replacement within each database, as often as there are; scores are pooled over
what was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mefar.errors import UserError
from mefar.loso.results import DRAWS, Predictions
from mefar.loso.scores import by_place
from mefar.metrics import confusion, f1_per_class, recall_per_class

LEVEL = 0.95


def subject_counts(rows: Predictions, selection: str) -> tuple[list[tuple[str, str]], Tensor]:
    """The S subjects as (database, subject), sorted, and their (S, C, C) confusion counts in a selection."""
    names = sorted(set(rows.subjects))
    place = {name: number for number, name in enumerate(names)}
    number = torch.tensor([place[subject] for subject in rows.subjects])
    labels, guesses = (torch.from_numpy(column) for column in (rows.labels, rows.chosen[selection]))
    counts = [confusion(labels[number == i], guesses[number == i], len(rows.classes)) for i in place.values()]
    return names, torch.stack(counts)


def draws(names: Sequence[tuple[str, str]], times: int = DRAWS) -> Tensor:
    """How often each subject is in each resample: (times, S) float64; each database keeps its number."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.zeros(times, len(names), dtype=torch.float64)
    for database in sorted({database for database, _ in names}):
        inside = torch.tensor([i for i, name in enumerate(names) if name[0] == database])
        pick = inside[torch.randint(len(inside), (times, len(inside)), generator=generator)]
        weights.scatter_add_(1, pick, torch.ones_like(pick, dtype=torch.float64))
    return weights


def resampled(counts: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Scores of resamples: (S, C, C) and (R, S) -> `uf1`, `uar`, each (R,) in [0, 1]."""
    pooled = torch.einsum("rs,sij->rij", weights, counts.double())
    f1, recall = torch.vmap(f1_per_class)(pooled), torch.vmap(recall_per_class)(pooled)
    return {"uf1": f1.mean(1), "uar": recall.mean(1)}


def interval(values: Tensor) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of (R,) values."""
    tail = (1 - LEVEL) / 2
    return float(torch.quantile(values, tail)), float(torch.quantile(values, 1 - tail))


def intervals(rows: Predictions) -> dict[str, dict[str, dict[str, list[float]]]]:
    """95 % intervals of every selection, in all (`full`) and per database: {"uf1": [low, high], "uar": ...}.

    With several seeds, all seeds' predictions of a drawn subject are drawn together. A class that a draw or
    a database does not hold counts 0, as in the scores themselves.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for selection in rows.chosen:
        names, counts = subject_counts(rows, selection)
        weights = draws(names)
        found[selection] = {}
        for place, inside in by_place([database for database, _ in names]).items():
            values = resampled(counts[inside], weights[:, inside])
            found[selection][place] = {name: list(interval(value)) for name, value in values.items()}
    return found


@dataclass(frozen=True)
class Comparison:
    """One score of two runs on the same clips.

    Attributes:
        first: score of the first run, in [0, 1].
        second: of the second.
        low: lower end of the 95 % interval of second - first over the same draws of subjects.
        high: upper end.
        reversed_share: share of draws in which the sign of the difference is the other one, or it is 0.
    """

    first: float
    second: float
    low: float
    high: float
    reversed_share: float


def compare(first: Predictions, second: Predictions, selection: str = "last") -> dict[str, Comparison]:
    """Paired bootstrap of two runs: `uf1` and `uar` in all.

    One may have more seeds than the other, as a network beside a method without any: what its heads say of
    a subject is drawn together, and scores are of shares.

    Raises:
        UserError: the runs are not of the same clips, classes and labels, or lack the selection.
    """
    if first.classes != second.classes:
        raise UserError(
            f"the runs have other classes, {', '.join(first.classes)} and {', '.join(second.classes)}; "
            "compare runs of the same protocol"
        )
    left, right = (set(zip(each.clips, each.labels.tolist(), strict=True)) for each in (first, second))
    if odd := sorted(left ^ right):
        raise UserError(
            f"the runs differ in {len({clip for clip, _ in odd})} clips or their labels, first {odd[0][0]}; "
            "compare runs of the same protocol and data"
        )
    for rows in (first, second):
        if selection not in rows.chosen:
            raise UserError(
                f"selection {selection!r} is not in both runs; choose from {', '.join(rows.chosen)}"
            )
    # The matrices of subjects do not depend on the order of the clips, in which the runs may differ.
    (names, a), (_, b) = subject_counts(first, selection), subject_counts(second, selection)
    weights, once = draws(names), torch.ones(1, len(names), dtype=torch.float64)
    drawn_a, drawn_b, here, there = (resampled(each, by) for by in (weights, once) for each in (a, b))
    found = {}
    for name in ("uf1", "uar"):
        difference = drawn_b[name] - drawn_a[name]
        gain = float(there[name] - here[name])
        against = (difference <= 0) if gain > 0 else (difference >= 0)
        found[name] = Comparison(
            float(here[name]), float(there[name]), *interval(difference), float(against.double().mean())
        )
    return found
