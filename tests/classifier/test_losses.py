"""Losses: parts of a batch add up to it; scaling; the alignment as published.

That every term is what it should be, with its settings, that masked clips do not count, and gradients, are
seen where a group of folds is trained one by one (tests/loso/test_engine.py).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import PARITY
from torch import Tensor
from torch.nn import functional

from mefar.classifier import losses
from mefar.classifier.head import HeadOutput
from mefar.classifier.losses import TextAnchors, head_loss
from mefar.classifier.settings import HeadTraining

ANCHORS = TextAnchors(torch.eye(4, dtype=torch.float64), torch.tensor([True] * 3 + [False]))
TRAINING = HeadTraining(label_smoothing=0.1, entropy_weight=0.5)


def batch(seed: int, B: int = 7, C: int = 4) -> tuple[HeadOutput, Tensor, Tensor]:
    """Output, labels and class weights of B clips."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (B,), generator=generator)
    output = HeadOutput(logits, (2 * logits).softmax(-1), functional.normalize(logits, dim=-1))
    return output, labels, torch.rand(C, generator=generator, dtype=torch.float64) + 0.1


@given(st.integers(0, 1000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_parts_of_a_batch_add_up_to_it(seed: int, cut: int) -> None:
    output, labels, weights = batch(seed)
    whole = head_loss(output, labels, weights, TRAINING, ANCHORS)
    parts = [
        head_loss(
            HeadOutput(*(e[p] for e in output[:3])), labels[p], weights, TRAINING, ANCHORS, None, labels
        )
        for p in (slice(cut), slice(cut, None))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, msg=name)


def test_a_dimension_that_rests_is_not_blown_up() -> None:
    values = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 5 + 1e-9 * values[:, 1]
    _, scale = losses.token_statistics(values.mean(0), values.square().mean(0), TRAINING)
    assert float(scale[0]) == pytest.approx(1 / float(values[:, 0].std(correction=0)))
    assert float(scale[1]) < 2000
    mean, scale = losses.token_statistics(
        values.mean(0), values.square().mean(0), replace(TRAINING, normalise=False)
    )
    assert mean.tolist() == [0, 0, 0] and scale.tolist() == [1, 1, 1]


def test_alignment_is_the_published_one() -> None:
    if not PARITY.exists():
        pytest.skip(f"no parity data at {PARITY}")
    from safetensors.torch import load_file

    stored = load_file(PARITY)
    anchors = torch.cat([stored["edclip_input.anchors"], torch.zeros(1, 768)])
    output = HeadOutput(torch.zeros(12, 4), None, stored["edclip_input.embedding"])
    described = torch.tensor([True, True, True, False])
    training = HeadTraining(edclip_weight=1.0, others_weight=0.2)
    labels = stored["edclip_input.labels"]
    found = head_loss(output, labels, torch.ones(4), training, TextAnchors(anchors, described))
    ours = torch.stack([found["described"], found["others"] / 0.2, found["described"] + found["others"]])
    torch.testing.assert_close(ours, stored["edclip_expected.loss"], atol=1e-4, rtol=0)
