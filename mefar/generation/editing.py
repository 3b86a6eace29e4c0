"""Tokens of one's own choosing: made from codes, or some of a clip's kept and the rest no action."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from mefar.errors import UserError
from mefar.tokens import ActionTokenizer, ActionTokens, SteerableTokenizer


def steerable(tokenizer: ActionTokenizer) -> SteerableTokenizer:
    """The same tokenizer, if codes can be chosen and movements taken off.

    Raises:
        UserError: it offers neither.
    """
    if not isinstance(tokenizer, SteerableTokenizer):
        raise UserError(
            f"{type(tokenizer).__name__} cannot be steered; write its methods lookup and move, "
            "see SteerableTokenizer in mefar/tokens.py"
        )
    return tokenizer


def chosen(tokenizer: SteerableTokenizer, indices: Tensor, strength: Tensor | None = None) -> ActionTokens:
    """Tokens of codes (B, L) that somebody chose; `strength` (B,) as in ActionTokens."""
    return ActionTokens(indices, tokenizer.lookup(indices), strength)


def resting(tokenizer: SteerableTokenizer) -> Tensor:
    """(L,) codes of a face that does nothing."""
    gray = torch.full((1, 3, tokenizer.image_size, tokenizer.image_size), 0.5)
    return tokenizer.tokenize(gray, gray).indices[0]


def kept(tokenizer: SteerableTokenizer, tokens: ActionTokens, positions: Collection[int]) -> ActionTokens:
    """Some positions as they are, and no action at the others."""
    indices = resting(tokenizer).repeat(len(tokens), 1)
    places = sorted(positions)
    indices[:, places] = tokens.indices[:, places]
    return chosen(tokenizer, indices, tokens.strength)


def each_replaced(base: Tensor, num_codes: int) -> Tensor:
    """A set of codes (L,) with one of them replaced, every position by every code -> (L, K, L)."""
    L = len(base)
    several = base.repeat(L, num_codes, 1)
    places = torch.arange(L)
    several[places, :, places] = torch.arange(num_codes)
    return several
