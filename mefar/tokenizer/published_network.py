"""The published tokenizer network, to the last digit ("From Pixels to Semantics", ICLR 2026).

Same contract as warp_network.py: encode(onset, apex) -> continuous action, vq -> codes, embed -> token
embeddings, decode(onset, embeddings) -> apex; the loss is the plain mean squared error of the apex. Written
from the description of the computation and checked against its numbers. It keeps two quirks of the published
network, so that released weights compute here what they compute there; our own network has neither:

- Q1, interleaved tokens. The (B, L, d) codes are read as if they lay as (B, d, L): at 16 tokens of 32
  numbers, vector j holds numbers j and j + 16 of *every* code, and code i fills places 2i and 2i + 1 of every
  vector. The decoder's cross-attention knows no token positions, so this mixing is the only way in which a
  code's position reaches it. An attention weight on embedding j is therefore no weight on cell j of the grid.
- Q2, mixed frames. The position convolution of the temporal encoder reads tokens that lie as (B, h, w, t)
  as if they lay as (B, t, h, w), and so mixes frames with rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from mefar.errors import UserError
from mefar.tokenizer.network import ActionNetwork
from mefar.tokenizer.quantizer import Revival, VectorQuantizer
from mefar.tokenizer.transformer import RelativePositionBias, Transformer, TransformerBlock
from mefar.tokens import ActionTokens


class PatchEmbedding(nn.Module):
    """Square patches, patch_size pixels a side -> LayerNorm, Linear, LayerNorm; the same for both frames."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pixel_norm = nn.LayerNorm(3 * patch_size**2)
        self.project = nn.Linear(3 * patch_size**2, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, P, D), rows first."""
        side = self.patch_size
        patches = rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=side, q=side)
        out: Tensor = self.norm(self.project(self.pixel_norm(patches)))
        return out


class Convolution(NamedTuple):
    """One convolution of the bottleneck."""

    kernel: tuple[int, int]
    stride: int
    padding: int


HALVE = Convolution((3, 3), 2, 1)
# (patches along a side, tokens) -> the convolutions of the published code, which knows these counts alone.
PUBLISHED_BOTTLENECKS = {
    (8, 1): (HALVE, Convolution((4, 4), 1, 0)),
    (8, 2): (HALVE, Convolution((3, 4), 1, 0)),
    (8, 4): (HALVE, Convolution((3, 3), 1, 0)),
    (16, 16): (HALVE, HALVE),
    (16, 25): (HALVE, Convolution((4, 4), 1, 0)),
    (16, 64): (HALVE,),
    (32, 256): (HALVE,),
}


def bottleneck_layout(
    kind: Literal["published", "halving"], grid: int, num_tokens: int
) -> tuple[Convolution, ...]:
    """The convolutions from grid x grid patches to L tokens.

    Args:
        kind: `published`, or `halving`: as many of 3x3 with stride 2 as lead to sqrt(L) x sqrt(L).
        grid: patches along a side.
        num_tokens: L.

    Raises:
        UserError: there is no such layout.
    """
    if kind == "published":
        if (grid, num_tokens) not in PUBLISHED_BOTTLENECKS:
            known = ", ".join(f"{count} of {side}x{side}" for side, count in PUBLISHED_BOTTLENECKS)
            raise UserError(
                f"num_tokens {num_tokens} of {grid}x{grid} patches: the published network makes {known}; "
                "take one of these, or bottleneck: halving"
            )
        return PUBLISHED_BOTTLENECKS[grid, num_tokens]
    side, left, count = math.isqrt(max(num_tokens, 0)), grid, 0
    while left > max(side, 1):
        left, count = (left + 1) // 2, count + 1
    if side < 1 or side**2 != num_tokens or left != side:
        raise UserError(f"num_tokens {num_tokens} is no square of {grid} (patches a side) halved")
    return (HALVE,) * count or (Convolution((3, 3), 1, 1),)


class Bottleneck(nn.Module):
    """Per frame: D -> d per patch of grid x grid, then convolutions with ReLU between, down to L cells."""

    def __init__(self, dim: int, code_dim: int, grid: int, layout: Sequence[Convolution]) -> None:
        super().__init__()
        self.project = nn.Linear(dim, code_dim)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(code_dim, code_dim, each.kernel, each.stride, each.padding) for each in layout
        )
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, P, D) -> (B, L, d)."""
        cells = rearrange(self.project(tokens), "b (h w) d -> b d h w", h=self.grid, w=self.grid)
        for number, convolution in enumerate(self.convolutions):
            cells = convolution(functional.relu(cells) if number else cells)
        out: Tensor = rearrange(cells, "b d h w -> b (h w) d")
        return out


class PublishedNetwork(ActionNetwork):
    """The published conditional VQ-VAE; the defaults are its sizes. Attributes as in ActionNetwork.

    Args:
        image_size: H = W in pixels, a multiple of patch_size.
        patch_size: side of a patch in pixels.
        dim: width D of the transformers and of the token embeddings.
        spatial_depth: blocks of the spatial encoder and of the decoder, each.
        temporal_depth: blocks of the temporal encoder.
        heads: attention heads.
        head_dim: channels of a head.
        num_codes: K.
        num_tokens: L; see `bottleneck`.
        code_dim: numbers in a code, d.
        quantizer: `nsvq` (published) or `ema`, see quantizer.py.
        continuous_share: share of the training steps before an `ema` codebook starts, in [0, 1).
        bottleneck: `published`: 16, 25 or 64 tokens of 16x16 patches, 1, 2 or 4 of 8x8, 256 of 32x32, by the
            convolutions of the published code; `halving`: any square number of tokens that halving the
            patches' side leads to.
        revival: of unused codes under `nsvq`: as `published`, or `unused`, see VectorQuantizer.revive.
    """

    def __init__(
        self,
        image_size: int = 256,
        patch_size: int = 16,
        dim: int = 512,
        spatial_depth: int = 6,
        temporal_depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        num_codes: int = 32,
        num_tokens: int = 16,
        code_dim: int = 32,
        quantizer: Literal["ema", "nsvq"] = "nsvq",
        continuous_share: float = 0.0,
        bottleneck: Literal["published", "halving"] = "published",
        revival: Revival = "published",
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise UserError(f"image_size must be a multiple of patch_size {patch_size}, got {image_size}")
        if image_size > 64 * patch_size:
            raise UserError(
                f"image_size {image_size} makes more than 64 patches of {patch_size} px along a side, and "
                "attention is over all pairs of them; take a larger patch_size"
            )
        self.image_size, self.patch_size = image_size, patch_size
        self.dim, self.code_dim, self.continuous_share = dim, code_dim, continuous_share
        self.num_codes, self.num_tokens = num_codes, num_tokens
        self.grid = image_size // patch_size
        layout = bottleneck_layout(bottleneck, self.grid, num_tokens)
        self.patch_embedding = PatchEmbedding(patch_size, dim)
        self.position_bias = RelativePositionBias((self.grid, self.grid), dim, heads)
        self.spatial_encoder = Transformer(dim, spatial_depth, heads, head_dim)
        self.temporal_encoder = Transformer(dim, temporal_depth, heads, head_dim)
        self.bottleneck = Bottleneck(dim, code_dim, self.grid, layout)
        self.vq = VectorQuantizer(num_codes, code_dim, quantizer, revival=revival)
        self.token_projection = nn.Linear(code_dim, dim)
        self.decoder = Transformer(dim, spatial_depth, heads, head_dim, cross=True)
        self.to_pixels = nn.Linear(dim, 3 * patch_size**2)

    # ---- the contract of network.py

    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        """(B, 3, H, W) onset and apex -> tokens of the nearest codes."""
        indices = self.vq.nearest(self.encode(onset, apex))
        return ActionTokens(indices, self.lookup(indices))

    def continuous(self, onset: Tensor, apex: Tensor) -> Tensor:
        """(B, L, D), see network.py."""
        return self.embed(self.encode(onset, apex))

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, L) int64 -> (B, L, D), see network.py."""
        return self.embed(self.vq.lookup(indices))

    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        """(B, 3, H, W) and tokens -> apex (B, 3, H, W)."""
        return self.decode(onset, tokens.embeddings)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The mean squared error of the apex and nothing else; a second view of the pair is not used."""
        onset, apex = batch["onset"], batch["apex"]
        codes = self.vq(self.encode(onset, apex)).values
        return {"reconstruction": functional.mse_loss(self.decode(onset, self.embed(codes)), apex)}

    def adaptation_error(self, onset: Tensor, apex: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B,) squared error of the apex, as published; for the codebook see vq.relaxed."""
        codes = self.vq.relaxed(self.encode(onset, apex), seeds)
        return (self.decode(onset, self.embed(codes)) - apex).square().mean((1, 2, 3))

    def prepare(self, batches: int) -> None:
        """The continuous phase of an `ema` codebook is a share of the run."""
        self.vq.warmup_steps = int(self.continuous_share * batches)

    def blocks(self) -> Iterable[nn.Module]:
        """The transformers' blocks."""
        return (module for module in self.modules() if isinstance(module, TransformerBlock))

    # ---- its parts

    def encode(self, onset: Tensor, apex: Tensor) -> Tensor:
        """(B, 3, H, W) x 2 in [0, 1] -> (B, L, d) continuous action before quantisation."""
        size, grid = onset.shape[0], (2, self.grid, self.grid)
        frames = rearrange([onset, apex], "t b c h w -> (b t) c h w")
        tokens = self.spatial_encoder(self.patch_embedding(frames), grid, self.position_bias())
        tokens = rearrange(tokens, "(b t) p d -> (b p) t d", t=2)
        tokens = self.temporal_encoder(tokens, grid)  # the same grid for another order of tokens: quirk Q2
        cells = self.bottleneck(rearrange(tokens, "(b p) t d -> (t b) p d", b=size))
        before, after = rearrange(cells, "(t b) l d -> t b l d", t=2).unbind()
        action: Tensor = after - before
        return action

    def embed(self, codes: Tensor) -> Tensor:
        """(B, L, d) codes -> (B, L, D) token embeddings in the published, interleaved layout (quirk Q1)."""
        flat = rearrange(codes, "b l d -> b (l d)")
        out: Tensor = self.token_projection(rearrange(flat, "b (d l) -> b l d", l=self.num_tokens))
        return out

    def decode(self, onset: Tensor, embeddings: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] and (B, L, D) -> apex (B, 3, H, W) float32."""
        queries = self.patch_embedding(onset).detach()  # the published decoder does not train the embedding
        tokens = self.decoder(queries, (1, self.grid, self.grid), self.position_bias(), embeddings)
        pixels, side, patch = self.to_pixels(tokens).float(), self.grid, self.patch_size
        image: Tensor = rearrange(
            pixels, "b (h w) (c p q) -> b c (h p) (w q)", h=side, w=side, p=patch, q=patch
        )
        return image
