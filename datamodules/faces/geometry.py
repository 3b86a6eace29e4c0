"""Similarities of the plane as (2, 3) float64 matrices: pixels are (x, y), centres at whole numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def compose(after: Float, before: Float) -> Float:
    """The (2, 3) transform that applies `before`, then `after`."""
    full = np.vstack([before, [0.0, 0.0, 1.0]])
    return np.asarray(after @ full, np.float64)


def about_centre(
    source: tuple[int, int],
    target: tuple[int, int],
    turn: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> Float:
    """Bring the middle of one picture to the middle of another: turned and scaled, mirrored last -> (2, 3).

    Args:
        source: width and height of the picture that is read.
        target: width and height of the picture that is made.
        turn: degrees.
        scale: factor.
        shift: (x, y) in pixels of the target.
        flip: mirror left and right.
    """
    angle = np.deg2rad(turn)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if flip:
        linear[0] *= -1.0
    start, end = (np.array(source) - 1) / 2, (np.array(target) - 1) / 2 + np.array(shift)
    return np.concatenate([linear, (end - linear @ start)[:, None]], 1)
