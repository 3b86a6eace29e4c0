"""What a model reads in the onset and the apex of an event: tokens, a class, action units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mefar.readers import FAINTEST, NOTHING
from mefar.recognition.events import Event
from mefar.tokens import ActionTokenizer, ActionTokens

UInt8 = NDArray[np.uint8]

_BATCH = 32


def images(crops: Sequence[UInt8]) -> torch.Tensor:
    """(S, S, 3) uint8 crops -> (N, 3, S, S) float in [0, 1]."""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def tokens_of(tokenizer: ActionTokenizer, onsets: Sequence[UInt8], apexes: Sequence[UInt8]) -> ActionTokens:
    """Tokens of N pairs of crops, a few pairs at a time."""
    parts = []
    for k in range(0, len(onsets), _BATCH):
        made = tokenizer.tokenize(images(onsets[k : k + _BATCH]), images(apexes[k : k + _BATCH]))
        parts.append(made)
    strengths = [part.strength for part in parts if part.strength is not None]
    return ActionTokens(
        torch.cat([part.indices for part in parts]),
        torch.cat([part.embeddings for part in parts]),
        torch.cat(strengths) if strengths else None,
    )


@dataclass(frozen=True)
class Classifier:
    """What calls events by a class.

    Attributes:
        names: C of them.
        probabilities: features (N, L, D) -> (N, C), rows that sum to 1.
        units: tokens -> per event of every action unit, such as "AU12", how likely it is shown.
        sentences: tokens -> per event of every sentence how well it fits.
        weights: hash of what it has learned.
    """

    names: tuple[str, ...]
    probabilities: Callable[[torch.Tensor], torch.Tensor]
    units: Callable[[ActionTokens], list[dict[str, float]]] | None = None
    sentences: Callable[[ActionTokens], list[dict[str, float]]] | None = None
    weights: str = ""


def read(
    tokenizer: ActionTokenizer,
    events: Sequence[Event],
    onsets: Sequence[UInt8],
    apexes: Sequence[UInt8],
    classifier: Classifier | None = None,
) -> list[Event]:
    """Give events tokens and a class; where the tokens are those of a face at rest, "nothing" is the answer.

    Args:
        tokenizer: reads crops of its own image_size.
        events: N of them.
        onsets: N crops, (S, S, 3) uint8, that follow the head.
        apexes: the same of the apexes.
        classifier: asked for the class, if there is one.
    """
    made, resting = tokens_of(tokenizer, onsets, apexes), tokens_of(tokenizer, onsets, onsets)
    called = None if classifier is None else classifier.probabilities(made.features)
    units = None if classifier is None or classifier.units is None else classifier.units(made)
    fits = None if classifier is None or classifier.sentences is None else classifier.sentences(made)
    told = []
    for row, event in enumerate(events):
        strength = None if made.strength is None else float(made.strength[row])
        event = replace(event, tokens=tuple(made.indices[row].tolist()), token_strength=strength)
        if called is not None and classifier is not None:
            shares = dict(zip(classifier.names, called[row].tolist(), strict=True))
            best = max(shares, key=lambda name: shares[name])
            event = replace(event, emotion=best, confidence=shares[best], probabilities=shares)
        same = torch.equal(made.indices[row], resting.indices[row])
        if same if strength is None else strength <= FAINTEST:
            event = replace(event, emotion=NOTHING, confidence=None)
        else:
            if units is not None:
                seen = {name.removeprefix("AU"): share for name, share in units[row].items() if share > 0.5}
                event = replace(event, action_units=seen)
            if fits is not None:
                event = replace(event, description=max(fits[row], key=lambda text: fits[row][text]))
        told.append(event)
    return told
