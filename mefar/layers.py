"""Blocks of the token heads: linear maps, norms, dropout and a Transformer layer for G models side by side.

The two halves of the layer know their own gradients. torch's automatic ones would be the same numbers
(tests/test_layers.py) but take twice the time on a CPU, where such small work is bound by memory: every
pass over the activations that can be saved, or done in place, counts.

Shapes: G models, B batch, L tokens, N = B * L, W width, F width inside the feed-forward block, H attention
heads, d = W / H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class DropoutNoise:
    """Dropout masks from one random stream per model.

    A model's masks depend on its own generator and on how many it has drawn, never on its
    neighbours in the group. One byte decides per entry, so the probability is a multiple of 1/256.

    Args:
        generators: one per model, or None to use torch's global stream.
        probability: share of entries set to 0.
    """

    def __init__(self, generators: Sequence[torch.Generator | None], probability: float) -> None:
        self.generators = generators
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
        each = samples * entries
        words = torch.empty(len(self.generators), -(-each // 8), dtype=torch.int64, device=device)
        for row, generator in zip(words, self.generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        drawn = words.view(torch.uint8)[:, :each].view(-1, samples, entries)
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

    def forward(self, x: Tensor) -> Tensor:
        """(G, N, in) -> (G, N, out)."""
        y: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


class GroupedNorm(nn.Module):
    """LayerNorm over the last dimension with a scale and shift per model."""

    def __init__(self, groups: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(G, N, W) -> the same shape."""
        return torch.addcmul(self.bias.unsqueeze(1), normalised(x), self.weight.unsqueeze(1))

    def before(self, following: GroupedLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight and bias so that linear(input, weight, bias) is following(self(x)).

        Where there are more rows than outputs, scale and shift go into the weights: that is less work.

        Args:
            following: the map behind this norm, W -> out.
            x: (G, N, W).
        """
        weight, bias = following.weight, following.bias
        if x.shape[1] < weight.shape[1]:
            return self(x), weight, bias
        bias = torch.baddbmm(bias.unsqueeze(-1), weight, self.bias.unsqueeze(-1)).squeeze(-1)
        return normalised(x), weight * self.weight.unsqueeze(1), bias


def normalised(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last dimension."""
    # With a scale, even of 1, torch takes a kernel twice as fast.
    return functional.layer_norm(x, x.shape[-1:], x.new_ones(x.shape[-1]))


def _masked(x: Tensor, keep: Tensor | None) -> Tensor:
    """Values with a mask (G, B, entries) applied, in place."""
    if keep is not None:
        x.view(keep.shape).mul_(keep)
    return x


def _product(a: Tensor, b: Tensor, factor: float = 1.0, out: Tensor | None = None) -> Tensor:
    """(factor * a) @ b: (n, i, j), (n, j, k) -> (n, i, k), into `out` where given."""
    if out is None:
        out = a.new_empty(len(a), a.shape[1], b.shape[2])
    return out.baddbmm_(a, b, beta=0, alpha=factor)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, factor: float = 1.0) -> Tensor:
    """Bias + factor * x @ weight^T: (G, N, in), (G, out, in), (G, out) -> (G, N, out)."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT, alpha=factor)


def _linear_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, factor: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of factor * _linear(x, weight, bias) by the three, from that by its value (G, N, out)."""
    by_bias = gradient.sum(1)
    if factor != 1:
        by_bias.mul_(factor)
    return _product(gradient, weight, factor), _product(gradient.mT, x, factor), by_bias


class _Linear(torch.autograd.Function):
    """As _linear; a gradient by the weight comes out in the order of memory, not transposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(G, N, in), (G, out, in), (G, out) -> (G, N, out)."""
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """(G, N, out) -> gradients by x, where asked for, weight and bias."""
        x, weight = ctx.saved_tensors
        by_x = _product(gradient, weight) if ctx.needs_input_grad[0] else None
        return by_x, _product(gradient.mT, x), gradient.sum(1)


class _AttentionBlock(torch.autograd.Function):
    """x + drop(out(drop(softmax(q k / sqrt(d))) v)), with q, k, v from linear(normal, weight, bias)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        normal: Tensor,
        weight: Tensor,
        bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        size: tuple[int, int],
        scale: float,
        keep_weights: Tensor | None,
        keep_output: Tensor | None,
    ) -> Tensor:
        """(G, N, W), (G, N, W), (G, 3W, W), (G, 3W), (G, W, W), (G, W), (L, H), masks -> (G, N, W)."""
        (G, N, W), (L, H) = x.shape, size
        ctx.shape, ctx.scale = (G, N // L, L, H, W // H), scale
        split = _linear(normal, weight, bias).view(G, N // L, L, 3, H, W // H)
        split = split.permute(3, 0, 1, 4, 2, 5).reshape(3, -1, L, W // H)  # contiguous
        q, k, v = split
        weights = _product(q, k.mT, (W // H) ** -0.5).softmax(-1)  # (G*B*H, L, L)
        dropped = weights if keep_weights is None else _masked(weights.clone(), keep_weights)
        mixed = _product(dropped, v, scale).view(G, N // L, H, L, W // H).transpose(2, 3).reshape(G, N, W)
        y = _masked(_linear(mixed, out_weight, out_bias), keep_output)
        ctx.save_for_backward(
            normal, weight, out_weight, split, weights, dropped, mixed, keep_weights, keep_output
        )
        return torch.add(x, y, alpha=scale, out=y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """(G, N, W) -> gradients by the tensors of forward."""
        normal, weight, out_weight, split, weights, dropped, mixed, keep_weights, keep_output = (
            ctx.saved_tensors
        )
        G, B, L, H, d = ctx.shape
        q, k, v = split
        after = gradient if keep_output is None else _masked(gradient.clone(), keep_output)
        by_mixed, by_out_weight, by_out_bias = _linear_gradients(after, mixed, out_weight, ctx.scale)
        by_mixed = by_mixed.view(G, B, L, H, d).transpose(2, 3).reshape(-1, L, d)
        by_split = torch.empty_like(split)
        _product(dropped.mT, by_mixed, ctx.scale, by_split[2])
        by_weights = _masked(_product(by_mixed, v.mT, ctx.scale), keep_weights)
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        _product(by_scores, k, d**-0.5, by_split[0])
        _product(by_scores.mT, q, d**-0.5, by_split[1])
        by_qkv = by_split.view(3, G, B, H, L, d).permute(1, 2, 4, 0, 3, 5).reshape(G, B * L, 3 * H * d)
        by_normal, by_weight, by_bias = _linear_gradients(by_qkv, normal, weight)
        return gradient, by_normal, by_weight, by_bias, by_out_weight, by_out_bias, None, None, None, None


class _FeedForwardBlock(torch.autograd.Function):
    """x + drop(narrow(drop(relu(linear(normal, weight, bias)))))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        normal: Tensor,
        weight: Tensor,
        bias: Tensor,
        narrow_weight: Tensor,
        narrow_bias: Tensor,
        scale: float,
        keep_wide: Tensor | None,
        keep_output: Tensor | None,
    ) -> Tensor:
        """(G, N, W), (G, N, W), (G, F, W), (G, F), (G, W, F), (G, W), masks -> (G, N, W)."""
        wide = _masked(_linear(normal, weight, bias).relu_(), keep_wide)
        y = _masked(_linear(wide, narrow_weight, narrow_bias, scale), keep_output)
        ctx.scale = scale
        ctx.save_for_backward(normal, weight, narrow_weight, wide, keep_output)
        return torch.add(x, y, alpha=scale, out=y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """(G, N, W) -> gradients by the tensors of forward."""
        normal, weight, narrow_weight, wide, keep_output = ctx.saved_tensors
        scale = ctx.scale
        after = gradient if keep_output is None else _masked(gradient.clone(), keep_output)
        by_wide = _product(after, narrow_weight, scale**2)
        by_narrow_weight = _product(after.mT, wide, scale**2)
        by_narrow_bias = after.sum(1).mul_(scale)
        # What was dropped or negative is 0 in `wide`, and nothing else is.
        torch.ops.aten.threshold_backward.grad_input(by_wide, wide, 0, grad_input=by_wide)
        by_normal, by_weight, by_bias = _linear_gradients(by_wide, normal, weight)
        return gradient, by_normal, by_weight, by_bias, by_narrow_weight, by_narrow_bias, None, None, None


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

    def forward(self, x: Tensor, tokens: int, noise: DropoutNoise | None) -> Tensor:
        """(G, N, W) with L = `tokens` rows per sample -> (G, N, W)."""
        N, W = x.shape[1:]
        H, F = self.heads, self.widen.weight.shape[1]
        parts = [H * tokens * tokens, tokens * W, tokens * F, tokens * W]
        masks, scale = [None] * 4, 1.0
        if noise is not None and (drawn := noise.keep(N // tokens, sum(parts), x.device)) is not None:
            masks, scale = drawn.split(parts, -1), noise.scale
        read, out = self.norm1.before(self.qkv, x), (self.out.weight, self.out.bias)
        x = _AttentionBlock.apply(x, *read, *out, (tokens, H), scale, *masks[:2])  # type: ignore[no-untyped-call]
        read, out = self.norm2.before(self.widen, x), (self.narrow.weight, self.narrow.bias)
        result: Tensor = _FeedForwardBlock.apply(x, *read, *out, scale, *masks[2:])  # type: ignore[no-untyped-call]
        return result
