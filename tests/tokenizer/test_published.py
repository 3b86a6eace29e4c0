"""The published network: its numbers, its sizes, its two quirks, its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.cli import instantiate_module
from places import ROOT
from safetensors.torch import load_file
from torch.nn import functional

from mefar.errors import UserError
from mefar.tokenizer import import_dface as dface
from mefar.tokenizer import module as tokenizer
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.published_network import PublishedNetwork
from mefar.tokenizer.quantizer import VectorQuantizer

PARITY = ROOT.parent / "shared/parity/dface_small.safetensors"
TINY = {"image_size": 32, "patch_size": 4, "dim": 16, "heads": 2, "head_dim": 8, "code_dim": 8}


def tiny(**changes: object) -> PublishedNetwork:
    sizes = TINY | {"num_tokens": 4, "spatial_depth": 1, "temporal_depth": 1, "num_codes": 8}
    return PublishedNetwork(**(sizes | changes))


def pair(size: int = 32, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, batch, 3, size, size, generator=generator).unbind(0)


@pytest.fixture(scope="module")
def parity() -> dict[str, torch.Tensor]:
    if not PARITY.is_file():
        pytest.skip(f"the published numbers are not here ({PARITY})")
    return load_file(PARITY)


def test_parity_with_the_published_numbers(parity: dict[str, torch.Tensor]) -> None:
    model = dface.load_tokenizer(PARITY, image_size=64)
    onset, apex = parity["input.frames"].unbind(2)
    tokens = model.tokenize(onset, apex)
    close = {"rtol": 0.0, "atol": 1e-4}
    with torch.no_grad():
        action = model.network.encode(onset, apex)
        quantized = model.network.vq(action)
        image = model.network.decode(onset, tokens.embeddings)
    torch.testing.assert_close(action, parity["expected.continuous_action"], **close)
    assert torch.equal(tokens.indices, parity["expected.indices"])
    assert torch.equal(quantized.indices, parity["expected.indices"])
    torch.testing.assert_close(tokens.embeddings, parity["expected.token_embeddings"], **close)
    torch.testing.assert_close(image, parity["expected.reconstruction"], **close)


def test_parity_file_is_accounted_for_key_by_key(parity: dict[str, torch.Tensor]) -> None:
    theirs = {name.removeprefix("tokenizer.") for name in parity if name.startswith("tokenizer.")}
    names = dface.published_names(dface.infer_settings(dface.read_halves(PARITY)[0], PARITY, 64))
    assert theirs == set(names)
    ours = [name for name in names.values() if name is not None]
    model = dface.load_tokenizer(PARITY, image_size=64)
    assert sorted(ours) == sorted(name for name, _ in model.network.named_parameters())


def test_parameters_at_the_published_sizes() -> None:
    with torch.device("meta"):
        codec = PublishedNetwork()
    assert sum(parameter.numel() for parameter in codec.parameters()) == 64_325_480
    # The published count holds 18 context norms of self-attention as well, which compute nothing.
    assert 64_325_480 + 18 * 512 == 64_334_696


def test_the_paper_config_has_the_published_sizes() -> None:
    config = yaml.safe_load((ROOT / "experiments/configs/tokenizer_paper.yaml").read_text())
    with torch.device("meta"):
        model = instantiate_module(FacialActionTokenizer, config["model"]["init_args"])
        published = PublishedNetwork()
    assert model.network.vq.method == "nsvq"
    assert {name: value.shape for name, value in model.network.state_dict().items()} == {
        name: value.shape for name, value in published.state_dict().items()
    }


@given(st.sampled_from([1, 2, 4]), st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_quirk_1_codes_are_read_as_if_they_lay_transposed(tokens: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    codec = tiny(num_tokens=tokens, code_dim=width, num_codes=8)
    codes = torch.randn(2, tokens, width)
    flat = codes.reshape(2, -1)
    vectors = torch.stack([flat[:, j::tokens] for j in range(tokens)], 1)  # every L-th number, from j
    expected = vectors @ codec.token_projection.weight.T + codec.token_projection.bias
    torch.testing.assert_close(codec.embed(codes), expected)


def test_quirk_1_spreads_a_code_over_all_embeddings() -> None:
    codec = PublishedNetwork(64, 4, 64, 1, 1, 2, 32)
    torch.nn.init.eye_(codec.token_projection.weight)  # the 32 numbers go to the first 32 places
    codes = torch.zeros(1, 16, 32)
    codes[0, 5] = 1
    reached = codec.embed(codes) - codec.token_projection.bias
    assert reached[0].abs().sum(1).gt(0.5).all()
    assert reached[0].abs().sum(0).gt(0.5).nonzero().flatten().tolist() == [10, 11]


def test_quirk_2_the_temporal_convolution_reads_patches_as_frames() -> None:
    codec = tiny().eval()
    seen: dict[str, object] = {}
    codec.spatial_encoder.register_forward_hook(lambda _, inputs, output: seen.update(space=output))
    codec.temporal_encoder.register_forward_hook(lambda _, inputs, output: seen.update(time=inputs))
    codec.encode(*pair())
    space, (tokens, grid) = seen["space"], seen["time"]
    assert grid == (2, 8, 8)
    frames = space.view(2, 2, 64, 16)
    assert torch.equal(tokens.view(2, 64, 2, 16), frames.transpose(1, 2))
    position = codec.temporal_encoder.blocks[0].position
    misread = tokens.reshape(2, 2, 8, 8, 16).permute(0, 4, 1, 2, 3)  # memory of (B, h, w, t), as (B, t, h, w)
    expected = functional.conv3d(
        functional.pad(misread, (1, 1, 1, 1, 2, 0)), position.weight, position.bias, groups=16
    )
    torch.testing.assert_close(position(tokens, grid), expected.permute(0, 2, 3, 4, 1).reshape(tokens.shape))


@pytest.mark.parametrize("tokens", [1, 4, 16, 64, 256])
def test_token_counts_by_halving(tokens: int) -> None:
    codec = tiny(patch_size=2, num_tokens=tokens, bottleneck="halving").eval()
    onset, apex = pair()
    action = codec.encode(onset, apex)
    assert action.shape == (2, tokens, 8)
    decoded = codec.decode(onset, codec.embed(codec.vq(action).values))
    assert decoded.shape == onset.shape


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_tokens": 9}, "num_tokens 9 of 8x8 patches: the published network makes 1 of 8x8"),
     ({"num_tokens": 16}, "or bottleneck: halving"), ({"image_size": 30}, "multiple of patch_size"),
     ({"image_size": 8192, "bottleneck": "halving"}, "take a larger patch_size"),
     ({"num_tokens": 9, "bottleneck": "halving"}, "num_tokens 9 is no square"),
     ({"num_tokens": 0, "bottleneck": "halving"}, "num_tokens 0"),
     ({"num_tokens": 256, "bottleneck": "halving"}, "256")],
)  # fmt: skip
def test_sizes_that_cannot_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(**changes)


def test_images_of_another_size_than_a_power_of_two() -> None:
    codec = tiny(image_size=24, num_tokens=9, bottleneck="halving").eval()  # 6 x 6 patches -> 3 x 3 tokens
    onset, apex = pair(24)
    assert codec.decode(onset, codec.embed(codec.encode(onset, apex))).shape == onset.shape


def test_no_parameter_is_without_gradient_and_the_decoder_leaves_the_embedding_alone() -> None:
    codec = tiny()
    onset, apex = pair()
    codec.decode(onset, torch.randn(2, 4, 16)).sum().backward()
    assert all(parameter.grad is None for parameter in codec.patch_embedding.parameters())
    quantized = codec.vq(codec.encode(onset, apex))
    codec.decode(onset, codec.embed(quantized.values)).square().sum().backward()
    idle = [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_noise_substitution_keeps_the_distance_and_trains_the_book() -> None:
    torch.manual_seed(0)
    codec = tiny().train()
    action = torch.randn(3, 4, 8)
    quantized = codec.vq(action)
    codes = codec.vq.lookup(quantized.indices)
    torch.testing.assert_close((quantized.values - action).norm(dim=-1), (codes - action).norm(dim=-1))
    assert not torch.allclose(quantized.values, codes)
    quantized.values.sum().backward()
    assert codec.vq.codebook.grad.abs().sum() > 0
    assert torch.equal(codec.eval().vq(action).values, codes)


@pytest.mark.parametrize("revival", ["published", "unused"])
def test_revival_by_batches(revival: str) -> None:
    """At the 11th forward: as published, whoever served fewer than .1 x 40 batches; else whoever none."""
    torch.manual_seed(0)
    book = VectorQuantizer(4, 2, "nsvq", revival=revival).train()
    with torch.no_grad():
        book.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 500.0], [-500.0, 0.0]]))
    batches = torch.zeros(11, 40, 3, 2)
    batches[:3, :, 0, 0] = 10.0  # code 1 serves 3 batches, often; code 2 serves 4, a single vector each
    batches[:4, 0, 1, 1] = 500.0
    before = book.codebook.detach().clone()
    for number, vectors in enumerate(batches):
        book(vectors)
        assert torch.equal(book.codebook, before) == (number < 10)
    assert torch.equal(book.codebook[[0, 2]], before[[0, 2]])
    copies = book.codebook[[1, 3]] if revival == "published" else book.codebook[[3]]
    assert torch.equal(book.codebook[1], before[1]) == (revival == "unused")
    distance = torch.cdist(copies, before[:3] if revival == "unused" else before[[0, 2]]).min(1).values
    assert (distance < 1e-9).all() if revival == "published" else 1e-9 < distance.max() < 0.1
    assert not book.cluster_size.any(), "the count begins anew"


def test_half_precision_chooses_the_same_codes() -> None:
    torch.manual_seed(0)
    for method in ("nsvq", "ema"):
        book = VectorQuantizer(32, 8, method).eval()
        vectors = torch.randn(64, 16, 8)
        exact = book.nearest(vectors)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = torch.argmin(book.codebook.square().sum(-1) - 2 * vectors @ book.codebook.T, -1)
            assert not torch.equal(rounded, exact), "the test needs vectors that bfloat16 gets wrong"
            assert torch.equal(book(vectors).indices, exact)


def published_module(**changes: object) -> FacialActionTokenizer:
    return FacialActionTokenizer(tiny(**changes))


def test_the_loss_is_the_plain_error_of_the_apex_and_falls() -> None:
    torch.manual_seed(0)
    module = published_module().train()
    onset, apex = pair(batch=4)
    batch = {"onset": onset, "apex": apex}
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        terms = module.network.losses(batch)
        assert list(terms) == ["reconstruction"]
        optimizer.zero_grad()
        terms["reconstruction"].backward()
        optimizer.step()
        losses.append(terms["reconstruction"].item())
    assert losses[-1] < 0.6 * losses[0]
    module.eval()
    with torch.no_grad():
        image = module.network.decode(onset, module.tokenize(onset, apex).embeddings)
        assert float(module.network.losses(batch)["reconstruction"]) == pytest.approx(
            float(functional.mse_loss(image, apex))
        )


def test_a_published_checkpoint_is_a_normal_one(tmp_path: Path) -> None:
    module = published_module().eval()
    torch.save(
        {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, tmp_path / "x.ckpt"
    )
    again = tokenizer.load(tmp_path / "x.ckpt")
    onset, apex = pair()
    tokens = module.tokenize(onset, apex)
    assert tokens.embeddings.shape == (2, 4, 16)
    assert torch.equal(again.tokenize(onset, apex).embeddings, tokens.embeddings)
    assert torch.equal(again.reconstruct(onset, tokens), module.reconstruct(onset, tokens))


def test_compiled_blocks_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = published_module().eval()
    seen: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:  # inductor would take its minutes
        seen.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda call, **words: compiler(call, **words | {"backend": backend})
    )
    before = model.tokenize(*pair()).embeddings
    model.compile_blocks()
    assert torch.equal(model.tokenize(*pair()).embeddings, before)
    assert seen
