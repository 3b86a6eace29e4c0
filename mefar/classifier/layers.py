"""Layers of the token heads, G models side by side, and their dropout; the arithmetic is in blocks.py.

Shapes: G models, B batch, L tokens, N = B * L, W width, F width inside the feed-forward block, H attention
heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mefar.classifier.blocks import Apply, AttentionBlock, FeedForwardBlock, Linear, through_autograd


class DropoutNoise:
    """Dropout masks from one random stream per model.

    A model's masks depend on its own generator and on how many it has drawn, never on its
    neighbours in the group. One byte decides per entry, so the probability is a multiple of 1/256.

    Args:
        generators: one per model, or None to use torch's global stream.
        probability: share of entries set to 0.
        batch: samples of a full batch. A shorter one is masked by the first of as many masks, and leaves
            the streams where a full one would. None draws for as many as there are.
    """

    def __init__(
        self, generators: Sequence[torch.Generator | None], probability: float, batch: int | None = None
    ) -> None:
        self.generators, self.batch = generators, batch
        self.threshold = round(probability * 256)

    @property
    def scale(self) -> float:
        """What kept entries are multiplied by, so that the mean stays."""
        return 256 / (256 - self.threshold)

    def keep(self, samples: int, entries: int, device: torch.device) -> Tensor | None:
        """Masks (G, B, entries) of uint8, 1 = keep; None where nothing is ever dropped.

        Args:
            samples: B.
            entries: numbers to mask in each sample.
            device: of the mask.
        """
        if self.threshold == 0:
            return None
        each = (self.batch or samples) * entries
        words = torch.empty(len(self.generators), -(-each // 8), dtype=torch.int64, device=device)
        for row, generator in zip(words, self.generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        drawn = words.view(torch.uint8)[:, :each].view(len(words), -1, entries)[:, :samples]
        # Clamping bytes and subtracting is many times faster than comparing them.
        return drawn.clamp_(self.threshold - 1, self.threshold).sub_(self.threshold - 1)


class GroupedLinear(nn.Module):
    """G linear maps side by side: (G, N, in) -> (G, N, out)."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(groups, outputs))

    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        """Uniform in +-1/sqrt(in), as torch's Linear; biases 0."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        with torch.no_grad():
            for weight, generator in zip(self.weight, generators, strict=True):
                weight.uniform_(-bound, bound, generator=generator)
            self.bias.zero_()

    def forward(self, x: Tensor, apply: Apply = through_autograd) -> Tensor:
        """(G, N, in) -> (G, N, out)."""
        y: Tensor = apply(Linear, x, self.weight, self.bias)
        return y


class GroupedNorm(nn.Module):
    """Scale and shift of a LayerNorm per model; those who read the normalised values apply them."""

    def __init__(self, groups: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))


class EncoderLayer(nn.Module):
    """Pre-norm Transformer layer: attention among the L tokens, then a ReLU feed-forward block.

    Args:
        groups: G.
        dim: W, a multiple of `heads`.
        heads: H.
        feedforward: F.
    """

    def __init__(self, groups: int, dim: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = GroupedNorm(groups, dim)
        self.qkv = GroupedLinear(groups, dim, 3 * dim)
        self.out = GroupedLinear(groups, dim, dim)
        self.norm2 = GroupedNorm(groups, dim)
        self.widen = GroupedLinear(groups, dim, feedforward)
        self.narrow = GroupedLinear(groups, feedforward, dim)

    def forward(
        self, x: Tensor, tokens: int, noise: DropoutNoise | None, apply: Apply = through_autograd
    ) -> Tensor:
        """(G, N, W) with L = `tokens` rows per sample -> (G, N, W)."""
        N, W = x.shape[1:]
        H, F = self.heads, self.widen.weight.shape[1]
        parts = [H * tokens * tokens, tokens * W, tokens * F, tokens * W]
        masks: list[Tensor | None] = [None] * 4
        factor = 1.0
        if noise is not None and (drawn := noise.keep(N // tokens, sum(parts), x.device)) is not None:
            masks, factor = list(torch.split(drawn, parts, -1)), noise.scale

        def values(*parts: GroupedNorm | GroupedLinear) -> list[Tensor]:
            return [value for part in parts for value in (part.weight, part.bias)]

        own = values(self.norm1, self.qkv, self.out)
        x = apply(AttentionBlock, x, *own, (tokens, H), factor, *masks[:2])
        own = values(self.norm2, self.widen, self.narrow)
        x = apply(FeedForwardBlock, x, *own, factor, *masks[2:])
        return x
