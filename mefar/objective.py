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
    aligned: losses.AlignmentTargets | None

    def at(self, index: Any) -> Targets:
        """A part, by an index into the leading dimensions."""
        aligned = None if self.aligned is None else self.aligned.at(index)
        return Targets(self.classes[index], self.counted[index], aligned)


@dataclass(frozen=True)
class Objective:
    """The sum of the models' losses.

    Attributes:
        class_weights: (G, C).
        anchors: (C, E) unit vectors, zero for classes without text; None aligns nothing.
        described: (C,) bool, which classes have text.
        label_smoothing: probability in [0, 1) spread over all classes.
        entropy_weight: of the pooling entropy.
        edclip_weight: of the alignment.
        others_weight: of classes without text, inside it.
        temperature: see losses.alignment_losses.
        margin: the same.
    """

    class_weights: Tensor
    anchors: Tensor | None
    described: Tensor | None
    label_smoothing: float
    entropy_weight: float
    edclip_weight: float
    others_weight: float
    temperature: float = 0.07
    margin: float = 0.2

    def targets(self, labels: Tensor, mask: Tensor) -> Targets:
        """Of samples with labels and mask (..., G, B)."""
        aligned = None
        if self.described is not None:
            everyone = bool(self.described.all())
            aligned = losses.alignment_targets(labels, self.described, mask.dtype, mask, everyone)
        classes = losses.class_targets(labels, self.class_weights, mask, self.label_smoothing)
        return Targets(classes, losses.mean_weights(mask), aligned)

    def value(self, output: HeadOutput, targets: Targets) -> Tensor:
        """The objective, a number; what is trained uses only its gradients."""
        total = losses.weighted_log_loss(output.logits, targets.classes)
        total = total + self.entropy_weight * losses.weighted_entropy(output.attention, targets.counted)
        if targets.aligned is not None:
            assert output.text is not None and self.anchors is not None and self.described is not None
            terms = losses.weighted_alignment(
                output.text, targets.aligned, self.anchors, self.described, self.temperature, self.margin
            )
            total = total + self.edclip_weight * (terms["described"] + self.others_weight * terms["others"])
        return total.sum()

    def gradients(self, output: HeadOutput, targets: Targets) -> Sequence[tuple[Tensor, Tensor]]:
        """Each output of the heads with the gradient of the objective by it."""
        classes = targets.classes
        by_logits = output.logits.softmax(-1).mul_(classes.sum(-1, keepdim=True)).sub_(classes)
        by_attention = output.attention.clamp(min=1e-9).log_().add_(1)
        by_attention.mul_((-self.entropy_weight * targets.counted).unsqueeze(-1))
        found = [(output.logits, by_logits), (output.attention, by_attention)]
        if targets.aligned is not None:
            assert output.text is not None
            found.append((output.text, self._by_text(output.text, targets.aligned)))
        return found

    def _by_text(self, text: Tensor, targets: losses.AlignmentTargets) -> Tensor:
        assert self.anchors is not None and self.described is not None
        cosine = text @ self.anchors.T
        if targets.others is not None:
            cosine = cosine.masked_fill_(~self.described, -1e4)
        near = (cosine / self.temperature).softmax(-1)
        by_cosine = near.mul_(targets.described.sum(-1, keepdim=True)).sub_(targets.described)
        by_cosine.mul_(self.edclip_weight / self.temperature)
        if targets.others is not None:
            nearest, which = cosine.max(-1, keepdim=True)
            too_near = (nearest > self.margin).to(cosine.dtype) * targets.others.unsqueeze(-1)
            by_cosine.scatter_add_(-1, which, self.edclip_weight * self.others_weight * too_near)
        return by_cosine @ self.anchors
