"""The ceiling of a tokenizer's tokens: its action before a codebook rounds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mefar.baselines.method import Method
from mefar.errors import UserError


class Continuous(Method):
    """What the tokenizer's encoder says, embedded as codes are, under the head and training of tokens.

    Args:
        tokenizer: one that has `continuous(onset, apex) -> (B, L, D)`, as those of mefar.
        identity: hash of its weights.
    """

    views = 32

    def __init__(self, tokenizer: Any, identity: str) -> None:
        if not hasattr(tokenizer, "continuous"):
            raise UserError(
                f"tokenizer {type(tokenizer).__name__}: has no action before its codebook; write "
                "continuous(onset, apex) -> (B, L, D), or take another method"
            )
        self.tokenizer, self.identity, self.image_size = tokenizer, identity, tokenizer.image_size

    @torch.no_grad()
    def features(self, onset: Tensor, apex: Tensor, clips: Sequence[str]) -> Tensor:
        """(B, L, D)."""
        made: Tensor = self.tokenizer.continuous(onset, apex)
        return made

    def fingerprint(self) -> str:
        """The tokenizer's."""
        return f"continuous {self.identity}"
