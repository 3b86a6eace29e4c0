"""A page from its template: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mefar.files import write_text
from mefar.report import figures

ASSETS = Path(__file__).parents[1] / "assets"


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Write a page, whole or not at all: a file of templates/ with the content that it names.

    Whatever a file says is escaped; only our own charts are markup.
    """
    write_text(path, _environment().get_template(template).render(content))
    return path


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mefar.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = {"plural": plural, "range": between, "short": figures.short, "counted": counted}
    environment.filters |= filters | {"png": figures.png_uri}
    return environment


def plural(count: int, noun: str, ending: str = "s") -> str:
    """`1 clip`, `2 clips`."""
    return f"{count:,} {noun}" + ("" if count == 1 else ending)


def between(bounds: Sequence[float]) -> str:
    """`.702–.812`."""
    return "–".join(f"{value:.3f}".removeprefix("0") for value in bounds)


def counted(told: Iterable[object]) -> list[tuple[str, int]]:
    """What is told how often, the most often first."""
    return Counter(map(str, told)).most_common()


def code_usage(counts: Any) -> dict[str, float]:
    """What a page says of how often each code was chosen, (K,) counts.

    Returns:
        codes K, how many are used, their perplexity, and tokens counted; empty for None.
    """
    if counts is None:
        return {}
    usage = np.asarray(counts, np.float64)
    shares = usage[usage > 0] / max(usage.sum(), 1)
    perplexity = math.exp(-float((shares * np.log(shares)).sum()))
    return {"codes": len(usage), "used": len(shares), "perplexity": perplexity, "tokens": int(usage.sum())}
