"""Loss functions, each a pure function of tensors.

The classification losses take any leading group dimensions `...` (models trained side by side)
and give one value per model; a sample mask lets models of unequal size share padded batches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the last dimension of the entries with mask 1; 0 where there is none.

    Args:
        values: (..., B).
        mask: (..., B) of 0 and 1, or None for all.
    """
    if mask is None:
        return values.mean(-1)
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


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


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Class-weighted cross-entropy, normalised by the weights in the batch as torch does.

    Args:
        logits: (..., B, C).
        labels: (..., B) int64 in [0, C).
        weights: (..., C) weight per class.
        mask: (..., B) of 0 and 1; samples with 0 do not count.
        label_smoothing: probability in [0, 1) spread over all classes.

    Returns:
        (...) one loss per model; 0 for a model without a sample.
    """
    log_p = logits.log_softmax(-1)
    sample_weights = weights.gather(-1, labels)  # (..., B)
    if mask is not None:
        sample_weights = sample_weights * mask
    picked = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    total = -(sample_weights * picked)
    if label_smoothing > 0:
        spread = -(weights.unsqueeze(-2) * log_p).sum(-1) / logits.shape[-1]
        if mask is not None:
            spread = spread * mask
        total = (1 - label_smoothing) * total + label_smoothing * spread
    # A tiny floor, not a branch: with no sample the sums are exactly 0 and so is the loss.
    return total.sum(-1) / sample_weights.sum(-1).clamp(min=1e-12)


def attention_entropy(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean entropy of pooling weights, small where few tokens are picked ("sparse" pooling).

    Args:
        attention: (..., B, L), each row a distribution over tokens.
        mask: (..., B) of 0 and 1.

    Returns:
        (...) in [0, log L].
    """
    entropy = -(attention * attention.clamp(min=1e-9).log()).sum(-1)
    return masked_mean(entropy, mask)


def alignment_losses(
    embedding: Tensor,
    labels: Tensor,
    anchors: Tensor,
    described: Tensor,
    mask: Tensor | None = None,
    temperature: float = 0.07,
    margin: float = 0.2,
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
    cosine = (embedding @ anchors.T).masked_fill(~described, -torch.inf)
    has_text = described[labels].to(embedding.dtype)
    no_text = 1 - has_text
    if mask is not None:
        has_text, no_text = has_text * mask, no_text * mask
    log_p = (cosine / temperature).log_softmax(-1)
    own = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    own = torch.where(described[labels], own, torch.zeros_like(own))  # -inf * 0 would be nan
    too_near = (cosine.amax(-1) - margin).relu()
    return {"described": masked_mean(-own, has_text), "others": masked_mean(too_near, no_text)}
