"""Ablations: one thing changed at a time, one table, and one line where the file is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from places import ROOT
from replicas import write_smic

from mefar.__main__ import main
from mefar.commands.ablate import read, words
from mefar.commands.shipped import shipped


def test_arms_are_runs_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = [(s, e, 1) for s in (1, 2, 3) for e in ("negative", "positive", "surprise")]
    write_smic(tmp_path / "SMIC", clips, size=(64, 64))
    common = {"dataset": "smic", "data": str(tmp_path / "SMIC"), "faces": "precropped", "devices": 1,
              "cache_dir": str(tmp_path / "cache"), "pixels": False}  # fmt: skip
    arms = {"chance": {"method": "Majority"}, "the flow": {"method": "FlowSVM", "head.cost": 0.1}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"common": common, "arms": arms}, sort_keys=False))
    out = tmp_path / "out"
    assert main(["ablate", str(tmp_path / "plan.yaml"), "--out", str(out)]) == 0
    table = (out / "table.md").read_text()
    assert "| Majority |" in table and "| FlowSVM |" in table
    assert (out / "the-flow" / "summary.json").is_file()
    assert "fewer than 5 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: 3", "no ablation"),
        ("arms: {a: {}}", "1 arms"),
        ("arms: {a b: {}, a-b: {}}", "same letters"),
        ("arms: {a: {out: x}, b: {}}", "`out` is every arm's own folder"),
        ("arms: {a: {no_such_option: 1}, b: {}}", "no_such_option"),
    ],
)
def test_what_is_no_ablation_is_said_in_a_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    assert main(["ablate", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "experiments/ablations").glob("*.yaml"))
)
def test_the_shipped_ones_have_options_that_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    common, arms = read(shipped("ablations", name))
    assert common["seeds"] >= 5 and next(iter(arms)).startswith("ours")
    for changes in arms.values():
        assert main(["loso", *words(common | changes), "--print_config"]) == 0, capsys.readouterr().err


def test_options_are_the_words_of_a_command() -> None:
    assert words({"head.pooling": "mean", "head": "X", "pixels": False}) == [
        "--head=X", "--pixels=false", "--head.pooling=mean",
    ]  # fmt: skip
