"""Which frame stands for the peak of a micro-expression.

- `annotated`: the coder's apex. A clip without one, or whose apex is the onset (no motion to see), takes the
  middle, as published code does.
- `middle`: the frame half-way between onset and offset, the published choice for SMIC.
- `spotted`: the frame of largest motion against the onset, by the rule below.

Spotting, on crops aligned once per clip, without training and without a threshold:

1. *Light.* Each frame is shrunk to 64 pixels (which averages camera noise), high-passed and divided by the
   clip's local contrast, so that brightness and shading drop out; then smoothed over 20 ms. What of it is
   the first frame made stronger or weaker is exposure, and is taken out.
2. *Where.* Brows, nose and mouth count; hair and background do not, nor do the openings of the eyes: a blink
   or a glance moves more than any micro-expression.
3. *What moves.* An expression comes and goes, head and light drift. So the straight line between first and
   last frame is taken from every pixel, and the strongest spatial pattern of what remains (first singular
   vector) is the expression. A matched filter: every pixel of the pattern votes, noise averages out, where a
   mean absolute difference would add it up.
4. *When.* The frames' strength along that pattern, with half of the straight line given back: a clip that
   ends before the face has relaxed does not end where it began. The peak after the onset is the apex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.clips import Clip

ApexRule = Literal["annotated", "middle", "spotted"]
UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

_SIDE = 64
_DRIFT = 0.5  # share of the straight line that is taken for drift
# Ellipses in shares of an aligned crop's side (see faces.FaceAligner): x, y, half width, half height.
_EXPRESSIVE = (
    (0.35, 0.33, 0.17, 0.15),
    (0.65, 0.33, 0.17, 0.15),
    (0.5, 0.72, 0.24, 0.19),
    (0.5, 0.5, 0.12, 0.2),
)
_EYES = ((0.36, 0.34, 0.12, 0.06), (0.64, 0.34, 0.12, 0.06))


@dataclass(frozen=True)
class Apex:
    """A chosen apex.

    Attributes:
        number: frame number in (onset, offset], with a file.
        rule: the rule that gave it: `middle` where `annotated` had nothing to go by.
    """

    number: int
    rule: ApexRule


def middle(clip: Clip) -> int:
    """The frame on disk nearest to half-way between onset and offset, never the onset; of two the earlier."""
    later = [number for number in clip.between() if number > clip.onset]
    return min(later, key=lambda number: (abs(2 * number - clip.onset - later[-1]), number))


def choose_apex(clip: Clip, rule: ApexRule, spotter: Callable[[Clip], int]) -> Apex:
    """Apply a rule to a clip.

    Args:
        clip: with at least two frames on disk in [onset, offset].
        rule: annotated, middle or spotted.
        spotter: called for `spotted` only; reads the clip's frames and gives a frame number.
    """
    if rule == "spotted":
        return Apex(spotter(clip), "spotted")
    if rule == "annotated" and clip.apex is not None and clip.apex != clip.onset:
        return Apex(clip.apex, "annotated")
    return Apex(middle(clip), "middle")


def spot(crops: Sequence[UInt8], fps: float, aligned: bool = True) -> int:
    """Position of the frame of largest motion against the first.

    Args:
        crops: T >= 2 frames of one clip in order of time, (S, S, 3) or (S, S) uint8, all by one transform and
            with the head's own motion taken out.
        fps: frames per second.
        aligned: crops were made by faces.FaceAligner, so that it is known where brows, eyes and mouth are.

    Returns:
        An index in [1, T).
    """
    if len(crops) < 3:
        return len(crops) - 1
    return int(np.argmax(motion_curve(crops, fps, aligned)[1:])) + 1


def motion_curve(crops: Sequence[UInt8], fps: float, aligned: bool = True) -> Float:
    """Strength of the expression over time, (T,) float, arbitrary unit, 0 in the first frame; see `spot`."""
    frames = _smoothed(_without_light(crops), 0.02 * fps)[:, _region(aligned)]
    # A brighter picture has the first frame's pattern at another strength: that share is light, not motion.
    gain = frames @ frames[0] / max(float(frames[0] @ frames[0]), 1e-9)
    moved = frames - gain[:, None] * frames[0]
    line = np.linspace(0.0, 1.0, len(moved))[:, None] * moved[-1]
    # The pattern from T x T instead of pixels x pixels: T is tens, pixels are thousands.
    left, strength, _ = np.linalg.svd((moved - line) @ (moved - line).T)
    if strength[0] <= 1e-9:  # nothing comes and goes
        return np.asarray(np.sqrt((moved**2).mean(1)), np.float64)
    pattern = left[:, 0] @ (moved - line)
    pattern /= np.linalg.norm(pattern)
    bent, straight = (moved - line) @ pattern, line @ pattern
    sign = 1.0 if bent.max() >= -bent.min() else -1.0
    return np.asarray(sign * (bent + (1.0 - _DRIFT) * straight), np.float64)


def _without_light(crops: Sequence[UInt8]) -> Float:
    small = [cv2.resize(_gray(crop), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) for crop in crops]
    high = []
    for frame in small:
        plain = frame.astype(np.float32)
        high.append(cv2.GaussianBlur(plain, (0, 0), 1.0) - cv2.GaussianBlur(plain, (0, 0), 4.0))
    contrast = np.sqrt(np.mean([cv2.GaussianBlur(frame * frame, (0, 0), 4.0) for frame in high], axis=0))
    return np.asarray(np.stack(high) / (contrast + 4.0), np.float64)  # 4 gray levels: noise stays small


def _smoothed(frames: Float, sigma: float) -> Float:
    """Gaussian over time, sigma in frames; the ends are repeated."""
    reach = max(1, int(np.ceil(3 * sigma)))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    weights /= weights.sum()
    padded = np.concatenate([frames[:1]] * reach + [frames] + [frames[-1:]] * reach)
    return np.asarray(sum(w * padded[i : i + len(frames)] for i, w in enumerate(weights)), np.float64)


def _region(aligned: bool) -> NDArray[np.bool_]:
    mask = np.zeros((_SIDE, _SIDE), np.uint8)
    parts = [(ellipse, 1) for ellipse in _EXPRESSIVE] + [(ellipse, 0) for ellipse in _EYES]
    for (x, y, a, b), count in parts if aligned else [((0.5, 0.5, 0.5, 0.5), 1)]:
        centre, axes = (round(x * _SIDE), round(y * _SIDE)), (round(a * _SIDE), round(b * _SIDE))
        cv2.ellipse(mask, centre, axes, 0, 0, 360, (count,), -1)
    return mask.astype(bool)


def _gray(crop: UInt8) -> UInt8:
    if crop.ndim == 2:
        return crop
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY), np.uint8)
