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
- The loss asks for the apex in the light of its onset, most of all where the face moved, and for a smooth
  flow that needs little paint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mefar.errors import UserError
from mefar.tokenizer.image_losses import charbonnier, match_light, moving_weight, total_variation
from mefar.tokenizer.network import ActionNetwork
from mefar.tokenizer.quantizer import Quantized, VectorQuantizer
from mefar.tokens import ActionTokens

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


class WarpNetwork(ActionNetwork):
    """Our network; attributes as in ActionNetwork.

    Args:
        image_size: H = W in pixels, a multiple of 16, at least 48.
        dim: channels at an eighth of the resolution; the stem has half of it. D of the embeddings.
        depth: residual blocks in encoder and decoder each.
        num_codes: K (published: 32).
        num_tokens: L (published: 16).
        code_dim: numbers in a code.
        quantizer: `ema` (ours) or `nsvq` (published), see quantizer.py.
        continuous_share: share of the training steps before the codebook starts, in [0, 1).
        moving_weight: how much more a moving pixel counts in the loss than a resting one; 0: all alike.
        commitment_weight: of the mean squared distance between encoder outputs and their codes.
        smooth_weight: of the flow's total variation, in pixels.
        residual_weight: of the mean absolute residual that is painted over the warped onset.
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
        continuous_share: float = 0.15,
        moving_weight: float = 2.0,
        commitment_weight: float = 0.05,
        smooth_weight: float = 1e-3,
        residual_weight: float = 1e-2,
    ) -> None:
        super().__init__()
        if image_size % 16 or image_size < 48:
            raise UserError(f"image_size must be a multiple of 16 and at least 48, got {image_size}")
        if num_tokens < 1 or dim < 4 or depth < 0:
            raise UserError(f"needs num_tokens >= 1, dim >= 4, depth >= 0: {num_tokens}, {dim}, {depth}")
        self.image_size, self.dim, self.num_codes, self.num_tokens = image_size, dim, num_codes, num_tokens
        self.code_dim, self.continuous_share = code_dim, continuous_share
        self.moving_weight, self.commitment_weight = moving_weight, commitment_weight
        self.smooth_weight, self.residual_weight = smooth_weight, residual_weight
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
        self.vq = VectorQuantizer(num_codes, code_dim, quantizer)

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

    # ---- the contract of network.py

    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        """(B, 3, H, W) onset and apex -> tokens of the nearest codes."""
        indices = self.vq.nearest(self.encode(onset, apex))
        return ActionTokens(indices, self.embed(self.vq.lookup(indices)))

    def continuous(self, onset: Tensor, apex: Tensor) -> Tensor:
        """(B, L, D), see network.py."""
        return self.embed(self.encode(onset, apex))

    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        """(B, 3, H, W) and tokens -> apex (B, 3, H, W), in [0, 1] up to small overshoots."""
        return self.decode(onset, tokens.embeddings).image

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted terms of the loss.

        The encoder reads `onset`, `apex`; when the loader gives a second view of the pair, the decoder must
        explain that one instead.
        """
        onset, apex = batch["onset"], batch["apex"]
        seen, target = batch.get("onset_view", onset), batch.get("apex_view", apex)
        quantized = self.quantize(self.encode(onset, apex))
        decoded = self.decode(seen, self.embed(quantized.values))
        target = match_light(target, seen)
        weight = moving_weight(seen, target, self.moving_weight)
        return {
            "reconstruction": charbonnier(decoded.image, target, weight),
            "commitment": self.commitment_weight * quantized.commitment,
            "smooth": self.smooth_weight * total_variation(decoded.flow),
            "residual": self.residual_weight * decoded.residual.abs().mean(),
        }

    def adaptation_error(self, onset: Tensor, apex: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B,) squared error against the apex in the light of its onset, as trained; see vq.relaxed."""
        codes = self.vq.relaxed(self.encode(onset, apex), seeds)
        image = self.decode(onset, self.embed(codes)).image
        return (image - match_light(apex, onset)).square().mean((1, 2, 3))

    def prepare(self, batches: int) -> None:
        """The continuous phase is a share of the run."""
        self.vq.warmup_steps = int(self.continuous_share * batches)

    def blocks(self) -> Iterable[nn.Module]:
        """The residual blocks."""
        return (module for module in self.modules() if isinstance(module, Block))

    # ---- its parts

    def encode(self, onset: Tensor, apex: Tensor) -> Tensor:
        """(B, 3, H, W) x 2 in [0, 1] -> (B, L, d), the action before quantisation; 0 if nothing moved."""
        size = len(onset)
        features = self.stem(torch.cat([luminance(onset), luminance(apex)]))
        before, after = features[:size], features[size:]
        pair = torch.cat([before, after - before], 1)
        still = torch.cat([before, torch.zeros_like(before)], 1)
        read = self.readout(self.motion(torch.cat([pair, still])))
        action: Tensor = read[:size] - read[size:]
        return rearrange(action, "b (l d) -> b l d", l=self.num_tokens)

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
        field = self.field(rearrange(embeddings, "b l d -> b (l d)"))
        field = rearrange(field, "b (c h w) -> b c h w", h=self.read_grid, w=self.read_grid)
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
