"""The blocks of a token head for G models side by side, each with its gradients, and a tape to chain them.

torch's automatic gradients would be the same numbers (tests/test_objective.py) but take a third longer on a
CPU, where such small work is bound by memory and by the number of operations: every pass over the activations
that can be saved, or done in place, counts.

Every block is a torch.autograd.Function. `through_autograd` runs it as torch does; a Tape runs the same
code without torch's engine.

Shapes: G models, B batch, L tokens, N = B * L, W width, F width inside the feed-forward block, H attention
heads, d = W / H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Apply = Callable[..., Any]
"""How a block is run: apply(block, *inputs) -> outputs."""


def through_autograd(block: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Run a block as a part of torch's graph."""
    return block.apply(*inputs)  # type: ignore[no-untyped-call]


class _Context:
    """What torch gives a Function to remember by."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Tensor | None, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors


class Tape:
    """Blocks in the order in which they ran; goes back through them once, where torch keeps no graph."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, _Context, tuple[Any, ...], tuple[Tensor, ...]]] = []
        self.made: set[int] = set()

    def apply(self, block: Any, *inputs: Any) -> Any:
        """Run a block."""
        needed = tuple(id(x) in self.made or getattr(x, "requires_grad", False) for x in inputs)
        context = _Context(needed)
        outputs = block.forward(context, *inputs)
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        self.steps.append((block, context, inputs, several))
        self.made.update(map(id, several))
        return outputs

    def gradients(
        self, ends: Sequence[tuple[Tensor, Tensor]], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        """Gradients by the parameters.

        Args:
            ends: outputs of blocks with the gradients by them; every output is one, or goes into a block.
            parameters: all of them must have been used.
        """
        found = {id(output): gradient for output, gradient in ends}
        for block, context, inputs, outputs in reversed(self.steps):
            # Without once_differentiable, which only torch's engine needs.
            backward = getattr(block.backward, "__wrapped__", block.backward)
            back = backward(context, *(found.pop(id(output)) for output in outputs))
            for x, gradient in zip(inputs, back if isinstance(back, tuple) else (back,), strict=True):
                if gradient is not None:
                    key = id(x)
                    found[key] = found[key] + gradient if key in found else gradient
        return [found[id(parameter)] for parameter in parameters]


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
        out = a.new_empty(*a.shape[:2], b.shape[2])
    return out.baddbmm_(a, b, beta=0, alpha=factor)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, factor: float = 1.0) -> Tensor:
    """Bias + factor * x @ weight^T: (G, N, in), (G, out, in), (G, out) -> (G, N, out)."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT, alpha=factor)


class Linear(torch.autograd.Function):
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


class Embedding(torch.autograd.Function):
    """Tokens through one linear map, or each position through its own, plus a vector per position."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, position: Tensor | None) -> Tensor:
        """(G, B, L, D), (G or G*L, W, D), (G or G*L, W), (G, L, W) or None -> (G, N, W)."""
        G, B, L, D = tokens.shape
        ctx.shape, ctx.own = tokens.shape, len(weight) == G * L
        if ctx.own:
            read = tokens.transpose(1, 2).reshape(G * L, B, D)
            moved = _product(read, weight.mT).view(G, L, B, -1)
            x = moved.new_empty(G, B * L, weight.shape[1])
            torch.add(moved.transpose(1, 2), bias.view(G, 1, L, -1), out=x.view(G, B, L, -1))
        else:
            read = tokens.reshape(G, B * L, D)
            x = _linear(read, weight, bias)
        if position is not None:
            x.view(G, B, L, -1).add_(position.unsqueeze(1))
        ctx.save_for_backward(read, weight)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(G, N, W) -> gradients by tokens, where asked for, weight, bias and position."""
        read, weight = ctx.saved_tensors
        G, B, L, D = ctx.shape
        by_position = gradient.view(G, B, L, -1).sum(1) if ctx.needs_input_grad[3] else None
        if ctx.own:
            gradient = gradient.view(G, B, L, -1).transpose(1, 2).reshape(G * L, B, -1)
        by_tokens = None
        if ctx.needs_input_grad[0]:
            back = _product(gradient, weight)
            by_tokens = back.view(G, L, B, D).transpose(1, 2) if ctx.own else back.view(G, B, L, D)
        return by_tokens, _product(gradient.mT, read), gradient.sum(1), by_position


@lru_cache
def _ones(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is kept, and must do for torch's graph too
        return torch.ones(width, dtype=dtype, device=device)


def _normalise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean 0 and variance 1 over the last dimension; also the mean and 1 / deviation taken out, (..., 1)."""
    # With a scale, even of 1, torch takes a kernel twice as fast.
    W = x.shape[-1]
    return torch.native_layer_norm(x, (W,), _ones(W, x.dtype, x.device), None, 1e-5)


def _normalise_gradient(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Gradient of _normalise by x, from that by its first result."""
    W, back = x.shape[-1], torch.ops.aten.native_layer_norm_backward
    ones = _ones(W, x.dtype, x.device)
    by_x: Tensor = back(gradient, x, (W,), mean, scale, ones, None, [True, False, False])[0]
    return by_x


def _read(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """linear(layer_norm(x)) as (G, N, out) without its bias, the bias (G, 1, out), and what _unread needs.

    Arguments: (G, N, W), 2 (G, W), (G, out, W), (G, out). Where there are more rows than outputs, scale and
    shift go into the weights and the bias: that is less work.
    """
    normal, *moments = _normalise(x)
    bias = bias.unsqueeze(1)
    if x.shape[1] < weight.shape[1]:
        affine = torch.addcmul(shift.unsqueeze(1), normal, scale.unsqueeze(1))
        return _product(affine, weight.mT), bias, (x, *moments, normal, affine, scale, shift, weight)
    folded = weight * scale.unsqueeze(1)
    moved = torch.baddbmm(bias, shift.unsqueeze(1), weight.mT)
    return _product(normal, folded.mT), moved, (x, *moments, normal, folded, scale, shift, weight)


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


def _by_head(x: Tensor, tokens: int, heads: int) -> Tensor:
    """View (G, B * L, 3 * H * d) as (3, G, B, H, L, d)."""
    return x.view(len(x), -1, tokens, 3, heads, x.shape[2] // (3 * heads)).permute(3, 0, 1, 4, 2, 5)


class AttentionBlock(torch.autograd.Function):
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
        B, d = N // L, W // H
        ctx.shape, ctx.factor = (G, B, L, H, d), factor
        qkv, bias, read = _read(x, scale, shift, weight, bias)
        split = x.new_empty(3, G, B, H, L, d)
        torch.add(_by_head(qkv, L, H), _by_head(bias, 1, H), out=split)
        q, k, v = split.view(3, G * B * H, L, d)
        weights = _product(q, k.mT, d**-0.5).softmax(-1)
        dropped = _masked_copy(weights, keep_weights)
        mixed = _product(dropped, v, factor).view(G, B, H, L, d).transpose(2, 3).reshape(G, N, W)
        y = _masked(_linear(mixed, out_weight, out_bias), keep_output)
        ctx.save_for_backward(*read, out_weight, q, k, v, weights, dropped, mixed, keep_weights, keep_output)
        return torch.add(x, y, alpha=factor, out=y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(G, N, W) -> gradients by the tensors of forward."""
        *read, out_weight, q, k, v, weights, dropped, mixed, keep_weights, keep_output = ctx.saved_tensors
        (G, B, L, H, d), factor = ctx.shape, ctx.factor
        gradient = gradient.contiguous()
        after = _masked_copy(gradient, keep_output)
        by_mixed, by_out_weight = _product(after, out_weight, factor), _product(after.mT, mixed, factor)
        by_out_bias = after.sum(1).mul_(factor)
        by_mixed = by_mixed.view(G, B, L, H, d).transpose(2, 3).reshape(-1, L, d)
        by_split = q.new_empty(3, *q.shape)
        _product(dropped.mT, by_mixed, factor, by_split[2])
        by_weights = _masked(_product(by_mixed, v.mT, factor), keep_weights)
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        _product(by_scores, k, d**-0.5, by_split[0])
        _product(by_scores.mT, q, d**-0.5, by_split[1])
        by_qkv = by_split.view(3, G, B, H, L, d).permute(1, 2, 4, 0, 3, 5).reshape(G, B * L, 3 * H * d)
        return *_unread(by_qkv, tuple(read), gradient), by_out_weight, by_out_bias, None, None, None, None


class FeedForwardBlock(torch.autograd.Function):
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
        wide, bias, read = _read(x, scale, shift, weight, bias)
        wide = _masked(wide.add_(bias).relu_(), keep_wide)
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


class Pool(torch.autograd.Function):
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


class Unit(torch.autograd.Function):
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
