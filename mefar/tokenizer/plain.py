"""A trained tokenizer without Lightning, whose import takes seconds; and what is asked of every checkpoint.

`TokenInterface` is what FacialActionTokenizer (module.py), which trains, and PlainTokenizer have in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mefar import files
from mefar.errors import UserError, one_line
from mefar.tokenizer import earlier
from mefar.tokenizer.network import ActionNetwork
from mefar.tokens import ActionTokens, Movement

SHIPPED = Path(__file__).parents[1] / "assets"
_MAKE_ONE = "make one with `make pretrain` or `make demo`, or take `demo`, which comes with mefar"
_SLACK = 1e-3  # what a resampled image may leave [0, 1] by


class TokenInterface:
    """The ActionTokenizer interface on top of a network; images are looked at before it sees them."""

    network: ActionNetwork
    image_size: int
    num_codes: int
    num_tokens: int
    dim: int

    def stand_on(self, network: ActionNetwork) -> None:
        """Take a network, and its sizes for one's own."""
        self.network = network
        self.image_size, self.dim = network.image_size, network.dim
        self.num_codes, self.num_tokens = network.num_codes, network.num_tokens

    @torch.no_grad()
    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        """(B, 3, H, W) float in [0, 1], H = W = image_size -> tokens.

        Raises:
            UserError: images of another size, number of channels, type or range.
        """
        for name, image in (("onset", onset), ("apex", apex)):
            refuse_other_images(name, image, self.image_size)
        return self.network.tokenize(onset, apex)

    @torch.no_grad()
    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        """Onset (B, 3, H, W) in [0, 1] plus tokens, its own or another face's -> apex in [0, 1]."""
        return self.network.reconstruct(onset, tokens).clamp(0, 1)

    @torch.no_grad()
    def continuous(self, onset: Tensor, apex: Tensor) -> Tensor:
        """(B, L, D) action before quantisation: see network.ActionNetwork."""
        return self.network.continuous(onset, apex)

    @torch.no_grad()
    def move(self, onset: Tensor, tokens: ActionTokens) -> Movement:
        """What tokens do to an onset (B, 3, H, W) in [0, 1], apart from its pixels: see ActionNetwork."""
        return self.network.move(onset, tokens)

    @torch.no_grad()
    def lookup(self, indices: Tensor) -> Tensor:
        """(B, L) codes -> (B, L, D) embeddings: see network.ActionNetwork."""
        return self.network.lookup(indices)


class PlainTokenizer(TokenInterface, nn.Module):
    """A finished network as an ActionTokenizer, frozen."""

    known_as = "FacialActionTokenizer"  # which trained it, and makes the same tokens

    def __init__(self, network: ActionNetwork) -> None:
        super().__init__()
        refuse_unfinished(network)
        self.stand_on(network)
        self.requires_grad_(False).eval()


def load(path: str | Path, device: str | torch.device = "cpu") -> PlainTokenizer:
    """The tokenizer of a checkpoint that `mefar fit` wrote; `demo` is the one that comes with mefar.

    Raises:
        UserError: no such file, not a checkpoint, damaged, without a network, or of one whose weights and
            settings do not fit together or are not finite.
    """
    path = located(path)
    checkpoint = read_checkpoint(path)
    described = checkpoint.get("hyper_parameters", {}).get("network")
    if not isinstance(described, Mapping):
        raise UserError(f"{path}: a checkpoint, but without a network of mefar's; take mefar.tokenizer.load")
    return build(described, under(checkpoint["state_dict"], "network."), path).to(device)


def build(described: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> PlainTokenizer:
    """A tokenizer of a network's description (network.describe) and its weights, read from a file.

    Raises:
        UserError: no such network, or its weights and settings do not fit together or are not finite.
    """
    class_path = str(described.get("class_path"))
    kind = files.class_at(class_path, f"{path}: its network")
    if not (isinstance(kind, type) and issubclass(kind, ActionNetwork)):
        raise UserError(f"{path}: {class_path} is no ActionNetwork")
    try:
        network = kind(**described.get("init_args", {}))
        network.load_state_dict(dict(weights))
    except Exception as error:  # of a class that may be anybody's
        raise UserError(f"{path}: weights and settings do not fit together ({one_line(error)})") from None
    refuse_not_finite(network, path)
    return PlainTokenizer(network)


def located(path: str | Path) -> Path:
    """Where a checkpoint is; a name that is no file here, such as `demo`, is one that comes with mefar."""
    path = Path(path)
    shipped = SHIPPED / f"tokenizer_{path.name}.ckpt"
    return shipped if len(path.parts) == 1 and not path.exists() and shipped.is_file() else path


def ships(path: str | Path) -> bool:
    """Whether a name stands for what comes with mefar, trained on rendered faces."""
    return located(path).parent == SHIPPED


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def read_checkpoint(path: Path, or_else: str = _MAKE_ONE) -> dict[str, Any]:
    """A checkpoint of Lightning's, in today's form; `or_else` says what to do where there is none.

    Raises:
        UserError: no such file, unreadable, damaged, or without model weights.
    """
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; {or_else}")
    checkpoint = files.read_checkpoint(path)
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: holds no state_dict; give a checkpoint that `mefar fit` wrote")
    earlier.translate_checkpoint(checkpoint)
    return checkpoint


def refuse_unfinished(network: ActionNetwork) -> None:
    """Ask a network for the sizes that it must say."""
    for name in ("image_size", "num_codes", "num_tokens", "dim"):
        if not isinstance(getattr(network, name, None), int):
            raise UserError(f"{type(network).__name__}: sets no {name}; see ActionNetwork in network.py")


def refuse_not_finite(model: nn.Module, path: Path) -> None:
    """Ask for weights that are numbers."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} holds values that are not finite; take an earlier checkpoint")


def refuse_other_images(name: str, image: Tensor, size: int, training: bool = False) -> None:
    """Ask for (B, 3, size, size) float in [0, 1]; in training uint8 and values that are not finite pass."""
    if image.ndim != 4 or image.shape[1:] != (3, size, size):
        raise UserError(
            f"{name} is {tuple(image.shape)}, expected (B, 3, {size}, {size});"
            " set the data's image_size to the tokenizer's"
        )
    if training and image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise UserError(f"{name} is {image.dtype}, expected float in [0, 1]; divide uint8 images by 255")
    low, high = (float(value) for value in torch.aminmax(image))
    if training and not (math.isfinite(low) and math.isfinite(high)):
        return  # the training step says in which clip
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise UserError(f"{name} holds {low:g} to {high:g}, expected [0, 1]; divide by the largest value")
