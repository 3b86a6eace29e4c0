"""The blocks of the published network against the same computation written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mefar.tokenizer.transformer import (
    Attention,
    FeedForward,
    PositionConvolution,
    RelativePositionBias,
    Transformer,
)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """No parameter at a value (0, 1) that would hide its absence."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_position_convolution_is_a_padded_conv3d(
    time: int, height: int, width: int, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    position = PositionConvolution(6)
    tokens = torch.randn(batch * time, height * width, 6)
    volume = tokens.reshape(batch, time, height, width, 6).permute(0, 4, 1, 2, 3)
    expected = functional.conv3d(
        functional.pad(volume, (1, 1, 1, 1, 2, 0)), position.weight, position.bias, groups=6
    )
    result = position(tokens, (time, height, width))
    torch.testing.assert_close(result, expected.permute(0, 2, 3, 4, 1).reshape(tokens.shape))


def test_position_convolution_does_not_see_the_future() -> None:
    position = PositionConvolution(4)
    tokens = torch.randn(3, 9, 4)
    later = torch.cat([tokens[:2], tokens[2:] + 1])
    before, after = position(tokens, (3, 3, 3)), position(later, (3, 3, 3))
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4)])
def test_position_bias_is_the_network_of_every_pairs_offset(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    bias = RelativePositionBias(grid, 16, 3)
    height, width = grid
    places = torch.tensor([(row, column) for row in range(height) for column in range(width)]).float()
    offset = places[:, None] - places[None]  # query minus key
    expected = bias.network(offset.sign() * (offset.abs() + 1).log()).permute(2, 0, 1)
    torch.testing.assert_close(bias(), expected)


def written_out(
    attention: Attention, tokens: torch.Tensor, bias: torch.Tensor | None, context: torch.Tensor | None
):
    """The published attention, one step per line, without fused kernels."""
    heads, width = attention.heads, attention.head_dim
    normed = functional.layer_norm(tokens, tokens.shape[-1:], attention.norm.weight)
    source = tokens  # keys and values of self-attention skip the norm
    if context is not None:
        source = functional.layer_norm(context, context.shape[-1:], attention.context_norm.weight)
    q = normed @ attention.query.weight.T
    k, v = (source @ attention.key_value.weight.T).chunk(2, -1)
    q, k, v = (x.unflatten(-1, (heads, width)).transpose(1, 2) for x in (q, k, v))
    if attention.null_key_value is not None:
        pairs = attention.null_key_value.unflatten(1, (-1, 2)).expand(len(tokens), -1, -1, -1, -1)
        k, v = torch.cat([pairs[:, :, :, 0], k], 2), torch.cat([pairs[:, :, :, 1], v], 2)
    q = q / q.norm(dim=-1, keepdim=True) * attention.query_scale
    k = k / k.norm(dim=-1, keepdim=True) * attention.key_scale
    logits = 8 * q @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2) @ attention.out.weight.T


@pytest.mark.parametrize("biased", [False, True])
def test_self_attention_is_the_written_out_one(biased: bool) -> None:
    torch.manual_seed(0)
    attention = shaken(Attention(12, 3, 8))
    tokens, bias = torch.randn(4, 9, 12), torch.randn(3, 9, 9) if biased else None
    torch.testing.assert_close(attention(tokens, bias), written_out(attention, tokens, bias, None))


def test_cross_attention_is_the_written_out_one() -> None:
    torch.manual_seed(0)
    attention = shaken(Attention(12, 3, 8, cross=True))
    tokens, context = torch.randn(4, 9, 12), torch.randn(4, 5, 12)
    torch.testing.assert_close(
        attention(tokens, context=context), written_out(attention, tokens, None, context)
    )


def test_attention_refuses_the_other_kinds_call() -> None:
    with pytest.raises(ValueError, match="context"):
        Attention(8, 2, 4)(torch.randn(1, 3, 8), context=torch.randn(1, 2, 8))
    with pytest.raises(ValueError, match="context"):
        Attention(8, 2, 4, cross=True)(torch.randn(1, 3, 8))


def test_feed_forward_gates_its_first_half_by_its_second() -> None:
    torch.manual_seed(0)
    layer = shaken(FeedForward(64))
    tokens = torch.randn(2, 3, 64)
    inner = int(4 * 2 / 3 * 64)
    assert layer.expand.weight.shape == (2 * inner, 64)
    wide = functional.layer_norm(tokens, (64,), layer.norm.weight, layer.norm.bias) @ layer.expand.weight.T
    expected = (wide[..., :inner] * functional.gelu(wide[..., inner:])) @ layer.shrink.weight.T
    torch.testing.assert_close(layer(tokens), expected)


def test_blocks_add_their_parts_in_order() -> None:
    torch.manual_seed(0)
    stack = shaken(Transformer(8, 2, 2, 4, cross=True))
    tokens, context, bias, grid = torch.randn(2, 6, 8), torch.randn(2, 3, 8), torch.randn(2, 6, 6), (1, 2, 3)
    expected = tokens
    for block in stack.blocks:
        expected = expected + block.position(expected, grid)
        expected = expected + block.attention(expected, bias)
        expected = expected + block.cross_attention(expected, context=context)
        expected = expected + block.feed_forward(expected)
    expected = functional.layer_norm(expected, (8,), stack.norm.weight)
    torch.testing.assert_close(stack(tokens, grid, bias, context), expected)


def test_half_precision_stays_near_and_trains_everything() -> None:
    torch.manual_seed(0)
    stack = Transformer(16, 2, 2, 8, cross=True)
    network = RelativePositionBias((2, 3), 16, 2)
    tokens, context = torch.randn(4, 6, 16), torch.randn(4, 3, 16)
    exact = stack(tokens, (1, 2, 3), network(), context)
    with torch.autocast("cpu", torch.bfloat16):
        rough = stack(tokens, (1, 2, 3), network(), context)
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()
    rough.float().square().sum().backward()
    for name, parameter in [*stack.named_parameters(), *network.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
