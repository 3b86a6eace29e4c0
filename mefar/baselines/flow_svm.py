"""Histograms of flow directions over a grid of the face, and its strain: like MDMO, without landmarks.

Source of the idea: Liu et al., "A Main Directional Mean Optical Flow Feature", 2016, whose 36 regions follow
landmarks; aligned crops stand still, so that a grid of 6 x 6 cells is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from mefar.baselines.flow import FlowMethod, flow_between, strain_of
from mefar.baselines.svm import LinearSVM

CELLS, DIRECTIONS = 6, 8


def histograms(flow: Tensor) -> Tensor:
    """Flow (B, 2, H, W) -> (B, 36, 9): per cell the mean length along 8 directions, and the mean strain."""
    side = flow.shape[-1] // CELLS * CELLS
    values = torch.cat([flow, strain_of(flow)], 1)[..., :side, :side]
    cells = rearrange(values, "b c (i h) (j w) -> b (i j) c (h w)", i=CELLS, j=CELLS)
    u, v, strain = cells.unbind(2)
    length, angle = (u.square() + v.square()).sqrt(), torch.atan2(v, u)
    bins = (angle / (2 * torch.pi) * DIRECTIONS).round().long() % DIRECTIONS
    sums = torch.zeros(*length.shape[:2], DIRECTIONS).scatter_add_(2, bins, length)
    return torch.cat([sums / length.shape[-1], strain.mean(-1, keepdim=True)], -1)


class FlowSVM(FlowMethod):
    """Histograms of flow over a grid of 6 x 6 cells and their strain, linear support vector machines."""

    head = partial(LinearSVM, cost=1e-3)

    def features(self, onset: Tensor, apex: Tensor, clips: Sequence[str]) -> Tensor:
        """(B, 36, 9)."""
        if self._files:
            images = super().features(onset, apex, clips)
            images = rearrange(images, "b c (h w) -> b c h w", h=self.side)
            return histograms(2 * images[:, :2] - 1)  # 0.5 is no motion
        return histograms(flow_between(onset, apex, self.algorithm))
