"""What is reached without looking: always the commonest class, or classes drawn as often as they occur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mefar.baselines.method import Method
from mefar.classifier.head import FittedHead, HeadOutput
from mefar.randomness import seed_of


class MajorityHead(FittedHead):
    """The commonest class of the training clips, whatever it is shown."""

    share: Tensor

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("share", torch.full((num_classes,), 1 / num_classes))

    def fit(self, features: Tensor, labels: Tensor, subjects: Sequence[str], seed: int) -> None:
        """Count the classes."""
        self.share = torch.bincount(labels, minlength=self.num_classes) / len(labels)

    def forward(self, features: Tensor) -> HeadOutput:
        """Log shares of the classes among the training clips."""
        return HeadOutput(self.share.clamp(min=1e-6).log().expand(len(features), -1))


class PriorHead(MajorityHead):
    """A class drawn as often as it occurs among the training clips, seeded by fold and seed."""

    def fit(self, features: Tensor, labels: Tensor, subjects: Sequence[str], seed: int) -> None:
        """Count the classes, and seed the draws by who is there."""
        super().fit(features, labels, subjects, seed)
        self.seed = seed_of(" ".join(sorted(set(subjects))), f"prior {seed}")

    def forward(self, features: Tensor) -> HeadOutput:
        """Logits that are sure of one drawn class."""
        dice = torch.Generator().manual_seed(self.seed)
        drawn = torch.multinomial(self.share, len(features), replacement=True, generator=dice)
        return HeadOutput(10 * functional.one_hot(drawn, self.num_classes).float())


class Majority(Method):
    """Always the commonest class of the training clips."""

    head = MajorityHead

    def features(self, onset: Tensor, apex: Tensor, clips: Sequence[str]) -> Tensor:
        """Nothing: (B, 1, 1) zeros."""
        return torch.zeros(len(onset), 1, 1)


class Prior(Majority):
    """Classes drawn as often as they occur among the training clips."""

    head = PriorHead
