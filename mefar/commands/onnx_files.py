"""A model as ONNX files, for programs without torch: tokenize, reconstruct, classify.

Pictures are aligned crops (B, 3, S, S) float32 RGB in [0, 1]; B is free. What goes in and comes out:

    tokenize.onnx      onset, apex -> indices (B, L) int64, embeddings (B, L, D)[, strength (B,), head (B, 6)]
    reconstruct.onnx   onset, embeddings[, strength] -> apex
    classify.onnx      embeddings[, strength] -> classes (B, C), units (B, U), probabilities

Strength and head are there where the tokenizer measures them. The head's own motion is not put back.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mefar.commands.model import Model
from mefar.errors import UserError
from mefar.tokens import ActionTokens


class _Part(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner


class _Tokenize(_Part):
    def forward(self, onset: Tensor, apex: Tensor) -> tuple[Tensor, ...]:
        tokens = self.inner.tokenize(onset, apex)
        every = (tokens.indices, tokens.embeddings, tokens.strength, tokens.head)
        return tuple(each for each in every if each is not None)


class _Reconstruct(_Part):
    def forward(self, onset: Tensor, embeddings: Tensor, strength: Tensor | None = None) -> Tensor:
        made: Tensor = self.inner.reconstruct(onset, _tokens(embeddings, strength)).clamp(0, 1)
        return made


class _Classify(_Part):
    def forward(self, embeddings: Tensor, strength: Tensor | None = None) -> tuple[Tensor, Tensor]:
        told: tuple[Tensor, Tensor] = self.inner(_tokens(embeddings, strength).features)
        return told


def _tokens(embeddings: Tensor, strength: Tensor | None) -> ActionTokens:
    """Neither decoder nor readers look at indices."""
    return ActionTokens(embeddings.new_zeros(embeddings.shape[:2], dtype=torch.int64), embeddings, strength)


def write(model: Model, folder: Path) -> list[Path]:
    """Write the files into a folder; classify.onnx is left out where the model has no readers.

    Raises:
        UserError: the package onnxscript is not installed; a network whose code fixes the size of a batch.
    """
    if find_spec("onnxscript") is None:
        raise UserError("ONNX files need the packages onnx and onnxscript: pip install 'mefar[onnx]'")
    model = model.to("cpu").eval()
    S, network = model.image_size, model.tokenizer.network
    onset, apex = torch.rand(2, 3, 3, S, S).unbind()
    tokens = model.tokenizer.tokenize(onset, apex)
    said = [tokens.embeddings] if tokens.strength is None else [tokens.embeddings, tokens.strength]
    names = ["embeddings", "strength"][: len(said)]
    made = ["indices", *names, *(["head"] if tokens.head is not None else [])]
    parts: list[tuple[str, nn.Module, list[Tensor], list[str], list[str]]] = [
        ("tokenize", _Tokenize(network), [onset, apex], ["onset", "apex"], made),
        ("reconstruct", _Reconstruct(network), [onset, *said], ["onset", *names], ["apex"]),
    ]
    if model.readers is not None:
        parts.append(("classify", _Classify(model.readers), said, names, ["classes", "units"]))
    paths = []
    for name, module, given, inputs, outputs in parts:
        path = folder / f"{name}.onnx"
        batch = torch.export.Dim("batch", min=1)
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                module.eval(), tuple(given), path, input_names=inputs, output_names=outputs, dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in given), external_data=False, verbose=False,
            )  # fmt: skip
        assert program is not None
        shape = program.model.graph.inputs[0].shape
        if shape is not None and isinstance(shape[0], int):  # the exporter would not say so
            path.unlink()
            raise UserError(
                f"{name}.onnx: the network's code fixes the size of a batch; ask a tensor for its .shape[0], "
                "not for its len()"
            )
        paths.append(path)
    return paths
