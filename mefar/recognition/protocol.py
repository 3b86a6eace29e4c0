"""Spotting under leave-one-subject-out: what the rule has to be told is chosen on the other subjects.

The rule has one number, its threshold. For each subject the threshold that gives the best F1 on all *other*
subjects spots this one; then the counts of all videos are pooled. The default threshold, fixed in advance,
stands beside it, and so does the one best on the subject itself ("oracle"), as published tables choose it.

Spotting then recognising: what is spotted in a subject is called by a linear classifier (class-balanced
ridge, its penalty chosen inside) on the tokens of the true expressions of the other subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mefar.baselines.pixels import fit_and_predict, subject_numbers
from mefar.recognition.intervals import KINDS, Interval
from mefar.recognition.scores import CLASSES, SpottingScore, spotting_rates

THRESHOLDS = tuple(float(t) for t in np.round(np.geomspace(3.0, 12.0, 15), 2))


@dataclass(frozen=True)
class Candidate:
    """Something that the rule would call an event at any threshold up to its certainty."""

    interval: Interval
    certainty: float


@dataclass(frozen=True)
class Fold:
    """One held-out subject.

    Attributes:
        subject: whom nothing was chosen on.
        threshold: best on all others; the smallest of equals that is not below the default.
        others_f1: F1 there, micro and macro together.
        oracle: the threshold best on the subject itself. It leaks.
    """

    subject: str
    threshold: float
    others_f1: float
    oracle: float


def over(candidates: Sequence[Candidate], threshold: float) -> list[Interval]:
    """What is spotted at a threshold."""
    return [one.interval for one in candidates if one.certainty >= threshold]


def leave_one_out(
    truths: Mapping[str, Sequence[Interval]],
    candidates: Mapping[str, Sequence[Candidate]],
    subjects: Mapping[str, str],
    default: float,
) -> list[Fold]:
    """Choose a threshold for every subject.

    Args:
        truths: video -> true intervals; every video is named, also one without any.
        candidates: video -> what could be spotted in it.
        subjects: video -> whose it is.
        default: the threshold to prefer among equals.
    """
    people = sorted(set(subjects.values()))
    counts = {person: np.zeros((len(THRESHOLDS), 3), np.int64) for person in people}
    for video, person in subjects.items():
        for row, threshold in enumerate(THRESHOLDS):
            metric = SpottingScore()
            metric.update(truths.get(video, ()), over(candidates.get(video, ()), threshold))
            counts[person][row] += metric.spotted.sum(0).numpy()
    whole = np.sum(list(counts.values()), axis=0)
    order = sorted(range(len(THRESHOLDS)), key=lambda row: abs(np.log(THRESHOLDS[row] / default)))

    def best(table: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> tuple[int, float]:
        f1 = {row: spotting_rates(*map(int, table[row]))["f1"] for row in order}
        row = max(order, key=lambda row: f1[row])  # the first of equals is nearest to the default
        return row, f1[row]

    folds = []
    for person in people:
        row, f1 = best(whole - counts[person])
        own, _ = best(counts[person])
        folds.append(Fold(person, THRESHOLDS[row], f1, THRESHOLDS[own]))
    return folds


def pooled(
    truths: Mapping[str, Sequence[Interval]],
    candidates: Mapping[str, Sequence[Candidate]],
    threshold_of: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Scores over all videos, each spotted at its own threshold; see `SpottingScore.compute`."""
    metric = SpottingScore()
    for video, threshold in threshold_of.items():
        metric.update(truths.get(video, ()), over(candidates.get(video, ()), threshold))
    return metric.compute()


def per_subject(
    truths: Mapping[str, Sequence[Interval]],
    candidates: Mapping[str, Sequence[Candidate]],
    subjects: Mapping[str, str],
    threshold_of: Mapping[str, float],
) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Subject -> kind -> true positives, false positives, misses."""
    metrics: dict[str, SpottingScore] = {}
    for video, person in subjects.items():
        metric = metrics.setdefault(person, SpottingScore())
        metric.update(truths.get(video, ()), over(candidates.get(video, ()), threshold_of[video]))
    return {
        person: {kind: tuple(metric.spotted[row].tolist()) for row, kind in enumerate(KINDS)}
        for person, metric in sorted(metrics.items())
    }


def call_classes(
    known: torch.Tensor,
    labels: Sequence[str],
    subjects: Sequence[str],
    spotted: torch.Tensor,
    whose: Sequence[str],
) -> list[str]:
    """Classes of spotted expressions, each by a classifier that never saw its subject.

    Args:
        known: (N, P) what is read of the true expressions.
        labels: their N classes, of CLASSES.
        subjects: their N subjects.
        spotted: (M, P) what is read of the spotted ones.
        whose: their M subjects.

    Returns:
        M of CLASSES; "" where the other subjects, fewer than two, or of one class, can teach nothing.
    """
    rows = torch.cat([known, spotted]).double()
    gram = rows @ rows.T
    number = subject_numbers([*subjects, *whose])
    true = torch.tensor([CLASSES.index(label) for label in labels], dtype=torch.int64)
    everything = torch.cat([true, torch.zeros(len(spotted), dtype=torch.int64)])
    called = [""] * len(spotted)
    for person in torch.unique(number[len(known) :]).tolist():
        train = (number[: len(known)] != person).nonzero()[:, 0]
        test = (number[len(known) :] == person).nonzero()[:, 0] + len(known)
        if len(torch.unique(number[train])) < 2 or len(torch.unique(true[train])) < 2:
            continue
        found = fit_and_predict(gram, everything, number, train, test, len(CLASSES))
        for row, name in zip(test.tolist(), found.tolist(), strict=True):
            called[row - len(known)] = CLASSES[name]
    return called
