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

from mefar import losses
from mefar.head import HeadOutput


@dataclass(frozen=True)
class Targets:
    """What each sample counts in each loss, for an epoch or, by `at`, for a step of it.

    Attributes:
        classes: (..., G, B, C), see losses.class_targets.
        counted: (..., G, B), see losses.mean_weights.
        aligned: see losses.alignment_targets; None where nothing is aligned.
    """

    classes: Tensor
    counted: Tensor
    aligned: tuple[Tensor, Tensor] | None

    def at(self, index: Any) -> Targets:
        """A part, by an index into the leading dimensions."""
        aligned = None if self.aligned is None else (self.aligned[0][index], self.aligned[1][index])
        return Targets(self.classes[index], self.counted[index], aligned)


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
            aligned = losses.alignment_targets(labels, self.described, mask.dtype, mask)
        classes = losses.class_targets(labels, self.class_weights, mask, self.label_smoothing)
        return Targets(classes, losses.mean_weights(mask), aligned)

    def gradients(self, output: HeadOutput, targets: Targets) -> Sequence[tuple[Tensor, Tensor]]:
        """Each output of the heads with the gradient of the objective by it."""
        classes = targets.classes
        by_logits = output.logits.softmax(-1).mul_(classes.sum(-1, keepdim=True)).sub_(classes)
        by_attention = output.attention.clamp(min=1e-9).log_().add_(1)
        by_attention.mul_((-self.entropy_weight * targets.counted).unsqueeze(-1))
        found = [(output.logits, by_logits), (output.attention, by_attention)]
        if targets.aligned is not None:
            assert output.text is not None
            found.append((output.text, self._by_text(output.text, *targets.aligned)))
        return found

    def _by_text(self, text: Tensor, described: Tensor, others: Tensor) -> Tensor:
        assert self.anchors is not None and self.described is not None
        cosine = losses.cosines(text, self.anchors, self.described)
        near = (cosine / losses.TEMPERATURE).softmax(-1)
        by_cosine = near.mul_(described.sum(-1, keepdim=True)).sub_(described)
        by_cosine.mul_(self.edclip_weight / losses.TEMPERATURE)
        nearest, which = cosine.max(-1, keepdim=True)
        too_near = (nearest > losses.MARGIN).to(cosine.dtype) * others.unsqueeze(-1)
        by_cosine.scatter_add_(-1, which, self.edclip_weight * self.others_weight * too_near)
        return by_cosine @ self.anchors
