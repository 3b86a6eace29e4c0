"""A linear support vector machine on whatever features: the classifier of the field before networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mefar.classifier.head import FittedHead, HeadOutput
from mefar.errors import UserError


class LinearSVM(FittedHead):
    """One machine per class against the rest, class-balanced, on standardised features.

    Also for tokens: `mefar loso --tokenizer CKPT --head mefar.baselines.svm.LinearSVM`.

    Args:
        cost: C of the machine; larger fits the training clips more closely.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int, cost: float = 1e-2) -> None:
        super().__init__()
        self.cost = cost
        width = num_tokens * token_dim
        self.register_buffer("weight", torch.zeros(num_classes, width))
        self.register_buffer("bias", torch.zeros(num_classes))

    def fit(self, features: Tensor, labels: Tensor, subjects: Sequence[str], seed: int) -> None:
        """Fit the machines; a class without clips is never answered.

        Raises:
            UserError: scikit-learn is not installed.
        """
        try:
            from sklearn.svm import LinearSVC
        except ImportError as error:
            raise UserError(
                "support vector machines need scikit-learn; pip install 'mefar[baselines]'"
            ) from error
        x = features.flatten(1).double()
        mean, deviation = x.mean(0), x.std(0, correction=0)
        scale = torch.where(deviation > 1e-9, 1 / deviation, 0.0)
        bias = torch.full((len(self.bias),), -1e3, dtype=torch.float64)
        weight = torch.zeros(self.weight.shape, dtype=torch.float64)
        there = torch.unique(labels)
        if len(there) == 1:
            bias[there] = 0
        else:
            machine = LinearSVC(C=self.cost, class_weight="balanced", random_state=seed, max_iter=5000)
            machine.fit(((x - mean) * scale).numpy(), labels.numpy())
            found, offset = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)
            if len(there) == 2:  # one machine says both
                found, offset = torch.cat([-found, found]), torch.cat([-offset, offset])
            weight[there] = found * scale
            bias[there] = offset - weight[there] @ mean
        self.weight, self.bias = weight.float(), bias.float()

    def forward(self, features: Tensor) -> HeadOutput:
        """Distances from the borders of the classes; as probabilities they are not calibrated."""
        return HeadOutput(features.flatten(1) @ self.weight.T + self.bias)
