"""The speed scripts: a toy run ends in a ratio, also without the packages that a bare GPU machine lacks."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

from mefar.classifier.head import TokenHead

SMALL = partial(TokenHead, dim=8, depth=1, heads=2, feedforward=8)
FOLDER = ROOT / "experiments" / "benchmarks"
MISSING_THERE = ("albumentations", "decord", "jsonargparse", "openpyxl", "wandb")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_explains_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script(path.stem, monkeypatch)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert f"python experiments/benchmarks/{path.name}" in capsys.readouterr().out


def test_the_made_up_study_has_the_counts_of_the_composite(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("loso", monkeypatch)
    for case in (module.PUBLISHED, module.DEFAULT):
        study = module.composite(case)
        assert [len(set(study.subjects)), len(study.labels)] == [68, 442]
    assert module.apart(module.DEFAULT, 1) < 1e-6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tokenizer_step", ["--small", "--turns", "1", "--device", "cpu"]),
        ("loso", ["--default-only", "--no-whole", "--turns", "1", "--epochs", "1"]),
    ],
)
def test_a_toy_run_compares_both_sides_and_ends_in_a_ratio(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scripts themselves stop if the two sides do not compute the same."""
    for package in MISSING_THERE:
        monkeypatch.setitem(sys.modules, package, None)
    module = script(name, monkeypatch)
    if name == "loso":
        monkeypatch.setattr(module, "DEFAULT", replace(module.DEFAULT, head=SMALL, views=1))
    monkeypatch.setattr(sys, "argv", [name, *words])
    module.main()
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("ratio ")
    assert float(last.removeprefix("ratio ")) > 0
