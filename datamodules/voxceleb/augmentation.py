"""One random transform for both frames of a pair, and separately drawn sensor noise.

What changes between onset and apex must be the face alone, so place, size, colour and camera are drawn once
per pair. Only the noise of the sensor is drawn per frame, because a real camera does so.

What is drawn depends on (seed, number, view) only, where the caller gives every pair of a run another
number; see counter_random.py. (albumentations' own generator would be copied into each worker and make them
all repeat the same draws; it is reseeded from the number before every call.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.counter_random import uniforms
from datamodules.faces.geometry import about_centre

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

_BANK = 1 << 19
_SHARES = np.arange(256) / 255.0


@dataclass(frozen=True)
class Draw:
    """What was drawn for one pair and view.

    Attributes:
        turn, grow, shift: degrees, factor, (x, y) in pixels of the output.
        flip: mirrored left to right (left and right action units change places).
        gamma, gains: exponent and the three channels' factors.
        gray: colour taken away.
        sigma: standard deviation of the sensor noise in gray levels.
        camera: seed of the camera's blur, compression or low resolution; None for a perfect camera.
        noise: two numbers in [0, 1) that select the noise of onset and apex.
    """

    turn: float
    grow: float
    shift: tuple[float, float]
    flip: bool
    gamma: float
    gains: tuple[float, float, float]
    gray: bool
    sigma: float
    camera: int | None
    noise: tuple[float, float]


class PairTransform:
    """The same random crop, flip, light and camera for onset and apex; other noise for each.

    Args:
        image_size: side of the pictures returned, in pixels. Larger input is cropped to its middle, so input
            that has a margin loses it.
        train: False only crops the middle.
        seed: of all draws.
        turn: degrees, at most, either way.
        grow: share, at most, either way.
        shift: share of the side, at most, either way.
        light: how far gamma and the channels' gains go from 1.
        flip, gray, camera: probabilities in [0, 1].
        noise: largest standard deviation of the sensor noise, in gray levels.
    """

    def __init__(
        self,
        image_size: int,
        train: bool,
        seed: int = 0,
        turn: float = 3.0,
        grow: float = 0.04,
        shift: float = 0.04,
        light: float = 0.2,
        flip: float = 0.5,
        gray: float = 0.2,
        camera: float = 0.1,
        noise: float = 5.0,
    ) -> None:
        self.image_size, self.train, self.seed = image_size, train, seed
        self.turn, self.grow, self.shift, self.light = turn, grow, shift, light
        self.flip, self.gray, self.camera, self.noise = flip, gray, camera, noise

    def ready(self) -> None:
        """Load what the first pair would wait for; once here, not in every forked worker of every epoch."""
        if self.train:
            _bank()
            if self.camera > 0:
                _camera()

    def draw(self, numbers: NDArray[np.int64], view: int = 0) -> list[Draw]:
        """What is drawn for pairs with these numbers. Views of a pair share the flip: its labels do."""
        u = uniforms(self.seed * 1009 + view, numbers, 14)
        flips = u[:, 0] if view == 0 else uniforms(self.seed * 1009, numbers, 1)[:, 0]
        both = 2.0 * u - 1.0
        turn, grow = both[:, 1] * self.turn, 1.0 + both[:, 2] * self.grow
        shift = both[:, 3:5] * self.shift * self.image_size
        gamma = (1.0 + self.light) ** both[:, 5]
        gains = (1.0 + self.light) ** both[:, 6:7] * (1.0 + 0.4 * self.light) ** both[:, 7:10]
        return [
            Draw(
                turn=float(turn[i]),
                grow=float(grow[i]),
                shift=(float(shift[i, 0]), float(shift[i, 1])),
                flip=bool(flips[i] < self.flip),
                gamma=float(gamma[i]),
                gains=(float(gains[i, 0]), float(gains[i, 1]), float(gains[i, 2])),
                gray=bool(u[i, 10] < self.gray),
                sigma=float(u[i, 11] * self.noise),
                camera=int(u[i, 12] / self.camera * 2**31) if u[i, 12] < self.camera else None,
                noise=(float(u[i, 13]), float(u[i, 13] * 8191 % 1.0)),
            )
            for i in range(len(numbers))
        ]

    def apply(self, drawn: Draw, onset: UInt8, apex: UInt8) -> tuple[UInt8, UInt8]:
        """Two (H, W, 3) uint8 frames -> two (image_size, image_size, 3) uint8."""
        matrix, size = self._matrix(drawn, onset.shape[0], onset.shape[1]), (self.image_size, self.image_size)
        table = _table(drawn.gamma, drawn.gains)
        pair = []
        for frame in (onset, apex):
            image = cv2.warpAffine(
                frame, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
            image = cv2.LUT(image, table)
            if drawn.gray:
                image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            pair.append(np.asarray(image, np.uint8))
        if drawn.camera is not None:
            pipeline = _camera()
            pipeline.set_random_seed(drawn.camera)
            seen = pipeline(image=pair[0], apex=pair[1])
            pair = [seen["image"], seen["apex"]]
        if drawn.sigma >= 0.5:
            pair = [
                _noisy(image, drawn.sigma, place, drawn.gray)
                for image, place in zip(pair, drawn.noise, strict=True)
            ]
        return pair[0], pair[1]

    def middle(self, frame: UInt8) -> UInt8:
        """The middle (image_size, image_size, 3) of a frame; smaller frames are enlarged."""
        size, (height, width) = self.image_size, frame.shape[:2]
        if height < size or width < size:
            return np.asarray(cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
        y, x = (height - size) // 2, (width - size) // 2
        return frame[y : y + size, x : x + size]

    def _matrix(self, drawn: Draw, height: int, width: int) -> Float:
        fit = max(1.0, self.image_size / min(height, width))  # only too small pictures are scaled to fit
        target = (self.image_size, self.image_size)
        return about_centre((width, height), target, drawn.turn, drawn.grow * fit, drawn.shift, drawn.flip)


def _table(gamma: float, gains: tuple[float, float, float]) -> UInt8:
    """(256, 1, 3) lookup table of a camera's light response."""
    curve = 255.0 * _SHARES**gamma
    return np.asarray(np.minimum(curve[:, None, None] * np.array(gains) + 0.5, 255.0), np.uint8)


@cache
def _bank() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(_BANK, np.float32)


@cache
def _levels(sigma: int) -> NDArray[np.int16]:
    """Ready noise of sigma half gray levels: cutting from a bank is ten times cheaper than drawing."""
    return np.asarray(np.rint(_bank() * (sigma / 2)), np.int16)


def _noisy(image: UInt8, sigma: float, place: float, gray: bool) -> UInt8:
    levels, (height, width, channels) = _levels(round(2 * sigma)), image.shape
    need = height * width * (1 if gray else channels)
    if need > _BANK:
        levels = np.tile(levels, need // _BANK + 2)
    start = int(place * (len(levels) - need))
    noise = levels[start : start + need].reshape(height, width, -1)
    if gray:
        noise = np.repeat(noise, channels, axis=2)
    return np.asarray(cv2.add(image, noise, dtype=cv2.CV_8U), np.uint8)


@cache
def _camera() -> Any:
    """A worse camera, the same for both frames: blurred, compressed or of low resolution."""
    import albumentations  # takes seconds to import, and only training needs it

    worse = [
        albumentations.ImageCompression(quality_range=(40, 90), p=1.0),
        albumentations.Downscale(scale_range=(0.5, 0.9), p=1.0),
        albumentations.GaussianBlur(blur_limit=(3, 3), p=1.0),
    ]
    return albumentations.Compose([albumentations.OneOf(worse, p=1.0)], additional_targets={"apex": "image"})
