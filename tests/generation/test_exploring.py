"""What single tokens change, as numbers: planted, they come out."""

from __future__ import annotations

import math

import pytest
import torch

from mefar.generation import exploring
from mefar.generation.editing import each_replaced, resting
from mefar.tokenizer.plain import PlainTokenizer
from mefar.tokenizer.published_network import PublishedNetwork
from mefar.tokenizer.warp_network import WarpNetwork

L, K, S = 4, 5, 8


def planted(kind: str) -> torch.Tensor:
    """(1, L, K, S, S) changes that follow from position, code or both."""
    generator = torch.Generator().manual_seed(0)
    shape = {"position": (L, 1), "code": (1, K), "both": (L, K)}[kind]
    return torch.randn(*shape, S, S, generator=generator).expand(L, K, S, S)[None]


def claims(found: torch.Tensor) -> dict[str, float | list[float]]:
    return exploring._variance(found) | exploring._cosines(found) | exploring._halves(found)


@pytest.mark.parametrize(
    ("kind", "highest"), [("position", "by_position"), ("code", "by_code"), ("both", "by_both")]
)
def test_what_effects_follow_from(kind: str, highest: str) -> None:
    told = claims(planted(kind))
    shares = {name: told[name] for name in ("by_position", "by_code", "by_both")}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert max(shares, key=shares.get) == highest
    if kind != "both":
        assert shares[highest] == pytest.approx(1, abs=1e-4)
        assert told[f"same_{kind}"] == pytest.approx(1, abs=1e-4)
    assert abs(told["neither"]) < 0.2


def test_upper_and_lower_face() -> None:
    found = torch.zeros(1, L, K, S, S)
    found[:, 0, :, :3] = 1
    found[:, 1, :, 5:] = 1
    found[:, 2] = 1
    told = exploring._halves(found)
    assert told["upper"] == pytest.approx([1, 0, 0.5, 0]) and told["reaching_both"] == 1


def test_places_on_the_grid_are_told_from_places_on_the_line() -> None:
    found = torch.zeros(1, 16, 2, 16, 16)
    for place in range(16):  # each position changes its own cell, and its neighbours' a little
        row, column = divmod(place, 4)
        found[:, place, :, 4 * row : 4 * row + 7, 4 * column : 4 * column + 7] = 1
    told = exploring._places(found)
    assert told["grid"] > 0.6 and told["grid_p"] < 0.01 and told["grid"] > told["line"] + 0.1
    assert math.isnan(exploring._places(found[:, :5])["grid"])


@pytest.mark.parametrize("published", [False, True])
def test_one_token_changes_a_decoded_face(published: bool) -> None:
    torch.manual_seed(0)
    if published:
        network = PublishedNetwork(
            32, 8, dim=16, spatial_depth=1, temporal_depth=1, heads=2, head_dim=8, num_codes=3, num_tokens=4,
            code_dim=4, bottleneck="halving",
        )  # fmt: skip
    else:
        network = WarpNetwork(48, dim=8, depth=0, num_codes=3, num_tokens=4, code_dim=4)
        torch.nn.init.normal_(network.paint.weight, std=0.3)
    tokenizer = PlainTokenizer(network)
    strength = None if published else torch.ones(1)
    rest = resting(tokenizer)
    sets = each_replaced(rest, 3).flatten(0, 1)
    face = torch.rand(3, tokenizer.image_size, tokenizer.image_size)
    made = exploring.pictures(tokenizer, face, torch.cat([rest[None], sets]), strength)
    found = exploring.changes(made).unflatten(0, (4, 3))
    still = found[torch.arange(4), rest].abs().amax()
    assert still < 1e-5 < found.abs().amax()
    told = exploring.claims(tokenizer, face, found[None], torch.randint(0, 3, (5, 4)), strength)
    assert -1 <= told["shuffled"] <= 1 and 0 < told["line_p"] <= 1
    flow = exploring.motion(tokenizer, face[None], sets, strength, cells=4)
    assert flow.shape == (12, 4, 4, 2) and bool(flow.any()) != published
