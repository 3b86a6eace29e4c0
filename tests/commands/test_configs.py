"""Every shipped YAML is accepted by the command that its header names, down to the last key."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

from mefar.__main__ import TRAINER_VERBS, VERBS, main
from mefar.commands import sweep

CONFIGS = sorted((ROOT / "experiments" / "configs").glob("*.yaml"))
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
every_sweep = pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)


class ParsedError(Exception):
    """Raised in place of building anything."""

    def __init__(self, config: Any) -> None:
        super().__init__("parsed")
        self.config = config


def header(path: Path) -> str:
    """The comment that a file opens with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def command(path: Path) -> list[str]:
    """What `mefar` is called with: the header's own words, or those of the make target it names."""
    found = re.search(r"^(mefar|make) (.*)$", header(path), re.MULTILINE)
    assert found, f"{path.name} must open with the command that uses it: mefar fit --config ..., or make ..."
    words = shlex.split(found[2].split("  ")[0])
    if found[1] == "mefar":
        return words
    assert words[0] in ("demo", "pretrain", "loso"), f"{path.name}: make {words[0]} reads no YAML"
    name = str(path.relative_to(ROOT))
    assert words[0] == "demo" or name in (ROOT / "Makefile").read_text(encoding="utf-8")
    if "model" in yaml.safe_load(path.read_text(encoding="utf-8")):
        return ["fit", "--config", name, "--data.init_args.data", "somewhere"]
    return ["loso", "--config", name]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Any]:
    """Parse a command line of LightningCLI and return the configuration of its verb."""
    from mefar.commands.train import MefarCLI

    def stop(self: MefarCLI) -> None:
        raise ParsedError(self.config[self.subcommand])

    monkeypatch.setattr(MefarCLI, "instantiate_classes", stop)
    monkeypatch.setattr(MefarCLI, "_parse_ckpt_path", lambda self: None)
    monkeypatch.chdir(ROOT)

    def call(argv: list[str]) -> Any:
        try:
            code = main(argv)
        except ParsedError as stopped:
            return stopped.config
        pytest.fail(f"mefar {' '.join(argv)} ended with {code}")

    return call


@every_config
def test_the_header_says_how_to_run_it(path: Path) -> None:
    argv = command(path)
    assert argv[0] in {*TRAINER_VERBS, *VERBS}
    assert str(path.relative_to(ROOT)) in argv


@every_config
def test_the_command_accepts_it(path: Path, parse: Any) -> None:
    argv = command(path)
    if argv[0] not in TRAINER_VERBS:
        assert main([*argv, "--print_config"]) == 0
        return
    config = parse(argv)
    sizes = {config[part].get("init_args", {}).get("image_size") for part in ("model", "data")} - {None}
    assert len(sizes) <= 1, f"model and data disagree on image_size: {sizes}"


@every_config
def test_a_wrong_key_is_caught(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check above would pass if the command ignored what it does not know."""
    monkeypatch.chdir(ROOT)
    spoiled = tmp_path / "spoiled.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    spoiled.write_text(yaml.safe_dump({**content, "no_such_key": 1}))
    argv = [str(spoiled) if word == str(path.relative_to(ROOT)) else word for word in command(path)]
    assert main(argv) == 2
    assert "no_such_key" in capsys.readouterr().err


def test_the_stages_are_there() -> None:
    assert {"pretrain", "classify", "edclip"} <= {path.stem for path in CONFIGS}


@every_sweep
def test_a_sweep_varies_options_that_exist(
    path: Path, parse: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of a draw, as the sweep itself spells it, is accepted down to the last option."""
    for name in re.findall(r"\$\{envvar:(\w+)\}", path.read_text(encoding="utf-8")):
        monkeypatch.setenv(name, "composite" if name == "DATASET" else "somewhere")
    plan = sweep.read(path)
    for settings in sweep.draws(plan, 3, seed=0):
        words = sweep.words(plan, settings)
        assert words[0] == "mefar", "the sweep's command runs mefar"
        if words[1] in TRAINER_VERBS:
            parse(words[1:])
            continue
        assert main([*words[1:], "--print_config"]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        for name, value in settings.items():
            place, _, key = name.rpartition(".")
            inside = shown[place] if place else shown
            assert inside.get("init_args", inside)[key] == value
        assert main([*words[1:], "--head.no_such_option=1", "--print_config"]) == 2


@every_sweep
def test_a_sweep_optimises_neither_oracle_nor_last(path: Path) -> None:
    plan = sweep.read(path)
    assert plan["method"] == "bayes"
    assert not {"oracle", "last"} & set(plan["metric"]["name"].split("/"))
    if plan["verb"] == "loso":
        assert plan["metric"]["name"].startswith("loso/inner/")
        where = plan["command"].index("--training.inner")
        assert plan["command"][where + 1] == "true", "without it there is no inner score"


@every_sweep
def test_a_sweep_and_its_runs_are_in_one_project(path: Path) -> None:
    """W&B asks for it; a run of its own project would not be the sweep's."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = content["command"]
    option = "--wandb" if "--wandb" in words else "--trainer.logger.init_args.project"
    assert words[words.index(option) + 1] == content["project"]


def test_the_sweeps_vary_what_matters() -> None:
    varied = {name.rpartition(".")[2] for path in SWEEPS for name in sweep.read(path)["parameters"]}
    assert varied >= {"learning_rate", "depth", "dropout", "entropy_weight", "edclip_weight"}
    assert varied >= {"views", "num_codes", "num_tokens"}
