"""What a tokenizer network is: the contract between FacialActionTokenizer and any network, ours or yours.

A network is an ordinary nn.Module in one file that imports no Lightning. It makes tokens, rebuilds the apex
from them and brings its own loss; FacialActionTokenizer brings optimiser, schedule, gates and checkpoints.

    class MyNetwork(ActionNetwork):
        def __init__(self, image_size: int = 64, width: int = 32) -> None: ...
        def tokenize(self, onset, apex): ...     # -> ActionTokens
        def reconstruct(self, onset, tokens): ...  # -> apex
        def losses(self, batch): ...             # -> {"reconstruction": ..., ...}

and in YAML `network: {class_path: my_file.MyNetwork, init_args: {width: 48}}`, where
my_file.py lies in the working folder or on PYTHONPATH. Networks of this package:
warp_network.py (ours) and published_network.py (the paper's).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from mefar.errors import UserError
from mefar.tokens import ActionTokens, Movement


class ActionNetwork(nn.Module, ABC):
    """Base of every tokenizer network; images are RGB (B, 3, H, W) float in [0, 1].

    A constructor sets the four attributes below and takes only what YAML can say (numbers, text, lists,
    None): its arguments are kept as `settings`, from which a checkpoint makes the network again.

    Attributes:
        image_size: H = W in pixels.
        num_codes: K, size of the codebook.
        num_tokens: L, tokens per pair.
        dim: D, width of the token embeddings.
        settings: argument of the constructor -> value, defaults included.
    """

    image_size: int
    num_codes: int
    num_tokens: int
    dim: int
    settings: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the constructor's arguments, so that no network has to do it by hand."""
        made = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs)
        bound.apply_defaults()
        object.__setattr__(made, "settings", dict(list(bound.arguments.items())[1:]))
        return made

    @abstractmethod
    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        """(B, 3, H, W) onset and apex -> tokens, hard-quantised; called without gradient."""

    @abstractmethod
    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        """Apply the action to an onset, its own or another face's -> (B, 3, H, W), about [0, 1]."""

    @abstractmethod
    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Named terms of the training loss, each () and already weighted; their sum is minimised.

        Args:
            batch: `onset`, `apex` (B, 3, H, W); with a loader of two views also `onset_view`, `apex_view`,
                the same pair in another crop, colour and noise.
        """

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, L) int64 in [0, K) -> (B, L, D) embeddings: what codes chosen by hand or read from a file mean.

        Raises:
            UserError: a network that does not offer it.
        """
        raise UserError(
            f"{type(self).__name__} cannot say what codes without a picture mean; write its method lookup"
        )

    def continuous(self, onset: Tensor, apex: Tensor) -> Tensor:
        """(B, L, D) action before quantisation, embedded as codes are: the ceiling of the tokens.

        Raises:
            UserError: a network that does not offer it.
        """
        raise UserError(
            f"{type(self).__name__} has no action before its codebook; write its method continuous"
        )

    def move(self, onset: Tensor, tokens: ActionTokens) -> Movement:
        """What tokens do to an onset: where a network does not say it, what they change in its pixels.

        Against its own picture of no action, so that what it cannot rebuild of a face is no movement.
        """
        still = self.reconstruct(onset, self.tokenize(onset, onset))
        changed = self.reconstruct(onset, tokens) - still
        return Movement(torch.zeros_like(onset[:, :2]), changed)

    def adaptation_error(self, onset: Tensor, apex: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B,) squared error of each pair's reconstruction, with gradient: see tokens.AdaptableTokenizer.

        Raises:
            UserError: a network that does not offer it.
        """
        raise UserError(
            f"{type(self).__name__} has no adaptation_error, so folds cannot adapt it; write one, or leave "
            "adapt_tokenizer at 0"
        )

    def prepare(self, batches: int) -> None:
        """Called before training with the number of training batches of the whole run."""

    def blocks(self) -> Iterable[nn.Module]:
        """Parts that torch.compile is to fuse, each called as a module; by default the children."""
        return self.children()


def describe(network: ActionNetwork) -> dict[str, Any]:
    """`class_path` and `init_args` of a network, as YAML and checkpoints hold them.

    Raises:
        UserError: an argument that YAML cannot say.
    """
    kind = type(network)
    for name, value in network.settings.items():
        if not _plain(value):
            raise UserError(
                f"{kind.__name__}: argument {name} is a {type(value).__name__}, which no checkpoint can "
                "hold; take numbers, text and lists of them"
            )
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(network.settings)}


def _plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
