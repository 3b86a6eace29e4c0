"""STSTNet: three shallow streams over u, v and strain.

Source: Liong et al., "Shallow Triple Stream Three-dimensional CNN (STSTNet) for Micro-expression
Recognition", 2019: convolutions 3x3 of 3, 5 and 8 kernels, each with max pooling 3x3, joined, average pooling
2x2, a linear layer; Adam, 5e-5, batches of 256. The number of epochs is ours, fixed in advance.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from mefar.baselines.flow import FlowMethod
from mefar.baselines.method import PUBLISHED_CNN
from mefar.classifier.head import HeadOutput

STREAMS = (3, 5, 8)
"""Kernels of the three streams."""


class STSTNetHead(nn.Module):
    """The network: 1,651 parameters with 3 classes and 3 channels of 28 x 28 (448 in convolutions).

    All streams read the same images, so that their kernels side by side are one convolution; the largest of
    values and then their positive part is the largest positive part. Both are the published network, in less
    than half of the time.

    Args:
        num_tokens: channels, 3 (u, v, strain).
        token_dim: pixels of a channel, a square (28 * 28).
        num_classes: C.
    """

    in_turns = True  # convolutions of many folds as one are slower than one fold after another

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int) -> None:
        super().__init__()
        self.side = round(token_dim**0.5)
        self.streams = nn.Conv2d(num_tokens, sum(STREAMS), 3, padding=1)
        self.largest, self.mean = nn.MaxPool2d(3, 3, 1), nn.AvgPool2d(2)
        pooled = (self.side - 1) // 3 + 1
        self.classes = nn.Linear(sum(STREAMS) * (pooled // 2) ** 2, num_classes)

    def forward(self, images: Tensor) -> HeadOutput:
        """(B, 3, 28 * 28) -> logits."""
        x = rearrange(images, "b c (h w) -> b c h w", h=self.side)
        x = x.contiguous(memory_format=torch.channels_last)  # in which CPUs convolve and pool fastest
        x = self.mean(self.largest(self.streams(x)).relu())
        return HeadOutput(self.classes(x.flatten(1)))


class STSTNet(FlowMethod):
    """u, v and strain as images of 28 x 28, three shallow streams."""

    head = STSTNetHead
    training = replace(PUBLISHED_CNN, epochs=500, batch_size=256, learning_rate=5e-5)
