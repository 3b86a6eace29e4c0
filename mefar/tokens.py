"""Action tokens: the one interface that tokenizer, classifier and EDCLIP share.

A micro-expression is given by two face frames, onset and apex. What happened between them is
written as L discrete *action tokens* out of a codebook of K ("From Pixels to Semantics", ICLR
2026: L = 16, K = 32). Whoever makes tokens implements `ActionTokenizer`; whoever reads them sees
`ActionTokens` and nothing else. No layers here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActionTokens:
    """Discrete description of what a face did between onset and apex.

    Attributes:
        indices: (B, L) int64 in [0, K), the code chosen at each token position.
        embeddings: (B, L, D) float, the vectors that those codes stand for, as the decoder and
            the classifiers read them.
    """

    indices: Tensor
    embeddings: Tensor

    def __post_init__(self) -> None:
        if self.indices.dtype != torch.int64 or self.indices.ndim != 2:
            raise ValueError(
                f"indices must be (B, L) int64, got {tuple(self.indices.shape)} {self.indices.dtype}"
            )
        if self.embeddings.ndim != 3 or self.embeddings.shape[:2] != self.indices.shape:
            raise ValueError(
                f"embeddings must be (B, L, D) matching indices {tuple(self.indices.shape)}, "
                f"got {tuple(self.embeddings.shape)}"
            )

    def __len__(self) -> int:
        return self.indices.shape[0]

    def select(self, rows: Tensor | slice) -> ActionTokens:
        """The tokens of some rows of the batch."""
        return ActionTokens(self.indices[rows], self.embeddings[rows])


@runtime_checkable
class ActionTokenizer(Protocol):
    """Anything that turns (onset, apex) into tokens and tokens back into an apex.

    Images at this border are RGB (B, 3, H, W) float in [0, 1].

    Attributes:
        image_size: H = W in pixels.
        num_codes: K, size of the codebook.
        num_tokens: L, tokens per pair.
        dim: D, width of the token embeddings.
    """

    image_size: int
    num_codes: int
    num_tokens: int
    dim: int

    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        """(B, 3, H, W) onset and apex -> tokens, hard-quantised, without gradient noise."""
        ...

    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        """Apply the action to an onset, its own or another face's -> (B, 3, H, W) in [0, 1]."""
        ...


@runtime_checkable
class AdaptableTokenizer(ActionTokenizer, Protocol):
    """A tokenizer, a `torch.nn.Module`, that can go on learning from pairs, without any label."""

    def adaptation_error(self, onset: Tensor, apex: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B,) mean squared error of each pair's reconstruction, with gradient to every parameter.

        Args:
            onset: (B, 3, H, W) float in [0, 1].
            apex: the same.
            seeds: B numbers from which each pair's random numbers follow, if there are any.
        """
        ...
