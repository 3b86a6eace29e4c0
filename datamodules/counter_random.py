"""Random numbers without a state: what is drawn depends on a seed and a number alone.

So workers, ranks, epochs and views all differ, and a run repeats from its seed, in whatever order and by
however many processes its pictures are made.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_WORD = (1 << 64) - 1


def uniforms(seed: int, numbers: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Reproducible random numbers by counter: (N,) int64 -> (N, count) float64 in [0, 1).

    splitmix64 (Steele, Lea, Flood 2014) of (seed, number, column): any row, at any time, anywhere.
    """
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & _WORD)
    rows = _mix(_mix(start + numbers.astype(np.uint64)))
    columns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(rows[:, None] + columns[None]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def number_of(name: str) -> NDArray[np.int64]:
    """The number of a clip or file, from its name, (1,) int64."""
    return np.array([int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")])


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(word ^ (word >> np.uint64(31)), np.uint64)
