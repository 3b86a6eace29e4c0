"""Clips of two people that show the same pictures, however they were encoded.

A copy of a clip under another subject is on both sides of a fold. Byte for byte it is easily seen; saved
again as another JPEG, or at another size, it is not. So pictures are compared as they look from afar:
16 x 16 gray levels of onset and apex. On rendered clips saving again (as JPEG of quality 40, or at 60 % of
the size) moves these by 0.8 levels at most, two people before the same wall differ by 8 at least.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 16
ALIKE = 2.0  # gray levels, root mean square over both pictures


def from_afar(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture (H, W, 3) uint8 RGB as (SIDE, SIDE) gray levels in [0, 255]."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32)


def look_alikes(subjects: Sequence[str], pictures: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pairs of clips of different subjects whose pictures are the same.

    Args:
        subjects: N, of each clip.
        pictures: (N, ...) gray levels, for instance onset and apex of each clip from afar.

    Returns:
        (first, second) with first < second; of several clips that are alike each is paired with the first.
    """
    flat = np.asarray(pictures, np.float32).reshape(len(pictures), -1)
    pairs = []
    for second in range(1, len(flat)):
        distances = np.sqrt(((flat[:second] - flat[second]) ** 2).mean(1))
        near = map(int, np.flatnonzero(distances < ALIKE))
        alike = [first for first in near if subjects[first] != subjects[second]]
        if alike:
            pairs.append((alike[0], second))
    return pairs
