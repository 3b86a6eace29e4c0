"""Rendered people who show action units of known strength: what a read-out of tokens is fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.clips import ActionUnit
from datamodules.demo.identity import Identity
from datamodules.demo.motion import performance, resting_face, unit_rows
from datamodules.demo.scene import street_scene
from datamodules.faces.align import FaceAligner

UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 25, 26)
"""What is shown: CD6ME's twelve, and lips that stretch, part and drop."""


@dataclass(frozen=True)
class UnitPairs:
    """One person's pairs.

    Attributes:
        onset: (N, S, S, 3) uint8, aligned; the same face at rest, with the camera's noise of each time.
        apex: (N, S, S, 3) uint8.
        intensity: (N, len(UNITS)) float in [0, 1], shares of each unit's full action.
    """

    onset: NDArray[np.uint8]
    apex: NDArray[np.uint8]
    intensity: NDArray[np.float32]


def unit_pairs(size: int, people: int, pairs: int, seed: int = 0) -> Iterator[UnitPairs]:
    """People one after another, each with one to three units at .2 to 1 in each of their pairs.

    Args:
        size: S, side of the crops in pixels.
        people: how many.
        pairs: of each.
        seed: same seed, same pictures.
    """
    aligner = FaceAligner(size)
    for number in range(people):
        rng = np.random.default_rng([seed, 11, number])
        identity, rest, scene = Identity.random(rng), resting_face(rng), street_scene(rng, 160)
        shown = np.zeros((pairs, len(UNITS)), np.float32)
        for row in shown:
            row[rng.choice(len(UNITS), int(rng.integers(1, 4)), replace=False)] = rng.uniform(0.2, 1.0)
        actions = shown @ unit_rows(rng, [ActionUnit(unit) for unit in UNITS])
        moved = np.concatenate([np.zeros_like(actions), actions]) + rest
        shows = performance(moved, np.zeros((2 * pairs, 5)), np.ones(2 * pairs))
        pictures = list(scene.film(identity, shows, rng))
        matrix = aligner.estimate(pictures[0])
        if matrix is not None:
            crops = np.stack([aligner.crop(picture, matrix) for picture in pictures])
            yield UnitPairs(crops[:pairs], crops[pairs:], shown)
