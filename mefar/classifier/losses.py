"""Loss functions, each a pure function of tensors.

The classification losses take any leading group dimensions `...` (models trained side by side)
and give one value per model; a sample mask lets models of unequal size share padded batches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE, MARGIN = 0.07, 0.2  # of the alignment, as published


def mean_weights(mask: Tensor) -> Tensor:
    """What each sample counts in a mean over the samples with mask 1; all 0 where there is none.

    Args:
        mask: (..., B) of 0 and 1.
    """
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


def balanced(counts: Tensor) -> Tensor:
    """Class weights N / (C n_c); a class without clips weighs 0, as nothing can ask for it.

    Args:
        counts: (C,) clips per class among the training clips only.

    Returns:
        (C,) float64.
    """
    counts = counts.double()
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return torch.where(counts > 0, weights, torch.zeros_like(weights))


def inverse_deviation(mean: Tensor, square: Tensor) -> Tensor:
    """1 / standard deviation per dimension, from mean and mean square.

    A dimension that hardly moves carries nothing; dividing by its rounding noise would invent something,
    so deviations count at least a thousandth of their mean.

    Args:
        mean: (..., D) float64.
        square: (..., D) float64.
    """
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return 1 / torch.maximum(deviation, 1e-3 * deviation.mean(-1, keepdim=True) + 1e-12)


def class_targets(
    labels: Tensor, weights: Tensor, mask: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """What the log probability of each sample and class counts in the classification loss.

    Class-weighted cross-entropy, normalised by the weights in the batch as torch does.

    Args:
        labels: (..., B) int64 in [0, C).
        weights: (..., C) weight per class.
        mask: (..., B) of 0 and 1; samples with 0 do not count.
        label_smoothing: probability in [0, 1) spread over all classes.

    Returns:
        (..., B, C); all 0 for a model without a sample.
    """
    C = weights.shape[-1]
    counted = weights.expand(*labels.shape[:-1], C).gather(-1, labels)  # (..., B)
    if mask is not None:
        counted = counted * mask
    targets = (1 - label_smoothing) * counted.unsqueeze(-1) * one_hot(labels, C, weights.dtype)
    if label_smoothing > 0:
        spread = label_smoothing / C * weights.unsqueeze(-2)
        targets = targets + (spread if mask is None else spread * mask.unsqueeze(-1))
    # A tiny floor, not a branch: with no sample everything is exactly 0.
    return targets / counted.sum(-1).clamp(min=1e-12)[..., None, None]


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(...) int64 in [0, C) -> (..., C) of 0 and 1."""
    return functional.one_hot(labels, classes).to(dtype)


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Class-weighted cross-entropy, see class_targets.

    Args:
        logits: (..., B, C).
        labels: (..., B) int64 in [0, C).
        weights: (..., C) weight per class.
        mask: (..., B) of 0 and 1; samples with 0 do not count.
        label_smoothing: probability in [0, 1) spread over all classes.

    Returns:
        (...) one loss per model; 0 for a model without a sample.
    """
    return _log_loss(logits, class_targets(labels, weights, mask, label_smoothing))


def _log_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the sum of targets times log probabilities: (..., B, C), (..., B, C) -> (...)."""
    return -(targets * logits.log_softmax(-1)).sum((-2, -1))


def attention_entropy(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean entropy of pooling weights, small where few tokens are picked ("sparse" pooling).

    Args:
        attention: (..., B, L), each row a distribution over tokens.
        mask: (..., B) of 0 and 1.

    Returns:
        (...) in [0, log L].
    """
    mask = torch.ones_like(attention[..., 0]) if mask is None else mask
    entropy = -(attention * attention.clamp(min=1e-9).log()).sum(-1)
    return (entropy * mean_weights(mask)).sum(-1)


def alignment_targets(
    labels: Tensor, described: Tensor, dtype: torch.dtype, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What each sample counts in the two alignment losses.

    Args:
        labels: (..., B) int64 in [0, C).
        described: (C,) bool, which classes have text.
        dtype: of the weights.
        mask: (..., B) of 0 and 1.

    Returns:
        (..., B, C) of the log probability of each class, and (..., B) of being too near to any anchor.
    """
    has_text = described[labels].to(dtype)
    no_text = 1 - has_text
    if mask is not None:
        has_text, no_text = has_text * mask, no_text * mask
    near = mean_weights(has_text).unsqueeze(-1) * one_hot(labels, len(described), dtype)
    return near, mean_weights(no_text)


def cosines(embedding: Tensor, anchors: Tensor, described: Tensor) -> Tensor:
    """(..., B, E), (C, E), (C,) -> (..., B, C) cosines with the anchors, -1e4 where a class has no text."""
    # Not -inf: times a target of 0 it would be nan. Its probability is 0 all the same.
    return (embedding @ anchors.T).masked_fill(~described, -1e4)


def alignment_losses(
    embedding: Tensor,
    labels: Tensor,
    anchors: Tensor,
    described: Tensor,
    mask: Tensor | None = None,
    temperature: float = TEMPERATURE,
    margin: float = MARGIN,
) -> dict[str, Tensor]:
    """EDCLIP: near the text anchor of the own class, or, without one, far from all anchors.

    Args:
        embedding: (..., B, E) unit vectors in the text space.
        labels: (..., B) int64 in [0, C).
        anchors: (C, E) unit vectors; rows of classes without text are ignored.
        described: (C,) bool, which classes have text.
        mask: (..., B) of 0 and 1.
        temperature: of the softmax over cosines.
        margin: cosine in [-1, 1] that samples of classes without text must stay under.

    Returns:
        `described`: (...) cross-entropy over cosine / temperature among the classes with text,
        mean over samples of such classes. `others`: (...) mean(relu(max cosine - margin)) over
        the rest. Either is 0 where the batch has no such sample.
    """
    near, others = alignment_targets(labels, described, embedding.dtype, mask)
    cosine = cosines(embedding, anchors, described)
    too_near = (cosine.amax(-1) - margin).relu()
    return {"described": _log_loss(cosine / temperature, near), "others": (too_near * others).sum(-1)}
