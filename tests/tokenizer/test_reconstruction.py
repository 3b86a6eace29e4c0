"""Loss and quality functions of reconstructions."""

from __future__ import annotations

import pytest
import torch

from mefar.tokenizer import image_losses as rec
from mefar.tokenizer.quality import TokenQuality


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth random onset and an apex that differs inside one square only: (4, 3, 64, 64)."""
    torch.manual_seed(seed)
    onset = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8), (64, 64), mode="bilinear")
    apex = onset.clone()
    apex[:, :, 20:36, 20:36] = apex[:, :, 20:36, 20:36].flip(-1)
    return onset, apex


def test_light_is_matched_and_motion_is_left() -> None:
    onset, apex = pair()
    matched = rec.match_light(apex * 1.1 + 0.05, onset)
    assert (matched - rec.match_light(apex, onset)).abs().max() < 1e-4
    assert (rec.match_light(onset, onset) - onset).abs().max() < 1e-5


def test_moving_region_is_where_it_moved() -> None:
    region = rec.moving_region(*pair())
    inside = region[:, :, 16:40, 16:40].sum() / region.sum()
    assert inside > 0.9 and 0.05 < region.float().mean() <= 0.21
    assert not rec.moving_region(pair()[0], pair()[0]).any()


def test_moving_weight_has_mean_one_and_prefers_motion() -> None:
    weight = rec.moving_weight(*pair(), strength=2.0)
    assert weight.mean() == pytest.approx(1.0, abs=1e-4)
    assert weight[:, :, 24:32, 24:32].mean() > 2 * weight[:, :, 50:, 50:].mean()
    assert torch.allclose(rec.moving_weight(*pair(), strength=0.0), torch.ones(4, 1, 64, 64))


def test_psnr_of_a_known_error() -> None:
    image = torch.zeros(2, 3, 16, 16)
    assert rec.psnr(image + 0.1, image) == pytest.approx([20.0, 20.0], abs=1e-3)
    region = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    region[..., :8] = True
    off = image.clone()
    off[..., 8:] = 1.0
    assert rec.psnr(off, image, region).min() > 90


def test_quality_separates_learned_from_copied() -> None:
    onset, apex = pair()
    indices = torch.arange(4).view(4, 1).expand(4, 16).contiguous()
    copied = TokenQuality(32, 16)
    copied.update(indices, indices, onset, apex, onset, onset)
    values = copied.compute()
    assert values["gain_over_copy"] == 0 and values["delta_psnr"] == 0
    assert values["code_usage"] == pytest.approx(4 / 32) and values["perplexity"] == pytest.approx(
        4, abs=1e-3
    )
    perfect = TokenQuality(32, 16)
    perfect.update(indices, indices, onset, apex, apex, onset)
    assert perfect.compute()["gain_over_copy"] > 20 and perfect.compute()["delta_psnr"] > 20


def test_no_action_spread_is_that_of_all_batches_and_ranks_together() -> None:
    """Ranks add up their counts; the most common token of each rank alone would be another one."""
    onset, apex = pair()
    tokens = torch.Generator().manual_seed(0)
    still = [torch.randint(3, (4, 16), generator=tokens) for _ in range(4)]
    ranks = [TokenQuality(32, 16), TokenQuality(32, 16)]
    for number, rows in enumerate(still):
        ranks[number % 2].update(rows, rows, onset, apex, apex, onset)
    together = TokenQuality(32, 16)
    for name, reduce in together._reductions.items():
        setattr(together, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))
    together._update_count = 1
    every = torch.cat(still)
    spread = (every != every.mode(0).values).float().mean()
    assert together.compute()["no_action_spread"] == pytest.approx(float(spread), abs=1e-6)
    assert ranks[0].compute()["no_action_spread"] < spread
    constant = TokenQuality(32, 16)
    constant.update(every[:4], torch.full((4, 16), 7), onset, apex, apex, onset)
    assert constant.compute()["no_action_spread"] == 0
