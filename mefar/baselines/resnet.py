"""A small residual network on flow, and on plain frame differences: what no design of flow networks adds.

Statistics are of groups of channels: batches of few clips have none that are worth keeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from mefar.baselines.flow import FlowMethod
from mefar.baselines.method import PUBLISHED_CNN, Method
from mefar.classifier.head import HeadOutput

TRAINING = replace(
    PUBLISHED_CNN, epochs=60, batch_size=32, learning_rate=1e-3, weight_decay=1e-3, schedule="cosine",
    clip_norm=1.0, class_weights="balanced",
)  # fmt: skip


class Residual(nn.Module):
    """Two convolutions 3x3 beside one 1x1; the first halves the side. Its width is a multiple of 4."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.beside = nn.Conv2d(inputs, width, 1, stride=2)
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, S, S) -> (B, width, S / 2, S / 2)."""
        out: Tensor = (self.beside(x) + self.layers(x)).relu()
        return out


class ResNetHead(nn.Module):
    """Three residual blocks, the mean over the picture, one linear layer.

    Args:
        num_tokens: channels.
        token_dim: pixels of a channel, a square.
        num_classes: C.
        width: channels of the first block, a multiple of 4; doubled by each.
        dropout: probability in [0, 1).
    """

    in_turns = True  # convolutions of many folds as one are slower than one fold after another

    def __init__(
        self, num_tokens: int, token_dim: int, num_classes: int, width: int = 16, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.side = round(token_dim**0.5)
        self.blocks = nn.Sequential(
            Residual(num_tokens, width), Residual(width, 2 * width), Residual(2 * width, 4 * width)
        )
        self.dropout, self.classes = nn.Dropout(dropout), nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> HeadOutput:
        """(B, L, S * S) -> logits."""
        x = self.blocks(rearrange(images, "b c (h w) -> b c h w", h=self.side)).mean((2, 3))
        return HeadOutput(self.classes(self.dropout(x)))


class FlowResNet(FlowMethod):
    """u, v and strain as images of 28 x 28, a small residual network."""

    head = ResNetHead
    training = TRAINING


class DifferenceCNN(Method):
    """The difference of the gray frames, apex - onset, 32 x 32, the same residual network."""

    head = ResNetHead
    training = TRAINING

    def features(self, onset: Tensor, apex: Tensor, clips: Sequence[str]) -> Tensor:
        """(B, 1, 32 * 32), ten times the difference, about [-1, 1]."""
        difference = (apex - onset).mean(1, keepdim=True)
        return functional.adaptive_avg_pool2d(10 * difference, 32).flatten(2)
