"""What each token does when it is decoded, and what the paper says of that, as numbers.

Everything is asked of the decoder: one token of a set is replaced, and the same face is decoded with and
without. Shape legend: F faces, L positions, K codes, S side of the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mefar.generation.editing import chosen, resting
from mefar.tokens import ActionTokens, SteerableTokenizer

AT_ONCE = 64
UPPER = 0.53
"""Share of an aligned crop's height above which a face is upper: half-way between eyes and mouth."""
LARGEST = 64  # side of the change maps that numbers are made of
DRAWS = 999


def _tokens(tokenizer: SteerableTokenizer, indices: Tensor, strength: Tensor | None) -> ActionTokens:
    return chosen(tokenizer, indices, None if strength is None else strength.expand(len(indices)))


def _batches(face: Tensor, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for some in torch.split(indices, AT_ONCE):
        yield face.expand(len(some), *face.shape), some


def pictures(tokenizer: SteerableTokenizer, face: Tensor, indices: Tensor, strength: Tensor | None) -> Tensor:
    """One face (3, S, S) decoded with every set of codes (N, L) -> (N, 3, S, S); float in [0, 1].

    `strength` (1,) is that of the tokens; None where the tokenizer has none.
    """
    parts = [
        tokenizer.reconstruct(onset, _tokens(tokenizer, some, strength))
        for onset, some in _batches(face, indices)
    ]
    return torch.cat(parts).clamp(0, 1)


def motion(
    tokenizer: SteerableTokenizer, faces: Tensor, indices: Tensor, strength: Tensor | None, cells: int = 8
) -> Tensor:
    """Where the codes fetch pixels from, mean over faces: (N, cells, cells, 2), in sides of the crop."""
    total = torch.zeros(len(indices), 2, cells, cells)
    for face in faces:
        parts = [
            functional.adaptive_avg_pool2d(
                tokenizer.move(onset, _tokens(tokenizer, some, strength)).flow, cells
            )
            for onset, some in _batches(face, indices)
        ]
        total += torch.cat(parts) / len(faces) / faces.shape[-1]
    return total.permute(0, 2, 3, 1)


def changes(made: Tensor) -> Tensor:
    """Luminance that each picture (1 + N, 3, S, S) changes against the first: (N, s, s)."""
    gray = made.mean(1, keepdim=True)
    gray = functional.adaptive_avg_pool2d(gray, min(LARGEST, gray.shape[-1]))[:, 0]
    return gray[1:] - gray[0]


def claims(
    tokenizer: SteerableTokenizer, face: Tensor, found: Tensor, sets: Tensor, strength: Tensor | None
) -> dict[str, float | list[float]]:
    """The paper's sentences about tokens as numbers.

    Args:
        tokenizer: to ask.
        face: (3, S, S) float in [0, 1].
        found: (F, L, K, s, s), the changes of every code alone at every position.
        sets: (N, L) codes of pairs.
        strength: as `found` was made with.

    Returns:
        `by_position`, `by_code`, `by_both`: shares of the variance of what single tokens change, that follow
        from the position alone, from the code alone, and from neither alone; they sum to 1.
        `same_position`, `same_code`, `neither`: mean cosine of what two tokens change that share that much.
        `upper`: per position the share of its change in the upper face; `reaching_both`: positions with at
        least a fifth in either half. `shuffled`: mean cosine of what a pair's codes change, as they are and
        at shuffled positions: 1 if order said nothing; `other_set`: the same for the codes of another pair.
        `grid` and `line`: correlation over pairs of positions of their distance, on the square grid of the
        positions or along it, with how unlike their changes are, nan without a grid; `grid_p`, `line_p`: how
        often shuffled positions reach it.
    """
    return (
        _variance(found)
        | _cosines(found)
        | _halves(found)
        | _order(tokenizer, face, sets, strength)
        | _places(found)
    )


def _variance(found: Tensor) -> dict[str, float | list[float]]:
    flat = found.flatten(3)
    centred = flat - flat.mean((1, 2), keepdim=True)
    position, code = centred.mean(2, keepdim=True), centred.mean(1, keepdim=True)
    total = centred.square().sum((1, 2, 3))
    by_position = position.square().sum((1, 2, 3)) * flat.shape[2] / total
    by_code = code.square().sum((1, 2, 3)) * flat.shape[1] / total
    shares = [float(share.mean()) for share in (by_position, by_code, 1 - by_position - by_code)]
    return dict(zip(("by_position", "by_code", "by_both"), shares, strict=True))


def _cosines(found: Tensor) -> dict[str, float | list[float]]:
    L, K = found.shape[1:3]
    unit = functional.normalize(found.flatten(3), dim=-1)
    all_pairs = unit.sum((1, 2)).square().sum(-1)  # sums of cosines over all ordered pairs, of each face
    position, code = (unit.sum(axis).square().sum((1, 2)) for axis in (2, 1))
    own = unit.square().sum((1, 2, 3))
    sums = {
        "same_position": (position - own, L * K * (K - 1)),
        "same_code": (code - own, K * L * (L - 1)),
        "neither": (all_pairs - position - code + own, L * K * (L - 1) * (K - 1)),
    }
    return {name: float(total.mean()) / count for name, (total, count) in sums.items()}


def _halves(found: Tensor) -> dict[str, float | list[float]]:
    energy = found.square().sum((0, 2))
    middle = round(UPPER * energy.shape[1])
    upper = energy[:, :middle].sum((1, 2)) / energy.sum((1, 2)).clamp_min(1e-12)
    return {"upper": upper.tolist(), "reaching_both": int(((upper >= 0.2) & (upper <= 0.8)).sum())}


def _order(
    tokenizer: SteerableTokenizer, face: Tensor, sets: Tensor, strength: Tensor | None
) -> dict[str, float | list[float]]:
    generator, rest = torch.Generator().manual_seed(0), resting(tokenizer)
    shuffled = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in sets])
    real, mixed = (
        changes(pictures(tokenizer, face, torch.cat([rest[None], some]), strength)).flatten(1)
        for some in (sets, shuffled)
    )
    return {
        "shuffled": float(functional.cosine_similarity(real, mixed).mean()),
        "other_set": float(functional.cosine_similarity(real, real.roll(1, 0)).mean()),
    }


def _places(found: Tensor) -> dict[str, float | list[float]]:
    """Mantel's test: are positions that lie side by side alike in where they change a face?"""
    L, side = found.shape[1], math.isqrt(found.shape[1])
    where = functional.normalize(found.square().sum((0, 2)).sqrt().flatten(1), dim=1)
    unlike = (1 - where @ where.T).numpy()
    places = {"line": np.arange(L)[:, None].astype(float)}
    if side * side == L:
        places["grid"] = np.stack(np.divmod(np.arange(L), side), 1).astype(float)
    told: dict[str, float | list[float]] = {"grid": math.nan, "grid_p": math.nan}
    generator, upper = np.random.default_rng(0), np.triu_indices(L, 1)
    for name, at in places.items():
        far = np.linalg.norm(at[:, None] - at[None], axis=-1)

        def alike(order: np.ndarray, far: np.ndarray = far) -> float:
            return float(np.corrcoef(far[np.ix_(order, order)][upper], unlike[upper])[0, 1])

        reached = alike(np.arange(L))
        draws = [alike(generator.permutation(L)) for _ in range(DRAWS)]
        told |= {name: reached, f"{name}_p": (1 + sum(draw >= reached for draw in draws)) / (DRAWS + 1)}
    return told
