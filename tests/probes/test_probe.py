"""The probes find what is there, and nothing where nothing is."""

from __future__ import annotations

import math

import pytest
import torch

from mefar.baselines import pixels as controls
from mefar.errors import UserError
from mefar.probes import tokens as probe
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.warp_network import WarpNetwork
from mefar.tokens import ActionTokens

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
    across = probe.cross_database(informative(labels), labels, SUBJECTS, databases)
    assert set(across) == {"a", "b"} and min(across.values()) > 0.8
    assert probe.cross_database(informative(labels), labels, SUBJECTS, ["a"] * 64) == {}


def test_nobody_and_no_database_is_on_both_sides() -> None:
    """What is learned of a person tells that person's label and no other's; the same for a database."""
    who = torch.arange(64) // 8
    habits = torch.nn.functional.one_hot(who, 8).float()
    labels, units = who % 3, (who % 2)[:, None]
    assert probe.au_probe(habits, units, SUBJECTS)[0] < 0.6
    assert probe.all_clips(habits, labels, SUBJECTS) < 0.6
    assert probe.few_shot(habits, labels, SUBJECTS, 5) < 0.6
    databases = ["a"] * 32 + ["b"] * 32
    told = torch.arange(64) % 3
    signs = torch.nn.functional.one_hot(told + 3 * (who > 3), 6).float()  # every database has its own
    assert max(probe.cross_database(signs, told, SUBJECTS, databases).values()) < 0.4


def test_a_tokenizer_is_measured() -> None:
    model = FacialActionTokenizer(WarpNetwork(48, 16, 1, 8, 4, 4)).eval()
    torch.manual_seed(4)
    onset, apex = torch.rand(2, 12, 3, 48, 48)
    read = probe.features(model, zip(onset.split(1), apex.split(1), strict=True))
    assert read["tokens"].shape == (12, 32) and (read["tokens"].sum(1) == 4).all()
    assert read["embeddings"].shape == (12, 4 * (16 + 1)) and read["pixels"].shape == (12, 3 * 48 * 48)
    # Views of a clip are read as their mean.
    twos = probe.features(model, zip(onset.split(2), apex.split(2), strict=True))
    for name, rows in twos.items():
        torch.testing.assert_close(rows, read[name].view(6, 2, -1).mean(1), msg=name)
    numbers = probe.reconstruction(model, onset, apex, [f"db/{n % 3}" for n in range(12)])
    assert numbers["no_action_spread"] == 0  # by construction of our codec
    assert numbers["gain_over_copy"] == pytest.approx(0, abs=1e-2)  # an untrained decoder copies
    assert 0 <= numbers["transfer_agreement"] <= 1


def test_cameras() -> None:
    images = torch.rand(2, 3, 40, 40)
    assert (probe.gray(images)[:, 0] == probe.gray(images)[:, 2]).all()
    assert probe.low_resolution(images).std() < images.std()


def test_partners_are_other_people_and_each_is_named_once() -> None:
    subjects = ["a"] * 5 + ["b"] * 2 + ["c"] * 4 + ["b"]
    partner = probe.other_faces(subjects).tolist()
    assert sorted(partner) == list(range(12))
    assert all(subjects[row] != subjects[other] for row, other in enumerate(partner))
    with pytest.raises(UserError, match="more than half"):
        probe.other_faces(["a", "a", "b"])


class Mover:
    """Tokens are the rows that a bar moves down by; what is decoded is the bar, moved."""

    num_codes, num_tokens, dim = 16, 1, 1

    def tokenize(self, onset: torch.Tensor, apex: torch.Tensor) -> ActionTokens:
        rows = (apex.mean((1, 3)).argmax(1) - onset.mean((1, 3)).argmax(1)) % 16
        return ActionTokens(rows[:, None], rows[:, None, None].float())

    def reconstruct(self, onset: torch.Tensor, tokens: ActionTokens) -> torch.Tensor:
        moved = [image.roll(int(n), 1) for image, n in zip(onset, tokens.indices[:, 0], strict=True)]
        return torch.stack(moved)


def test_a_true_transfer_has_no_error_and_another_action_has() -> None:
    steps = torch.tensor([1, 3, 5, 2, 4, 6])
    subjects = ["a", "a", "b", "b", "c", "c"]
    onset = torch.zeros(6, 3, 32, 32)
    for row in range(6):
        onset[row, :, 2 + row] = 1
    apex = torch.stack([image.roll(int(n), 1) for image, n in zip(onset, steps, strict=True)])
    partner = probe.other_faces(subjects)
    truth = torch.stack([image.roll(int(n), 1) for image, n in zip(onset, steps[partner], strict=True)])
    right = probe.transfer_error(Mover(), onset, apex, subjects, truth)
    assert right["transfer_psnr"] == pytest.approx(100)  # as high as it is given
    assert right["transfer_gain_over_copy"] > 50 and right["transfer_gain_over_own"] > 50
    wrong = probe.transfer_error(Mover(), onset, apex, subjects, apex)
    assert wrong["transfer_psnr"] < 20 and wrong["transfer_gain_over_own"] < 0


def test_all_clips_of_other_people() -> None:
    labels = torch.arange(64) % 3
    assert probe.all_clips(informative(labels), labels, SUBJECTS) > 0.9
    assert probe.all_clips(torch.randn(64, 3), labels, SUBJECTS) < 0.55


def test_the_penalty_of_a_few_clips_is_chosen_by_other_people() -> None:
    """A hundred dimensions of habit fit every subject that is seen; only subjects that are not seen tell."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(96) % 3
    subjects = [f"db/{n // 12:02d}" for n in range(96)]
    number = controls.subject_numbers(subjects)
    gap = 0.0
    for _ in range(5):
        habit = torch.randn(8, 3, 100, generator=generator)[number, labels]
        noise = torch.randn(96, 3, generator=generator)
        read = torch.cat([torch.nn.functional.one_hot(labels, 3) + noise, 0.5 * habit], 1).double()
        fit, test = (number < 4).nonzero()[:, 0], (number >= 4).nonzero()[:, 0]
        right = labels[test]
        chosen = controls.fit_and_predict(read @ read.T, labels, number, fit, test, 3)
        own = controls.fit_and_predict(read @ read.T, labels, torch.zeros_like(number), fit, test, 3)
        gap += float((chosen == right).float().mean() - (own == right).float().mean())
    assert gap > 0
