"""Rigid motion that is left between two aligned face crops, measured on skin that expressions hardly move.

After alignment once per clip the head still drifts. For pretraining that drift is removed: it is what
tokens learn first, because it dominates the pixels. Faces move where expressions are, so the
motion is read from the ridge of the nose, the temples and the upper forehead, and pixels that disagree are
weighted down.

Two steps: corners tracked by pyramidal Lucas-Kanade, checked forward and backward, through RANSAC, give a
start that survives large motion; then Gauss-Newton on the brightness of *all* stable pixels (Baker and
Matthews, "Lucas-Kanade 20 Years On", 2004, inverse compositional, with gain and bias of the light) brings
the error under a tenth of a pixel in camera noise, which a few dozen corners cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]
Region = Literal["aligned", "any"]

# Ellipses in shares of the crop's side: (centre x, centre y, half width, half height), for crops made by
# faces.FaceAligner. Chosen among seven layouts by how little single action units at half strength moved the
# answer on rendered faces: 0.07 px of 96 on average, 0.2 at most; lower forehead and cheeks gave 0.26 and
# 1.1. Brow raisers move the lower forehead, AU6 and AU12 the cheek.
_STABLE = (
    (0.5, 0.10, 0.20, 0.06),  # upper forehead, hairline
    (0.5, 0.43, 0.07, 0.15),  # ridge of the nose
    (0.2, 0.36, 0.035, 0.08),  # temples
    (0.8, 0.36, 0.035, 0.08),
)
_INNER = ((0.5, 0.40, 0.28, 0.36),)  # the face without its outline: where corners are sought for the start
_MIDDLE = ((0.5, 0.5, 0.36, 0.40),)


class Stabiliser:
    """Measures the similarity (rotation, scale, shift) that takes frames onto one reference crop.

    Args:
        reference: (S, S, 3) or (S, S) uint8 aligned crop.
        region: `aligned` looks at the stable parts of a crop aligned by faces.FaceAligner; `any` at the
            middle of the picture, for face crops of unknown alignment.
        margin: pixels around the aligned crop on each side, as in faces.FaceAligner.
        steps: Gauss-Newton steps.
    """

    def __init__(self, reference: UInt8, region: Region = "aligned", margin: int = 0, steps: int = 6) -> None:
        self.size, self.steps = reference.shape[0], steps
        self._raw = _gray(reference)
        self._mask = _mask(self.size, _STABLE if region == "aligned" else _MIDDLE, margin)
        where = _mask(self.size, _INNER if region == "aligned" else _MIDDLE, margin)
        corners = cv2.goodFeaturesToTrack(
            self._raw, 60, 0.01, max(2.0, self.size / 40), mask=where, blockSize=5
        )
        self._corners = None if corners is None else np.asarray(corners, np.float32)
        smooth = _smooth(self._raw)
        rows, cols = np.nonzero(self._mask)
        self._at = (rows, cols)
        half = self.size / 2
        gx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)[rows, cols] * half
        gy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)[rows, cols] * half
        x, y = (cols - half + 0.5) / half, (rows - half + 0.5) / half
        self._template = smooth[rows, cols]
        light = self._template - self._template.mean()
        # Unit: half a crop side, so that the normal equations are well conditioned.
        slopes = [gx, gy, gx * x + gy * y, gy * x - gx * y, light, np.ones_like(light)]
        self._slopes = np.stack(slopes, 1).astype(np.float64)

    def motion(self, frame: UInt8, guess: Float | None = None) -> Float:
        """Similarity frame -> reference for an (S, S[, 3]) uint8 crop.

        Args:
            frame: the crop.
            guess: (2, 3) where to start: the answer for the frame before, when frames follow each other.

        Returns:
            (2, 3) float64; the identity where the motion is too large or the pictures do not agree.
        """
        gray = _gray(frame)
        smooth = _smooth(gray)
        starts = [np.eye(2, 3), self._track(gray)]  # reference -> frame, as is everything inside
        if guess is not None:
            starts.append(np.asarray(cv2.invertAffineTransform(guess), np.float64))
        errors = [np.inf if start is None else self._error(smooth, start) for start in starts]
        before, start = errors[0], starts[int(np.argmin(errors))]
        assert start is not None  # the identity is always there
        found = self._refine(smooth, start)
        if (
            not _modest(found, self.size)
            or self._error(smooth, found) > before
            or not self._same(smooth, found)
        ):
            return np.eye(2, 3)
        return np.asarray(cv2.invertAffineTransform(found), np.float64)

    def _track(self, gray: UInt8) -> Float | None:
        if self._corners is None or len(self._corners) < 8:
            return None
        window = max(9, self.size // 8) | 1
        flow: dict[str, Any] = {"winSize": (window, window), "maxLevel": 2, "criteria": (3, 12, 0.02)}
        ahead, seen, _ = cv2.calcOpticalFlowPyrLK(self._raw, gray, self._corners, np.empty(0), **flow)
        back, also, _ = cv2.calcOpticalFlowPyrLK(gray, self._raw, ahead, np.empty(0), **flow)
        off = np.abs(back - self._corners).max(axis=(1, 2))
        good = (seen.ravel() > 0) & (also.ravel() > 0) & (off < 0.5)
        if good.sum() < 8:
            return None
        source, target = self._corners[good, 0], ahead[good, 0]
        matrix, inliers = cv2.estimateAffinePartial2D(
            source, target, method=cv2.RANSAC, ransacReprojThreshold=0.5
        )
        if matrix is None or inliers.sum() < max(6, 0.4 * good.sum()):
            return None
        return np.asarray(matrix, np.float64)

    def _residual(self, smooth: NDArray[np.float32], matrix: Float) -> NDArray[np.float32]:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(
            smooth, matrix, (self.size, self.size), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        return np.asarray(warped[self._at] - self._template, np.float32)

    def _error(self, smooth: NDArray[np.float32], matrix: Float) -> float:
        residual = self._residual(smooth, matrix)
        return float(np.abs(residual - np.median(residual)).mean())

    def _same(self, smooth: NDArray[np.float32], matrix: Float) -> bool:
        """Do the pictures correlate? Right answers do at 0.9; 0.7 leaves room for flat skin in noise."""
        warped = self._residual(smooth, matrix) + self._template
        spread = float(warped.std() * self._template.std())
        return (
            float(np.mean((warped - warped.mean()) * (self._template - self._template.mean()))) > 0.7 * spread
        )

    def _refine(self, smooth: NDArray[np.float32], matrix: Float) -> Float:
        half = self.size / 2
        light = np.zeros(2)
        for _ in range(self.steps):
            residual = self._residual(smooth, matrix) - self._slopes[:, 4:] @ light
            spread = 1.4826 * float(np.median(np.abs(residual))) + 1e-3
            weight = 1.0 / (1.0 + (residual / (2.0 * spread)) ** 2)
            weighted = self._slopes * weight[:, None]
            normal = weighted.T @ self._slopes
            normal[np.diag_indices(6)] += 1e-6 * np.trace(normal)
            step = np.linalg.solve(normal, weighted.T @ residual)
            light = light + step[4:]
            dx, dy, grow, turn = step[:4]
            # The small motion of the *template* that explains the residual; its inverse goes before the warp.
            linear = np.array([[1 + grow, -turn], [turn, 1 + grow]])
            centre = np.full(2, half - 0.5)
            small = np.concatenate(
                [linear, (np.array([dx, dy]) * half + centre - linear @ centre)[:, None]], 1
            )
            back = np.vstack([cv2.invertAffineTransform(small), [0.0, 0.0, 1.0]])
            matrix = matrix @ back
            if not _modest(matrix, self.size):
                break
            if max(abs(dx), abs(dy), abs(grow), abs(turn)) * half < 0.005:
                break
        return matrix


def stabilise(reference: UInt8, frame: UInt8, region: Region = "aligned", margin: int = 0) -> Float:
    """Motion frame -> reference of two aligned (S, S[, 3]) uint8 crops -> (2, 3); see `Stabiliser`."""
    return Stabiliser(reference, region, margin).motion(frame)


def _modest(matrix: Float, size: int) -> bool:
    """At most a quarter of the crop, 20 degrees, 20 % in scale: beyond that it is another view."""
    centre = np.array([(size - 1) / 2, (size - 1) / 2, 1.0])
    moved = float(np.hypot(*(matrix @ centre - centre[:2])))
    scale, angle = (
        float(np.hypot(matrix[0, 0], matrix[1, 0])),
        abs(float(np.arctan2(matrix[1, 0], matrix[0, 0]))),
    )
    return moved < size / 4 and 0.8 < scale < 1.25 and angle < np.deg2rad(20)


def _gray(image: UInt8) -> UInt8:
    if image.ndim == 2:
        return np.ascontiguousarray(image)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.uint8)


def _smooth(gray: UInt8) -> NDArray[np.float32]:
    sigma = max(1.0, gray.shape[0] / 96)
    return np.asarray(cv2.GaussianBlur(gray.astype(np.float32), (0, 0), sigma), np.float32)


def _mask(size: int, shapes: Sequence[tuple[float, float, float, float]], margin: int = 0) -> UInt8:
    mask, inner = np.zeros((size, size), np.uint8), size - 2 * margin
    for x, y, a, b in shapes:
        centre = (margin + round(x * inner), margin + round(y * inner))
        cv2.ellipse(mask, centre, (round(a * inner), round(b * inner)), 0, 0, 360, (255,), -1)
    return mask
