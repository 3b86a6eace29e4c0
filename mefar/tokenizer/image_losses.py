"""How well an apex was rebuilt: pure functions for the tokenizer's loss and for its quality gates.

Images are RGB (B, 3, H, W) float in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOVING_SHARE = 0.2  # the moving region of a pair: the fifth of the pixels that changed most


def match_light(image: Tensor, reference: Tensor) -> Tensor:
    """Give an image the per-channel mean and contrast of its reference, so that light is not an action.

    Gain is bounded to [0.8, 1.25]: a larger change is content, not light.
    """
    mean, target_mean = image.mean((2, 3), keepdim=True), reference.mean((2, 3), keepdim=True)
    gain = reference.std((2, 3), keepdim=True) / image.std((2, 3), keepdim=True).clamp_min(1e-3)
    return (image - mean) * gain.clamp(0.8, 1.25) + target_mean


def motion_energy(onset: Tensor, apex: Tensor) -> Tensor:
    """Smoothed absolute difference, (B, 1, H, W) float >= 0; smoothing over H/16 drowns camera noise."""
    side = max(3, onset.shape[-1] // 16) | 1
    difference = (apex - onset).mean(1, keepdim=True)
    fine = F.avg_pool2d(difference, 3, 1, 1, count_include_pad=False).abs()
    return F.avg_pool2d(fine, side, 1, side // 2, count_include_pad=False)


def moving_region(onset: Tensor, apex: Tensor) -> Tensor:
    """(B, 1, H, W) bool: the fifth of the pixels with most motion energy, or fewer if fewer changed."""
    energy = motion_energy(onset, apex)
    limit = torch.quantile(energy.flatten(1).float(), 1 - MOVING_SHARE, dim=1)
    return (energy >= limit.view(-1, 1, 1, 1)) & (energy > 0)


def moving_weight(onset: Tensor, apex: Tensor, strength: float) -> Tensor:
    """Pixel weights 1 + strength * energy / mean energy (capped at 5), of mean 1: (B, 1, H, W)."""
    energy = motion_energy(onset, apex)
    relative = energy / energy.mean((1, 2, 3), keepdim=True).clamp_min(1e-4)
    weight = 1 + strength * relative.clamp(max=5)
    return weight / weight.mean((1, 2, 3), keepdim=True)


def charbonnier(image: Tensor, target: Tensor, weight: Tensor, epsilon: float = 0.01) -> Tensor:
    """Weighted mean of sqrt(e^2 + epsilon^2) - epsilon of each image, (B,).

    Quadratic below camera noise, linear above.
    """
    return (weight * ((image - target).square() + epsilon**2).sqrt().sub(epsilon)).mean((1, 2, 3))


def total_variation(flow: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring flow vectors, in pixels: (B, 2, H, W) -> ()."""
    return (flow[..., 1:, :] - flow[..., :-1, :]).abs().mean() + (flow[..., 1:] - flow[..., :-1]).abs().mean()


def psnr(image: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, (B,) float; inside region (B, 1, H, W) bool if given."""
    error = (image - target).square().mean(1, keepdim=True)
    if region is None:
        mean = error.mean((1, 2, 3))
    else:
        inside = region.to(error.dtype)
        mean = (error * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1)
    return -10 * mean.clamp_min(1e-10).log10()
