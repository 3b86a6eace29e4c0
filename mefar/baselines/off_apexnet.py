"""OFF-ApexNet: one stream over u, one over v, joined by two wide linear layers.

Source: Gan et al., "OFF-ApexNet on Micro-expression Recognition System", 2019: convolutions 5x5 of 6 and 16
kernels, each with max pooling 2x2, then 1024 and 1024 units; Adam, 1e-4. 2,664,475 parameters with 3 classes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from mefar.baselines.flow import FlowMethod
from mefar.baselines.method import PUBLISHED_CNN
from mefar.classifier.head import HeadOutput


class OFFApexNetHead(nn.Module):
    """The network; of its channels it reads the first two, u and v.

    Args:
        num_tokens: channels, at least 2.
        token_dim: pixels of a channel, a square (28 * 28).
        num_classes: C.
        dropout: probability in [0, 1).
    """

    in_turns = True  # convolutions of many folds as one are slower than one fold after another

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.side = round(token_dim**0.5)
        self.streams = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            )
            for _ in range(2)
        )  # fmt: skip
        self.layers = nn.Sequential(
            nn.Linear(2 * 16 * (self.side // 4) ** 2, 1024), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(dropout), nn.Linear(1024, num_classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> HeadOutput:
        """(B, 2 or 3, 28 * 28) -> logits."""
        x = rearrange(images, "b c (h w) -> b c h w", h=self.side)
        joined = torch.cat([stream(x[:, i : i + 1]) for i, stream in enumerate(self.streams)], 1)
        return HeadOutput(self.layers(joined))


class OFFApexNet(FlowMethod):
    """u and v as images of 28 x 28, two streams, two wide layers."""

    head = OFFApexNetHead
    training = replace(PUBLISHED_CNN, epochs=60, batch_size=64, learning_rate=1e-4)
