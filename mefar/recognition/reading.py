"""What a model reads in the onset and the apex of an event: tokens, a class, action units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from mefar.recognition.events import Event
from mefar.tokens import ActionTokenizer

UInt8 = NDArray[np.uint8]

NOTHING = "nothing"
_BATCH = 32


def images(crops: Sequence[UInt8]) -> torch.Tensor:
    """(S, S, 3) uint8 crops -> (N, 3, S, S) float in [0, 1]."""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def tokens_of(tokenizer: ActionTokenizer, onsets: Sequence[UInt8], apexes: Sequence[UInt8]) -> torch.Tensor:
    """(N, L) int64 codes of pairs of crops, a few pairs in memory at a time."""
    rows = [
        tokenizer.tokenize(images(onsets[k : k + _BATCH]), images(apexes[k : k + _BATCH])).indices
        for k in range(0, len(onsets), _BATCH)
    ]
    return torch.cat(rows) if rows else torch.zeros(0, tokenizer.num_tokens, dtype=torch.int64)


def read(
    tokenizer: ActionTokenizer, events: Sequence[Event], onsets: Sequence[UInt8], apexes: Sequence[UInt8]
) -> list[Event]:
    """Give events their tokens; where these are those of a face at rest, "nothing" is the answer.

    Args:
        tokenizer: reads crops of its own image_size.
        events: N of them.
        onsets: N crops, (S, S, 3) uint8, that follow the head.
        apexes: the same of the apexes.
    """
    codes = tokens_of(tokenizer, onsets, apexes)
    resting = tokens_of(tokenizer, onsets, onsets)
    told = []
    for event, row, rest in zip(events, codes, resting, strict=True):
        emotion = NOTHING if torch.equal(row, rest) else ""
        told.append(replace(event, tokens=tuple(row.tolist()), emotion=emotion))
    return told
