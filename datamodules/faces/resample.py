"""Frame -> crop by one transform and one interpolation, with no more noise than the size of the crop demands.

Plain bilinear interpolation reads at most four pixels of the frame for one of the crop. Where the crop is
smaller, it skips the others: camera noise is not averaged, skin texture aliases, and both change from frame
to frame with the sub-pixel part of the transform, which is just where a micro-expression lies. So the frame
is smoothed first, by a Gaussian whose width follows the scale *continuously*: onset and apex of one clip,
whose scales differ by a thousandth, are smoothed alike.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

_BLUR = 0.5  # standard deviation of the smoothing, in pixels of the crop, for a much larger frame


def resample(frame: UInt8, matrix: Float, size: int) -> UInt8:
    """Apply a transform to a frame.

    Args:
        frame: (H, W, 3) uint8.
        matrix: (2, 3) frame pixels -> crop pixels, pixel centres at whole numbers; a similarity, which may
            mirror. Where it also stretches, the frame is smoothed by the mean of both scales.
        size: side of the crop in pixels.

    Returns:
        (size, size, 3) uint8; outside the frame its edges are repeated.
    """
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 1.0:
        # Very large frames are averaged in blocks first, for speed: under 2 % of the smoothing.
        block = max(1, int(0.25 / scale))
        sigma = _BLUR * float(np.sqrt(1.0 / scale**2 - 1.0)) / block
        frame, matrix = _seen(frame, matrix, size, block, int(np.ceil(3 * sigma)) + 2)
        if sigma > 0.1:
            frame = np.asarray(
                cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.uint8
            )
    warped = cv2.warpAffine(
        frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(warped, np.uint8)


def _seen(frame: UInt8, matrix: Float, size: int, block: int, margin: int) -> tuple[UInt8, Float]:
    """The part of a frame that a crop sees, averaged in blocks, and the transform from there."""
    height, width = frame.shape[0] // block, frame.shape[1] // block
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]], np.float64)
    corners = corners @ cv2.invertAffineTransform(matrix).T / block
    # Whole blocks counted from the frame's corner: the same pixels share a block in every frame.
    limit = np.array([width, height])
    low = np.clip(np.floor(corners.min(0)).astype(int) - margin, 0, limit - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + margin, low + 1, limit)
    part = frame[low[1] * block : high[1] * block, low[0] * block : high[0] * block]
    if block > 1:
        part = np.asarray(cv2.resize(part, tuple(high - low), interpolation=cv2.INTER_AREA), np.uint8)
    shift = low * block + (block - 1) / 2
    onto = np.array([[block, 0.0, shift[0]], [0.0, block, shift[1]], [0.0, 0.0, 1.0]])
    return part, np.asarray(matrix @ onto, np.float64)
