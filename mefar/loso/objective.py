"""What the heads of a group are trained for, and its gradient written out.

    cross-entropy with class weights and label smoothing
    + entropy_weight * entropy of the pooling weights
    + edclip_weight * (alignment with the texts + others_weight * distance of what has no text)

Shapes: steps, G models, B batch, C classes, L tokens, E text space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mefar.classifier import losses
from mefar.classifier.head import HeadOutput


@dataclass(frozen=True)
class Targets:
    """What each sample counts in each weighted loss, for an epoch or, by `at`, for a step of it.

    Attributes:
        classes: (..., G, B, C), see losses.class_targets, and their sum over the classes.
        entropy: (..., G, B, 1), what its pooling entropy counts.
        aligned: (..., G, B, C) of the texts, as `classes`, and (..., G, B, 1) of being too near to one; see
            losses.alignment_targets. None where nothing is aligned.
    """

    classes: tuple[Tensor, Tensor]
    entropy: Tensor
    aligned: tuple[Tensor, Tensor, Tensor] | None

    def at(self, index: Any) -> Targets:
        """A part, by an index into the leading dimensions."""
        aligned = self.aligned
        if aligned is not None:
            aligned = aligned[0][index], aligned[1][index], aligned[2][index]
        return Targets((self.classes[0][index], self.classes[1][index]), self.entropy[index], aligned)


def _by_scores(scores: Tensor, counted: Tensor, total: Tensor) -> Tensor:
    """Gradient of -sum(counted * log_softmax(scores)): (..., C), (..., C), its sum (..., 1) -> (..., C)."""
    return scores.softmax(-1).mul_(total).sub_(counted)


@dataclass(frozen=True)
class Objective:
    """The sum of the models' losses, by its gradient: nothing else of it is asked for.

    Attributes:
        class_weights: (G, C).
        anchors: (C, E) unit vectors, zero for classes without text; None aligns nothing.
        described: (C,) bool, which classes have text.
        label_smoothing: probability in [0, 1) spread over all classes.
        entropy_weight: of the pooling entropy.
        edclip_weight: of the alignment.
        others_weight: of classes without text, inside it.
    """

    class_weights: Tensor
    anchors: Tensor | None
    described: Tensor | None
    label_smoothing: float
    entropy_weight: float
    edclip_weight: float
    others_weight: float

    def targets(self, labels: Tensor, mask: Tensor) -> Targets:
        """Of samples with labels and mask (..., G, B)."""
        aligned = None
        if self.described is not None:
            near, others = losses.alignment_targets(labels, self.described, mask.dtype, mask)
            near, others = self.edclip_weight * near, self.edclip_weight * self.others_weight * others
            aligned = near, near.sum(-1, keepdim=True), others.unsqueeze(-1)
        classes = losses.class_targets(labels, self.class_weights, mask, self.label_smoothing)
        entropy = self.entropy_weight * losses.mean_weights(mask).unsqueeze(-1)
        return Targets((classes, classes.sum(-1, keepdim=True)), entropy, aligned)

    def gradients(self, output: HeadOutput, targets: Targets) -> Sequence[tuple[Tensor, Tensor]]:
        """Each output of the heads with the gradient of the objective by it."""
        by_logits = _by_scores(output.logits, *targets.classes)
        by_attention = output.attention.clamp(min=1e-9).log_().add_(1).mul_(targets.entropy).neg_()
        found = [(output.logits, by_logits), (output.attention, by_attention)]
        if targets.aligned is not None:
            assert output.text is not None
            found.append((output.text, self._by_text(output.text, *targets.aligned)))
        return found

    def _by_text(self, text: Tensor, near: Tensor, total: Tensor, others: Tensor) -> Tensor:
        assert self.anchors is not None and self.described is not None
        cosine = losses.cosines(text, self.anchors, self.described)
        by_cosine = _by_scores(cosine / losses.TEMPERATURE, near, total).div_(losses.TEMPERATURE)
        nearest, which = cosine.max(-1, keepdim=True)
        by_cosine.scatter_add_(-1, which, (nearest > losses.MARGIN) * others)
        return by_cosine @ self.anchors
