"""LBP-TOP: uniform local binary patterns on three orthogonal planes, and support vector machines.

Source: Zhao and Pietikäinen, "Dynamic Texture Recognition Using Local Binary Patterns", 2007; of micro-
expressions: Pfister et al., 2011, after temporal interpolation to 10 frames. Our clips are pairs, so that the
frames between onset and apex are interpolated linearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mefar.baselines.method import Method
from mefar.baselines.svm import LinearSVM
from mefar.errors import UserError

FRAMES, CELLS, POINTS = 10, 4, 8


class LBPTOP(Method):
    """Histograms of local binary patterns in xy, xt and yt over 4 x 4 cells, linear SVMs."""

    head = partial(LinearSVM, cost=1e-3)

    def features(self, onset: Tensor, apex: Tensor, clips: Sequence[str]) -> Tensor:
        """(B, 16, 30): per cell the shares of 10 patterns on each of three planes."""
        before, after = (images.mean(1, keepdim=True) for images in (onset, apex))
        steps = torch.linspace(0, 1, FRAMES).view(1, -1, 1, 1)
        volumes = ((1 - steps) * before + steps * after).mul(255).round().byte().numpy()
        return torch.stack([torch.from_numpy(histograms(volume)) for volume in volumes]).float()


def histograms(volume: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(T, H, W) -> (16, 30) shares.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        from skimage.feature import local_binary_pattern
    except ImportError as error:
        raise UserError("LBP-TOP needs scikit-image; pip install 'mefar[baselines]'") from error

    def patterns(planes: NDArray[np.uint8]) -> NDArray[Any]:
        found = [local_binary_pattern(plane, POINTS, 1, "uniform") for plane in planes]  # type: ignore[no-untyped-call]
        return np.stack(found)

    # Every plane's patterns as (T, H, W) again.
    found = [
        patterns(volume),
        patterns(volume.transpose(1, 0, 2)).transpose(1, 0, 2),
        patterns(volume.transpose(2, 0, 1)).transpose(1, 2, 0),
    ]
    side = volume.shape[-1] // CELLS
    cells = []
    for i in range(CELLS):
        for j in range(CELLS):
            own = [plane[:, i * side : (i + 1) * side, j * side : (j + 1) * side] for plane in found]
            counts = [np.bincount(each.ravel().astype(int), minlength=POINTS + 2) for each in own]
            cells.append(np.concatenate([count / count.sum() for count in counts]))
    return np.stack(cells)
