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
- Codes say what, `strength` says how much: the difference of the two frames' features is brought to one size
  before it is read and quantised, its strength is read apart, and the decoder scales warp and paint back.
  So a movement of half a pixel gets the codes of the same movement ten times as large, not those of nothing.
  What noise alone would read as (`noise_floor`, learned, times the pair's noise) is no action: strength 0.
- The head's own motion, small after alignment but larger than a micro-expression, is said apart in six
  numbers, so that codes need not: shifts, scale, roll, and the shear by which a turning head shows.
- The loss asks for the apex in the light of its onset, most of all where the face moved, and for a smooth
  flow that needs little paint. Small motions count nearly as much as large ones; some pairs show nothing but
  noise, and in most a little head motion is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mefar.errors import UserError
from mefar.tokenizer import ranks
from mefar.tokenizer.image_losses import charbonnier, match_light, moving_weight, total_variation
from mefar.tokenizer.network import ActionNetwork
from mefar.tokenizer.quantizer import Quantized, VectorQuantizer
from mefar.tokens import ActionTokens, Movement

SMALLEST_CHANGE = 0.02
"""Root mean square of a change of features below which it is no longer brought to size 1."""
FLOOR = 1.5
"""An action must be this many times as strong as noise alone reads on average."""
NOISE_ERROR = 0.002
"""Charbonnier error of a pair that shows noise alone: below it all pairs count alike."""
_JITTER = (0.5, 0.5, 0.4, 0.4, 0.35, 0.35)  # shares of head_jitter, as rigid_flows counts
_NOISE = 5 / 255 * 2**0.5  # largest deviation between two frames, as the loader's own noise makes it
_STREAM = 1 << 16  # of random numbers; smaller ones are the quantiser's
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


@dataclass(frozen=True)
class Action:
    """What the encoder saw.

    Attributes:
        shape: (B, L, d) float, what happened, whatever its size; 0 where nothing did.
        strength: (B,) float >= 0, how much of it; 1 is typical of a talking face.
        head: (B, 6) float, how the head moved besides: pixels at 64, as in `rigid_flows`.
    """

    shape: Tensor
    strength: Tensor
    head: Tensor


def luminance(image: Tensor) -> Tensor:
    """(B, 3, H, W) RGB -> (B, 1, H, W), standardised per image to mean 0 and deviation 1."""
    weights = torch.tensor(LUMINANCE, device=image.device, dtype=image.dtype).view(1, 3, 1, 1)
    gray = (image * weights).sum(1, keepdim=True)
    mean = gray.mean((2, 3), keepdim=True)
    deviation = gray.std((2, 3), keepdim=True)
    return (gray - mean) / (deviation + 1e-3)


def noise_level(onset: Tensor, apex: Tensor) -> Tensor:
    """Camera noise between two frames, (B,), in deviations of their luminance; 0 for the same frame.

    The median response of Immerkaer's filter (1996), which is blind to planes and ramps; a face's action is
    somewhere, noise is everywhere.
    """
    line = torch.tensor([1.0, -2.0, 1.0], device=onset.device, dtype=onset.dtype)
    difference = luminance(apex) - luminance(onset)
    response = F.conv2d(difference, torch.outer(line, line).view(1, 1, 3, 3)).abs().flatten(1)
    median = response.sort(1).values[:, (response.shape[1] - 1) // 2]  # ONNX has no median
    return median / (6 * 0.6745)


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
        strength: measure how much of an action there is apart from what it is, and the head's motion apart
            from both; false: codes say everything, as in mefar 0.1, and the settings below do nothing.
        still_share: share of the training pairs, in [0, 1), whose apex becomes the onset with other noise.
        head_jitter: how much head motion is added to training pairs, pixels at 64, typically and at most a
            third of it.
        even_weight: 0: large motions count as much more in the loss as their error is larger; 1: all alike.
        twin_share: where the loader gives every pair beside another face's with the same action (`partner`,
            see VoxCelebDataModule), share of the faces that are moved by the other one's tokens.
    """

    unit: Tensor
    noise_floor: Tensor
    rigid: Tensor

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
        strength: bool = True,
        still_share: float = 0.08,
        head_jitter: float = 2.0,
        even_weight: float = 0.5,
        twin_share: float = 0.5,
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
        self.strength, self.still_share = strength, still_share
        self.head_jitter, self.even_weight = head_jitter, even_weight
        self.twin_share = twin_share
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
        if strength:
            self.amount = nn.Linear(dim * self.read_grid**2, 1)
            nn.init.normal_(self.amount.weight, std=1e-3)
            self.head = nn.Linear(dim * self.read_grid**2, 6, bias=False)
            nn.init.normal_(self.head.weight, std=1e-3)
            self.register_buffer("unit", torch.zeros(()))  # typical size of a talking face's action
            self.register_buffer(
                "noise_floor", torch.zeros(())
            )  # strength that noise alone reaches, in units
            self.register_buffer("rigid", rigid_flows(image_size), persistent=False)

    # ---- the contract of network.py

    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        """(B, 3, H, W) onset and apex -> tokens of the nearest codes."""
        if not self.strength:
            indices = self.vq.nearest(self.encode(onset, apex))
            return ActionTokens(indices, self.lookup(indices))
        seen = self.measure(onset, apex)
        strength = seen.strength
        floor = (FLOOR * self.noise_floor * noise_level(onset, apex)).clamp_min(1e-3)
        strength = torch.where(strength > floor, strength, torch.zeros_like(strength))
        indices = self.vq.nearest(seen.shape * (strength > 0).view(-1, 1, 1))
        return ActionTokens(indices, self.lookup(indices), strength, seen.head)

    def continuous(self, onset: Tensor, apex: Tensor) -> Tensor:
        """(B, L, D'), see network.py; with the strength as tokens have it."""
        if not self.strength:
            return self.embed(self.encode(onset, apex))
        tokens, seen = self.tokenize(onset, apex), self.measure(onset, apex)
        return ActionTokens(tokens.indices, self.embed(seen.shape), tokens.strength, tokens.head).features

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, L) int64 -> (B, L, D), see network.py."""
        return self.embed(self.vq.lookup(indices))

    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        """(B, 3, H, W) and tokens -> apex (B, 3, H, W), in [0, 1] up to small overshoots."""
        return self.decode(onset, tokens.embeddings, tokens.strength, tokens.head).image

    def move(self, onset: Tensor, tokens: ActionTokens) -> Movement:
        """The decoder's warp and paint; the head stays."""
        decoded = self.decode(onset, tokens.embeddings, tokens.strength)
        return Movement(decoded.flow, decoded.residual)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted terms of the loss.

        The encoder reads `onset`, `apex`; when the loader gives a second view of the pair, the decoder must
        explain that one instead; when it gives the same action on another face, `partner`, that face too.
        """
        onset, apex = batch["onset"], batch["apex"]
        seen, target = batch.get("onset_view", onset), batch.get("apex_view", apex)
        strength = head = None
        if self.strength:
            still, (apex, target) = self._vary((onset, seen), (apex, target))
            action = self._read(onset, apex)
            self._learn_unit(action.strength.detach(), noise_level(onset, apex), still)
            action = self._in_units(action)
            strength, head = action.strength, action.head
            quantized: Quantized = self.vq(action.shape[~still])
            codes = action.shape.index_put((torch.nonzero(~still)[:, 0],), quantized.values)
            if "partner" in batch:
                source = self._sources(batch["partner"], still)
                codes, strength = codes[source], strength[source]
        else:
            quantized = self.vq(self.encode(onset, apex))
            codes = quantized.values
        decoded = self.decode(seen, self.embed(codes), strength, head)
        target = match_light(target, seen)
        weight = moving_weight(seen, target, self.moving_weight)
        if self.strength and self.even_weight:
            copied = charbonnier(seen, target, weight).detach()
            even = (copied + NOISE_ERROR) ** -self.even_weight
            weight = weight * (even / even.mean()).view(-1, 1, 1, 1)
        return {
            "reconstruction": charbonnier(decoded.image, target, weight).mean(),
            "commitment": self.commitment_weight * quantized.commitment,
            "smooth": self.smooth_weight * total_variation(decoded.flow),
            "residual": self.residual_weight * decoded.residual.abs().mean(),
        }

    def _sources(self, partner: Tensor, still: Tensor) -> Tensor:
        """Whose action each face is to show, (B,) rows: its own, or its partner's where both show one."""
        dice = self.vq.dice(2 * _STREAM + ranks.rank())
        u = torch.rand(len(partner), device=partner.device, generator=dice)
        own = torch.arange(len(partner), device=partner.device)
        return torch.where((u < self.twin_share) & ~(still | still[partner]), partner, own)

    def adaptation_error(self, onset: Tensor, apex: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B,) squared error against the apex in the light of its onset, as trained; see vq.relaxed."""
        if self.strength:
            seen = self.measure(onset, apex)
            codes = self.vq.relaxed(seen.shape, seeds)
            image = self.decode(onset, self.embed(codes), seen.strength, seen.head).image
        else:
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
        return self._read(onset, apex).shape

    def measure(self, onset: Tensor, apex: Tensor) -> Action:
        """(B, 3, H, W) x 2 in [0, 1] -> what happened, how much of it, and how the head moved."""
        return self._in_units(self._read(onset, apex))

    def _in_units(self, action: Action) -> Action:
        unit = torch.where(self.unit > 0, self.unit, torch.ones_like(self.unit))
        return replace(action, strength=action.strength / unit)

    def _read(self, onset: Tensor, apex: Tensor) -> Action:
        """What was seen, its strength in the network's own unit; all 0 if nothing moved."""
        size = onset.shape[0]  # len() would fix it in an ONNX file
        features = self.stem(torch.cat([luminance(onset), luminance(apex)]))
        before, after = features[:size], features[size:]
        change = after - before
        amount = change.square().mean((1, 2, 3), keepdim=True)
        scale = (amount + SMALLEST_CHANGE**2).sqrt() if self.strength else torch.ones_like(amount)
        pair = torch.cat([before, change / scale], 1)
        still = torch.cat([before, torch.zeros_like(before)], 1)
        read = self.readout[:-1](self.motion(torch.cat([pair, still])))
        codes = self.readout[-1](read)
        action = rearrange(codes[:size] - codes[size:], "b (l d) -> b l d", l=self.num_tokens)
        strength, head = amount.new_ones(size), amount.new_zeros(size, 6)
        if self.strength:
            moved = read[:size] - read[size:]
            # How much of the change is an action, and not noise, is for the network to say.
            strength = (amount + 1e-12).sqrt().view(size) * F.softplus(self.amount(moved)).squeeze(1)
            head = self.head(moved) * scale.view(size, 1)
        return Action(action.float(), strength.float(), head.float())

    def _vary(
        self, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Which pairs (B,) show nothing but noise now, and both views' apexes, the others' with head motion.

        Drawn from the step alone, so that a resumed training is the unbroken one.
        """
        size, device = len(before[0]), before[0].device
        dice = self.vq.dice(_STREAM + ranks.rank())
        u = torch.rand(size, 3, device=device, generator=dice)
        still = u[:, 0] < self.still_share
        still[0] = False  # a batch without any action would leave the quantiser nothing
        # Two thirds of the pairs, mostly a little: the cube of a uniform number.
        amount = self.head_jitter * u[:, 1] ** 3 * (u[:, 1] > 1 / 3)
        turns = torch.randn(size, 6, device=device, generator=dice) * amount[:, None]
        flow = torch.einsum("bk,kchw->bchw", turns * turns.new_tensor(_JITTER), self.rigid)
        sigma = (u[:, 2] * _NOISE).view(-1, 1, 1, 1)
        made = []
        for onset, apex in zip(before, after, strict=True):
            noise = torch.randn(onset.shape, device=device, generator=dice)
            quiet = (onset + sigma * noise).clamp(0, 1)
            made.append(torch.where(still.view(-1, 1, 1, 1), quiet, warp(apex, flow)))
        return still, (made[0], made[1])

    @torch.no_grad()
    def _learn_unit(self, size: Tensor, noise: Tensor, still: Tensor) -> None:
        """Moving averages of the size of talking faces' actions, and of what noise reaches per level of it.

        The first batch sets the unit: were strengths near 0 at first, decoder and codes would get next to no
        gradient, and the head's motion would be all that is learned.
        """
        relative = (size / noise.clamp_min(1e-3))[still]
        sums = torch.stack([size[~still].sum(), (~still).sum(), relative.sum(), still.sum()])
        ranks.add_up(sums)
        typical = sums[0] / sums[1].clamp_min(1)
        self.unit.copy_(torch.where(self.unit > 0, self.unit.lerp(typical, 0.02), typical))
        reached = sums[2] / sums[3].clamp_min(1) / self.unit
        known = torch.where(self.noise_floor > 0, self.noise_floor.lerp(reached, 0.02), reached)
        self.noise_floor.copy_(torch.where(sums[3] > 0, known, self.noise_floor))

    def embed(self, codes: Tensor) -> Tensor:
        """(B, L, d) codes -> (B, L, D) token embeddings: every slot has its own projection and bias."""
        return torch.einsum("bld,lde->ble", codes, self.slot_weight) + self.slot_bias

    def decode(
        self, onset: Tensor, embeddings: Tensor, strength: Tensor | None = None, head: Tensor | None = None
    ) -> Decoded:
        """Move an onset.

        Args:
            onset: (B, 3, H, W) float in [0, 1].
            embeddings: (B, L, D) float.
            strength: (B,) factor on warp and paint; None: 1.
            head: (B, 6) head motion; None: the head stays.
        """
        _, _, height, width = onset.shape
        field = self.field(rearrange(embeddings, "b l d -> b (l d)"))
        field = rearrange(field, "b (c h w) -> b c h w", h=self.read_grid, w=self.read_grid)
        seen = self.look(luminance(onset))
        merged = self.merge(seen)
        merged = merged + F.interpolate(field, merged.shape[-2:], mode="bilinear", align_corners=False)
        merged = F.interpolate(self.act(merged), seen.shape[-2:], mode="bilinear", align_corners=False)
        painted = self.paint(self.fine(torch.cat([merged, seen], 1))).float()
        painted = F.interpolate(painted, (height, width), mode="bilinear", align_corners=False)
        if strength is not None:
            painted = painted * strength.view(-1, 1, 1, 1)
        flow, residual = painted[:, :2], painted[:, 2:]
        moved = flow if head is None else flow + torch.einsum("bk,kchw->bchw", head.float(), self.rigid)
        return Decoded(warp(onset.float(), moved) + residual, flow, residual)


def rigid_flows(size: int) -> Tensor:
    """How an aligned face moves when its head does, (6, 2, size, size) in pixels; 1 px at 64 at its largest.

    Shift right and down, scale, roll, and yaw and pitch: the nearer, the farther. The head is half an
    ellipsoid with a nose, at the middle of the crop.
    """
    side = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(side, side, indexing="ij")
    near = (1 - (x / 0.95) ** 2 - (y / 1.25) ** 2).clamp_min(0).sqrt()
    near = near + 0.25 * torch.exp(-((x / 0.18) ** 2) - (y / 0.3) ** 2)
    near = 2 * (near - near.mean())
    none, all_ = torch.zeros_like(x), torch.ones_like(x)
    flows = [(all_, none), (none, all_), (x, y), (-y, x), (near, none), (none, near)]
    return torch.stack([torch.stack(flow) for flow in flows]) * (size / 64)


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
