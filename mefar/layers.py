"""Blocks of the token heads: linear maps, norms, dropout and a Transformer layer for G models side by side.

The blocks know their own gradients. torch's automatic ones would be the same numbers (tests/test_layers.py)
but take a quarter longer on a CPU, where such small work is bound by memory: every pass over the activations
that can be saved, or done in place, counts.

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
    """Scale and shift of a LayerNorm per model; those who read the normalised values apply them."""

    def __init__(self, groups: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))


def _masked(x: Tensor, keep: Tensor | None) -> Tensor:
    """Values with a mask (G, B, entries) applied, in place."""
    if keep is not None:
        x.view(keep.shape).mul_(keep)
    return x


def _masked_copy(x: Tensor, keep: Tensor | None) -> Tensor:
    """As _masked, but not in place; without a mask the values themselves."""
    return x if keep is None else (x.view(keep.shape) * keep).view(x.shape)


def _product(a: Tensor, b: Tensor, factor: float = 1.0, out: Tensor | None = None) -> Tensor:
    """(factor * a) @ b: (n, i, j), (n, j, k) -> (n, i, k), into `out` where given."""
    if out is None:
        out = a.new_empty(len(a), a.shape[1], b.shape[2])
    return out.baddbmm_(a, b, beta=0, alpha=factor)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, factor: float = 1.0) -> Tensor:
    """Bias + factor * x @ weight^T: (G, N, in), (G, out, in), (G, out) -> (G, N, out)."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT, alpha=factor)


class _Linear(torch.autograd.Function):
    """As _linear; a gradient by the weight comes out in the order of memory, not transposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(G, N, in), (G, out, in), (G, out) -> (G, N, out)."""
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(G, N, out) -> gradients by x, where asked for, weight and bias."""
        x, weight = ctx.saved_tensors
        by_x = _product(gradient, weight) if ctx.needs_input_grad[0] else None
        return by_x, _product(gradient.mT, x), gradient.sum(1)


def _normalise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean 0 and variance 1 over the last dimension; also the mean and 1 / deviation taken out, (..., 1)."""
    # With a scale, even of 1, torch takes a kernel twice as fast.
    return torch.native_layer_norm(x, x.shape[-1:], x.new_ones(x.shape[-1]), None, 1e-5)


def _normalise_gradient(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Gradient of _normalise by x, from that by its first result."""
    W = x.shape[-1:]
    back = torch.ops.aten.native_layer_norm_backward
    by_x: Tensor = back(gradient, x, W, mean, scale, x.new_ones(W), None, [True, False, False])[0]
    return by_x


def _read(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """linear(layer_norm(x)), (G, N, out), and what _unread needs: (G, N, W), 2 (G, W), (G, out, W), (G, out).

    Where there are more rows than outputs, scale and shift go into the weights: that is less work.
    """
    normal, *moments = _normalise(x)
    if x.shape[1] < weight.shape[1]:
        affine = torch.addcmul(shift.unsqueeze(1), normal, scale.unsqueeze(1))
        return _linear(affine, weight, bias), (x, *moments, normal, affine, scale, shift, weight)
    folded = weight * scale.unsqueeze(1)
    moved = torch.baddbmm(bias.unsqueeze(-1), weight, shift.unsqueeze(-1)).squeeze(-1)
    return _linear(normal, folded, moved), (x, *moments, normal, folded, scale, shift, weight)


def _unread(gradient: Tensor, saved: tuple[Tensor, ...], direct: Tensor) -> tuple[Tensor, ...]:
    """Gradients by the arguments of _read.

    Args:
        gradient: (G, N, out) by its value.
        saved: what it gave.
        direct: (G, N, W) gradient by x that does not go through here; added.
    """
    x, mean, deviation, normal, used, scale, shift, weight = saved
    by_bias = gradient.sum(1)
    if x.shape[1] < weight.shape[1]:
        by_affine, by_weight = _product(gradient, weight), _product(gradient.mT, used)
        by_scale, by_shift = (by_affine * normal).sum(1), by_affine.sum(1)
        by_normal = by_affine.mul_(scale.unsqueeze(1))
    else:
        by_normal, by_weight = _product(gradient, used), _product(gradient.mT, normal)
        by_scale, by_shift = (by_weight * weight).sum(1), _product(by_bias.unsqueeze(1), weight).squeeze(1)
        by_weight.mul_(scale.unsqueeze(1)).baddbmm_(by_bias.unsqueeze(2), shift.unsqueeze(1))
    by_x = _normalise_gradient(by_normal, x, mean, deviation).add_(direct)
    return by_x, by_scale, by_shift, by_weight, by_bias


class _AttentionBlock(torch.autograd.Function):
    """x + drop(out(drop(softmax(q k / sqrt(d))) v)), with q, k, v from linear(layer_norm(x))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        size: tuple[int, int],
        factor: float,
        keep_weights: Tensor | None,
        keep_output: Tensor | None,
    ) -> Tensor:
        """Norm 2 x (G, W); (G, 3W, W), (G, 3W); (G, W, W), (G, W); (L, H); masks: (G, N, W) -> (G, N, W)."""
        (G, N, W), (L, H) = x.shape, size
        ctx.shape, ctx.factor = (G, N // L, L, H, W // H), factor
        qkv, read = _read(x, scale, shift, weight, bias)
        split = qkv.view(G, N // L, L, 3, H, W // H).permute(3, 0, 1, 4, 2, 5).reshape(3, -1, L, W // H)
        q, k, v = split
        weights = _product(q, k.mT, (W // H) ** -0.5).softmax(-1)  # (G*B*H, L, L)
        dropped = _masked_copy(weights, keep_weights)
        mixed = _product(dropped, v, factor).view(G, N // L, H, L, W // H).transpose(2, 3).reshape(G, N, W)
        y = _masked(_linear(mixed, out_weight, out_bias), keep_output)
        ctx.save_for_backward(*read, out_weight, split, weights, dropped, mixed, keep_weights, keep_output)
        return torch.add(x, y, alpha=factor, out=y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(G, N, W) -> gradients by the tensors of forward."""
        *read, out_weight, split, weights, dropped, mixed, keep_weights, keep_output = ctx.saved_tensors
        (G, B, L, H, d), factor = ctx.shape, ctx.factor
        q, k, v = split
        gradient = gradient.contiguous()
        after = _masked_copy(gradient, keep_output)
        by_mixed, by_out_weight = _product(after, out_weight, factor), _product(after.mT, mixed, factor)
        by_out_bias = after.sum(1).mul_(factor)
        by_mixed = by_mixed.view(G, B, L, H, d).transpose(2, 3).reshape(-1, L, d)
        by_split = torch.empty_like(split)
        _product(dropped.mT, by_mixed, factor, by_split[2])
        by_weights = _masked(_product(by_mixed, v.mT, factor), keep_weights)
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        _product(by_scores, k, d**-0.5, by_split[0])
        _product(by_scores.mT, q, d**-0.5, by_split[1])
        by_qkv = by_split.view(3, G, B, H, L, d).permute(1, 2, 4, 0, 3, 5).reshape(G, B * L, 3 * H * d)
        return *_unread(by_qkv, tuple(read), gradient), by_out_weight, by_out_bias, None, None, None, None


class _FeedForwardBlock(torch.autograd.Function):
    """x + drop(narrow(drop(relu(linear(layer_norm(x))))))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        narrow_weight: Tensor,
        narrow_bias: Tensor,
        factor: float,
        keep_wide: Tensor | None,
        keep_output: Tensor | None,
    ) -> Tensor:
        """Norm 2 x (G, W); (G, F, W), (G, F); (G, W, F), (G, W); masks: (G, N, W) -> (G, N, W)."""
        wide, read = _read(x, scale, shift, weight, bias)
        wide = _masked(wide.relu_(), keep_wide)
        y = _masked(_linear(wide, narrow_weight, narrow_bias, factor), keep_output)
        ctx.factor = factor
        ctx.save_for_backward(*read, narrow_weight, wide, keep_output)
        return torch.add(x, y, alpha=factor, out=y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(G, N, W) -> gradients by the tensors of forward."""
        *read, narrow_weight, wide, keep_output = ctx.saved_tensors
        factor, gradient = ctx.factor, gradient.contiguous()
        after = _masked_copy(gradient, keep_output)
        by_wide = _product(after, narrow_weight, factor**2)
        by_narrow_weight = _product(after.mT, wide, factor**2)
        by_narrow_bias = after.sum(1).mul_(factor)
        # What was dropped or negative is 0 in `wide`, and nothing else is.
        torch.ops.aten.threshold_backward.grad_input(by_wide, wide, 0, grad_input=by_wide)
        return *_unread(by_wide, tuple(read), gradient), by_narrow_weight, by_narrow_bias, None, None, None


class _Pool(torch.autograd.Function):
    """Mean over the tokens of layer_norm(x), weighted by softmax(query . layer_norm(x) / sqrt(W))."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, query: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """(G, N, W), 3 x (G, W) -> pooled (G, B, W), weights (G, B, L).

        The norm's scale goes into the query, its shift, equal for all tokens, out of the softmax; both go
        behind the mean.
        """
        G, N, W = x.shape
        normal, *moments = _normalise(x)
        asked = (scale * query).unsqueeze(2)
        weights = _product(normal, asked, W**-0.5).view(G, N // tokens, tokens).softmax(-1)
        mean = _product(weights.view(-1, 1, tokens), normal.view(-1, tokens, W)).view(G, -1, W)
        ctx.save_for_backward(x, *moments, normal, asked, weights, mean, scale, query)
        return torch.addcmul(shift.unsqueeze(1), mean, scale.unsqueeze(1)), weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, by_weights: Tensor) -> tuple[Tensor | None, ...]:
        """(G, B, W), (G, B, L) -> gradients by the tensors of forward."""
        x, average, deviation, normal, asked, weights, mean, scale, query = ctx.saved_tensors
        (G, N, W), (B, L) = x.shape, weights.shape[1:]
        gradient, by_weights = gradient.contiguous(), by_weights.contiguous()
        by_mean = (gradient * scale.unsqueeze(1)).view(G * B, 1, W)
        by_weights = by_weights + _product(by_mean, normal.view(G * B, L, W).mT).view(G, B, L)
        by_asked = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype).mul_(W**-0.5)
        by_normal = _product(weights.view(G * B, L, 1), by_mean).view(G, N, W)
        by_normal.baddbmm_(by_asked.view(G, N, 1), asked.mT)
        by_product = _product(by_asked.view(G, 1, N), normal).squeeze(1)  # of scale and query
        by_scale = (gradient * mean).sum(1).addcmul_(by_product, query)
        by_x = _normalise_gradient(by_normal, x, average, deviation)
        return by_x, by_scale, gradient.sum(1), by_product * scale, None


class _Unit(torch.autograd.Function):
    """x / |x| over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(..., E) -> the same shape."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=1e-12)
        y: Tensor = x / length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """What is along the vector does not count."""
        y, length = ctx.saved_tensors
        along = (y * gradient).sum(-1, keepdim=True)
        by_x: Tensor = torch.addcmul(gradient, y, along, value=-1).div_(length)
        return by_x


def unit(x: Tensor) -> Tensor:
    """Vectors (..., E) scaled to length 1."""
    y: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return y


def sparse_pool(x: Tensor, norm: GroupedNorm, query: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Mean of the L normalised tokens of each sample, weighted by how well they answer a query.

    Args:
        x: (G, N, W).
        norm: applied before.
        query: (G, W).
        tokens: L.

    Returns:
        (G, B, W), and the weights (G, B, L), each row with sum 1.
    """
    pooled, weights = _Pool.apply(x, norm.weight, norm.bias, query, tokens)  # type: ignore[no-untyped-call]
    return pooled, weights


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
        masks: list[Tensor | None] = [None] * 4
        factor = 1.0
        if noise is not None and (drawn := noise.keep(N // tokens, sum(parts), x.device)) is not None:
            masks, factor = list(torch.split(drawn, parts, -1)), noise.scale

        def values(*parts: GroupedNorm | GroupedLinear) -> list[Tensor]:
            return [value for part in parts for value in (part.weight, part.bias)]

        attention = values(self.norm1, self.qkv, self.out)
        x = _AttentionBlock.apply(x, *attention, (tokens, H), factor, *masks[:2])  # type: ignore[no-untyped-call]
        forward = values(self.norm2, self.widen, self.narrow)
        result: Tensor = _FeedForwardBlock.apply(x, *forward, factor, *masks[2:])  # type: ignore[no-untyped-call]
        return result
