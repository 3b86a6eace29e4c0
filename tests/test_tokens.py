"""What tokens carry beside their codes."""

from __future__ import annotations

import pytest
import torch

from mefar.errors import UserError
from mefar.tokens import ActionTokens


def tokens(strength: list[float] | None) -> ActionTokens:
    indices = torch.arange(12).view(3, 4)
    amount = None if strength is None else torch.tensor(strength)
    return ActionTokens(indices, indices[..., None] * torch.ones(5), amount)


def test_features_are_the_embeddings_with_the_strength_as_one_more_channel():
    assert torch.equal(tokens(None).features, tokens(None).embeddings)
    made = tokens([0.0, 1.0, 4.0]).features
    assert made.shape == (3, 4, 6)
    assert torch.equal(made[..., :5], tokens(None).embeddings)
    assert made[:, :, 5].tolist() == [[-1.5] * 4, [0.0] * 4, [0.5] * 4]


def test_strength_follows_its_rows():
    made = tokens([0.5, 1.0, 2.0])
    assert torch.equal(made.select(torch.tensor([2, 0])).strength, torch.tensor([2.0, 0.5]))
    again = ActionTokens.cat([made.select(slice(0, 1)), made.select(slice(1, 3))])
    assert torch.equal(again.features, made.features)
    assert ActionTokens.cat([tokens(None), tokens(None)]).strength is None
    assert torch.equal(made.scaled(2).strength, torch.tensor([1.0, 2.0, 4.0]))
    assert torch.equal(made.scaled(2).indices, made.indices)


def test_tokens_without_a_strength_cannot_be_scaled():
    with pytest.raises(UserError, match="carry no strength"):
        tokens(None).scaled(2)
    with pytest.raises(ValueError, match=r"must be \(3,\)"):
        tokens([1.0, 2.0])
