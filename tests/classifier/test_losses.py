"""Losses: equal to torch's where torch has them, the same in a group as alone, and they teach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import PARITY
from torch.nn import functional

from mefar.classifier import losses


def batch(seed: int, *lead: int, B: int = 7, C: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*lead, B, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (*lead, B), generator=generator)
    weights = torch.rand(*lead, C, generator=generator, dtype=torch.float64) + 0.1
    return logits, labels, weights


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.5]))
@settings(deadline=None)
def test_classification_is_torchs_weighted_cross_entropy(seed: int, smoothing: float) -> None:
    logits, labels, weights = batch(seed)
    ours = losses.classification_loss(logits, labels, weights, label_smoothing=smoothing)
    theirs = functional.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)


@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=7, max_size=7))
@settings(max_examples=30, deadline=None)
def test_masked_samples_do_not_count(seed: int, kept: list[bool]) -> None:
    logits, labels, weights = batch(seed)
    inside = torch.tensor(kept)
    unit = functional.normalize(logits, dim=-1)
    anchors, described = (
        functional.normalize(torch.eye(4, dtype=torch.float64)),
        torch.tensor([True] * 3 + [False]),
    )
    masked = {
        "ce": losses.classification_loss(logits, labels, weights, inside.double(), 0.1),
        "entropy": losses.attention_entropy(logits.softmax(-1), inside.double()),
        **losses.alignment_losses(unit, labels, anchors, described, inside.double()),
    }
    if not any(kept):
        assert all(value == 0 for value in masked.values())
        return
    without = {
        "ce": losses.classification_loss(logits[inside], labels[inside], weights, None, 0.1),
        "entropy": losses.attention_entropy(logits[inside].softmax(-1)),
        **losses.alignment_losses(unit[inside], labels[inside], anchors, described),
    }
    for name, value in without.items():
        torch.testing.assert_close(masked[name], value, msg=name)


def test_a_group_is_its_members() -> None:
    logits, labels, weights = batch(0, 3)
    grouped = losses.classification_loss(logits, labels, weights, label_smoothing=0.1)
    alone = [
        losses.classification_loss(*each, label_smoothing=0.1)
        for each in zip(logits, labels, weights, strict=True)
    ]
    torch.testing.assert_close(grouped, torch.stack(alone))
    anchors, described = torch.eye(4, dtype=torch.float64), torch.tensor([True, True, True, False])
    unit = functional.normalize(logits, dim=-1)
    together = losses.alignment_losses(unit, labels, anchors, described)
    for index in range(3):
        single = losses.alignment_losses(unit[index], labels[index], anchors, described)
        for name in single:
            torch.testing.assert_close(together[name][index], single[name])


def test_a_model_without_samples_gets_no_gradient_and_no_nan() -> None:
    logits, labels, weights = batch(0, 2)
    logits.requires_grad_()
    mask = torch.tensor([[1.0] * 7, [0.0] * 7], dtype=torch.float64)
    total = losses.classification_loss(logits, labels, weights, mask, 0.1)
    total = total + losses.attention_entropy(logits.softmax(-1), mask)
    total.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).any()


def test_balanced_weights() -> None:
    found = losses.balanced(torch.tensor([6, 3, 0]))
    assert found.tolist() == pytest.approx([9 / 18, 9 / 9, 0.0])


def test_entropy_knows_sparse_from_even() -> None:
    even, sparse = torch.full((2, 16), 1 / 16), torch.zeros(2, 16)
    sparse[:, 3] = 1
    assert float(losses.attention_entropy(even)) == pytest.approx(torch.log(torch.tensor(16.0)))
    assert float(losses.attention_entropy(sparse)) == pytest.approx(0, abs=1e-6)


def test_a_dimension_that_rests_is_not_blown_up() -> None:
    values = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 5 + 1e-9 * values[:, 1]
    scale = losses.inverse_deviation(values.mean(0), values.square().mean(0))
    assert float(scale[0]) == pytest.approx(1 / float(values[:, 0].std(correction=0)))
    assert float(scale[1]) < 2000


def test_alignment_is_the_published_one() -> None:
    if not PARITY.exists():
        pytest.skip(f"no parity data at {PARITY}")
    from safetensors.torch import load_file

    stored = load_file(PARITY)
    anchors = torch.cat([stored["edclip_input.anchors"], torch.zeros(1, 768)])
    found = losses.alignment_losses(
        stored["edclip_input.embedding"],
        stored["edclip_input.labels"],
        anchors,
        torch.tensor([True, True, True, False]),
    )
    total = found["described"] + 0.2 * found["others"]
    ours = torch.stack([found["described"], found["others"], total])
    torch.testing.assert_close(ours, stored["edclip_expected.loss"], atol=1e-4, rtol=0)


def test_alignment_pulls_described_classes_in_and_pushes_others_out() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = functional.normalize(torch.randn(3, 16, generator=generator), dim=-1)
    anchors[2] = 0
    described, labels = torch.tensor([True, True, False]), torch.tensor([0, 1, 2] * 4)
    free = torch.randn(12, 16, generator=generator).add_(anchors[0]).requires_grad_()
    history = []
    optimiser = torch.optim.Adam([free], 0.1)
    for _ in range(20):
        terms = losses.alignment_losses(functional.normalize(free, dim=-1), labels, anchors, described)
        history.append({name: float(value.detach()) for name, value in terms.items()})
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    assert history[-1]["described"] < 0.3 * history[0]["described"]
    assert history[0]["others"] > 0
    assert history[-1]["others"] < 0.5 * history[0]["others"]
