"""README stays true: what it names exists."""

from __future__ import annotations

import re

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
    tree = README.split("## The tree")[1].split("```")[1]
    room, missing = "", []
    for line in tree.splitlines():
        if re.match(r"\w+/", line):
            room = line.split("/")[0]
            assert (ROOT / room).is_dir()
        missing += [name for name in re.findall(r"\b(\w+\.py)\b", line) if not (ROOT / room / name).exists()]
    assert missing == []


def test_every_option_of_loso_that_it_names_is_one() -> None:
    from inspect import signature

    from mefar.commands.anchors import anchors
    from mefar.commands.loso import loso
    from mefar.commands.report import report

    known = {
        f"--{name.replace('_', '-')}" for f in (loso, anchors, report) for name in signature(f).parameters
    }
    others = {"--config", "--help", "--ckpt_path", "--index-url", "--trainer.devices", "--trainer.num_nodes",
              "--data.init_args.data", "--nproc-per-node"}  # fmt: skip
    assert set(re.findall(r"(--[a-z][\w.-]+)", README)) <= known | others
