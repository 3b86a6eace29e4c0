"""Action tokens: the one interface that tokenizer, classifier and EDCLIP share.

A micro-expression is given by two face frames, onset and apex. What happened between them is
written as L discrete *action tokens* out of a codebook of K ("From Pixels to Semantics", ICLR
2026: L = 16, K = 32). Whoever makes tokens implements `ActionTokenizer`; whoever reads them sees
`ActionTokens` and nothing else. No layers here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mefar.errors import UserError


@dataclass(frozen=True)
class ActionTokens:
    """Discrete description of what a face did between onset and apex.

    Attributes:
        indices: (B, L) int64 in [0, K), the code chosen at each token position.
        embeddings: (B, L, D) float, the vectors that those codes stand for.
        strength: (B,) float >= 0, how much of the action there is, where codes say only what it is; 1 is as
            much as talking faces typically show, 0 no action. None: the codes say both.
        head: (B, 6) float, how the head moved besides, as the tokenizer that made it understands it. For the
            decoder alone: it belongs to the recording, not to the action. None: it stays.
    """

    indices: Tensor
    embeddings: Tensor
    strength: Tensor | None = None
    head: Tensor | None = None

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
        if self.strength is not None and self.strength.shape != self.indices.shape[:1]:
            raise ValueError(f"strength must be ({len(self)},), got {tuple(self.strength.shape)}")

    def __len__(self) -> int:
        return self.indices.shape[0]

    def select(self, rows: Tensor | slice) -> ActionTokens:
        """The tokens of some rows of the batch."""
        strength = None if self.strength is None else self.strength[rows]
        head = None if self.head is None else self.head[rows]
        return ActionTokens(self.indices[rows], self.embeddings[rows], strength, head)

    @property
    def features(self) -> Tensor:
        """What classifiers read, (B, L, D'): embeddings, with how much of the action there is as one more.

        That channel is log2(strength) / 4, the same at every position, between -1.5 and 1.5: a strength of 0
        reads like one of 1/64.
        """
        if self.strength is None:
            return self.embeddings
        level = self.strength.clamp(2.0**-6, 2.0**6).log2() / 4
        level = level[:, None, None].expand(*self.indices.shape, 1).to(self.embeddings)
        return torch.cat([self.embeddings, level], dim=-1)

    def scaled(self, factor: float) -> ActionTokens:
        """The same action, `factor` times as strong.

        Raises:
            UserError: the codes say both what and how much.
        """
        if self.strength is None:
            raise UserError(
                "these tokens carry no strength, so they cannot be scaled; use a tokenizer that measures it"
            )
        return replace(self, strength=self.strength * factor)

    def without_head(self) -> ActionTokens:
        """The action alone, for somebody else's face, whose head is not to move."""
        return replace(self, head=None)

    @staticmethod
    def cat(parts: Sequence[ActionTokens]) -> ActionTokens:
        """Tokens of several batches of one tokenizer as one batch."""
        strengths = [each.strength for each in parts if each.strength is not None]
        heads = [each.head for each in parts if each.head is not None]
        return ActionTokens(
            torch.cat([each.indices for each in parts]),
            torch.cat([each.embeddings for each in parts]),
            torch.cat(strengths) if strengths else None,
            torch.cat(heads) if heads else None,
        )


def as_images(crops: NDArray[np.uint8]) -> Tensor:
    """Crops (N, H, W, 3) uint8, as files and cameras give them -> images (N, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255


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

    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        """Apply the action to an onset, its own or another face's -> (B, 3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Movement:
    """How tokens change one face, apart from its pixels: what any picture of that face can be moved by.

    Attributes:
        flow: (B, 2, H, W) float in pixels (x, y): from where each pixel is fetched, relative to it.
        residual: (B, 3, H, W) float, what is added after that; pictures are in [0, 1].
    """

    flow: Tensor
    residual: Tensor

    def scaled(self, factor: float) -> Movement:
        """The same, `factor` times as large."""
        return Movement(self.flow * factor, self.residual * factor)


@runtime_checkable
class SteerableTokenizer(ActionTokenizer, Protocol):
    """A tokenizer whose codes one can choose oneself, and whose movement one can take off its pictures."""

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (B, L) int64 in [0, K) -> embeddings (B, L, D), as `tokenize` gives them."""

    def move(self, onset: Tensor, tokens: ActionTokens) -> Movement:
        """What tokens do to an onset (B, 3, H, W) float in [0, 1]."""


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


@torch.no_grad()
def feature_dim(tokenizer: ActionTokenizer) -> int:
    """D', the width of what classifiers read of a tokenizer: found out on one pair of gray pictures."""
    device = None
    if isinstance(tokenizer, nn.Module):
        device = next((value.device for value in tokenizer.parameters()), None)
    gray = torch.full((1, 3, tokenizer.image_size, tokenizer.image_size), 0.5, device=device)
    return tokenizer.tokenize(gray, gray).features.shape[-1]
