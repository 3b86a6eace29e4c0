"""The linear control under the same folds, and the table of tokens it shares with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from torch import Tensor

from mefar.baselines.pixels import linear_control, pixel_differences
from mefar.loso.token_table import TokenTable, pictures, tokenize
from mefar.metrics import scores
from mefar.tokens import ActionTokens


def features(noise: float, N: int = 90, P: int = 40) -> tuple[Tensor, Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (N,), generator=generator)
    x = torch.randn(3, P, generator=generator)[labels] + noise * torch.randn(N, P, generator=generator)
    return x, labels, [f"db/{i // 9}" for i in range(N)]


def test_the_control_learns_what_is_linear_and_not_noise() -> None:
    x, labels, subjects = features(1.0)
    assert scores(labels, linear_control(x, labels, subjects, 3), 3)["uf1"] > 0.9
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert scores(labels, linear_control(noise, labels, subjects, 3), 3)["uf1"] < 0.55


def test_the_control_is_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, subjects = features(3.0)
    monkeypatch.setattr("mefar.baselines.pixels.PENALTIES", (0.1,))
    found = linear_control(x, labels, subjects, 3)
    for subject in sorted(set(subjects)):
        out = np.array([s == subject for s in subjects])
        train, y = x[~out].double().numpy(), labels[~out].numpy()
        weights = len(y) / (3 * np.bincount(y, minlength=3))[y]
        centred = train - np.average(train, axis=0, weights=weights)
        ridge = RidgeClassifier(alpha=0.1 * (centred**2).sum(1).mean()).fit(train, y, sample_weight=weights)
        assert found[torch.tensor(out)].tolist() == ridge.predict(x[out].numpy()).tolist()


def test_the_control_never_sees_the_held_out_subject() -> None:
    x, labels, subjects = features(3.0)
    base = linear_control(x, labels, subjects, 3)
    own = torch.tensor([subject == "db/0" for subject in subjects])
    changed = linear_control(x, torch.where(own, (labels + 1) % 3, labels), subjects, 3)
    assert torch.equal(base[own], changed[own])
    assert not torch.equal(base[~own], changed[~own])


def test_two_subjects_are_enough_and_a_class_that_a_fold_lacks_is_never_answered() -> None:
    x, labels, _ = features(0.5)
    subjects = ["a"] * 45 + ["b"] * 45
    assert scores(labels, linear_control(x, labels, subjects, 3), 3)["uf1"] > 0.8
    labels[45:] %= 2
    assert (linear_control(x, labels, subjects, 3)[:45] != 2).all()


def test_differences_are_averaged_down() -> None:
    onset, apex = torch.zeros(2, 3, 128, 128), torch.ones(2, 3, 128, 128)
    apex[:, :, ::2] = 0
    found = pixel_differences(onset, apex)
    assert found.shape == (2, 3 * 64 * 64)
    assert torch.equal(found, torch.full_like(found, 0.5))
    assert pixel_differences(onset[..., :32, :32], apex[..., :32, :32]).shape == (2, 3 * 32 * 32)


# The table of tokens


class Mean:
    """One token per pair: its mean brightness."""

    num_codes, num_tokens, dim = 256, 1, 2

    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        level = apex.mean((1, 2, 3))
        return ActionTokens(
            (level * 255).round().long()[:, None], torch.stack([level, onset.mean((1, 2, 3))], 1)[:, None]
        )

    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        return onset * 0 + tokens.embeddings[:, 0, 0].view(-1, 1, 1, 1)


def clips(views: int) -> list[dict[str, Any]]:
    items = []
    for i in range(5):
        onset = torch.full((1, views, 3, 4, 4), 10, dtype=torch.uint8)
        apex = onset + 20 * i + torch.arange(views, dtype=torch.uint8).view(1, -1, 1, 1, 1)
        items.append({"onset": onset, "apex": apex, "clip": [f"db{i % 2}/s/{i}"]})
    return items


def test_tokens_keep_their_clip_and_view() -> None:
    table = tokenize(Mean(), clips(3))
    assert table.clips == ("db0/s/0", "db1/s/1", "db0/s/2", "db1/s/3", "db0/s/4")
    assert table.embeddings.shape == (5, 3, 1, 2)
    assert table.indices[:, :, 0].tolist() == [[10 + 20 * i + v for v in range(3)] for i in range(5)]
    torch.testing.assert_close(table.pixels[2], torch.full((48,), 40 / 255), atol=1e-4, rtol=0)
    single = [{**item, "onset": item["onset"][:, 0], "apex": item["apex"][:, 0]} for item in clips(3)]
    assert torch.equal(tokenize(Mean(), single).indices[:, 0], table.indices[:, 0])


def test_a_stored_table_is_the_one_that_was_made(tmp_path: Path) -> None:
    table, path = tokenize(Mean(), clips(2)), tmp_path / "tokens.npz"
    assert TokenTable.load(path, "a") is None
    table.save(path, "a")
    again = TokenTable.load(path, "a")
    assert again is not None
    assert again.clips == table.clips
    for name in ("embeddings", "indices", "pixels"):
        assert torch.equal(getattr(again, name), getattr(table, name)), name
    assert TokenTable.load(path, "another key") is None
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    assert TokenTable.load(path, "a") is None
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        damaged = TokenTable.load(path, "a")
        assert damaged is None or torch.equal(damaged.embeddings, table.embeddings)
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.npz"]


def test_pictures_show_the_clip_of_median_motion() -> None:
    items = clips(1)
    table = tokenize(Mean(), items)
    shown = pictures(Mean(), table, lambda row: (items[row]["onset"][0, 0], items[row]["apex"][0, 0]))
    assert {name for name in shown if name.startswith("db0")} == {
        "db0_onset",
        "db0_apex",
        "db0_reconstruction",
    }
    assert int(shown["db0_apex"][0, 0, 0]) == 50  # of 10, 50, 90
    assert shown["db0_reconstruction"].shape == (4, 4, 3)
    assert int(shown["db0_reconstruction"][0, 0, 0]) == 50
    assert shown["usage"].sum() == 5
    assert shown["usage"].shape == (256,)
