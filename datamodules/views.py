"""Views of a clip: the untouched pair, and slightly different looks at the same expression.

A view is drawn from (seed, clip, v) alone, so every process and every run sees the same ones. Both frames of
a pair get the same transform and the same light; only the apex may be another frame nearby. View 0 changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.counter_random import number_of, uniforms
from datamodules.faces.geometry import about_centre

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

SHIFT = 0.03  # share of the side, either way, in x and y
SCALE = 0.04  # share of 1, either way
TURN = 3.0  # degrees, either way
JITTER = 2  # frames, either way
LIGHT = 0.10  # share of 1, either way, for brightness and for contrast
AMPLITUDE = 0.25  # share of 1, either way, of how far the expression goes


@dataclass(frozen=True)
class View:
    """One look at a pair.

    Attributes:
        flip: mirrored left to right; left and right action units change places.
        shift: (x, y) as shares of the crop's side.
        scale: factor.
        turn: degrees.
        jitter: position in [0, 1) among the frames around the apex, see `jittered`; None = the apex itself.
        brightness: factor on gray levels.
        contrast: factor on the distance from middle gray.
        amplitude: factor on the change from onset to apex.
    """

    flip: bool = False
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    turn: float = 0.0
    jitter: float | None = None
    brightness: float = 1.0
    contrast: float = 1.0
    amplitude: float = 1.0

    def matrix(self, size: int) -> Float:
        """The transform crop -> view, (2, 3) float64, about the centre of a crop of `size` pixels."""
        shift = (size * self.shift[0], size * self.shift[1])
        return about_centre((size, size), (size, size), self.turn, self.scale, shift, self.flip)

    def relit(self, image: UInt8) -> UInt8:
        """The image under this view's light, uint8."""
        if self.brightness == 1.0 and self.contrast == 1.0:
            return image
        levels = (np.arange(256) * self.brightness - 128.0) * self.contrast + 128.0
        return np.asarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)[image], np.uint8)

    def amplified(self, onset: UInt8, apex: UInt8) -> UInt8:
        """The apex of a weaker or stronger expression, uint8.

        Gray levels go on along the line from onset to apex. That moves an edge as long as the edge is wider
        than the movement, and a micro-expression moves skin by a pixel.
        """
        if self.amplitude == 1.0:
            return apex
        start = onset.astype(np.float32)
        levels = start + np.float32(self.amplitude) * (apex.astype(np.float32) - start)
        return np.asarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8), np.uint8)

    def jittered(self, apex: int, later: Sequence[int]) -> int:
        """The frame to show as apex.

        Args:
            apex: the clip's apex.
            later: frame numbers after the onset and not after the offset, with files, apex among them.
        """
        if self.jitter is None:
            return apex
        near = [number for number in later if abs(number - apex) <= JITTER]
        return near[int(self.jitter * len(near))]


def draw_view(seed: int, key: str, v: int) -> View:
    """View v of the clip with this key; v = 0 is the untouched one."""
    if v == 0:
        return View()
    flip, jitter, *rest = uniforms(seed * 1009 + v, number_of(key), 9)[0].tolist()
    x, y, scale, turn, brightness, contrast, amplitude = (2.0 * u - 1.0 for u in rest)
    return View(
        flip=flip < 0.5,
        shift=(SHIFT * x, SHIFT * y),
        scale=1.0 + SCALE * scale,
        turn=TURN * turn,
        jitter=jitter,
        brightness=1.0 + LIGHT * brightness,
        contrast=1.0 + LIGHT * contrast,
        amplitude=1.0 + AMPLITUDE * amplitude,
    )
