"""The page of a tokenizer's tokens, to click through, and the dictionary behind it as JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mefar.files import write_text
from mefar.generation.dictionary import Dictionary
from mefar.generation.editing import each_replaced, resting
from mefar.generation.exploring import changes, claims, motion, pictures
from mefar.report import figures
from mefar.report.page import write_page
from mefar.tokens import ActionTokens, SteerableTokenizer

CELL = 96
"""Pixels of a face in a sheet, at most."""
STRONGEST = 6
"""Codes that the page lists for each action unit."""


def write_exploration(
    path: Path,
    about: str,
    made_by: str,
    tokenizer: SteerableTokenizer,
    words: Dictionary,
    faces: Tensor,
    tokens: ActionTokens,
    bases: Mapping[str, int],
    strength: float,
) -> list[Path]:
    """Write the page, and beside it the dictionary and all numbers as .json.

    Args:
        path: of the page.
        about: the tokenizer's name.
        made_by: its fingerprint.
        tokenizer: to ask.
        words: its dictionary.
        faces: (F, 3, S, S) float in [0, 1], at rest.
        tokens: of N pairs.
        bases: what sets of tokens to replace one in, besides that of no action: name -> row of `tokens`.
        strength: at which they are shown.

    Returns:
        The files' paths.
    """
    L, K, rest = tokenizer.num_tokens, tokenizer.num_codes, resting(tokenizer)
    level = None if tokens.strength is None else torch.tensor([strength])
    sets = {"no action": rest} | {name: tokens.indices[row] for name, row in bases.items()}
    views: list[dict[str, Any]] = []
    found = []
    for name, codes in sets.items():
        single = each_replaced(codes, K).flatten(0, 1)
        for number, face in enumerate(faces):
            made = pictures(tokenizer, face, torch.cat([codes[None], single]), level)
            if name == "no action":
                found.append(rearrange(changes(made), "(l k) h w -> l k h w", l=L))
            views.append({"base": name, "face": number} | _sheets(made, L))
    told = claims(tokenizer, faces[0], torch.stack(found), tokens.indices, level)
    moved = motion(tokenizer, faces, each_replaced(rest, K).flatten(0, 1), level)
    moved = rearrange(moved - motion(tokenizer, faces, rest[None], level), "(l k) y x d -> l k y x d", l=L)
    energy = torch.stack(found).square().sum((0, 3, 4))
    position, code = divmod(int(energy.argmax()), K)
    numbers = {
        "tokenizer": about, "fingerprint": made_by, "strength": None if level is None else strength,
        "rest": rest.tolist(), "bases": {name: codes.tolist() for name, codes in sets.items()},
        "units": list(words.units), "correlation": _rounded(words.correlation, 3),
        "slope": _rounded(words.slope, 3),
        "effect": _rounded(words.effect.permute(1, 2, 0), 3),
        "deviation": _rounded(words.deviation.permute(1, 2, 0), 3),
        "motion": _rounded(moved, 4), "claims": _finite(told),
    }  # fmt: skip
    write_text(path.with_suffix(".json"), json.dumps(numbers) + "\n")
    write_page(
        path, "explore.html", title="What each token does", numbers=numbers, claims=told, views=views,
        faces=range(len(faces)), sets=sets, position=position, code=code, L=L, K=K,
        figures=_figures(views[: len(faces)], position, code), by_unit=_by_unit(words),
        square=math.isqrt(L) if math.isqrt(L) ** 2 == L else L,
    )  # fmt: skip
    return [path, path.with_suffix(".json")]


def _rounded(values: Tensor, digits: int) -> Any:
    return np.round(values.double().numpy(), digits).tolist()


def _finite(told: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no nan."""
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in told.items()}


def _sheets(made: Tensor, rows: int) -> dict[str, Any]:
    """(1 + L * K, 3, S, S) pictures, the first of them unchanged, as sheets of L rows: faces, and changes."""
    size = min(CELL, made.shape[-1])
    if size < made.shape[-1]:
        made = functional.interpolate(made, (size, size), mode="bilinear", antialias=True)
    cells: figures.Picture = (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    first, others = cells[0], cells[1:]
    gain = figures.gain_for(first, max(others, key=lambda one: float(np.abs(one.astype(int) - first).mean())))
    maps = np.stack([figures.signed_map(first, one, gain) for one in others])
    sheets = [rearrange(each, "(l k) h w c -> (l h) (k w) c", l=rows) for each in (others, maps)]
    return {"gain": gain, "pictures": sheets[0], "maps": sheets[1], "cell": size,
            "picture_uri": _uri(sheets[0]), "map_uri": _uri(sheets[1])}  # fmt: skip


def _uri(picture: figures.Picture) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figures(views: list[dict[str, Any]], position: int, code: int) -> list[str]:
    """One code at every position, and every code at one position: a row per face and one of its changes."""
    cell = views[0]["cell"]
    sheets = [view[kind] for view in views for kind in ("pictures", "maps")]
    column = [
        rearrange(each[:, code * cell : (code + 1) * cell], "(l h) w c -> h (l w) c", h=cell)
        for each in sheets
    ]
    row = [each[position * cell : (position + 1) * cell] for each in sheets]
    parts = [
        [each[:, start : start + 16 * cell] for each in row] for start in range(0, row[0].shape[1], 16 * cell)
    ]
    return [_uri(np.concatenate(each)) for each in (column, *parts)]


def _by_unit(words: Dictionary) -> list[dict[str, Any]]:
    """For every action unit the codes that surely add or take most."""
    found = []
    for row, unit in enumerate(words.units):
        effect = torch.where(words.sure[row], words.effect[row], 0.0)
        order = effect.abs().flatten().argsort(descending=True)[:STRONGEST].tolist()
        places = [divmod(place, effect.shape[1]) for place in order]
        codes = [(*at, float(effect[at]), float(words.deviation[row][at])) for at in places if effect[at]]
        found.append({"unit": unit, "correlation": float(words.correlation[row]), "codes": codes})
    return found
