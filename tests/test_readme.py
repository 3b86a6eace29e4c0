"""README stays true: what it names exists."""

from __future__ import annotations

import ast
import re
from importlib import import_module

from places import ROOT

from mefar.__main__ import TRAINER_VERBS, VERBS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_make_target_is_there() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"demo", "test", "pretrain", "loso"} <= named <= targets


def test_every_verb_is_there() -> None:
    named = set(re.findall(r"(?:`|-m |srun )mefar ([a-z][a-z-]+)", README))
    assert {"probe", "doctor", "import-dface"} <= named <= {*VERBS, *TRAINER_VERBS}


def test_every_file_is_there() -> None:
    named = set(
        re.findall(r"\b((?:experiments|mefar|datamodules|tests)/[\w./]+\.(?:py|md|yaml|csv|png))", README)
    )
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_tree_is_the_tree() -> None:
    tree = README.split("## The tree")[1].split("```")[1].strip("\n").splitlines()
    assert len(tree) <= 20
    room, named = "", set()
    for line in tree:
        words = re.match(r" *((?:[\w.]+(?:/|\.py) ?)+)", line)
        assert words is not None, line
        if not line.startswith(" "):
            room = words[1].strip().rstrip("/")
        for word in words[1].split():
            path = ROOT / room / word if line.startswith(" ") else ROOT / word
            assert path.exists(), path
            named.add(path)
    folders = {p.parent for top in ("mefar", "datamodules") for p in (ROOT / top).glob("*/__init__.py")}
    assert folders <= named


def test_every_option_of_loso_that_it_names_is_one() -> None:
    from inspect import signature

    from mefar.commands.anchors import anchors
    from mefar.commands.doctor import doctor
    from mefar.commands.export import export
    from mefar.commands.loso import loso
    from mefar.commands.recognise import recognise_command
    from mefar.commands.report import report
    from mefar.commands.table import table
    from mefar.commands.transfer import transfer

    verbs = (loso, anchors, doctor, export, recognise_command, report, table, transfer)
    known = {f"--{name.replace('_', '-')}" for verb in verbs for name in signature(verb).parameters}
    others = {"--config", "--help", "--index-url", "--head.dropout", "--training.", "--model.init_args.head"}
    others |= {
        f"--{name}"
        for name in ("model.init_args.weights", "model.init_args.learning_rate", "data.init_args.data")
    }
    assert set(re.findall(r"(--[a-z][\w.-]+)", README)) <= known | others


def test_its_python_is_python_and_what_it_imports_is_there() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        tree = ast.parse(block)
        for node in (each for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)):
            module = import_module(node.module or "")
            assert all(
                hasattr(module, name.name) or import_module(f"{node.module}.{name.name}")
                for name in node.names
            )
