"""The conditional VQ-VAE, our own mode: encode(onset, apex) -> action codes; decode(onset, codes) -> apex.

Same contract as the published network (16 tokens from 32 codes, decoded on top of the onset), with other
insides, each of them a departure with a reason:

- The encoder sees luminance, standardised per frame. A gray camera gives the same tokens as a colour one,
  and a change of light between the frames is not an action.
- The action is f(onset, apex) - f(onset, onset): no motion gives exactly the same codes for everybody.
- Slots are linear read-outs of the whole aligned face, one map per slot, instead of grid cells: corners of
  the crop waste no bits. Codes stay whole, each slot has its own projection (published quirk Q1 mixed them).
- The decoder warps the onset by a predicted flow and adds a low-resolution residual. It learns several
  times faster than a decoder of pixels and keeps the identity for free.

Imports no Lightning: the training lives in tokenizer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mefar.tokenizer.quantizer import Quantized, VectorQuantizer

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights with which gray cameras and OpenCV agree


@dataclass(frozen=True)
class Decoded:
    """What the decoder made.

    Attributes:
        image: (B, 3, H, W) float, the apex; in [0, 1] up to small overshoots.
        flow: (B, 2, H, W) float in pixels, from where in the onset each pixel was fetched, relative to it.
        residual: (B, 3, H, W) float, what was painted over the warped onset.
    """

    image: Tensor
    flow: Tensor
    residual: Tensor


def luminance(image: Tensor) -> Tensor:
    """(B, 3, H, W) RGB -> (B, 1, H, W), standardised per image to mean 0 and deviation 1."""
    weights = torch.tensor(LUMINANCE, device=image.device, dtype=image.dtype).view(1, 3, 1, 1)
    gray = (image * weights).sum(1, keepdim=True)
    mean = gray.mean((2, 3), keepdim=True)
    deviation = gray.std((2, 3), keepdim=True)
    return (gray - mean) / (deviation + 1e-3)


class Block(nn.Module):
    """Residual block: depthwise 5x5, then a pointwise MLP with a 2x hidden layer. (B, C, h, w) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.shrink = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return x + torch.as_tensor(self.shrink(F.gelu(self.expand(self.spatial(self.norm(x))))))


class WarpCodec(nn.Module):
    """Our codec. Attributes as in `tokens.ActionTokenizer`: num_codes, num_tokens, dim.

    Args:
        image_size: H = W in pixels, a multiple of 16, at least 48.
        dim: channels at an eighth of the resolution; the stem has half of it. D of the embeddings.
        depth: residual blocks in encoder and decoder each.
        num_codes: K.
        num_tokens: L.
        code_dim: numbers in a code.
        quantizer: `ema` or `nsvq`, see quantizer.py.
        warmup_steps: continuous training steps before the codebook starts.
    """

    def __init__(
        self,
        image_size: int = 256,
        dim: int = 64,
        depth: int = 2,
        num_codes: int = 32,
        num_tokens: int = 16,
        code_dim: int = 16,
        quantizer: Literal["ema", "nsvq"] = "ema",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        if image_size % 16 or image_size < 48:
            raise ValueError(f"image_size must be a multiple of 16 and at least 48, got {image_size}")
        if num_tokens < 1 or dim < 4 or depth < 0:
            raise ValueError(f"needs num_tokens >= 1, dim >= 4, depth >= 0: {num_tokens}, {dim}, {depth}")
        self.image_size, self.dim, self.num_codes, self.num_tokens = image_size, dim, num_codes, num_tokens
        self.code_dim = code_dim
        stem = dim // 2
        self.stem = nn.Sequential(
            nn.Conv2d(1, stem // 2, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv2d(stem // 2, stem, 3, stride=2, padding=1), nn.GELU(),
        )  # fmt: skip
        self.motion = nn.Sequential(
            nn.Conv2d(2 * stem, dim, 3, stride=2, padding=1), *[Block(dim) for _ in range(depth)]
        )
        self.read_grid = 6  # the read-out sees the face as 6 x 6 cells, whatever the resolution
        self.readout = nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.GELU(), nn.AdaptiveAvgPool2d(self.read_grid), nn.Flatten(),
            nn.Linear(dim * self.read_grid**2, num_tokens * code_dim),
        )  # fmt: skip
        self.vq = VectorQuantizer(num_codes, code_dim, quantizer, warmup_steps)

        self.slot_weight = nn.Parameter(torch.randn(num_tokens, code_dim, dim) / code_dim**0.5)
        self.slot_bias = nn.Parameter(0.02 * torch.randn(num_tokens, dim))
        self.field = nn.Linear(num_tokens * dim, dim * self.read_grid**2)
        self.look = nn.Sequential(
            nn.Conv2d(1, stem // 2, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv2d(stem // 2, stem, 3, stride=2, padding=1), nn.GELU(),
        )  # fmt: skip
        self.merge = nn.Conv2d(stem, dim, 3, stride=2, padding=1)
        self.act = nn.Sequential(*[Block(dim) for _ in range(depth)])
        self.fine = nn.Sequential(nn.Conv2d(dim + stem, stem, 3, padding=1), nn.GELU())
        self.paint = nn.Conv2d(stem, 5, 3, padding=1)  # flow x, y and residual R, G, B
        nn.init.zeros_(self.paint.weight)  # the untrained decoder copies the onset
        assert self.paint.bias is not None
        nn.init.zeros_(self.paint.bias)

    def encode(self, onset: Tensor, apex: Tensor) -> Tensor:
        """(B, 3, H, W) x 2 in [0, 1] -> (B, L, d), the action before quantisation; 0 if nothing moved."""
        size = len(onset)
        features = self.stem(torch.cat([luminance(onset), luminance(apex)]))
        before, after = features[:size], features[size:]
        pair = torch.cat([before, after - before], 1)
        still = torch.cat([before, torch.zeros_like(before)], 1)
        read = self.readout(self.motion(torch.cat([pair, still])))
        action: Tensor = read[:size] - read[size:]
        return action.view(size, self.num_tokens, self.code_dim)

    def quantize(self, action: Tensor) -> Quantized:
        """(B, L, d) -> codes; see VectorQuantizer."""
        quantized: Quantized = self.vq(action)
        return quantized

    def embed(self, codes: Tensor) -> Tensor:
        """(B, L, d) codes -> (B, L, D) token embeddings: every slot has its own projection and bias."""
        return torch.einsum("bld,lde->ble", codes, self.slot_weight) + self.slot_bias

    def decode(self, onset: Tensor, embeddings: Tensor) -> Decoded:
        """(B, 3, H, W) in [0, 1] and (B, L, D) -> Decoded."""
        _, _, height, width = onset.shape
        field = self.field(embeddings.flatten(1)).view(-1, self.dim, self.read_grid, self.read_grid)
        seen = self.look(luminance(onset))
        merged = self.merge(seen)
        merged = merged + F.interpolate(field, merged.shape[-2:], mode="bilinear", align_corners=False)
        merged = F.interpolate(self.act(merged), seen.shape[-2:], mode="bilinear", align_corners=False)
        painted = self.paint(self.fine(torch.cat([merged, seen], 1))).float()
        painted = F.interpolate(painted, (height, width), mode="bilinear", align_corners=False)
        flow, residual = painted[:, :2], painted[:, 2:]
        return Decoded(warp(onset.float(), flow) + residual, flow, residual)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Fetch image (B, C, H, W) at each pixel plus flow (B, 2, H, W) in pixels (x, y), edges repeated."""
    _, _, height, width = image.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=image.device, dtype=flow.dtype),
        torch.arange(width, device=image.device, dtype=flow.dtype),
        indexing="ij",
    )
    grid = torch.stack(
        [2 * (x + flow[:, 0]) / (width - 1) - 1, 2 * (y + flow[:, 1]) / (height - 1) - 1], dim=-1
    )
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)
