"""What a model reads in the onset and the apex of an event: tokens, a class, action units, a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mefar.readers import FAINTEST, NOTHING, Readers
from mefar.recognition.events import Event
from mefar.recognition.motion import UInt8
from mefar.tokens import ActionTokenizer, ActionTokens, as_images

_BATCH = 32


def tokens_of(tokenizer: ActionTokenizer, onsets: Sequence[UInt8], apexes: Sequence[UInt8]) -> ActionTokens:
    """Tokens of N pairs of crops, (S, S, 3) uint8, a few pairs at a time."""
    before, after = (torch.split(as_images(np.stack(crops)), _BATCH) for crops in (onsets, apexes))
    return ActionTokens.cat([tokenizer.tokenize(*pair) for pair in zip(before, after, strict=True)])


def read(
    tokenizer: ActionTokenizer,
    readers: Readers | None,
    events: Sequence[Event],
    onsets: Sequence[UInt8],
    apexes: Sequence[UInt8],
) -> list[Event]:
    """Give events tokens and, by readers, a class, action units and a description.

    Where the tokens are those of a face at rest, "nothing" is the answer.

    Args:
        tokenizer: reads crops of its own image_size.
        readers: of its tokens; None gives tokens alone.
        events: N of them.
        onsets: N crops, (S, S, 3) uint8, that follow the head.
        apexes: the same of the apexes.
    """
    made, resting = tokens_of(tokenizer, onsets, apexes), tokens_of(tokenizer, onsets, onsets)
    told = []
    for row, event in enumerate(events):
        strength = None if made.strength is None else float(made.strength[row])
        event = replace(event, tokens=tuple(made.indices[row].tolist()), token_strength=strength)
        same = torch.equal(made.indices[row], resting.indices[row])
        if same if strength is None else strength <= FAINTEST:
            event = replace(event, emotion=NOTHING)
        elif readers is not None:
            event = _said(event, readers, made.features[row : row + 1])
        told.append(event)
    return told


@torch.no_grad()
def _said(event: Event, readers: Readers, features: torch.Tensor) -> Event:
    """An event with what readers say of its tokens' features, (1, L, D')."""
    about, (classes, units) = readers.about, readers(features)
    shares = dict(zip(about.classes, classes[0].tolist(), strict=True))
    best = max(shares, key=lambda name: shares[name])
    event = replace(event, emotion=best, confidence=shares[best], probabilities=shares)
    seen = {
        str(unit): share for unit, share in zip(about.units, units[0].tolist(), strict=True) if share > 0.5
    }
    event = replace(event, action_units=seen)
    if about.sentences:
        text = readers.read(features).text
        assert text is not None
        event = replace(event, description=about.sentences[int((text @ readers.vectors.T).argmax())])
    return event
