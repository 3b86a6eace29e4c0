"""A dictionary of codes: what each code at each position adds to each action unit.

A read-out is fitted on pairs whose units are known: linear in what the codes stand for, times the strength of
the pair, and nothing for a face at rest. Being linear it is a sum over positions, so that what it says of a
clip is exactly what it says of the clip's codes, one by one. How sure it is: everything is fitted again on
people drawn with replacement; how well it reads: correlation with the true strengths on people left out.
It is another read-out than that of mefar/readers.py, which says whether a unit is shown, as annotations do:
here strengths must be known, and what is read must add up, without a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mefar.files import replacing
from mefar.generation.editing import each_replaced, resting
from mefar.tokens import ActionTokens, SteerableTokenizer

DRAWS = 40
"""Fits on other draws of the people."""
SURE = 2.0
"""An effect so many of its deviations from 0 has a sign."""
PENALTY = 0.03
"""Of the ridge, in units of the mean squared feature."""


@dataclass(frozen=True)
class Dictionary:
    """What codes do.

    Attributes:
        units: U action units.
        effect: (U, L, K) share of the unit's full action that the code adds at this position, at strength 1.
        deviation: (U, L, K) of that, over draws of the people.
        correlation: (U,) of what is read with the truth, on people left out; 0 where nothing is read.
        slope: (U,) of what is read over the truth, there: below 1 strong actions are read too weak.
    """

    units: tuple[int, ...]
    effect: Tensor
    deviation: Tensor
    correlation: Tensor
    slope: Tensor

    @property
    def sure(self) -> Tensor:
        """(U, L, K) bool: the sign is known."""
        return self.effect.abs() > SURE * self.deviation

    def of(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """What the codes (L,) of a clip add at each position, (U, L), and where the sign is known."""
        places = torch.arange(len(indices))
        return self.effect[:, places, indices], self.sure[:, places, indices]

    def save(self, path: Path) -> None:
        """Write an .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file, units=np.array(self.units), **{name: getattr(self, name).numpy() for name in _TENSORS}
            )

    @classmethod
    def load(cls, path: Path) -> Dictionary:
        """Read it back."""
        with np.load(path) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in _TENSORS}
            return cls(tuple(int(unit) for unit in file["units"]), **tensors)


_TENSORS = ("effect", "deviation", "correlation", "slope")


def fit(
    tokenizer: SteerableTokenizer,
    tokens: ActionTokens,
    intensity: Tensor,
    people: Tensor,
    units: Sequence[int],
    seed: int = 0,
) -> Dictionary:
    """Fit a read-out on the tokens of N pairs, and look every code up in it.

    Args:
        tokenizer: that made the tokens.
        tokens: of N pairs.
        intensity: (N, U) in [0, 1], what was shown.
        people: (N,) number of the person.
        units: U action units.
        seed: of the draws of people.
    """
    L, K = tokenizer.num_tokens, tokenizer.num_codes
    rest = resting(tokenizer)
    still = tokenizer.lookup(rest[None]).flatten()
    strength = 1.0 if tokens.strength is None else tokens.strength[:, None]
    seen = (tokens.embeddings.flatten(1) - still) * strength
    # Every code alone, the other positions at rest.
    looked_up = tokenizer.lookup(each_replaced(rest, K).flatten(0, 1)).flatten(1) - still
    # All that can be said lies in the span of single codes: a few hundred numbers.
    basis = torch.linalg.svd(looked_up, full_matrices=False)
    span = basis.Vh[basis.S / basis.S[0] > 1e-4].T
    seen, looked_up = seen @ span, looked_up @ span
    effect = looked_up @ _ridge(seen, intensity)
    generator = torch.Generator().manual_seed(seed)
    names, drawn = torch.unique(people), []
    rows = [torch.nonzero(people == name)[:, 0] for name in names]
    for _ in range(DRAWS):
        picked = torch.randint(len(names), (len(names),), generator=generator)
        some = torch.cat([rows[i] for i in picked.tolist()])
        drawn.append(looked_up @ _ridge(seen[some], intensity[some]))
    read = torch.zeros_like(intensity)
    for part in range(4):
        test = torch.isin(people, names[part::4])
        read[test] = seen[test] @ _ridge(seen[~test], intensity[~test])
    shape = (L, K, len(units))
    effects = [each.view(shape).permute(2, 0, 1) for each in (effect, torch.stack(drawn).std(0))]
    both = zip(read.T, intensity.T, strict=True)
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in both]).nan_to_num(0)
    slope = (read * intensity).sum(0) / intensity.square().sum(0)
    return Dictionary(tuple(units), effects[0], effects[1], correlation, slope)


def showing(contributions: Tensor, sure: Tensor, units: Sequence[int]) -> list[int]:
    """Positions whose codes add to any of some action units, and surely so.

    Contributions (U, L) and whether their sign is sure are those of `Dictionary.of`; units are rows of them.
    """
    rows = list(units)
    return torch.nonzero(((contributions > 0) & sure)[rows].any(0))[:, 0].tolist()


def _ridge(features: Tensor, targets: Tensor) -> Tensor:
    """(P, U) weights without a constant: no action shows no unit."""
    gram = features.T @ features
    # The floor is for tokens that never say anything.
    gram += PENALTY * gram.diagonal().mean().clamp_min(1e-6) * torch.eye(len(gram))
    weights: Tensor = torch.linalg.solve(gram, features.T @ targets)
    return weights
