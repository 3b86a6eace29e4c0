"""The codec: shapes, the constant no-action code, gray invariance, and that it learns a motion."""

from __future__ import annotations

import pytest
import torch

from mefar.errors import UserError
from mefar.tokenizer.image_losses import psnr
from mefar.tokenizer.warp_network import FLOOR, WarpNetwork, luminance, noise_level, warp


def faces(count: int, size: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(count, 3, 10, 10), (size, size), mode="bicubic").clamp(
        0, 1
    )


@pytest.mark.parametrize(("size", "codes", "tokens"), [(48, 8, 1), (64, 32, 16), (96, 64, 25)])
def test_shapes(size: int, codes: int, tokens: int) -> None:
    codec = WarpNetwork(size, dim=16, depth=1, num_codes=codes, num_tokens=tokens, code_dim=8).eval()
    onset, apex = faces(2, size, 0), faces(2, size, 1)
    quantized = codec.vq(codec.encode(onset, apex))
    assert quantized.indices.shape == (2, tokens) and int(quantized.indices.max()) < codes
    decoded = codec.decode(onset, codec.embed(quantized.values))
    assert decoded.image.shape == onset.shape and decoded.flow.shape == (2, 2, size, size)
    assert torch.allclose(decoded.image, onset, atol=1e-5)  # untrained, it copies the onset


def test_image_size_is_checked() -> None:
    with pytest.raises(UserError, match="multiple of 16"):
        WarpNetwork(100)


def test_nothing_moved_is_the_same_code_for_everybody() -> None:
    codec = WarpNetwork(64, dim=16, depth=1).eval()
    action = codec.encode(faces(5, 64, 3), faces(5, 64, 3))
    assert action.abs().max() < 1e-5


def test_gray_and_light_do_not_change_the_action() -> None:
    codec = WarpNetwork(64, dim=16, depth=1).eval()
    onset, apex = faces(3, 64, 4), faces(3, 64, 5)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    gray_onset, gray_apex = ((x * weights).sum(1, keepdim=True).expand_as(x) for x in (onset, apex))
    colour = codec.encode(onset, apex)
    assert torch.allclose(colour, codec.encode(gray_onset, gray_apex), atol=1e-4)
    assert torch.allclose(
        colour, codec.encode(onset, apex * 0.8 + 0.1), atol=0.02 * colour.abs().max().item()
    )


def test_luminance_is_standardised() -> None:
    gray = luminance(faces(4, 64, 6))
    assert gray.mean((1, 2, 3)).abs().max() < 1e-4 and (gray.std((1, 2, 3)) - 1).abs().max() < 0.02


def test_warp_fetches_from_where_the_flow_points() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0] = 1.0
    assert torch.allclose(warp(image, flow)[..., :-1], image[..., 1:], atol=1e-4)


def test_codes_do_not_hang_on_the_size_of_the_motion_and_strength_does() -> None:
    codec = WarpNetwork(64, dim=16, depth=1).eval()
    onset, flow = faces(6, 64, 7), torch.zeros(6, 2, 64, 64)
    flow[:, 1, 36:56, 16:48] = 1.0
    small, large = (codec.measure(onset, warp(onset, size * flow)) for size in (0.25, 1.0))
    assert torch.cosine_similarity(small.shape.flatten(1), large.shape.flatten(1)).min() > 0.8
    assert ((large.strength / small.strength - 4).abs() < 1.2).all()
    codec.unit.fill_(0.01)
    tokens = codec.tokenize(onset, warp(onset, flow))
    assert tokens.strength is not None and torch.allclose(tokens.strength, large.strength / 0.01)


def test_below_the_noise_floor_there_is_no_action() -> None:
    codec = WarpNetwork(64, dim=16, depth=1).eval()
    onset = faces(5, 64, 8)
    noisy = (onset + 0.01 * torch.randn(onset.shape)).clamp(0, 1)
    relative = codec.measure(onset, noisy).strength / noise_level(onset, noisy)
    codec.noise_floor.fill_(float(relative.detach().max()) / FLOOR * 1.01)
    nothing = codec.tokenize(onset, noisy)
    assert (nothing.strength == 0).all() and len(torch.unique(nothing.indices, dim=0)) == 1
    assert torch.equal(nothing.indices, codec.tokenize(onset, onset).indices)


def test_noise_is_told_from_motion() -> None:
    onset = faces(4, 64, 13)
    deviation = (onset * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1).std((1, 2))
    noisy = onset + 0.02 * torch.randn(onset.shape)
    expected = 0.02 * 0.669 / deviation  # 0.669: root of the sum of the squared weights
    assert torch.allclose(noise_level(onset, noisy), expected, rtol=0.2)
    flow = torch.zeros(4, 2, 64, 64)
    flow[:, 0, 30:50, 20:44] = 1.0
    assert (noise_level(onset, warp(onset, flow)) < 0.1 * expected).all()


def test_strength_scales_warp_and_paint_and_the_head_moves_apart() -> None:
    codec = WarpNetwork(64, dim=16, depth=1).eval()
    torch.nn.init.normal_(codec.paint.weight, std=0.1)
    onset = faces(2, 64, 9)
    tokens = codec.tokenize(onset, faces(2, 64, 10)).without_head()
    once, twice = (codec.decode(onset, tokens.embeddings, torch.full((2,), s)) for s in (0.5, 1.0))
    assert torch.allclose(2 * once.flow, twice.flow) and torch.allclose(2 * once.residual, twice.residual)
    assert torch.allclose(codec.reconstruct(onset, tokens.scaled(0)), onset, atol=1e-5)
    right = torch.tensor([[1.0, 0, 0, 0, 0, 0]] * 2)
    moved = codec.decode(onset, tokens.embeddings, torch.zeros(2), right).image
    assert torch.allclose(moved[..., :-1], onset[..., 1:], atol=1e-4)


def test_training_pairs_are_varied_by_the_step_alone() -> None:
    codec = WarpNetwork(64, dim=16, depth=1, still_share=0.5)
    onset, apex = faces(16, 64, 11), faces(16, 64, 12)
    still, (first, second) = codec._vary((onset, onset), (apex, apex))
    torch.rand(3)
    again, (same, _) = codec._vary((onset, onset), (apex, apex))
    assert torch.equal(still, again) and torch.equal(first, same)
    assert 0 < int(still.sum()) < 16 and not still[0]
    assert (first - onset)[still].abs().max() < 0.15 and (first != second)[still].any()
    codec.vq.step += 1
    codec.vq._progress = None
    assert not torch.equal(codec._vary((onset, onset), (apex, apex))[1][0], first)


def test_a_face_is_moved_by_the_tokens_of_its_partner() -> None:
    codec = WarpNetwork(64, dim=16, depth=1, still_share=0.0, head_jitter=0.0, twin_share=1.0)
    codec.prepare(100)  # no codebook yet
    torch.nn.init.normal_(codec.paint.weight, std=0.1)
    torch.nn.init.zeros_(codec.head.weight)  # everybody's own, whoever's action is shown
    onset, apex, other = faces(2, 64, 13), faces(2, 64, 14), torch.tensor([1, 0])
    seen = {"onset_view": onset, "apex_view": apex}
    crossed = codec.losses({"onset": onset, "apex": apex, "partner": other} | seen)
    by_hand = codec.losses({"onset": onset[other], "apex": apex[other]} | seen)
    own = codec.losses({"onset": onset, "apex": apex, "partner": torch.arange(2)} | seen)
    assert torch.allclose(crossed["reconstruction"], by_hand["reconstruction"])
    assert not torch.allclose(crossed["reconstruction"], own["reconstruction"])


def test_codec_learns_what_moves() -> None:
    """A patch of the face that shifts up, down, left or right: 120 steps beat copying the onset."""
    torch.manual_seed(0)
    codec = WarpNetwork(48, dim=16, depth=1, num_codes=8, num_tokens=4, code_dim=4, continuous_share=1 / 3)
    codec.prepare(120)
    optimiser = torch.optim.Adam(codec.parameters(), 3e-3)

    def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        onset = faces(8, 48, seed)
        flow = torch.zeros(8, 2, 48, 48)
        way = torch.tensor([[2.0, 0], [-2, 0], [0, 2], [0, -2]])[torch.randint(4, (8,))]
        flow[:, :, 12:36, 12:36] = way.view(8, 2, 1, 1)
        return onset, warp(onset, flow)

    for step in range(120):
        onset, apex = batch(step)
        quantized = codec.vq(codec.encode(onset, apex))
        decoded = codec.decode(onset, codec.embed(quantized.values))
        loss = (decoded.image - apex).square().mean() * 100 + 0.05 * quantized.commitment
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    codec.eval()
    onset, apex = batch(1000)
    rebuilt = codec.decode(onset, codec.embed(codec.vq(codec.encode(onset, apex)).values)).image
    assert (psnr(rebuilt, apex) - psnr(onset, apex)).mean() > 1.0
