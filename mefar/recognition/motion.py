"""How parts of one face move against the head, frame by frame, in crops that follow the head.

A micro-expression moves the skin by a fraction of a pixel; the head moves by many. Both are measured in one
step: points on a grid over the face are followed from a reference crop to the present one (pyramidal
Lucas-Kanade), and a robust fit explains as much of their motion as a head can make, which moves as a whole:
shift, turn and scale in the picture, and the parallax of turning left or nodding, which shifts what is near
the camera (the nose) against what is far. What the head leaves over, averaged over brows, lids, nose, cheeks
and mouth, is expression, with the noise of hundreds of points averaged out.

The crop itself follows the head by that fit, never by landmarks, whose jitter is as large as what is sought.
References live for about a second and are laid end to end, so that a slow turn of the head or of the light
does not pile up.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

SIDE = 128  # pixels of the crops this module works on

# Ellipses in shares of a crop in which the eyes' midpoint lies at (.5, .34) and the mouth at (.5, .72):
# centre x, centre y, half width, half height. Left and right are those of the picture.
REGIONS: dict[str, tuple[float, float, float, float]] = {
    "brow_left_outer": (0.27, 0.225, 0.065, 0.055),
    "brow_left_inner": (0.40, 0.235, 0.055, 0.055),
    "brow_right_inner": (0.60, 0.235, 0.055, 0.055),
    "brow_right_outer": (0.73, 0.225, 0.065, 0.055),
    "lid_left": (0.34, 0.405, 0.085, 0.03),
    "lid_right": (0.66, 0.405, 0.085, 0.03),
    "nose_left": (0.42, 0.55, 0.045, 0.05),
    "nose_right": (0.58, 0.55, 0.045, 0.05),
    "cheek_left": (0.29, 0.52, 0.075, 0.07),
    "cheek_right": (0.71, 0.52, 0.075, 0.07),
    "lip_upper": (0.5, 0.665, 0.07, 0.035),
    "mouth_left": (0.38, 0.72, 0.06, 0.055),
    "mouth_right": (0.62, 0.72, 0.06, 0.055),
    "lip_lower": (0.5, 0.78, 0.08, 0.035),
    "chin": (0.5, 0.87, 0.11, 0.05),
}
PARTS: dict[str, tuple[str, ...]] = {
    "brows": ("brow_left_outer", "brow_left_inner", "brow_right_inner", "brow_right_outer"),
    "eyes": ("lid_left", "lid_right", "cheek_left", "cheek_right"),
    "nose": ("nose_left", "nose_right"),
    "mouth": ("lip_upper", "mouth_left", "mouth_right", "lip_lower", "chin"),
}
_EYES = ((0.34, 0.34, 0.085, 0.04), (0.66, 0.34, 0.085, 0.04))  # the openings: gaze and blinks move them
_FACE = (0.5, 0.5, 0.36, 0.44)
_STEP = 4  # pixels between points
_WINDOW = 13
_LIFE = 1.0  # seconds that a reference lives, longer while the eyes are shut or look elsewhere
_LONGEST = 3.0
_WORN = 0.75  # quality under which a reference has had its day
_LOOKING = 0.3  # unlikeness of the eyes under which they are open as in the reference
_PARALLAX = 2  # yaw and pitch


@dataclass(frozen=True)
class Motion:
    """One frame of one face.

    Attributes:
        regions: (R, 2) how far each of REGIONS has moved against the head since the track began, right and
            down, in thousandths of the crop's side; the eyes are about 320 apart.
        head: (6,) what the head itself did since the last frame: shift right and down (thousandths), turn
            (milliradians), scale (thousandths), and the parallax of yaw and pitch (thousandths).
        eyes: (2,) how unlike the opening of each eye is to what it was when the reference began, 0 to 2:
            blinks and glances.
        quality: how well the crop agrees with the reference after all motion, 1 = perfectly; under 0.6 it
            is not the same face.
    """

    regions: Float
    head: Float
    eyes: Float
    quality: float


def resized(matrix: Float, size: int) -> Float:
    """A track's transform, frame -> SIDE crop, for crops of another size with the face in the same place."""
    ratio = size / SIDE
    out = matrix * ratio
    out[:, 2] += (ratio - 1.0) / 2
    return out


class FaceMotion:
    """Follows one face from crop to crop.

    Args:
        matrix: (2, 3) frame pixels -> crop pixels of the first frame, eyes and mouth at their places.
        crop: (SIDE, SIDE, 3) or (SIDE, SIDE) uint8 of the first frame by that transform.
        seconds: time of the first frame.
    """

    def __init__(self, matrix: Float, crop: UInt8, seconds: float) -> None:
        self.matrix = np.asarray(matrix, np.float64)
        self._base = np.zeros((len(REGIONS), 2))
        self._now = np.zeros((len(REGIONS), 2))
        self._parallax = np.zeros(_PARALLAX)
        self._begin(crop, seconds)

    def _begin(self, crop: UInt8, seconds: float) -> None:
        self._since, self._reference = seconds, _plain(crop)
        eigen = cv2.cornerMinEigenVal(self._reference, 7)
        self._sure = np.sqrt(np.maximum(eigen[_POINTS[:, 1], _POINTS[:, 0]], 0.0)).astype(np.float64)
        self._sure /= max(float(np.median(self._sure)), 1e-9)
        self._sure = np.minimum(self._sure, 3.0)
        self._base, self._before, self._eyes = self._now, np.zeros(_PARALLAX), np.zeros(2)
        self._quality = 1.0

    def rekey(self, matrix: Float, crop: UInt8, seconds: float) -> None:
        """Go on from a crop by another transform of the frame measured last: what has moved stays moved."""
        self.matrix = np.asarray(matrix, np.float64)
        self._begin(crop, seconds)

    def stale(self, seconds: float) -> bool:
        """Whether it is time to `rekey`."""
        age = seconds - self._since
        if self._eyes.max() >= _LOOKING:
            return age >= _LONGEST
        return age >= (_LIFE if self._quality >= _WORN else _LIFE / 8)

    def measure(self, crop: UInt8) -> Motion:
        """Measure the crop of the next frame, made by `matrix`, which then follows the head."""
        gray = _plain(crop)
        moved, seen, _ = cv2.calcOpticalFlowPyrLK(
            self._reference, gray, _POINTS.astype(np.float32)[:, None], np.empty(0),
            winSize=(_WINDOW, _WINDOW), maxLevel=2, criteria=(3, 10, 0.01), minEigThreshold=1e-5,
        )  # fmt: skip
        flow = moved[:, 0].astype(np.float64) - _POINTS
        weight = self._sure * (seen.ravel() > 0) * (np.hypot(*flow.T) < SIDE / 4)
        head, left = _fit(flow, weight)
        self.matrix = _without(head[:4]) @ np.vstack([self.matrix, [0.0, 0.0, 1.0]])
        self._now = self._base + 1000.0 / SIDE * _averages(left, weight)
        step = np.append(head[:4], head[4:] - self._before)
        self._before = head[4:]
        self._quality, self._eyes = self._agreement(gray, head)
        turned = 1000.0 * step / np.array([SIDE, SIDE, 1, 1, SIDE, SIDE])
        return Motion(self._now, turned, self._eyes, self._quality)

    def rest(self) -> Motion:
        """The first frame, in which nothing has moved yet."""
        return Motion(self._base, np.zeros(6), np.zeros(2), 1.0)

    def _agreement(self, gray: UInt8, head: Float) -> tuple[float, Float]:
        forward = np.array([[1 + head[3], -head[2], 0.0], [head[2], 1 + head[3], 0.0]])
        centre = (SIDE - 1) / 2
        forward[:, 2] = head[:2] + centre - forward[:, :2] @ [centre, centre]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        back = np.asarray(
            cv2.warpAffine(gray, forward, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE),
            np.uint8,
        )
        eyes = [1.0 - _likeness(self._reference[eye], back[eye]) for eye in _OPENINGS]
        return _likeness(self._reference[_INNER], back[_INNER]), np.array(eyes)


def _plain(crop: UInt8) -> UInt8:
    """Gray without shading: the local mean taken out, the local contrast evened."""
    gray = crop if crop.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
    image = gray.astype(np.float32)
    high = image - cv2.GaussianBlur(image, (0, 0), SIDE / 16)
    contrast = cv2.GaussianBlur(np.abs(high), (0, 0), SIDE / 8)
    return np.asarray(np.clip(128.0 + 40.0 * high / (contrast + 2.0), 0, 255), np.uint8)


def _ellipse(x: float, y: float, a: float, b: float) -> NDArray[np.bool_]:
    rows, columns = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    return np.asarray(((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1.0)


def _grid() -> NDArray[np.int64]:
    """(P, 2) column and row of the points that are followed: on the face, off the openings of the eyes."""
    rows, columns = np.mgrid[_STEP // 2 : SIDE : _STEP, _STEP // 2 : SIDE : _STEP].reshape(2, -1)
    inside = _ellipse(*_FACE)
    for eye in _EYES:
        inside &= ~_ellipse(*eye)
    keep = inside[rows, columns]
    return np.stack([columns[keep], rows[keep]], 1)


_POINTS = _grid()
_PLACES = (_POINTS + 0.5) / SIDE
_MEMBERS = np.stack([_ellipse(*shape)[_POINTS[:, 1], _POINTS[:, 0]] for shape in REGIONS.values()])
_OPENINGS = [np.nonzero(_ellipse(*eye)) for eye in _EYES]
_INNER = np.nonzero(_ellipse(*_FACE))


def _design() -> Float:
    """(2P, 6) motion of each point, x then y, per unit of shift, turn, scale, yaw and pitch."""
    x, y = (_POINTS - (SIDE - 1) / 2).T
    one, zero = np.ones_like(x, np.float64), np.zeros_like(x, np.float64)
    across, down = (_PLACES[:, 0] - 0.5) / 0.42, (_PLACES[:, 1] - 0.5) / 0.55
    depth = np.sqrt(np.clip(1.0 - across**2 - down**2, 0.0, 1.0))
    nose = np.exp(-(((_PLACES[:, 0] - 0.5) / 0.08) ** 2) - ((_PLACES[:, 1] - 0.54) / 0.1) ** 2)
    depth = depth + 0.35 * nose
    depth -= depth.mean()
    columns = [(one, zero), (zero, one), (-y, x), (x, y), (depth, zero), (zero, depth)]
    return np.stack([np.concatenate(pair) for pair in columns], 1)


_DESIGN = _design()


def _fit(flow: Float, weight: Float) -> tuple[Float, Float]:
    """Head motion (6,) in pixels and radians, and what it leaves of the flow (P, 2).

    Iteratively reweighted: points that disagree are expression and count less.
    """
    target, trust = flow.T.ravel(), np.concatenate([weight, weight])
    head, robust = np.zeros(6), trust
    for _ in range(5):
        weighted = _DESIGN * robust[:, None]
        normal = weighted.T @ _DESIGN
        normal[np.diag_indices(6)] += 1e-9 * np.trace(normal) + 1e-9
        head = np.linalg.solve(normal, weighted.T @ target)
        left = (target - _DESIGN @ head).reshape(2, -1)
        size = np.hypot(*left)
        spread = float(np.median(size[weight > 0])) if (weight > 0).any() else 1.0
        robust = trust / np.tile(1.0 + (size / (1.5 * spread + 1e-3)) ** 2, 2)
    return head, np.asarray(left.T)


def _averages(left: Float, weight: Float) -> Float:
    """(R, 2) weighted mean over the points of each region, after dropping the wildest of them."""
    out = np.zeros((len(_MEMBERS), 2))
    for row, member in enumerate(_MEMBERS):
        flow, sure = left[member], weight[member]
        if sure.sum() <= 0:
            continue
        middle = np.median(flow[sure > 0], 0)
        off = np.hypot(*(flow - middle).T)
        sure = sure / (1.0 + (off / (2.0 * np.median(off[sure > 0]) + 0.02)) ** 2)
        out[row] = sure @ flow / sure.sum()
    return out


def _without(head: Float) -> Float:
    """(2, 3) of the crop that takes the head's shift, turn and scale back."""
    linear = np.array([[1 + head[3], -head[2]], [head[2], 1 + head[3]]])
    back, centre = np.linalg.inv(linear), np.full(2, (SIDE - 1) / 2)
    return np.concatenate([back, (centre - back @ (centre + head[:2]))[:, None]], 1)


def _likeness(first: UInt8, second: UInt8) -> float:
    """Correlation of two sets of pixels, -1 to 1."""
    a, b = first.astype(np.float64) - first.mean(), second.astype(np.float64) - second.mean()
    return float((a @ b) / max(np.sqrt((a @ a) * (b @ b)), 1e-9))
