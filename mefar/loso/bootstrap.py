"""How far a score would move with other subjects: bootstrap over subjects, not clips.

Clips of one face resemble each other, so resampling clips would promise more certainty than there is.
Subjects are drawn with replacement within each database, as often as there are; scores are pooled over
what was drawn.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mefar.errors import UserError
from mefar.metrics import confusion, f1_per_class, recall_per_class

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Predictions:
    """The rows of a predictions.csv.

    Attributes:
        keys: N of (seed, database, subject, clip).
        labels: (N,) int64 in [0, C).
        chosen: selection -> (N,) int64 in [0, C).
        num_classes: C.
    """

    keys: tuple[tuple[str, str, str, str], ...]
    labels: Tensor
    chosen: dict[str, Tensor]
    num_classes: int


def read(run: Path) -> Predictions:
    """Read RUN/predictions.csv.

    Raises:
        UserError: no such file, or not one that `mefar loso` wrote.
    """
    path = Path(run) / "predictions.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in ("last", "inner", "oracle") if name in rows[0]]
        keys = tuple((row["seed"], row["database"], row["subject"], row["clip"]) for row in rows)
        labels = torch.tensor([int(row["label"]) for row in rows])
        chosen = {name: torch.tensor([int(row[name]) for row in rows]) for name in names}
    except OSError:
        raise UserError(
            f"{path}: no such file; give the folder of a run that `mefar loso` finished"
        ) from None
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{path}: not the predictions of a `mefar loso` run") from None
    return Predictions(keys, labels, chosen, sum(name.startswith("p_") for name in rows[0]))


def subject_counts(
    subjects: Sequence[tuple[str, str]], labels: Tensor, guesses: Tensor, num_classes: int
) -> tuple[list[tuple[str, str]], Tensor]:
    """Confusion matrices by subject.

    Args:
        subjects: N of (database, subject).
        labels: (N,) int64 in [0, C).
        guesses: (N,) int64 in [0, C).
        num_classes: C.

    Returns:
        The S subjects, sorted, and their (S, C, C) counts.
    """
    names = sorted(set(subjects))
    number = torch.tensor([names.index(subject) for subject in subjects])
    counts = [confusion(labels[number == i], guesses[number == i], num_classes) for i in range(len(names))]
    return names, torch.stack(counts)


def draws(names: Sequence[tuple[str, str]], times: int = DRAWS, seed: int = 0) -> Tensor:
    """How often each subject is in each resample: (times, S) float64; each database keeps its number."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(times, len(names), dtype=torch.float64)
    for database in sorted({database for database, _ in names}):
        inside = torch.tensor([i for i, name in enumerate(names) if name[0] == database])
        pick = inside[torch.randint(len(inside), (times, len(inside)), generator=generator)]
        weights.scatter_add_(1, pick, torch.ones_like(pick, dtype=torch.float64))
    return weights


def resampled(counts: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Scores of resamples: (S, C, C) and (R, S) -> `uf1`, `uar`, each (R,) in [0, 1]."""
    pooled = torch.einsum("rs,sij->rij", weights, counts.double())
    return {
        "uf1": torch.stack([f1_per_class(each).mean() for each in pooled]),
        "uar": torch.stack([recall_per_class(each).mean() for each in pooled]),
    }


def interval(values: Tensor, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of (R,) values."""
    tail = (1 - level) / 2
    return float(torch.quantile(values, tail)), float(torch.quantile(values, 1 - tail))


def intervals(rows: Predictions) -> dict[str, dict[str, dict[str, list[float]]]]:
    """95 % intervals of every selection, in all (`full`) and per database: {"uf1": [low, high], "uar": ...}.

    With several seeds, all seeds' predictions of a drawn subject are drawn together.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    owners = [(database, subject) for _, database, subject, _ in rows.keys]
    for selection, guesses in rows.chosen.items():
        names, counts = subject_counts(owners, rows.labels, guesses, rows.num_classes)
        weights = draws(names)
        found[selection] = {}
        for place in ["full", *sorted({database for database, _ in names})]:
            inside = torch.tensor([place in ("full", database) for database, _ in names])
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

    Raises:
        UserError: the runs are not of the same clips, labels and seeds, or lack the selection.
    """
    left, right = dict(zip(first.keys, first.labels.tolist(), strict=True)), {}
    right = dict(zip(second.keys, second.labels.tolist(), strict=True))
    odd = sorted(set(left.items()) ^ set(right.items()))
    if odd:
        seed, *clip = odd[0][0]
        raise UserError(
            f"the runs differ in {len({key for key, _ in odd})} clips or their labels, first "
            f"{'/'.join(clip)} (seed {seed}); compare runs of the same protocol, data and seeds"
        )
    for rows in (first, second):
        if selection not in rows.chosen:
            raise UserError(
                f"selection {selection!r} is not in both runs; choose from {', '.join(rows.chosen)}"
            )
    order = {key: row for row, key in enumerate(second.keys)}
    aligned = second.chosen[selection][torch.tensor([order[key] for key in first.keys])]
    owners = [(database, subject) for _, database, subject, _ in first.keys]
    names, a = subject_counts(owners, first.labels, first.chosen[selection], first.num_classes)
    _, b = subject_counts(owners, first.labels, aligned, first.num_classes)
    weights, once = draws(names), torch.ones(1, len(names), dtype=torch.float64)
    drawn_a, drawn_b, here, there = (
        resampled(a, weights), resampled(b, weights), resampled(a, once), resampled(b, once),
    )  # fmt: skip
    found = {}
    for name in ("uf1", "uar"):
        difference = drawn_b[name] - drawn_a[name]
        gain = float(there[name] - here[name])
        against = (difference <= 0) if gain > 0 else (difference >= 0)
        found[name] = Comparison(
            float(here[name]), float(there[name]), *interval(difference), float(against.double().mean())
        )
    return found
