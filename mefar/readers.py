"""What reads tokens: a head for the classes and for sentences, a linear read-out for action units.

Trained on all subjects, to be used and handed on. How well they read people whom they have not seen is what
leave-one-subject-out says of *other* heads, each trained without somebody; no such score is theirs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mefar.classifier.head import HeadOutput, build_head
from mefar.errors import UserError, one_line
from mefar.files import class_at, fingerprint, replacing

NOTHING = "nothing"
"""What tokens of a face at rest are called."""
FAINTEST = 2.0**-6
"""Strength up to which tokens are those of a face at rest."""


@dataclass(frozen=True)
class About:
    """What readers are, as JSON can say it.

    Attributes:
        tokenizer: `weights_of` the one whose tokens they read.
        classes: C names.
        head: class path and options of the head.
        sizes: L, D' and C, and E, width of the text space; None for a head that knows no text.
        units: U numbers of action units; () where no clip had any.
        sentences: M sentences whose vectors come with the readers.
        text_model: the tower that made their vectors.
        unit_f1: unit -> F1 on people that another read-out like this one was not fitted on.
        trained_on: what there is to say about the training: protocol, clips, subjects, command, scores, ...
    """

    tokenizer: str
    classes: tuple[str, ...]
    head: Mapping[str, Any]
    sizes: tuple[int, int, int, int | None]
    units: tuple[int, ...] = ()
    sentences: tuple[str, ...] = ()
    text_model: str = ""
    unit_f1: Mapping[str, float] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(told: Mapping[str, Any]) -> About:
        """What `asdict` wrote, back from JSON."""
        made: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
        }
        return About(**made)


class Readers(nn.Module):
    """Readers of the tokens of one tokenizer; without weights until they are loaded or trained.

    Raises:
        UserError: the head's class cannot be imported or made.
    """

    mean: Tensor
    scale: Tensor
    vectors: Tensor

    def __init__(self, about: About) -> None:
        super().__init__()
        self.about = about
        L, D, C, E = about.sizes
        self.head = build_head(_head_class(about.head), L, D, C, E)
        with warnings.catch_warnings():  # torch warns of no units, which are no fault
            warnings.simplefilter("ignore", UserWarning)
            self.units = nn.Linear(L * D, len(about.units))
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("scale", torch.ones(D))
        self.register_buffer("vectors", torch.zeros(len(about.sentences), E or 0))
        self.requires_grad_(False).eval()

    def read(self, features: Tensor) -> HeadOutput:
        """(B, L, D') features of tokens -> what the head says."""
        output: HeadOutput = self.head((features - self.mean) * self.scale)
        return output

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D') -> probabilities of the classes (B, C), which sum to 1, and of each unit (B, U)."""
        return self.read(features).logits.softmax(-1), self.units(features.flatten(1)).sigmoid()

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replacing(path) as temporary:
            temporary.write_bytes(save(state, {"about": json.dumps(asdict(self.about))}))

    @staticmethod
    def load(path: Path) -> Readers:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, none of ours, or damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                about = About.read(json.loads((file.metadata() or {})["about"]))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            made = Readers(about)
            made.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            told = f"{path}: no readers of tokens ({one_line(error, 120)}); `mefar loso --final` makes them"
            raise UserError(told) from None
        return made


def weights_of(model: Any) -> str:
    """Hash of the weights of a tokenizer, whoever holds them, or of another module."""
    state = model.state_dict() if isinstance(model, nn.Module) else {}
    return fingerprint(*[part for name in sorted(state) for part in (name, state[name].float())])


def _head_class(told: Mapping[str, Any]) -> Any:
    class_path = str(told.get("class_path"))
    kind = class_at(class_path, "head")
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"head {class_path}: no torch.nn.Module")
    return partial(kind, **told.get("init_args", {}))


def encoded(readers: Readers, sentences: Sequence[str], encode: Any) -> Tensor:
    """(S, E) vectors of S sentences: those that come with readers whose head knows text, else by a tower.

    `encode` makes vectors of sentences by the tower of `about.text_model`; asked only for what is not known.
    """
    known = {sentence: row for row, sentence in enumerate(readers.about.sentences)}
    new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in known]
    vectors = torch.cat([readers.vectors, encode(new).to(readers.vectors)]) if new else readers.vectors
    known |= {sentence: len(readers.about.sentences) + row for row, sentence in enumerate(new)}
    return vectors[[known[sentence] for sentence in sentences]]
