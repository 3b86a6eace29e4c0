"""TokenHead, the small Transformer over action tokens. Pure torch; trained in classifier.py and grouped.py.

Structure as published (ICLR 2026, classifier): Linear to the head's width, learned position,
pre-norm Transformer encoder, sparse attention pooling (one learned query picks tokens, its entropy
is a loss), class logits and, in parallel, a unit vector in the text space.

Where we depart: every parameter carries a leading group dimension G. G heads that never exchange a
number train as one batched program, which is how all folds of a leave-one-subject-out study train
at once (folds.py); an ordinary classifier is G = 1. Initial values and dropout come from one random
generator per model, so that a model is the same alone and in company.

Shapes: G models, B batch, L tokens, D token width, W head width, C classes, E text space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mefar.tokens import InputError

Embedding = Literal["per_position", "shared"]


@dataclass(frozen=True)
class HeadOutput:
    """What a TokenHead says about a batch.

    Attributes:
        logits: (G, B, C).
        attention: (G, B, L) pooling weights, each row sums to 1.
        text: (G, B, E) unit vectors, or None for a head without text projection.
    """

    logits: Tensor
    attention: Tensor
    text: Tensor | None


@dataclass(frozen=True)
class HeadSize:
    """Size of a TokenHead; the defaults suit a few hundred clips of 16 tokens on a CPU.

    Attributes:
        dim: W, a multiple of `heads` (published: 512).
        depth: Transformer layers (published: 2).
        heads: attention heads (published: 8).
        feedforward: width inside the feed-forward blocks (published: 512).
        dropout: probability in [0, 1), rounded to 1/256 (published: 0.2).
        embedding: `shared`, one matrix reads the codes of every position (published);
            `per_position`, each position has its own, so that the same code may mean different things
            in different places without a layer having to find that out from a few hundred clips.
    """

    dim: int = 64
    depth: int = 1
    heads: int = 4
    feedforward: int = 128
    dropout: float = 0.2
    embedding: Embedding = "per_position"

    def __post_init__(self) -> None:
        if self.dim < 1 or self.heads < 1 or self.dim % self.heads:
            raise InputError(f"head: dim {self.dim} is not a multiple of heads {self.heads}; change one")
        if not 0 <= self.dropout < 1:
            raise InputError(f"head: dropout {self.dropout} is not in [0, 1)")
        if self.depth < 0 or self.feedforward < 1:
            raise InputError(f"head: depth {self.depth}, feedforward {self.feedforward} must be positive")


class DropoutNoise:
    """Dropout masks from one random stream per model.

    A model's masks depend on its own generator and on how many it has drawn, never on its
    neighbours in the group. One byte decides per entry, so the probability is a multiple of 1/256.

    Args:
        generators: one per model, or None to use torch's global stream.
        probability: share of entries set to 0.
    """

    def __init__(self, generators: Sequence[torch.Generator | None], probability: float) -> None:
        self.generators = generators
        self.threshold = round(probability * 256)

    def __call__(self, x: Tensor) -> Tensor:
        """(G, ...) -> the same with entries dropped and the rest scaled up."""
        if self.threshold == 0:
            return x
        each = x[0].numel()
        words = torch.zeros(len(self.generators), -(-each // 8), dtype=torch.int64, device=x.device)
        for row, generator in zip(words, self.generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        keep = (words.view(torch.uint8)[:, :each].view(x.shape) >= self.threshold).to(x.dtype)
        # Scaled before x is known, so that gradients take one product and not two.
        return x * keep.mul_(256 / (256 - self.threshold))


def _keep(x: Tensor) -> Tensor:
    """No dropout."""
    return x


class GroupedLinear(nn.Module):
    """G linear maps side by side: (G, N, in) -> (G, N, out)."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(groups, outputs))

    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        """Uniform in +-1/sqrt(in), as torch's Linear; biases 0."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        with torch.no_grad():
            for weight, generator in zip(self.weight, generators, strict=True):
                weight.uniform_(-bound, bound, generator=generator)
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(G, N, in) -> (G, N, out)."""
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


class GroupedNorm(nn.Module):
    """LayerNorm over the last dimension with a scale and shift per model."""

    def __init__(self, groups: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(G, N, W) -> the same shape."""
        normal = functional.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.bias.unsqueeze(1), normal, self.weight.unsqueeze(1))


class EncoderLayer(nn.Module):
    """Pre-norm Transformer layer: attention among the L tokens, then a ReLU feed-forward block."""

    def __init__(self, groups: int, size: HeadSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1 = GroupedNorm(groups, size.dim)
        self.qkv = GroupedLinear(groups, size.dim, 3 * size.dim)
        self.out = GroupedLinear(groups, size.dim, size.dim)
        self.norm2 = GroupedNorm(groups, size.dim)
        self.widen = GroupedLinear(groups, size.dim, size.feedforward)
        self.narrow = GroupedLinear(groups, size.feedforward, size.dim)

    def attend(self, x: Tensor, tokens: int, noise: DropoutNoise | None) -> Tensor:
        """Self-attention among each sample's tokens: (G, B*L, W) -> (G, B*L, W)."""
        G, N, W = x.shape
        # (G, B*L, 3W) -> 3 x (G, B, heads, L, W / heads)
        split = self.qkv(x).view(G, N // tokens, tokens, 3, self.heads, W // self.heads)
        q, k, v = split.permute(3, 0, 1, 4, 2, 5)
        weights = (q @ k.mT / math.sqrt(W // self.heads)).softmax(-1)
        if noise is not None:
            weights = noise(weights)
        mixed: Tensor = self.out((weights @ v).transpose(2, 3).reshape(G, N, W))
        return mixed

    def forward(self, x: Tensor, tokens: int, noise: DropoutNoise | None) -> Tensor:
        """(G, B*L, W) -> (G, B*L, W)."""
        drop = noise or _keep
        x = x + drop(self.attend(self.norm1(x), tokens, noise))
        wide: Tensor = self.widen(self.norm2(x)).relu()
        return x + drop(self.narrow(drop(wide)))


class TokenHead(nn.Module):
    """G independent classifiers of action tokens in one batched program.

    Args:
        num_tokens: L.
        token_dim: D, width of the token embeddings.
        num_classes: C.
        size: widths and depth.
        text_dim: E, width of the text space; None leaves the text projection out.
        seeds: one per model; as many models as seeds, each initialised from its own.
    """

    def __init__(
        self,
        num_tokens: int,
        token_dim: int,
        num_classes: int,
        size: HeadSize | None = None,
        text_dim: int | None = None,
        seeds: Sequence[int] = (0,),
    ) -> None:
        super().__init__()
        size = size or HeadSize()
        G, self.num_tokens, self.size = len(seeds), num_tokens, size
        per_position = size.embedding == "per_position"
        self.embed = GroupedLinear(G * num_tokens if per_position else G, token_dim, size.dim)
        # With a matrix and a bias of its own a position needs no further vector.
        self.position = None if per_position else nn.Parameter(torch.empty(G, num_tokens, size.dim))
        self.layers = nn.ModuleList([EncoderLayer(G, size) for _ in range(size.depth)])
        self.pool_norm = GroupedNorm(G, size.dim)
        self.query = nn.Parameter(torch.empty(G, size.dim))
        self.classes = GroupedLinear(G, size.dim, num_classes)
        self.text = None if text_dim is None else GroupedLinear(G, size.dim, text_dim)
        self._initialise([torch.Generator().manual_seed(seed) for seed in seeds])

    def _initialise(self, generators: Sequence[torch.Generator]) -> None:
        """Draw every model's values from its own generator, in a fixed order."""
        repeated = generators
        if self.size.embedding == "per_position":
            repeated = [each for each in generators for _ in range(self.num_tokens)]
        for module in self.modules():
            if isinstance(module, GroupedLinear):
                module.initialise(repeated if module is self.embed else generators)
        with torch.no_grad():
            for parameter in (self.query, self.position):
                if parameter is None:
                    continue
                for values, generator in zip(parameter, generators, strict=True):
                    values.normal_(0, 0.02, generator=generator)

    @property
    def groups(self) -> int:
        """G, the number of models side by side."""
        return self.query.shape[0]

    def model_state(self, model: int) -> dict[str, Tensor]:
        """State of one model, loadable into a head with a single seed."""
        G = self.groups
        state = {name: value.unflatten(0, (G, -1))[model] for name, value in self.state_dict().items()}
        return {name: value.clone() for name, value in state.items()}

    def forward(self, tokens: Tensor, noise: DropoutNoise | None = None) -> HeadOutput:
        """Classify token embeddings.

        Args:
            tokens: (G, B, L, D) float, every model its own batch.
            noise: dropout masks; None for evaluation.
        """
        G, B, L, D = tokens.shape
        if self.size.embedding == "per_position":
            x = self.embed(tokens.transpose(1, 2).reshape(G * L, B, D)).view(G, L, B, -1).transpose(1, 2)
        else:
            x = self.embed(tokens.reshape(G, B * L, D)).view(G, B, L, -1)
        if self.position is not None:
            x = x + self.position.unsqueeze(1)
        x = x.reshape(G, B * L, -1)
        for layer in self.layers:
            x = layer(x, L, noise)
        x = self.pool_norm(x)  # (G, B*L, W)
        picked = torch.bmm(x, self.query.unsqueeze(-1)).view(G, B, L) / math.sqrt(x.shape[-1])
        attention = picked.softmax(-1)
        pooled = (attention.unsqueeze(-2) @ x.view(G, B, L, -1)).squeeze(-2)  # (G, B, W)
        text = None if self.text is None else functional.normalize(self.text(pooled), dim=-1)
        return HeadOutput(self.classes(pooled), attention, text)


PUBLISHED_NAMES = {
    "token_embed": "embed",
    "cls_proj.0": "classes",
    "clip_proj.0": "text",
    "sparse_pool.ln": "pool_norm",
}
PUBLISHED_LAYER_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn.out_proj": "out",
    "linear1": "widen",
    "linear2": "narrow",
}


def head_from_published(state: Mapping[str, Tensor], heads: int = 8) -> TokenHead:
    """Build a single head from a state dict under the published names; every size is read off it.

    Args:
        state: published name -> tensor; every name must be known, every tensor is used.
        heads: attention heads, which no shape tells (published: 8).

    Raises:
        InputError: a name is missing, unknown or of an unexpected shape.
    """
    names = {"pos_embed": "position", "sparse_pool.query": "query"}
    depth = len({name.split(".")[2] for name in state if name.startswith("transformer.layers.")})
    pairs = dict(PUBLISHED_NAMES)
    for layer in range(depth):
        prefix = f"transformer.layers.{layer}."
        pairs |= {prefix + theirs: f"layers.{layer}.{ours}" for theirs, ours in PUBLISHED_LAYER_NAMES.items()}
        names[prefix + "self_attn.in_proj_weight"] = f"layers.{layer}.qkv.weight"
        names[prefix + "self_attn.in_proj_bias"] = f"layers.{layer}.qkv.bias"
    names |= {
        f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in pairs.items() for kind in ("weight", "bias")
    }
    if wrong := set(names) ^ set(state):
        raise InputError(
            f"published classifier: {min(wrong)!r} is {'missing' if min(wrong) in names else 'unknown'}"
        )
    dim, token_dim = state["token_embed.weight"].shape
    feedforward = state["transformer.layers.0.linear1.weight"].shape[0] if depth else 1
    head = TokenHead(
        num_tokens=state["pos_embed"].shape[1],
        token_dim=token_dim,
        num_classes=state["cls_proj.0.weight"].shape[0],
        size=HeadSize(dim, depth, heads, feedforward, embedding="shared"),
        text_dim=state["clip_proj.0.weight"].shape[0],
    )
    ours = {
        names[name]: value if name == "pos_embed" else value.unsqueeze(0) for name, value in state.items()
    }
    try:
        head.load_state_dict(ours)
    except RuntimeError as error:
        raise InputError(f"published classifier: {str(error).splitlines()[-1].strip()}") from error
    return head.eval()
