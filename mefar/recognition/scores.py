"""Scores of spotting, and of spotting then recognising, as the grand challenges define them (MEGC, 2020 on).

Spotting. Intervals are whole frames, first and last included. A detection is a true positive when it and a
truth of the same video and the same kind (micro or macro) have an IoU of at least 0.5; each truth and each
detection counts at most once, and of all pairings the one with most true positives holds (of those the one
with the largest sum of IoU). Counts are pooled over all videos, also those without a truth or a detection;
then precision, recall and their harmonic mean F1.

Analysis. On the true positives of spotting alone, whose truth is negative, positive or surprise: P and R are
the plain means of precision and recall over these three classes, 0/0 = 0, and F1 = 2PR / (P + R), which is
not the mean of the classes' F1. A true positive called by no class, or by another, is a miss of its own
class. STRS = F1 of spotting x F1 of analysis.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

from mefar.recognition.intervals import KINDS, Interval, IntervalTable

CLASSES = ("negative", "positive", "surprise")
THRESHOLD = 0.5
GROUPS = (*KINDS, "overall")


def match(truths: Sequence[Interval], found: Sequence[Interval]) -> list[tuple[int, int]]:
    """Pair intervals of one video, whatever their kind -> (index of truth, index of detection) pairs.

    The largest number of pairs whose IoU reaches THRESHOLD; among these the largest sum of IoU.
    """
    overlap = np.array([[truth.iou(one) for one in found] for truth in truths]).reshape(
        len(truths), len(found)
    )
    good = overlap >= THRESHOLD
    # A pair more outweighs any sum of IoU, which is at most the number of pairs.
    worth = np.where(good, 1.0 + min(overlap.shape, default=0) + overlap, 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if good[r, c]]


def harmonic(first: float, second: float) -> float:
    """2ab / (a + b), 0 where both are 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


def spotting_rates(hits: int, false: int, missed: int) -> dict[str, float]:
    """precision, recall and f1 of pooled counts; 0/0 = 0."""
    precision = hits / (hits + false) if hits + false else 0.0
    recall = hits / (hits + missed) if hits + missed else 0.0
    return {"precision": precision, "recall": recall, "f1": harmonic(precision, recall)}


def analysis_rates(counts: Tensor) -> dict[str, float]:
    """precision, recall and f1 of true positives (3, 4) by true and called class; last column "no class"."""
    hits = counts[:, :3].diagonal().double()
    precision = float((hits / counts[:, :3].sum(0).clamp(min=1)).mean())
    recall = float((hits / counts.sum(1).clamp(min=1)).mean())
    return {"precision": precision, "recall": recall, "f1": harmonic(precision, recall)}


class SpottingScore(Metric):
    """Spotting, analysis and STRS for micro, macro and both, pooled over everything since the last reset.

    All intervals of a video must come in one call of `update`: a pairing is made within a video.
    """

    full_state_update = False
    spotted: Tensor  # (2, 3) micro, macro x true positives, false positives, misses
    called: Tensor  # (2, 3, 4) micro, macro x true class x called class

    def __init__(self) -> None:
        super().__init__()
        self.add_state("spotted", default=torch.zeros(2, 3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("called", default=torch.zeros(2, 3, 4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, truths: Iterable[Interval], found: Iterable[Interval]) -> None:
        """Add whole videos: all their true intervals and all that were found in them."""
        true_by, found_by = _by_video(truths), _by_video(found)
        for video, kind in sorted(set(true_by) | set(found_by)):
            true, detected = true_by[video, kind], found_by[video, kind]
            pairs = match(true, detected)
            row = KINDS.index(kind)
            counts = [len(pairs), len(detected) - len(pairs), len(true) - len(pairs)]
            self.spotted[row] += torch.tensor(counts, device=self.spotted.device)
            for t, d in pairs:
                if true[t].emotion in CLASSES:
                    said = detected[d].emotion
                    column = CLASSES.index(said) if said in CLASSES else len(CLASSES)
                    self.called[row, CLASSES.index(true[t].emotion), column] += 1

    def compute(self) -> dict[str, dict[str, float]]:
        """Group (micro, macro, overall) -> tp, fp, fn, precision, recall, f1, analysis_*, strs."""
        spotted = dict(zip(GROUPS, [*self.spotted, self.spotted.sum(0)], strict=True))
        called = dict(zip(GROUPS, [*self.called, self.called.sum(0)], strict=True))
        out: dict[str, dict[str, float]] = {}
        for group in GROUPS:
            tp, fp, fn = (int(count) for count in spotted[group])
            rates, analysis = spotting_rates(tp, fp, fn), analysis_rates(called[group])
            out[group] = {"tp": tp, "fp": fp, "fn": fn, **rates}
            out[group] |= {f"analysis_{name}": value for name, value in analysis.items()}
            out[group]["strs"] = rates["f1"] * analysis["f1"]
        return out


def score(truths: Iterable[Interval], found: Iterable[Interval]) -> dict[str, dict[str, float]]:
    """Scores of intervals of any number of videos; see `SpottingScore.compute`."""
    metric = SpottingScore()
    metric.update(truths, found)
    return metric.compute()


def elsewhere(truth: IntervalTable, found: IntervalTable) -> list[tuple[str, str]]:
    """How other evaluators would differ on these very intervals, and why: (number, reason), fewest words."""
    ours = score(truth.intervals, found.intervals)
    everything = ours["overall"]
    tp, fp, fn = (int(everything[name]) for name in ("tp", "fp", "fn"))
    said: list[tuple[str, str]] = []

    def tell(hits: int, false: int, missed: int, reason: str) -> None:
        if (hits, false, missed) != (tp, fp, fn):
            f1 = spotting_rates(hits, false, missed)["f1"]
            said.append((f"F1 {f1:.4f} (TP {hits}, FP {false}, FN {missed})", reason))

    plain = [Interval(t.video, "micro", t.onset, t.offset) for t in truth.intervals]
    mixed = score(plain, [Interval(f.video, "micro", f.onset, f.offset) for f in found.intervals])["micro"]
    tell(int(mixed["tp"]), int(mixed["fp"]), int(mixed["fn"]), "micro matched with macro")

    touched = sum(
        any(t.kind == f.kind and t.iou(f) >= THRESHOLD for f in found.intervals) for t in truth.intervals
    )
    used = sum(
        any(t.kind == f.kind and t.iou(f) >= THRESHOLD for t in truth.intervals) for f in found.intervals
    )
    tell(
        touched,
        len(found.intervals) - used,
        len(truth.intervals) - touched,
        "one detection counted for several truths",
    )

    known = {interval.video for interval in truth.intervals}
    strange = sum(interval.video not in known for interval in found.intervals)
    tell(tp, fp - strange, fn, "videos without a truth left out, and the false positives in them")

    subject = {**found.subjects, **truth.subjects}
    heard = {subject.get(interval.video, interval.video) for interval in found.intervals}
    unheard = sum(subject.get(interval.video, interval.video) not in heard for interval in truth.intervals)
    tell(tp, fp, fn - unheard, "subjects without a detection left out, and the misses in them")

    shorter = [_without_last(rows) for rows in (truth.intervals, found.intervals)]
    loose = score(*shorter)["overall"]
    tell(int(loose["tp"]), int(loose["fp"]), int(loose["fn"]), "the last frame not counted as part of it")

    per_video = [
        score(
            [t for t in truth.intervals if t.video == v], [f for f in found.intervals if f.video == v]
        )["overall"]["f1"]
        for v in sorted(known | {f.video for f in found.intervals})
    ]  # fmt: skip
    mean = float(np.mean(per_video)) if per_video else 0.0
    if abs(mean - everything["f1"]) > 5e-5:
        said.append((f"F1 {mean:.4f}", "the mean of the videos' own F1 instead of pooled counts"))
    if any(interval.emotion for interval in truth.intervals):
        precision, f1 = everything["analysis_precision"], everything["analysis_f1"]
        if abs(precision - everything["analysis_recall"]) > 5e-5:
            said.append((f"UAR {precision:.4f}", "the mean precision called UAR"))
        classes = _class_f1(truth.intervals, found.intervals)
        if abs(classes - f1) > 5e-5:
            said.append(
                (f"analysis F1 {classes:.4f}", "the mean of the classes' F1 instead of 2PR / (P + R)")
            )
    return said


def _by_video(intervals: Iterable[Interval]) -> dict[tuple[str, Any], list[Interval]]:
    groups: dict[tuple[str, Any], list[Interval]] = defaultdict(list)
    for interval in intervals:
        groups[interval.video, interval.kind].append(interval)
    return groups


def _without_last(intervals: Collection[Interval]) -> list[Interval]:
    return [
        Interval(one.video, one.kind, one.onset, max(one.onset, one.offset - 1), one.emotion)
        for one in intervals
    ]


def _class_f1(truths: Iterable[Interval], found: Iterable[Interval]) -> float:
    metric = SpottingScore()
    metric.update(truths, found)
    counts = metric.called.sum(0)
    hits = counts[:, :3].diagonal().double()
    return float((2 * hits / (counts[:, :3].sum(0) + counts.sum(1)).clamp(min=1)).mean())
