"""A training step and an inference pass of the published tokenizer: plainly written against ours.

    python experiments/benchmarks/tokenizer_step.py

Both sides hold the same weights at the published sizes (64.3 M parameters, 256 px) and see the same pairs.

- *plain*: the published computation as it is written down, eager: attention as softmax(q k^T + bias) v with
  its matrices, the bias network asked for every pair of patches, one 3-d position convolution, a second
  decode from the hard tokens (without gradients), torch's AdamW one tensor after another.
- *ours*: FacialActionTokenizer as `mefar fit` trains it: fused attention where the bias allows, the bias
  network asked once per offset, the position convolution plane by plane, one decode, fused
  AdamW; on a GPU with its blocks compiled (`compiled: true`; on a CPU that changes nothing, see LOG.md).

float32 and bfloat16 autocast are rows of their own. Loss, gradients and indices are compared before anything
is timed. Sides take turns; each number is the median of the turns. Floating-point operations are those that
torch counts (matrix products and convolutions of the side itself) and the peak is that of one large product
in the same precision, measured here. Memory is the peak of a process that does nothing else.

Last line: time of the plain side / time of ours, training; on a CPU at equal precision (float32), on a GPU
ours in bfloat16.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.published_network import PublishedNetwork
from mefar.tokenizer.quantizer import VectorQuantizer
from mefar.tokenizer.transformer import (
    ATTENTION_SCALE,
    Attention,
    FeedForward,
    PositionConvolution,
    RelativePositionBias,
    Transformer,
)

Grid = tuple[int, int, int]
Pair = tuple[Tensor, Tensor]
SMALL = {
    "image_size": 64,
    "patch_size": 4,
    "dim": 64,
    "spatial_depth": 1,
    "temporal_depth": 1,
    "heads": 2,
    "head_dim": 32,
}
PUBLISHED = {"image_size": 256, "dim": 512, "spatial_depth": 6, "temporal_depth": 6}


# The plain side: functions of the weights alone.


def plain_position(layer: PositionConvolution, tokens: Tensor, grid: Grid) -> Tensor:
    volume = tokens.reshape(-1, *grid, tokens.shape[-1]).permute(0, 4, 1, 2, 3)
    volume = F.conv3d(F.pad(volume, (1, 1, 1, 1, 2, 0)), layer.weight, layer.bias, groups=volume.shape[1])
    return volume.permute(0, 2, 3, 4, 1).reshape(tokens.shape)


def plain_bias(layer: RelativePositionBias) -> Tensor:
    """(heads, P, P) by asking the network about every pair of patches."""
    return layer.network(layer.offsets[layer.pair]).permute(2, 0, 1)


def plain_attention(layer: Attention, tokens: Tensor, bias: Tensor | None, context: Tensor | None) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], layer.heads, layer.head_dim).transpose(1, 2)

    source = tokens if layer.context_norm is None else layer.context_norm(context)
    query = split(layer.query(layer.norm(tokens)))
    key, value = (split(x) for x in layer.key_value(source).chunk(2, dim=-1))
    if layer.null_key_value is not None:
        null = layer.null_key_value.expand(len(tokens), -1, -1, -1)
        key, value = torch.cat([null[:, :, 0::2], key], 2), torch.cat([null[:, :, 1::2], value], 2)
    query = F.normalize(query, dim=-1) * layer.query_scale
    key = F.normalize(key, dim=-1) * layer.key_scale
    logits = query @ key.transpose(-1, -2) * ATTENTION_SCALE
    if bias is not None:
        logits = logits + bias
    mixed = logits.softmax(-1) @ value.to(logits.dtype)
    return layer.out(mixed.transpose(1, 2).reshape(*tokens.shape[:2], -1))


def plain_feed_forward(layer: FeedForward, tokens: Tensor) -> Tensor:
    value, gate = layer.expand(layer.norm(tokens)).chunk(2, dim=-1)
    return layer.shrink(value * F.gelu(gate))


def plain_transformer(
    stack: Transformer, tokens: Tensor, grid: Grid, bias: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    for block in stack.blocks:
        tokens = tokens + plain_position(block.position, tokens, grid)
        tokens = tokens + plain_attention(block.attention, tokens, bias, None)
        if block.cross_attention is not None:
            tokens = tokens + plain_attention(block.cross_attention, tokens, None, context)
        tokens = tokens + plain_feed_forward(block.feed_forward, tokens)
    return stack.norm(tokens)


def plain_encode(codec: PublishedNetwork, onset: Tensor, apex: Tensor) -> Tensor:
    side, size = codec.grid, len(onset)
    grid = (2, side, side)
    tokens = codec.patch_embedding(torch.stack([onset, apex], 1).flatten(0, 1))
    tokens = plain_transformer(codec.spatial_encoder, tokens, grid, plain_bias(codec.position_bias))
    tokens = tokens.unflatten(0, (size, 2)).transpose(1, 2).flatten(0, 1)
    tokens = plain_transformer(codec.temporal_encoder, tokens, grid)
    frames = tokens.unflatten(0, (size, side**2))
    return codec.bottleneck(frames[:, :, 1]) - codec.bottleneck(frames[:, :, 0])


def plain_decode(codec: PublishedNetwork, onset: Tensor, codes: Tensor) -> Tensor:
    embeddings = codec.embed(codes)
    queries = codec.patch_embedding(onset).detach()
    bias = plain_bias(codec.position_bias)
    tokens = plain_transformer(codec.decoder, queries, (1, codec.grid, codec.grid), bias, embeddings)
    pixels = codec.to_pixels(tokens).transpose(1, 2).unflatten(-1, (codec.grid, codec.grid))
    return F.pixel_shuffle(pixels, codec.patch_size)


def plain_nearest(vq: VectorQuantizer, action: Tensor) -> Tensor:
    return (action.float().unsqueeze(-2) - vq.codebook).square().sum(-1).argmin(-1)


def plain_loss(codec: PublishedNetwork, onset: Tensor, apex: Tensor, step: int) -> Tensor:
    action = plain_encode(codec, onset, apex).float()
    hard = F.embedding(plain_nearest(codec.vq, action), codec.vq.codebook)
    # The numbers that ours draws at this step, so that the two can be compared.
    dice = torch.Generator(action.device).manual_seed(step + (1 << 32))
    noise = torch.randn(action.shape, device=action.device, generator=dice)
    length = (action - hard).norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    loss = F.mse_loss(plain_decode(codec, onset, action + length * noise).float(), apex)
    with torch.no_grad():
        plain_decode(
            codec, onset, hard.detach()
        )  # the picture that the published step makes besides its loss
    return loss


def plain_tokenize(codec: PublishedNetwork, onset: Tensor, apex: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        indices = plain_nearest(codec.vq, plain_encode(codec, onset, apex))
        return indices, codec.embed(F.embedding(indices, codec.vq.codebook))


# Both sides behind one face.


@dataclass
class Side:
    """One row: `plain` or `ours`, in `float32` or `bfloat16`."""

    name: str
    precision: str
    model: FacialActionTokenizer
    optimizer: torch.optim.Optimizer
    device: torch.device
    steps: int = 0

    @property
    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def loss(self, pair: Pair) -> Tensor:
        self.steps += 1
        with self.autocast:
            if self.name == "plain":
                return plain_loss(self.model.network, *pair, self.steps)
            return self.model.network.losses({"onset": pair[0], "apex": pair[1]})["reconstruction"]

    def step(self, pair: Pair) -> None:
        self.optimizer.zero_grad()
        self.loss(pair).backward()
        self.optimizer.step()

    def tokenize(self, pair: Pair) -> tuple[Tensor, Tensor]:
        with self.autocast:
            if self.name == "plain":
                return plain_tokenize(self.model.network, *pair)
            tokens = self.model.tokenize(*pair)
            return tokens.indices, tokens.embeddings


def make_side(name: str, precision: str, options: argparse.Namespace) -> Side:
    device = torch.device(options.device)
    torch.manual_seed(0)
    sizes = SMALL if options.small else PUBLISHED
    model = FacialActionTokenizer(PublishedNetwork(**sizes)).to(device)
    fast = {"foreach": False, "fused": False} if name == "plain" else {"fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.99), weight_decay=0.0, **fast)
    return Side(name, precision, model, optimizer, device)


def pairs(options: argparse.Namespace) -> Pair:
    generator = torch.Generator().manual_seed(1)
    side = (SMALL if options.small else PUBLISHED)["image_size"]
    onset, apex = torch.rand(2, options.batch, 3, side, side, generator=generator).to(options.device)
    return onset, apex


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def convolution_operations(
    gradient: torch.Size, image: torch.Size, weight: torch.Size, *rest: Any, **more: object
) -> int:
    """Of a backward pass, where torch's own rule takes convolutions in groups for whole ones."""
    wanted = rest[-1]  # gradient of the image, of the weight, of the bias
    return 2 * math.prod(gradient) * math.prod(weight[1:]) * (wanted[0] + wanted[1])


def operations(work: Callable[[], object]) -> int:
    rules = {torch.ops.aten.convolution_backward: convolution_operations}
    with FlopCounterMode(display=False, custom_mapping=rules) as counter:
        work()
    return counter.get_total_flops()


def peak(precision: str, device: torch.device, small: bool) -> float:
    """FLOP/s of the best of some large matrix products."""
    size = 256 if small else 2048 if device.type == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device).to(getattr(torch, precision))
    left @ right
    return 2 * size**3 / min(seconds(lambda: left @ right, device) for _ in range(10))


def compare(plain: Side, ours: Side, pair: Pair) -> None:
    """Print how far the two sides are from each other on one batch; stop if float32 is not equal."""
    found = []
    for side in (plain, ours):
        loss = side.loss(pair)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in side.model.parameters() if p.grad is not None])
        side.optimizer.zero_grad()
        found.append((loss.detach(), gradient, *side.tokenize(pair)))
    (loss, gradient, indices, tokens), (our_loss, our_gradient, our_indices, our_tokens) = found
    apart = float((our_loss - loss).abs() / loss)
    turned = float((our_gradient - gradient).norm() / gradient.norm())
    same = float((our_indices == indices).float().mean())
    print(
        f"{ours.precision}: loss {float(loss):.6f} and {float(our_loss):.6f}, {apart:.1e} apart; "
        f"gradients {turned:.1e} apart; {100 * same:.1f} % of the indices equal"
    )
    if ours.precision == "float32":
        assert apart < 1e-5, apart
        assert turned < 1e-3, turned
        assert same == 1.0, same
        assert torch.allclose(our_tokens, tokens, atol=1e-5)


def memory(name: str, precision: str, options: argparse.Namespace) -> str:
    """Peak memory of two training steps in a process of their own."""
    words = [sys.executable, __file__, "--memory-of", name, precision, "--batch", str(options.batch)]
    words += ["--device", options.device, "--compile", options.compile] + ["--small"] * options.small
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]


def print_memory(options: argparse.Namespace) -> None:
    side, pair = make_side(*options.memory_of, options), pairs(options)
    if side.name == "ours" and options.compile == "yes":
        side.model.compile_blocks()
    for _ in range(2):
        side.step(pair)
    if side.device.type == "cuda":
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    else:
        # Not getrusage, whose peak a process inherits from the one that started it.
        status = Path("/proc/self/status")
        if status.exists():
            print(f"{int(status.read_text().partition('VmHWM:')[2].split()[0]) / 2**20:.2f} GiB")
        else:
            print("not known on this system")


def table(title: str, unit: str, rows: dict[str, list[float]], lines: dict[str, str], batch: int) -> None:
    print(f"\n{title}")
    for name, times in rows.items():
        rate, slowest, fastest = (batch / x for x in (statistics.median(times), max(times), min(times)))
        print(f"  {name:16} {rate:9.2f} {unit}  (turns {slowest:.2f} to {fastest:.2f}){lines[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, help="pairs per step; 4 on a CPU, 64 on a GPU")
    parser.add_argument("--turns", type=int, help="turns of every side; 5 on a CPU, 20 on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--small", action="store_true", help="a toy size: shows that it runs, no more")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    on_cpu = device.type == "cpu"
    options.batch = options.batch or (4 if on_cpu else 64)
    options.turns = options.turns or (5 if on_cpu else 20)
    if options.compile == "auto":
        options.compile = "yes" if device.type == "cuda" and importlib.util.find_spec("triton") else "no"
    if options.memory_of:
        print_memory(options)
        return

    where = f"{torch.get_num_threads()} threads of a CPU" if on_cpu else torch.cuda.get_device_name(device)
    kinds = [(name, precision) for precision in ("float32", "bfloat16") for name in ("plain", "ours")]
    sides = {f"{name} {precision}": make_side(name, precision, options) for name, precision in kinds}
    count = sum(p.numel() for p in sides["ours float32"].model.parameters() if p.requires_grad)
    print(f"{count:,} parameters, batches of {options.batch} pairs, {where}, torch {torch.__version__}")
    print(f"ours compiled: {options.compile}")
    pair = pairs(options)
    work = {name: operations(lambda side=side: side.step(pair)) for name, side in sides.items()}
    read = {name: operations(lambda side=side: side.tokenize(pair)) for name, side in sides.items()}
    for name, precision in kinds:  # the counted step has moved the weights: start again from the same
        sides[f"{name} {precision}"] = make_side(name, precision, options)
    if options.compile == "yes":
        # Two precisions, with and without gradients, three kinds of blocks: more than torch expects of one.
        torch._dynamo.config.cache_size_limit = 64
        for precision in ("float32", "bfloat16"):
            sides[f"ours {precision}"].model.compile_blocks()
    began = time.perf_counter()
    for precision in ("float32", "bfloat16"):
        compare(sides[f"plain {precision}"], sides[f"ours {precision}"], pair)
    print(f"compared (and compiled) in {time.perf_counter() - began:.0f} s")

    for side in sides.values():
        side.step(pair)  # makes the optimiser's state
    training: dict[str, list[float]] = {name: [] for name in sides}
    inference: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.turns):
        for name, side in sides.items():
            training[name].append(seconds(lambda side=side: side.step(pair), device))
        for name, side in sides.items():
            inference[name].append(seconds(lambda side=side: side.tokenize(pair), device))
    del sides
    best = {precision: peak(precision, device, options.small) for precision in ("float32", "bfloat16")}
    used = {
        f"{name} {precision}": "not measured" if options.small else memory(name, precision, options)
        for name, precision in kinds
    }

    def speed(name: str, count: int, times: list[float]) -> str:
        rate, top = count / statistics.median(times), best[name.split()[1]]
        return (
            f"  {count / options.batch / 1e9:6.1f} GFLOP each, {rate / 1e9:8.0f} GFLOP/s"
            f" = {100 * rate / top:.0f} % of {top / 1e9:.0f}"
        )

    lines = {name: f"{speed(name, work[name], training[name])}, peak memory {used[name]}" for name in work}
    table("training step", "pairs/s", training, lines, options.batch)
    lines = {name: speed(name, read[name], inference[name]) for name in read}
    table("tokenizing", "clips/s", inference, lines, options.batch)
    print()
    ratios = {}
    for title, rows in (("inference", inference), ("training", training)):
        middle = {name: statistics.median(times) for name, times in rows.items()}
        for ours, plain in (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")):
            ratios[title, ours, plain] = middle[f"plain {plain}"] / middle[f"ours {ours}"]
            print(f"{title}: ours {ours} against plain {plain}: {ratios[title, ours, plain]:.2f}")
    print(f"ratio {ratios['training', 'float32' if on_cpu else 'bfloat16', 'float32']:.2f}")


if __name__ == "__main__":
    main()
