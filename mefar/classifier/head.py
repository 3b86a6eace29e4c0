"""What a head is, and TokenHead, ours: a small Transformer over action tokens.

A head is an ordinary `nn.Module` for one model: tokens (B, L, D) in, a `HeadOutput` out. Its constructor
takes `num_tokens, token_dim, num_classes` and, if it can speak to texts, `text_dim`; then options of its own.
A class attribute `in_turns = True` asks for folds one after another, which is faster for convolutions.
A head of your own needs nothing else of mefar's:

    class MeanHead(nn.Module):
        def __init__(self, num_tokens, token_dim, num_classes, dropout=0.1):
            super().__init__()
            self.dropout, self.classes = nn.Dropout(dropout), nn.Linear(token_dim, num_classes)

        def forward(self, tokens):
            return HeadOutput(self.classes(self.dropout(tokens.mean(1))))

    mefar loso --head my_heads.MeanHead --head.dropout 0.2 ...

TokenHead's structure is as published (ICLR 2026, classifier): Linear to the head's width, learned position,
pre-norm Transformer encoder, sparse attention pooling (one learned query picks tokens, its entropy is a
loss), class logits and, in parallel, a unit vector in the text space.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mefar.errors import UserError


class HeadOutput(NamedTuple):
    """What a head says about a batch.

    Attributes:
        logits: (B, C).
        attention: (B, L) weights over the tokens, each row sums to 1; None for a head that has none.
        text: (B, E) unit vectors in the text space; None for a head without text.
        temperature: () learned factor of the temperature of the alignment with texts; None leaves it as set.
    """

    logits: Tensor
    attention: Tensor | None = None
    text: Tensor | None = None
    temperature: Tensor | None = None


class FittedHead(nn.Module, ABC):
    """A head without epochs: fitted once to the clips of a fold, as support vector machines are.

    What it learned it keeps in buffers, so that a fold's head can be written like any other.
    """

    @abstractmethod
    def fit(self, features: Tensor, labels: Tensor, subjects: Sequence[str], seed: int) -> None:
        """Learn from n clips.

        Args:
            features: (n, L, D) float.
            labels: (n,) int64 in [0, C).
            subjects: n subject keys, for choices that are made among them.
            seed: of the fold, for what is drawn.
        """

    @abstractmethod
    def forward(self, features: Tensor) -> HeadOutput:
        """(m, L, D) -> logits (m, C), the same for a clip whatever the others are."""


HeadFactory = Callable[[int, int, int], nn.Module]
"""num_tokens, token_dim, num_classes -> head; a class, or one with options filled in by functools.partial."""


class EncoderLayer(nn.Module):
    """Pre-norm Transformer layer: attention among the tokens, then a ReLU feed-forward block.

    Arguments as of TokenHead: W is `dim`, H are `heads`.
    """

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        q, k, v = rearrange(
            self.qkv(self.norm1(x)), "b l (three h d) -> three b h l d", three=3, h=self.heads
        )
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)  # (B, H, L, L)
        mixed = rearrange(self.dropout(weights) @ v, "b h l d -> b l (h d)")
        x = x + self.dropout(self.out(mixed))
        x = x + self.dropout(self.narrow(self.dropout(self.widen(self.norm2(x)).relu())))
        return x


class TokenHead(nn.Module):
    """Small Transformer over the tokens; the defaults suit a few hundred clips of 16 tokens.

    Args:
        num_tokens: L.
        token_dim: D, width of the token embeddings.
        num_classes: C.
        text_dim: E, width of the text space; None leaves the text projection out.
        dim: W, a multiple of `heads` (published: 512).
        depth: Transformer layers (published: 2).
        heads: attention heads (published: 8).
        feedforward: width inside the feed-forward blocks (published: 512).
        dropout: probability in [0, 1) (published: 0.2).
        embedding: `shared`, one matrix reads the codes of every position (published);
            `per_position`, each position has its own, which brings nothing that shows
            (experiments/RESULTS.md).
        position: what a `shared` embedding is told of the place of a token: `1d`, a learned vector per
            position (published); `2d`, one per row and one per column of the square grid; `none`.
        pooling: `attention`, one learned query picks tokens (published); `mean` looks at all alike; `cls`, a
            learned token among them, which the layers fill.
        learn_temperature: learn a factor of the temperature of the alignment with texts.
        initial: `small`, uniform in +-1/sqrt(inputs), position and query N(0, 0.02); `published`,
            xavier for all linears, position and query N(0, 1).

    Raises:
        UserError: sizes that do not go together.
    """

    def __init__(
        self,
        num_tokens: int,
        token_dim: int,
        num_classes: int,
        text_dim: int | None = None,
        dim: int = 64,
        depth: int = 1,
        heads: int = 4,
        feedforward: int = 128,
        dropout: float = 0.2,
        embedding: Literal["shared", "per_position"] = "shared",
        initial: Literal["small", "published"] = "small",
        pooling: Literal["attention", "mean", "cls"] = "attention",
        position: Literal["1d", "2d", "none"] = "1d",
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1 or heads < 1 or dim % heads:
            raise UserError(f"head: dim {dim} is not a multiple of heads {heads}; change one")
        if not 0 <= dropout < 1:
            raise UserError(f"head: dropout {dropout} is not in [0, 1)")
        if depth < 0 or feedforward < 1:
            raise UserError(f"head: depth {depth}, feedforward {feedforward} must be positive")
        if embedding == "per_position" and position != "1d":
            raise UserError(f"head: position {position} goes with embedding shared; set that, or 1d")
        if pooling == "cls" and not depth:
            raise UserError("head: a cls token sees the others in a layer; give a depth, or mean pooling")
        own = num_tokens if embedding == "per_position" else 1
        self.embed = nn.Parameter(torch.empty(own, dim, token_dim))
        self.embed_bias = nn.Parameter(torch.zeros(own, dim))
        # With a matrix and a bias of its own a position needs no further vector.
        one_d, two_d = (own == 1 and position == kind for kind in ("1d", "2d"))
        self.position = nn.Parameter(torch.empty(num_tokens, dim)) if one_d else None
        side = math.isqrt(num_tokens)
        if two_d and side * side != num_tokens:
            raise UserError(f"head: {num_tokens} tokens are no square grid; take position 1d")
        self.grid = nn.Parameter(torch.empty(2, side, dim)) if two_d else None  # rows, columns
        self.layers = nn.Sequential(*[EncoderLayer(dim, heads, feedforward, dropout) for _ in range(depth)])
        self.pool_norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.empty(dim)) if pooling == "attention" else None
        self.cls = nn.Parameter(torch.empty(dim)) if pooling == "cls" else None
        self.classes = nn.Linear(dim, num_classes)
        self.text = None if text_dim is None else nn.Linear(dim, text_dim)
        # The logarithm of the factor: weight decay draws it to the temperature that is set.
        learned = learn_temperature and text_dim is not None
        self.temperature = nn.Parameter(torch.zeros(())) if learned else None
        self._initialise(initial == "published")

    def _initialise(self, published: bool) -> None:
        linears = [module.weight for module in self.modules() if isinstance(module, nn.Linear)]
        for weight in [*self.embed, *linears]:
            if published:
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for vector in (self.query, self.cls, self.position, self.grid):
            if vector is not None:
                nn.init.normal_(vector, 0, 1 if published else 0.02)

    def forward(self, tokens: Tensor) -> HeadOutput:
        """(B, L, D) token embeddings -> what they say."""
        if len(self.embed) > 1:
            x = torch.einsum("bld,lwd->blw", tokens, self.embed) + self.embed_bias
        else:
            x = F.linear(tokens, self.embed[0], self.embed_bias[0])
        if self.position is not None:
            x = x + self.position
        elif self.grid is not None:
            x = x + (self.grid[0].unsqueeze(1) + self.grid[1]).flatten(0, 1)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)
        x = self.pool_norm(self.layers(x))
        attention = None
        if self.cls is not None:
            pooled = x[:, 0]  # (B, W)
        elif self.query is None:
            pooled = x.mean(1)
        else:
            attention = (x @ self.query * x.shape[-1] ** -0.5).softmax(-1)  # (B, L)
            pooled = (attention.unsqueeze(1) @ x).squeeze(1)
        text = None if self.text is None else F.normalize(self.text(pooled), dim=-1)
        temperature = None if self.temperature is None else self.temperature.exp()
        return HeadOutput(self.classes(pooled), attention, text, temperature)


def build_head(
    factory: HeadFactory, num_tokens: int, token_dim: int, num_classes: int, text_dim: int | None = None
) -> nn.Module:
    """Make a head for L tokens, D, C and see that it is one, on one batch of two.

    `text_dim`, E, is told to heads that take it; the others are trained without texts.

    Raises:
        UserError: it cannot be made, has no parameters, or its output is not a HeadOutput of these sizes.
    """
    told = {"text_dim": text_dim} if takes_text(factory) else {}
    try:
        head = factory(num_tokens, token_dim, num_classes, **told)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"head {name_of(factory)}: cannot be made of num_tokens={num_tokens}, token_dim={token_dim}, "
            f"num_classes={num_classes}: {error}"
        ) from error
    where = f"head {type(head).__module__}.{type(head).__qualname__}"
    if not isinstance(head, nn.Module):
        raise UserError(f"{where}: not a torch.nn.Module")
    if isinstance(head, FittedHead):
        return head
    if not any(parameter.requires_grad for parameter in head.parameters()):
        raise UserError(f"{where}: has no parameters to train")
    training = head.training
    try:
        with torch.no_grad():
            output = head.eval()(torch.zeros(2, num_tokens, token_dim))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{where}: fails on tokens (2, {num_tokens}, {token_dim}): {line}") from error
    head.train(training)
    for name, width in (("logits", num_classes), ("attention", num_tokens), ("text", text_dim)):
        if not hasattr(output, name):
            raise UserError(f"{where}: its output has no {name}; return mefar.classifier.head.HeadOutput")
        value = getattr(output, name)
        if value is None and name != "logits":
            continue
        if not isinstance(value, Tensor) or (width is not None and value.shape != (2, width)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{where}: {name} of a batch of 2 is {shape}, expected (2, {width})")
        if not value.isfinite().all():
            raise UserError(f"{where}: {name} of tokens that are all 0 is not finite")
    return head


def takes_text(factory: HeadFactory) -> bool:
    """Whether heads of a kind can speak to texts."""
    if isinstance(factory, functools.partial) and "text_dim" in factory.keywords:
        return True
    return "text_dim" in inspect.signature(factory).parameters


def options_of(factory: HeadFactory) -> dict[str, Any]:
    """Options that a partial fills in, but for what build_head tells."""
    keywords = factory.keywords if isinstance(factory, functools.partial) else {}
    return {name: value for name, value in keywords.items() if name != "text_dim"}


def name_of(factory: HeadFactory) -> str:
    """A name for messages."""
    made: Any = factory
    while isinstance(made, functools.partial):  # the option parser's partials hold the class as an argument
        made = next((each for each in made.args if inspect.isclass(each)), made.func)
    return f"{made.__module__}.{made.__qualname__}"


PUBLISHED_NAMES = {"cls_proj.0": "classes", "clip_proj.0": "text", "sparse_pool.ln": "pool_norm"}
PUBLISHED_LAYER_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn.out_proj": "out",
    "linear1": "widen",
    "linear2": "narrow",
}


def sizes_in(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What TokenHead must be told to take a state dict: all that its shapes say."""
    own, dim, token_dim = state["embed"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    return {
        "num_tokens": len(state["position"]) if "position" in state else own,
        "token_dim": token_dim,
        "num_classes": len(state["classes.bias"]),
        "text_dim": len(state["text.bias"]) if "text.bias" in state else None,
        "dim": dim,
        "depth": depth,
        "feedforward": len(state["layers.0.widen.bias"]) if depth else 1,
        "embedding": "shared" if "position" in state else "per_position",
    }


def head_from_published(state: Mapping[str, Tensor], heads: int = 8) -> TokenHead:
    """Build a head from a state dict under the published names; every size is read off it.

    Args:
        state: published name -> tensor; every name must be known, every tensor is used.
        heads: attention heads, which no shape tells (published: 8).

    Raises:
        UserError: a name is missing, unknown or of an unexpected shape.
    """
    names = {"pos_embed": "position", "sparse_pool.query": "query"}
    names |= {"token_embed.weight": "embed", "token_embed.bias": "embed_bias"}
    pairs = dict(PUBLISHED_NAMES)
    for layer in {name.split(".")[2] for name in state if name.startswith("transformer.layers.")}:
        prefix = f"transformer.layers.{layer}."
        pairs |= {prefix + theirs: f"layers.{layer}.{ours}" for theirs, ours in PUBLISHED_LAYER_NAMES.items()}
        names[prefix + "self_attn.in_proj_weight"] = f"layers.{layer}.qkv.weight"
        names[prefix + "self_attn.in_proj_bias"] = f"layers.{layer}.qkv.bias"
    for kind in ("weight", "bias"):
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in pairs.items()}
    if wrong := set(names) ^ set(state):
        raise UserError(
            f"published classifier: {min(wrong)!r} is {'missing' if min(wrong) in names else 'unknown'}"
        )
    made = {names[name]: value for name, value in state.items()}
    made |= {name: made[name].unsqueeze(0) for name in ("embed", "embed_bias")}
    made |= {"position": made["position"].squeeze(0), "query": made["query"].flatten()}
    head = TokenHead(**sizes_in(made), heads=heads, initial="published")
    try:
        head.load_state_dict(made)
    except RuntimeError as error:
        raise UserError(f"published classifier: {str(error).splitlines()[-1].strip()}") from error
    return head.eval()
