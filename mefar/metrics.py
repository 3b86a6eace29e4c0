"""UF1 and UAR, the two numbers every micro-expression paper reports.

Definition (MEGC2019): pool the predictions of all folds first. Per class c over the pooled set
F1_c = 2 TP / (2 TP + FP + FN) and recall_c = TP / n_c; UF1 and UAR are their plain means over
*all* classes of the protocol, 0/0 counting as 0. Never the mean of per-fold scores, and a class
that is absent from a subset still counts (widely copied code drops it).

The metrics keep a matrix of counts rather than lists of predictions: sums of integers are the
same whatever rank saw which clip, also where some rank saw none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


def confusion(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Count how often each class was taken for each class: (C, C) int64, rows truth, columns prediction.

    Labels, which are the truth, and predictions are (N,) int64 in [0, C).

    Raises:
        ValueError: different lengths, or a value outside [0, C).
    """
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError(f"{tuple(labels.shape)} labels, {tuple(predictions.shape)} predictions")
    both = torch.cat([labels, predictions])
    if len(both) and not (int(both.min()) >= 0 and int(both.max()) < num_classes):
        raise ValueError(f"classes {int(both.min())}..{int(both.max())} outside [0, {num_classes})")
    pairs = labels * num_classes + predictions
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def f1_per_class(counts: Tensor) -> Tensor:
    """(C, C) confusion -> (C,) float64 F1 of each class, 0 where a class never occurs."""
    hits = counts.diagonal().double()
    return 2 * hits / (counts.sum(0) + counts.sum(1)).clamp(min=1)


def recall_per_class(counts: Tensor) -> Tensor:
    """(C, C) confusion -> (C,) float64 recall of each class, 0 where a class has no clip."""
    return counts.diagonal().double() / counts.sum(1).clamp(min=1)


def scores(labels: Tensor, predictions: Tensor, num_classes: int) -> dict[str, float]:
    """UF1 and UAR of pooled predictions: {"uf1": ..., "uar": ...}, each in [0, 1].

    Arguments as of `confusion`; all classes of the protocol count, present here or not.
    """
    counts = confusion(labels, predictions, num_classes)
    return {"uf1": float(f1_per_class(counts).mean()), "uar": float(recall_per_class(counts).mean())}


class _Confusion(Metric):
    """A metric over the pooled confusion matrix."""

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        zero = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", default=zero, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add clips: predictions (N,) class indices or (N, C) logits, labels (N,) int64."""
        if predictions.ndim == 2:
            predictions = predictions.argmax(1)
        # Not in place: `Trainer.validate` leaves a tensor here that a later `fit` may only read.
        self.counts = self.counts + confusion(labels, predictions, self.num_classes)


class UF1(_Confusion):
    """Unweighted F1 over all classes, pooled over everything seen since the last reset."""

    def compute(self) -> Tensor:
        """Scalar in [0, 1]."""
        return f1_per_class(self.counts).mean().float()


class UAR(_Confusion):
    """Unweighted average recall over all classes, pooled since the last reset."""

    def compute(self) -> Tensor:
        """Scalar in [0, 1]."""
        return recall_per_class(self.counts).mean().float()
