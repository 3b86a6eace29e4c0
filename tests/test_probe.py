"""The probes find what is there, and nothing where nothing is."""

from __future__ import annotations

import math

import pytest
import torch

from mefar import probe
from mefar.tokenizer import FacialActionTokenizer

SUBJECTS = [f"db/{n // 8}" for n in range(64)]


def informative(labels: torch.Tensor, noise: float = 0.3) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.one_hot(labels, 3).float() + noise * torch.randn(len(labels), 3)


def test_action_units_are_read_off_features_that_hold_them() -> None:
    torch.manual_seed(1)
    units = (torch.rand(64, 3) < 0.4).long()
    units[:, 2] = 0
    units[0, 2] = 1  # one clip is too few to probe
    mean, each = probe.au_probe(units.float() + 0.2 * torch.randn(64, 3), units, SUBJECTS)
    assert mean > 0.95 and set(each) == {0, 1}
    nothing, _ = probe.au_probe(torch.randn(64, 3), units, SUBJECTS)
    assert nothing < 0.7
    assert math.isnan(probe.au_probe(torch.randn(64, 3), units[:, 2:], SUBJECTS)[0])


def test_identity_is_found_only_where_it_is() -> None:
    torch.manual_seed(2)
    who = torch.tensor([n // 8 for n in range(64)])
    telling = torch.nn.functional.one_hot(who, 8).float() + 0.1 * torch.randn(64, 8)
    found, chance = probe.identity_probe(telling, SUBJECTS)
    assert found > 0.95 and chance == pytest.approx(1 / 8)
    assert probe.identity_probe(torch.randn(64, 8), SUBJECTS)[0] < 0.35


def test_few_clips_and_other_databases() -> None:
    torch.manual_seed(3)
    labels = torch.randint(3, (64,))
    assert probe.few_shot(informative(labels), labels, SUBJECTS, 5) > 0.8
    assert probe.few_shot(torch.randn(64, 3), labels, SUBJECTS, 5) < 0.5
    databases = ["a"] * 32 + ["b"] * 32
    across = probe.cross_database(informative(labels), labels, databases)
    assert set(across) == {"a", "b"} and min(across.values()) > 0.8
    assert probe.cross_database(informative(labels), labels, ["a"] * 64) == {}


def test_a_tokenizer_is_measured() -> None:
    model = FacialActionTokenizer(48, num_codes=8, num_tokens=4, code_dim=4, dim=16, depth=1).eval()
    torch.manual_seed(4)
    onset, apex = torch.rand(2, 12, 3, 48, 48)
    read = probe.features(model, onset, apex)
    assert read["tokens"].shape == (12, 32) and (read["tokens"].sum(1) == 4).all()
    numbers = probe.reconstruction(model, onset, apex)
    assert numbers["no_action_spread"] == 0  # by construction of our codec
    assert numbers["gain_over_copy"] == pytest.approx(0, abs=1e-3)  # an untrained decoder copies
    assert 0 <= numbers["transfer_agreement"] <= 1


def test_cameras() -> None:
    images = torch.rand(2, 3, 40, 40)
    assert (probe.gray(images)[:, 0] == probe.gray(images)[:, 2]).all()
    assert probe.low_resolution(images).std() < images.std()
