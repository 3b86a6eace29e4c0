"""What heads are trained for. The only place of a head's loss.

    cross-entropy with class weights and label smoothing, of one choice or of every class by itself
    + entropy_weight * entropy of the attention over tokens
    + edclip_weight * (alignment with the texts + others_weight * distance of what has no text)

Every function is about one head and one batch, in operations that torch.func can vectorise: the engine of
leave-one-subject-out maps them over many heads. A mask lets heads with unequal batches share padded ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mefar.classifier.head import HeadOutput
from mefar.classifier.settings import HeadTraining

COLDEST = 0.01
"""Least temperature that is learned, as CLIP's own training has it."""


@dataclass(frozen=True)
class TextAnchors:
    """What EDCLIP aligns to.

    Attributes:
        vectors: (C, E) float unit vectors, zero for classes without text.
        described: (C,) bool, which classes have text.
    """

    vectors: Tensor
    described: Tensor

    def shuffled(self) -> TextAnchors:
        """Every class that has a text has the one of the next such class instead."""
        rows = self.described.nonzero()[:, 0]
        vectors = self.vectors.clone()
        vectors[rows] = self.vectors[rows.roll(1)]
        return replace(self, vectors=vectors)

    def to(self, like: Tensor) -> TextAnchors:
        """On the device and in the type of a tensor."""
        return replace(self, vectors=self.vectors.to(like), described=self.described.to(like.device))


def balanced(counts: Tensor) -> Tensor:
    """Training clips per class (C,) -> weights N / (C n_c), (C,) float64; 0 for a class without clips."""
    counts = counts.double()
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return torch.where(counts > 0, weights, torch.zeros_like(weights))


def class_weights(counts: Tensor, training: HeadTraining) -> Tensor:
    """Weights of the classes of a fold, (C,) float64, from its training clips per class (C,)."""
    return balanced(counts) if training.class_weights == "balanced" else torch.ones(len(counts)).double()


def label_weights(labels: Tensor, num_classes: int, training: HeadTraining) -> Tensor:
    """Weights of a fold's training labels, float64.

    Args:
        labels: (n,) int64 in [0, C): one class per clip; or (n, C) of 0 and 1: several.
        num_classes: C.
        training: balanced or equal.

    Returns:
        (C,) of the classes; or (2, C), of not having a class and of having it.
    """
    if labels.ndim == 1:
        return class_weights(torch.bincount(labels, minlength=num_classes), training)
    having = labels.sum(0)
    pairs = torch.stack([len(labels) - having, having])  # (2, C)
    return torch.stack([class_weights(pair, training) for pair in pairs.unbind(1)], 1)


def token_statistics(mean: Tensor, square: Tensor, training: HeadTraining) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation that tokens are normalised with.

    A dimension that hardly moves carries nothing; dividing by its rounding noise would invent something,
    so deviations count at least a thousandth of their mean.

    Args:
        mean: (D,) float64 of each dimension over the training clips, views and tokens.
        square: (D,) float64 mean square.
        training: 0 and 1 unless it says `normalise`.
    """
    if not training.normalise:
        return torch.zeros_like(mean), torch.ones_like(mean)
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return mean, 1 / torch.maximum(deviation, 1e-3 * deviation.mean() + 1e-12)


def head_loss(
    output: HeadOutput,
    labels: Tensor,
    weights: Tensor,
    training: HeadTraining,
    anchors: TextAnchors | None = None,
    mask: Tensor | None = None,
    batch: Tensor | None = None,
) -> dict[str, Tensor]:
    """Named terms of the loss, each already weighted; their sum is the loss.

    Args:
        output: of the head, for B clips.
        labels: (B,) int64 in [0, C); or (B, C) of 0 and 1, several classes per clip, which go without texts.
        weights: `label_weights`, (C,) or (2, C).
        training: smoothing, weights of the terms, temperature and margin.
        anchors: what is aligned to, for heads that speak to texts.
        mask: (B,) of 0 and 1; clips with 0 do not count.
        batch: labels of the whole batch where these clips are a rank's part of it: means are taken over
            the whole batch, so that the sum of the ranks' losses is the loss of the batch.

    Returns:
        `classification`; `entropy` where the head has attention; `described` and `others` where it aligns.
    """
    mask = torch.ones_like(output.logits[..., 0]) if mask is None else mask
    whole, counted = (labels, mask) if batch is None else (batch, torch.ones_like(batch, dtype=mask.dtype))
    smoothing = training.label_smoothing
    if weights.ndim == 2:
        terms = {"classification": several_classes_loss(output.logits, labels, weights, mask, smoothing)}
    else:
        each = F.cross_entropy(output.logits, labels, weights, reduction="none", label_smoothing=smoothing)
        total = (weights[whole] * counted).sum().clamp(min=1e-12)
        terms = {"classification": (each * mask).sum() / total}
    if output.attention is not None:
        entropy = attention_entropy(output.attention) * mask
        terms["entropy"] = training.entropy_weight * entropy.sum() / counted.sum().clamp(min=1)
    if anchors is not None and output.text is not None and training.edclip_weight > 0:
        described = anchors.described[whole] * counted  # (B,) 1 = its class has a text
        temperature = temperature_of(output, training)
        near, far = alignment_losses(output.text, labels, anchors, temperature, training.margin)
        weight = training.edclip_weight
        terms["described"] = weight * (near * mask).sum() / described.sum().clamp(min=1)
        apart = (counted - described).sum().clamp(min=1)
        terms["others"] = weight * training.others_weight * (far * mask).sum() / apart
    return terms


def temperature_of(output: HeadOutput, training: HeadTraining) -> float | Tensor:
    """Of the softmax over cosines with the texts: as it is set, or times the factor that a head learns."""
    if output.temperature is None:
        return training.temperature
    return (training.temperature * output.temperature).clamp(min=COLDEST)


def several_classes_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, mask: Tensor, smoothing: float
) -> Tensor:
    """Weighted binary cross-entropy of every class, the mean over classes and clips that count.

    Logits and labels (B, C), weights (2, C), mask (B,), smoothing in [0, 1) -> () scalar.
    """
    labels = labels.to(logits.dtype)
    own = weights[0] + labels * (weights[1] - weights[0])  # (B, C)
    targets = (1 - smoothing) * labels + smoothing / 2
    errors = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    counted = own * mask.unsqueeze(-1)
    return (errors * counted).sum() / counted.sum().clamp(min=1e-12)


def attention_entropy(attention: Tensor) -> Tensor:
    """(B, L) distributions over tokens -> (B,) entropies in [0, log L], small where few tokens are picked."""
    return -(attention * attention.clamp(min=1e-9).log()).sum(-1)


def alignment_losses(
    embedding: Tensor, labels: Tensor, anchors: TextAnchors, temperature: float | Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """EDCLIP: near the text anchor of the own class, or, without one, far from all anchors.

    Args:
        embedding: (B, E) unit vectors in the text space.
        labels: (B,) int64 in [0, C).
        anchors: of the C classes.
        temperature: of the softmax over cosines.
        margin: cosine in [-1, 1] that clips of classes without text must stay under.

    Returns:
        (B,) cross-entropy over cosine / temperature among the classes with text, 0 for clips of the others;
        (B,) relu(max cosine - margin) of clips of classes without text, 0 for the rest.
    """
    # Not -inf: what is asked for a clip without text is left out by a factor of 0, and must not be nan.
    cosines = (embedding @ anchors.vectors.T).masked_fill(~anchors.described, -1e4)  # (B, C)
    has_text = anchors.described[labels]
    near = F.cross_entropy(cosines / temperature, labels, reduction="none")
    far = (cosines.amax(-1) - margin).relu()
    return near * has_text, far * ~has_text
