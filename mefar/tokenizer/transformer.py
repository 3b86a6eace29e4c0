"""Transformer blocks of the published tokenizer.

One block is: a depthwise convolution over (time, row, column) that tells tokens where they are,
self-attention, cross-attention to the action tokens (decoder only), a gated feed-forward layer; each is added
to its input.

Written for speed where the result stays the same: attention is fused, the position bias is computed once per
relative offset instead of once per pair of patches, and the 3x3x3 convolution runs as one 3x3 convolution per
time tap, because only taps that meet a frame count.

Letters beyond the package's legend: N sequences, S tokens in a sequence, M context tokens.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

ATTENTION_SCALE = 8.0  # queries and keys have unit length, so the scale is a constant of the design


class PositionConvolution(nn.Module):
    """Depthwise 3x3x3 convolution over (t, h, w), zero-padded; in time it looks only back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        like = nn.Conv3d(dim, dim, 3, groups=dim)  # for its initialisation and its shapes
        self.weight, self.bias = like.weight, like.bias

    def forward(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(N, S, D), read in memory order as (B, t, h, w, D) with grid (t, h, w) -> (N, S, D)."""
        time, height, width = grid
        flat = rearrange(tokens, "n s d -> (n s) d")
        frames = rearrange(flat, "(b t h w) d -> b t d h w", t=time, h=height, w=width)
        now = self._tap(frames, 2, self.bias)
        for back in range(1, min(time, 3)):  # frame t reads frames t - 1 and t - 2
            past = self._tap(frames[:, :-back], 2 - back, None)
            now = now + functional.pad(past, (0, 0, 0, 0, 0, 0, back, 0))
        out: Tensor = rearrange(
            rearrange(now, "b t d h w -> (b t h w) d"), "(n s) d -> n s d", n=tokens.shape[0]
        )
        return out

    def _tap(self, frames: Tensor, tap: int, bias: Tensor | None) -> Tensor:
        flat = rearrange(frames, "b t d h w -> (b t) d h w")
        seen = functional.conv2d(flat, self.weight[:, :, tap], bias, padding=1, groups=flat.shape[1])
        out: Tensor = rearrange(seen, "(b t) d h w -> b t d h w", b=frames.shape[0])
        return out


class RelativePositionBias(nn.Module):
    """Learned attention bias per head from log-scaled relative offsets (SwinV2, Liu et al., 2022, 3.3).

    Args:
        grid: rows and columns of the patches, (h, w).
        dim: width of the two hidden layers.
        heads: attention heads.
    """

    offsets: Tensor
    pair: Tensor

    def __init__(self, grid: tuple[int, int], dim: int, heads: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(2, dim),
            nn.LeakyReLU(0.1),
            nn.Linear(dim, dim),
            nn.LeakyReLU(0.1),
            nn.Linear(dim, heads),
        )
        height, width = grid
        rows, columns = torch.arange(1 - height, height), torch.arange(1 - width, width)
        steps = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1).float()
        self.register_buffer("offsets", steps.sign() * (steps.abs() + 1).log(), persistent=False)
        row = torch.arange(height).repeat_interleave(width)
        column = torch.arange(width).repeat(height)
        down, right = row[:, None] - row[None] + height - 1, column[:, None] - column[None] + width - 1
        self.register_buffer("pair", down * (2 * width - 1) + right, persistent=False)

    def forward(self) -> Tensor:
        """-> (heads, P, P), added to the attention logits of query patch i and key patch j."""
        per_offset: Tensor = self.network(self.offsets)  # ((2h - 1)(2w - 1), heads)
        return per_offset.T[:, self.pair]


class Attention(nn.Module):
    """Cosine attention with learned per-channel scales, no biases in its projections.

    Keys and values of self-attention come from the input *before* its norm, as published; those of
    cross-attention from the normalised context, preceded by learned entries that belong to no token.

    Args:
        dim: D.
        heads: attention heads.
        head_dim: channels of a head.
        cross: whether keys and values come from a context.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, cross: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm = nn.LayerNorm(dim, bias=False)
        self.context_norm = nn.LayerNorm(dim, bias=False) if cross else None
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.query_scale = nn.Parameter(torch.ones(head_dim))
        self.key_scale = nn.Parameter(torch.ones(head_dim))
        # Two pairs: key and value take turns along the second axis, as in the published file.
        self.null_key_value = nn.Parameter(torch.randn(heads, 4, head_dim)) if cross else None
        self.out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, tokens: Tensor, bias: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """(N, S, D), bias (heads, S, S), context (N, M, D) -> (N, S, D)."""
        if (context is None) != (self.context_norm is None):
            raise ValueError("cross-attention needs a context, self-attention takes none")
        source = tokens if self.context_norm is None else self.context_norm(context)
        query = rearrange(self.query(self.norm(tokens)), "n s (h d) -> n h s d", h=self.heads)
        key, value = rearrange(self.key_value(source), "n m (kv h d) -> kv n h m d", kv=2, h=self.heads)
        if self.null_key_value is not None:
            null = self.null_key_value.to(key.dtype).expand(tokens.shape[0], -1, -1, -1)
            key, value = torch.cat([null[:, :, 0::2], key], 2), torch.cat([null[:, :, 1::2], value], 2)
        # Normalised in float32.
        query = (functional.normalize(query, dim=-1) * self.query_scale).to(value.dtype)
        key = (functional.normalize(key, dim=-1) * self.key_scale).to(value.dtype)
        bias = None if bias is None else bias.to(value.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, bias, scale=ATTENTION_SCALE)
        out: Tensor = self.out(rearrange(mixed, "n h s d -> n s (h d)"))
        return out


class FeedForward(nn.Module):
    """LayerNorm, expansion to twice int(8/3 D), GEGLU, back to D; no biases in the projections."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = 8 * dim // 3
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 2 * inner, bias=False)
        self.shrink = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        value, gate = self.expand(self.norm(tokens)).chunk(2, -1)
        out: Tensor = self.shrink(value * functional.gelu(gate))
        return out


class TransformerBlock(nn.Module):
    """Position convolution, self-attention, cross-attention if asked for, feed-forward: all residual."""

    def __init__(self, dim: int, heads: int, head_dim: int, cross: bool) -> None:
        super().__init__()
        self.position = PositionConvolution(dim)
        self.attention = Attention(dim, heads, head_dim)
        self.cross_attention = Attention(dim, heads, head_dim, cross=True) if cross else None
        self.feed_forward = FeedForward(dim)

    def forward(
        self, tokens: Tensor, grid: tuple[int, int, int], bias: Tensor | None, context: Tensor | None
    ) -> Tensor:
        """Shapes as in Transformer.forward."""
        tokens = tokens + self.position(tokens, grid)
        tokens = tokens + self.attention(tokens, bias)
        if self.cross_attention is not None:
            tokens = tokens + self.cross_attention(tokens, context=context)
        out: Tensor = tokens + self.feed_forward(tokens)
        return out


class Transformer(nn.Module):
    """A stack of `depth` blocks with a bias-less LayerNorm at the end.

    With `cross` every block also attends to a context, as the decoder does.
    """

    def __init__(self, dim: int, depth: int, heads: int, head_dim: int, cross: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, head_dim, cross) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, bias=False)

    def forward(
        self,
        tokens: Tensor,
        grid: tuple[int, int, int],
        bias: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Tokens (N, S, D) of a batch of frame stacks through all blocks -> (N, S, D).

        Args:
            tokens: (N, S, D).
            grid: (t, h, w), how the position convolution reads the tokens' memory.
            bias: (heads, S, S) added to the self-attention logits.
            context: (N, M, D) for the cross-attention.
        """
        for block in self.blocks:
            tokens = block(tokens, grid, bias, context)
        out: Tensor = self.norm(tokens)
        return out
