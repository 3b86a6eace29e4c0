"""An action on somebody else's face: one picture, or a clip from rest to the action and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mefar.generation.pasting import Float, UInt8, paste
from mefar.tokens import ActionTokens, SteerableTokenizer, as_images


@dataclass(frozen=True)
class Target:
    """A face at rest that is to be moved.

    Attributes:
        name: for files and pages.
        picture: (H, W, 3) uint8 RGB, the whole picture.
        matrix: (2, 3) pixels of the picture -> pixels of the crop.
        crop: (S, S, 3) uint8, the aligned face, as the tokenizer sees it.
    """

    name: str
    picture: UInt8
    matrix: Float
    crop: UInt8


def carry(
    tokenizer: SteerableTokenizer, target: Target, tokens: ActionTokens, strength: float = 1.0
) -> UInt8:
    """The target's whole picture (H, W, 3) uint8 with the action of tokens, B = 1, on its face.

    Args:
        tokenizer: that made the tokens.
        target: whose head stays where it is.
        tokens: of one clip.
        strength: 0 nothing, 1 as recorded, 2 twice as much.
    """
    onset = as_images(target.crop[None]).to(tokens.embeddings)
    tokens = tokens.without_head()
    if tokens.strength is not None:
        movement = tokenizer.move(onset, tokens.scaled(strength))
    else:
        movement = tokenizer.move(onset, tokens).scaled(strength)
    return paste(target.picture, target.matrix, movement)


def clip(
    tokenizer: SteerableTokenizer, target: Target, tokens: ActionTokens, strength: float, frames: int
) -> Iterator[UInt8]:
    """As `carry`, `frames` of them, at least 3: from rest to the action and back to rest."""
    for share in 0.5 - 0.5 * np.cos(np.linspace(0, 2 * np.pi, frames)):
        yield carry(tokenizer, target, tokens, strength * float(share))
