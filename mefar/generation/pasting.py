"""Move a face inside its whole picture, at the picture's own resolution and without a seam.

A tokenizer sees a small aligned crop. What it says of it, a warp and some paint, is smooth: both are enlarged
and brought into the picture by the inverse of the alignment, and the picture's own pixels are fetched from
where the warp says. No crop is pasted, so nothing gets blurred, and there is nothing to be blended: towards
the edge of the crop the *movement* fades to nothing. Two pictures laid over each other would show every edge
twice.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mefar.tokens import Movement

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

FEATHER = 0.12
"""Share of the crop's side over which movement fades to nothing."""


def paste(picture: UInt8, matrix: Float, movement: Movement) -> UInt8:
    """Apply a movement to the face in a picture.

    Args:
        picture: (H, W, 3) uint8 RGB; a gray one stays gray.
        matrix: (2, 3) pixels of the picture -> pixels of the crop, centres at whole numbers.
        movement: of that crop alone, B = 1.

    Returns:
        (H, W, 3) uint8; where the crop does not reach, the same bytes.
    """
    fields = torch.cat([movement.flow, movement.residual * 255], 1).float().cpu()
    if (picture == picture[..., :1]).all():
        fields[:, 2:] = fields[:, 2:].mean(1, keepdim=True)
    size = fields.shape[-1]
    rows, columns = _reached(picture.shape[:2], matrix, size)
    y, x = np.mgrid[rows, columns].astype(np.float32)
    inside = np.stack([x, y], -1) @ matrix[:, :2].T + matrix[:, 2]  # (h, w, 2) in pixels of the crop
    grid = torch.from_numpy(2 * inside / (size - 1) - 1).float()[None]
    enlarged = functional.grid_sample(fields * feather(size), grid, mode="bicubic", align_corners=True)
    large = enlarged[0].permute(1, 2, 0).numpy()
    # A step in the crop is a step in the picture by the inverse of the alignment's turn and scale.
    step = (large[..., :2] @ np.linalg.inv(matrix[:, :2]).T).astype(np.float32)
    source = (x + step[..., 0], y + step[..., 1])
    moved = cv2.remap(picture, *source, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
    result = picture.copy()
    result[rows, columns] = np.clip(np.rint(moved + large[..., 2:]), 0, 255)
    return result


def feather(size: int) -> torch.Tensor:
    """(size, size) in [0, 1]: 1 in the middle of a crop, 0 along its edges, smooth in between."""
    share = (torch.arange(size) - 1) / (size - 3)
    edge = (torch.minimum(share, 1 - share) / FEATHER).clamp(0, 1)
    edge = edge.square() * (3 - 2 * edge)
    return edge[:, None] * edge


def _reached(shape: tuple[int, ...], matrix: Float, size: int) -> tuple[slice, slice]:
    """Rows and columns of a picture that the crop reaches."""
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) - 0.5
    found = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    low = np.clip(np.floor(found.min(0)), 0, None).astype(int)
    high = np.ceil(found.max(0)).astype(int) + 1
    return slice(low[1], min(high[1], shape[0])), slice(low[0], min(high[0], shape[1]))
