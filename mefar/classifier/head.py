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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mefar.classifier.blocks import Apply, Embedding, Pool, Unit, through_autograd
from mefar.classifier.layers import DropoutNoise, EncoderLayer, GroupedLinear, GroupedNorm
from mefar.errors import UserError

Reading = Literal["per_position", "shared"]


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
    embedding: Reading = "per_position"

    def __post_init__(self) -> None:
        if self.dim < 1 or self.heads < 1 or self.dim % self.heads:
            raise UserError(f"head: dim {self.dim} is not a multiple of heads {self.heads}; change one")
        if not 0 <= self.dropout < 1:
            raise UserError(f"head: dropout {self.dropout} is not in [0, 1)")
        if self.depth < 0 or self.feedforward < 1:
            raise UserError(f"head: depth {self.depth}, feedforward {self.feedforward} must be positive")


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
        self.layers = nn.ModuleList(
            [EncoderLayer(G, size.dim, size.heads, size.feedforward) for _ in range(size.depth)]
        )
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

    def forward(
        self, tokens: Tensor, noise: DropoutNoise | None = None, apply: Apply = through_autograd
    ) -> HeadOutput:
        """Classify token embeddings.

        Args:
            tokens: (G, B, L, D) float, every model its own batch.
            noise: dropout masks; None for evaluation.
            apply: runs the blocks.
        """
        with torch.autocast(tokens.device.type, enabled=False):  # so small that half precision gains nothing
            tokens = tokens.to(self.query.dtype)
            x = apply(Embedding, tokens, self.embed.weight, self.embed.bias, self.position)
            for layer in self.layers:
                x = layer(x, tokens.shape[2], noise, apply)
            norm = self.pool_norm
            pooled, attention = apply(Pool, x, norm.weight, norm.bias, self.query, tokens.shape[2])
            text = None if self.text is None else apply(Unit, self.text(pooled, apply))
            return HeadOutput(self.classes(pooled, apply), attention, text)


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
        UserError: a name is missing, unknown or of an unexpected shape.
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
        raise UserError(
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
        raise UserError(f"published classifier: {str(error).splitlines()[-1].strip()}") from error
    return head.eval()
