"""The layers of the token heads against torch's own, whose gradients torch derives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mefar.classifier.blocks import Pool, Unit, through_autograd
from mefar.classifier.head import HeadSize, TokenHead
from mefar.classifier.layers import DropoutNoise, EncoderLayer, GroupedNorm

G, L, W, H, F = 3, 5, 8, 2, 12
CPU = torch.device("cpu")


def shaken(module: Any) -> Any:
    """No parameter at a value (0, 1) that would hide its absence."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module.double()


PARTS = {"qkv": "self_attn.in_proj_", "out": "self_attn.out_proj.", "widen": "linear1.", "narrow": "linear2."}


def by_torchs_names(layer: EncoderLayer) -> dict[str, nn.Parameter]:
    """Our parameters under the names of nn.TransformerEncoderLayer."""
    found = {}
    for name, value in layer.named_parameters():
        part, kind = name.split(".")
        found[f"{PARTS.get(part, part + '.')}{kind}"] = value
    return found


def theirs(layer: EncoderLayer, model: int) -> nn.TransformerEncoderLayer:
    """torch's layer with the values of one model."""
    made = nn.TransformerEncoderLayer(W, H, F, 0.0, "relu", batch_first=True, norm_first=True).double()
    made.load_state_dict({name: value.detach()[model] for name, value in by_torchs_names(layer).items()})
    return made


def written_out(layer: EncoderLayer, x: Tensor, noise: DropoutNoise) -> Tensor:
    """The layer of one model in ordinary operations, dropout in all four places."""
    B, N = x.shape[1] // L, x.shape[1]
    kept = noise.keep(B, H * L * L + 2 * L * W + L * F, CPU)
    assert kept is not None
    drop = [
        mask.double() * 256 / (256 - noise.threshold)
        for mask in kept.split([H * L * L, L * W, L * F, L * W], -1)
    ]
    weight = {name: value[0] for name, value in layer.named_parameters()}

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (W,), weight[f"{name}.weight"], weight[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    q, k, v = linear(norm(x[0], "norm1"), "qkv").view(B, L, 3, H, W // H).permute(2, 0, 3, 1, 4)
    attention = (q @ k.mT / (W // H) ** 0.5).softmax(-1) * drop[0].view(B, H, L, L)
    mixed = (attention @ v).transpose(1, 2).reshape(N, W)
    x = x + linear(mixed, "out") * drop[1].view(1, N, W)
    wide = linear(norm(x[0], "norm2"), "widen").relu() * drop[2].view(N, F)
    return x + linear(wide, "narrow") * drop[3].view(1, N, W)


@pytest.mark.parametrize("B", [1, 6])  # with fewer and with more rows than outputs
def test_the_layer_and_its_gradients_are_torchs(B: int) -> None:
    layer = shaken(EncoderLayer(G, W, H, F))
    x = torch.randn(G, B * L, W, dtype=torch.float64, requires_grad=True)
    ours = layer(x, L, None)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    for model in range(G):
        other = theirs(layer, model)
        own = x.detach()[model].view(B, L, W).requires_grad_()
        expected = other(own)
        torch.testing.assert_close(ours[model].view(B, L, W), expected)
        (expected * weight[model].view(B, L, W)).sum().backward()
        assert x.grad is not None and own.grad is not None
        torch.testing.assert_close(x.grad[model].view(B, L, W), own.grad)
        gradients = dict(other.named_parameters())
        for name, value in by_torchs_names(layer).items():
            assert value.grad is not None
            torch.testing.assert_close(value.grad[model], gradients[name].grad, msg=name)


@pytest.mark.parametrize("B", [1, 6])
@pytest.mark.parametrize("dropout", [0.2, 0.5])
def test_dropout_is_in_its_four_places(B: int, dropout: float) -> None:
    layer = shaken(EncoderLayer(1, W, H, F))
    found = []
    for forward in (lambda x, noise: layer(x, L, noise), lambda x, noise: written_out(layer, x, noise)):
        noise = DropoutNoise([torch.Generator().manual_seed(3)], dropout)
        x = torch.randn(1, B * L, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y = forward(x.requires_grad_(), noise)
        layer.zero_grad()
        y.sin().sum().backward()
        gradients = {name: value.grad.clone() for name, value in layer.named_parameters()}
        found.append({"y": y.detach(), "x": x.grad} | gradients)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)


def test_gradients_may_come_in_any_order_of_memory() -> None:
    norm, layer, query = (
        shaken(GroupedNorm(1, W)),
        shaken(EncoderLayer(1, W, H, F)),
        torch.randn(1, W).double(),
    )
    x = torch.randn(1, 4 * L, W, dtype=torch.float64, requires_grad=True)

    def pool(x: Tensor) -> tuple[Tensor, Tensor]:
        return through_autograd(Pool, x, norm.weight, norm.bias, query, L)

    for make in (lambda x, noise: layer(x, L, noise), lambda x, _: pool(x)[0], lambda x, _: pool(x)[1]):
        found = []
        for order in (lambda g: g, lambda g: g.mT.contiguous().mT):
            y = make(x, DropoutNoise([torch.Generator().manual_seed(3)], 0.2))
            found.append(torch.autograd.grad(y, x, order(torch.arange(y.numel()).view(y.shape).double()))[0])
        torch.testing.assert_close(*found)


def test_gradients_are_those_of_differences() -> None:
    layer = shaken(EncoderLayer(2, 4, 2, 6))
    for B in (1, 4):
        x = torch.randn(2, B * 3, 4, dtype=torch.float64, requires_grad=True)
        parameters = list(layer.parameters())

        def run(x: Tensor, *parameters: Tensor) -> Tensor:
            noise = DropoutNoise([torch.Generator().manual_seed(seed) for seed in (0, 1)], 0.25)
            return layer(x, 3, noise)

        assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize(("B", "width"), [(1, 4), (6, 64)])  # of torch's own products and of MKL's
def test_what_is_in_memory_before_does_not_matter(
    B: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products are written into memory that was never set."""
    layer = shaken(EncoderLayer(1, width, 2, width)).float()
    x = torch.randn(1, 2 * B, width, requires_grad=True)

    def run() -> list[Tensor]:
        y = layer(x, 2, None)
        return [y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])]

    expected, asked = run(), []

    def full_of_nan(x: Tensor, *shape: int) -> Tensor:
        asked.append(shape)
        return x.new_full(shape, torch.nan)

    monkeypatch.setattr(Tensor, "new_empty", full_of_nan)
    for ours, theirs in zip(run(), expected, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs)
    assert asked


def test_pooling_is_a_softmax_over_tokens() -> None:
    """Also its gradients, of both results, against the same in ordinary operations."""
    norm, query = shaken(GroupedNorm(G, W)), torch.randn(G, W, dtype=torch.float64, requires_grad=True)
    x = torch.randn(G, 4 * L, W, dtype=torch.float64, requires_grad=True)
    inputs = [x, norm.weight, norm.bias, query]
    normal = functional.layer_norm(x, (W,)) * norm.weight.unsqueeze(1) + norm.bias.unsqueeze(1)
    normal = normal.view(G, 4, L, W)
    weights = (normal * query[:, None, None]).sum(-1).div(W**0.5).softmax(-1)
    expected = (weights.unsqueeze(-1) * normal).sum(2), weights
    found = through_autograd(Pool, x, norm.weight, norm.bias, query, L)
    gradients = []
    for pooled, attention in (found, expected):
        assert pooled.shape == (G, 4, W) and attention.shape == (G, 4, L)
        value = pooled.sin().sum() + (attention**3).sum()
        gradients.append(torch.autograd.grad(value, inputs))
    for ours, theirs in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_unit_vectors_and_their_gradients() -> None:
    def unit(x: Tensor) -> Tensor:
        return through_autograd(Unit, x)

    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unit(x), functional.normalize(x, dim=-1))
    assert torch.autograd.gradcheck(unit, x)
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_half_precision_around_a_head_leaves_it_alone() -> None:
    head = TokenHead(4, 6, 3, HeadSize(8, 1, 2, 12), text_dim=5)
    tokens = torch.randn(1, 7, 4, 6)
    expected = head(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(tokens)
    for name in ("logits", "attention", "text"):
        assert torch.equal(getattr(output, name), getattr(expected, name))
