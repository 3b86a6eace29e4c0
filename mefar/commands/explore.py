"""`mefar explore TOKENIZER`: what every token does, as one page to click through."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from datamodules.demo.unit_pairs import UNITS, unit_pairs
from mefar.errors import UserError
from mefar.files import code_fingerprint, fingerprint
from mefar.generation import dictionary
from mefar.generation.editing import steerable
from mefar.progress import shown
from mefar.readers import weights_of
from mefar.report.explore_page import write_exploration
from mefar.tokenizer.plain import load
from mefar.tokens import ActionTokens, SteerableTokenizer, as_images

PEOPLE, PAIRS = 80, 20
"""Rendered for the read-out."""
FACES = 3
"""Shown in the page."""


def explore(
    tokenizer: Path,
    *,
    out: Path = Path("explore.html"),
    strength: float = 2.0,
    cache_dir: Path = Path("runs/cache"),
) -> None:
    """Decode every code at every position on three rendered faces, and write a page and its numbers.

    In the page a click on a token replaces it and shows the faces, what changed in them, which action units
    the token adds and where it moves the skin. The dictionary and the numbers stand beside it as .json. All
    people and actions are rendered.

    Args:
        tokenizer: checkpoint; demo is the one that comes with mefar.
        out: page to write, .html.
        strength: of the tokens that are shown, 1 is typical of a talking face.
        cache_dir: folder for the read-out.
    """
    if not 0 < strength < float("inf"):
        raise UserError(f"--strength is {strength}; give a number above 0")
    if out.suffix != ".html":
        raise UserError(f"--out {out}: give a name that ends with .html")
    model = steerable(load(tokenizer))
    made_by = weights_of(model)
    words = read_out(model, made_by, cache_dir)
    people = list(unit_pairs(model.image_size, FACES, PAIRS, seed=1))
    faces = torch.cat([as_images(person.onset[:1]) for person in people])
    tokens = ActionTokens.cat([model.tokenize(as_images(one.onset), as_images(one.apex)) for one in people])
    intensity = np.concatenate([one.intensity for one in people])
    row = int(intensity[:, UNITS.index(12)].argmax())
    smile = " + ".join(f"AU{unit}" for unit, much in zip(UNITS, intensity[row], strict=True) if much)
    print(
        *write_exploration(out, str(tokenizer), made_by, model, words, faces, tokens, {smile: row}, strength)
    )


def read_out(model: SteerableTokenizer, made_by: str, cache_dir: Path) -> dictionary.Dictionary:
    """The dictionary of a tokenizer: fitted on rendered people, once."""
    key = fingerprint(
        made_by, PEOPLE, PAIRS, code_fingerprint("mefar.generation.dictionary", "datamodules.demo")
    )
    path = cache_dir / "dictionary" / f"{key[:32]}.npz"
    if not path.is_file():
        with shown("reading rendered people", "people") as progress:
            began, tokens, intensity, people = time.monotonic(), [], [], []
            for number, one in enumerate(unit_pairs(model.image_size, PEOPLE, PAIRS)):
                tokens.append(model.tokenize(as_images(one.onset), as_images(one.apex)))
                intensity.append(torch.from_numpy(one.intensity))
                people += [number] * len(one.onset)
                progress(number + 1, PEOPLE, (number + 1) / (time.monotonic() - began))
        found = dictionary.fit(
            model, ActionTokens.cat(tokens), torch.cat(intensity), torch.tensor(people), UNITS
        )
        found.save(path)
    return dictionary.Dictionary.load(path)
