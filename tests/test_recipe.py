from __future__ import annotations

import ast
from pathlib import Path

import pytest

from datamodules import pairs, recipe

ROOT = Path(pairs.__file__).parent


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Module -> code, to be edited; real code where nothing is set."""
    edited: dict[str, bytes] = {}
    real = recipe._source
    monkeypatch.setattr(recipe, "_source", lambda module: edited.get(module) or real(module))
    return edited


def fresh(*modules: str) -> str:
    recipe.recipe.cache_clear()
    try:
        return recipe.recipe(*modules)
    finally:
        recipe.recipe.cache_clear()


@pytest.mark.parametrize("module", pairs.MADE_BY)
def test_any_change_of_code_counts_and_a_comment_does_not(sources: dict[str, bytes], module: str) -> None:
    before = fresh(*pairs.MADE_BY)
    code = (ROOT / f"{module}.py").read_bytes()
    sources[module] = b"# a comment\n\n" + code + b"\n# another\n"
    assert fresh(*pairs.MADE_BY) == before
    sources[module] = code + b"\nANOTHER = 1\n"
    assert fresh(*pairs.MADE_BY) != before


def test_the_recipe_of_pairs_names_everything_that_makes_pixels() -> None:
    """What pairs imports from this package, but for types, locks, reading and writing of text."""
    tree = ast.parse((ROOT / "pairs.py").read_text())
    used = {n.module.removeprefix("datamodules.") for n in tree.body if isinstance(n, ast.ImportFrom)
            and n.module and n.module.startswith("datamodules.")}  # fmt: skip
    assert used - {"atomic", "sample", "recipe"} | {"pairs"} == set(pairs.MADE_BY)
