"""Sweep files: read as W&B reads them, drawn, expanded, run here, and never for the oracle."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sample_runs import write_run
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from mefar.__main__ import main
from mefar.commands import RUN_ID, fill, name_run, run_function, sweep
from mefar.errors import UserError

SWEEP: dict[str, Any] = {
    "method": "random",
    "metric": {"name": "loso/inner/uf1", "goal": "maximize"},
    "command": ["mefar", "loso", "--out", "runs/{run}", "${args}"],
    "parameters": {"head.depth": {"min": 1, "max": 3}, "views": {"values": [1, 8]}},
}
# Stands for a run: leaves the files that are read, remembers its call, fails where it is told to.
STAND_IN = """
import json, os, pathlib, sys
options = dict(word.removeprefix("--").split("=") for word in sys.argv if "=" in word)
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
told = [os.environ["WANDB_MODE"], os.environ["WANDB_RUN_ID"], str(out), options["x"]]
print(json.dumps(told), file=open("calls", "a"))
if options["x"] == "3" and not os.path.exists("mended"):
    sys.exit("x must not be 3")
score = {"full": {"uf1": float(options["x"]) / 10, "uar": 0.5}}
scores = {"last": score, "inner": score, "oracle": score}
if os.path.exists("no inner"):
    del scores["inner"]
out.mkdir(parents=True, exist_ok=True)
summary = {"protocol": "smic", "classes": ["a"], "counts": {}, "scores": scores}
(out / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_ID, raising=False)


def write(content: Any = None, **changes: Any) -> Path:
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump(content or SWEEP | changes))
    return path


def drawn(entry: dict[str, Any], count: int = 300) -> list[Any]:
    """Values of one parameter."""
    entry = sweep.read(write(parameters={"x": entry}))["parameters"]["x"]
    generator = np.random.default_rng(0)
    return [sweep.draw(entry, generator) for _ in range(count)]


# Draws


@pytest.mark.parametrize(
    ("entry", "least", "most"),
    [
        ({"min": 0.0, "max": 0.5}, 0.0, 0.5),
        ({"distribution": "uniform", "min": 1, "max": 2}, 1, 2),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}, 1e-4, 1e-1),
    ],
)
def test_a_continuum_is_drawn_within_its_range(entry: dict[str, Any], least: float, most: float) -> None:
    values = drawn(entry)
    assert all(isinstance(value, float) and least <= value <= most for value in values)
    assert len(set(values)) > 250
    if "log" in entry.get("distribution", ""):
        # Half of the draws on either side of the geometric middle.
        assert np.log(values).mean() == pytest.approx((np.log(least) + np.log(most)) / 2, abs=0.4)
    else:
        assert np.mean(values) == pytest.approx((least + most) / 2, abs=0.05 * (most - least))


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ({"value": 7}, {7}),
        ({"values": [2, "two", True, 0.5]}, {2, "two", True, 0.5}),
        ({"values": ["a", "b", "c"], "probabilities": [0.5, 0.5, 0.0]}, {"a", "b"}),
        ({"min": 1, "max": 3}, {1, 2, 3}),
        ({"distribution": "int_uniform", "min": -1, "max": 1}, {-1, 0, 1}),
    ],
)
def test_steps_and_lists_are_all_drawn_and_nothing_else(entry: dict[str, Any], values: set[Any]) -> None:
    found = set(drawn(entry))
    assert found == values
    assert {type(value) for value in found} == {type(value) for value in values}


def test_draws_are_seeded_nested_and_different() -> None:
    content = sweep.read(write())
    assert sweep.draws(content, 4, 0) == sweep.draws(content, 6, 0)[:4]
    assert sweep.draws(content, 4, 0) != sweep.draws(content, 4, 1)
    every = sweep.draws(content, 50, 0)  # 3 depths, 2 numbers of views
    assert len(every) == 6 == len({json.dumps(settings) for settings in every})


def test_a_grid_is_whole_and_in_order() -> None:
    parameters = {"head.depth": {"values": [1, 2, 3]}, "views": {"values": [1, 8]}, "seeds": {"value": 2}}
    content = sweep.read(write(method="grid", parameters=parameters))
    rows = [(settings["head.depth"], settings["views"]) for settings in sweep.draws(content, 99, 0)]
    assert rows == [(depth, views) for depth in (1, 2, 3) for views in (1, 8)]
    assert len(sweep.draws(content, 4, 0)) == 4
    with pytest.raises(UserError, match=r"parameters\.x: give value, values \(a grid needs them\)"):
        sweep.read(write(method="grid", parameters={"x": {"min": 0.0, "max": 1.0}}))


# The command


MEANT = {
    "dropout": None, "learning_rate": 1e-4, "seeds": [1, 2], "download": True, "name": "two words", "views": 8
}  # fmt: skip


def takes(
    *,
    dropout: float | None = 0.5,
    learning_rate: float = 1.0,
    seeds: list[int] | None = None,
    download: bool = False,
    name: str = "",
    views: int = 1,
) -> None:
    """Do nothing."""
    got.append({"dropout": dropout, "learning_rate": learning_rate, "seeds": seeds, "download": download,
                "name": name, "views": views})  # fmt: skip


got: list[dict[str, Any]] = []


def test_values_reach_their_options_as_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """By our own spelling and by that of W&B's agent, of a file with `1e-4` and `null` in it."""
    Path("sweep.yaml").write_text(
        """{method: grid, metric: {name: loso/inner/uf1, goal: maximize},
        command: [mefar, loso, --out, "runs/{run}", "${args}"],
        parameters: {dropout: {values: [null]}, learning_rate: {values: [1e-4]}, seeds: {values: [[1, 2]]},
                     download: {value: true}, name: {value: two words}, views: {values: [8]}}}"""
    )
    content = sweep.read(Path("sweep.yaml"))
    (settings,) = sweep.draws(content, 9, 0)
    assert settings == MEANT
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in settings.items()}})
    monkeypatch.setenv(RUN_ID, "abc")
    for words in (sweep.words(content, settings)[4:], theirs["args"]):
        assert run_function(takes, name_run(words), "mefar takes") == 0
        assert got.pop() == MEANT


def test_the_command_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_1", "/some where")
    content = sweep.read(write(command=["mefar", "loso", "--out=o/{run}", "a${envvar:DATA_1}b", "${args}"]))
    assert content["folder"] == "o/{run}" and content["verb"] == "loso"
    words = sweep.words(content, {"head.depth": 2})
    assert words == ["mefar", "loso", "--out=o/{run}", "a/some whereb", "--head.depth=2"]
    monkeypatch.delenv("DATA_1")
    with pytest.raises(UserError, match="DATA_1 is missing"):
        sweep.words(content, {})


def test_names_in_braces_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("K{num_codes}-L{num_tokens}/last.ckpt")
    assert fill(path, num_codes=32, num_tokens=16) == Path("K32-L16/last.ckpt")
    assert fill(Path("plain"), num_codes=3) == Path("plain")
    with pytest.raises(UserError, match=r"nothing to put for \{num_tokens\}; give --num_tokens"):
        fill(path, num_codes=32, num_tokens=None)
    with pytest.raises(UserError, match="WANDB_RUN_ID, which a sweep sets"):
        fill(Path("runs/{run}"))
    assert name_run(["--out", "runs/{run}"]) == ["--out", "runs/{run}"]
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert name_run(["--out", "runs/{run}"]) == ["--out", "runs/abc"]


def test_a_fit_is_judged_by_its_last_validation() -> None:
    Path("metrics.csv").write_text("step,train/loss,val/gain\n1,0.5,\n2,,3.0\n3,0.4,\n4,,2.5\n")
    assert sweep.scores("fit", Path())["val/gain"] == 2.5


def test_a_loso_is_judged_by_its_summary(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    scores = json.loads((folder / "summary.json").read_text())["scores"]
    found = sweep.scores("loso", folder)
    assert found["loso/last/uf1"] == scores["last"]["full"]["uf1"]
    assert found["loso/last/samm/uar"] == scores["last"]["samm"]["uar"]


# What is refused


def metric(name: str) -> dict[str, Any]:
    return {"metric": {"name": name, "goal": "maximize"}}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"parameters": {}}, "parameters vary"),
        ({"method": "guess"}, "method is one of"),
        ({"metric": None}, "no sweep of W&B's"),
        ({"metric": {"name": "loso/inner/uf1", "goal": "up"}}, "goal of"),
        (metric("loso/oracle/uf1"), "metric loso/oracle/uf1 is none to tune by"),
        (metric("loso/uf1"), "take loso/inner/uf1, or say loso/last/uf1 if you mean it"),
        ({"command": None}, "no sweep of W&B's"),
        ({"command": ["mefar", "demo", "${args}"]}, "must run `mefar loso` or `mefar fit`"),
        ({"command": ["mefar", "loso", "--out", "runs/all", "${args}"]}, "runs overwrite each other"),
        ({"command": ["mefar", "loso", "${args}"]}, "runs overwrite each other"),
        ({"command": ["mefar", "loso", "--out=r/{run}", "${program}", "${args}"]}, "program is missing"),
        (
            {"command": ["mefar", "loso", "--out=r/{run}", "${envvar:NOWHERE}", "${args}"]},
            "NOWHERE is missing",
        ),
        ({"parameters": {"x": 3}}, "parameters.x: give value, values"),
        ({"parameters": {"x": {"parameters": {}}}}, "parameters.x: give value"),
        ({"parameters": {"x": {"values": []}}}, "parameters.x: give value"),
        ({"parameters": {"x": {"values": [1, 2], "probabilities": [1]}}}, "parameters.x: give value"),
        ({"parameters": {"x": {"min": 1}}}, "parameters.x: give value"),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, "parameters.x: give value"),
        ({"parameters": {"x": {"min": 2.0, "max": 1.0}}}, "parameters.x: give value"),
        ({"parameters": {"x": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}}, "parameters.x"),
        ({"parameters": {"x": {"min": 0, "max": 1, "distribution": "beta"}}}, "W&B's server knows more"),
    ],
)
def test_a_mistake_is_one_line(
    changes: dict[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(write(**changes)), "--local", "2"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mefar sweep: error: ") and line.count("\n") == 1
    assert complaint in line and ("sweep.yaml" in line)
    assert not [path for path in Path().rglob("*") if path.name in ("calls", "summary.json")], (
        "nothing was begun"
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "no such file"), ("a: [", "no sweep"), ("- 1", "no sweep"), ("", "no sweep")],
)
def test_a_file_that_is_no_sweep(
    content: str | None, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("sweep.yaml").write_text(content)
    assert main(["sweep", "sweep.yaml"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mefar sweep: error: sweep.yaml: ") and line.count("\n") == 1
    assert complaint in line


def test_without_local_the_file_is_only_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write(method="bayes"))]) == 0
    assert capsys.readouterr().out == "sweep.yaml: bayes over head.depth, views for loso/inner/uf1\n"
    assert not Path("runs").exists()


# Running


def stand_in(**changes: Any) -> Path:
    Path("stand_in.py").write_text(STAND_IN)
    command = [sys.executable, "stand_in.py", "mefar", "loso", "--out", "runs/{run}", "${args}"]
    return write(command=command, parameters={"x": {"values": [1, 2, 3, 4]}}, **changes)


def calls() -> list[list[str]]:
    return [json.loads(line) for line in Path("calls").read_text().splitlines()]


def best(printed: str) -> list[str]:
    """Values of the table at the end."""
    return re.findall(r"^(\d\.\d{4})  ", printed, re.MULTILINE)


def test_a_sweep_runs_here_survives_a_failure_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(stand_in(method="grid"))
    assert main(["sweep", file, "--local", "3"]) == 0
    printed = capsys.readouterr().out
    assert [call[3] for call in calls()] == ["1", "2", "3"]
    assert all(call[0] == "offline" and call[2] == f"runs/{call[1]}" for call in calls())
    assert len({call[1] for call in calls()}) == 3, "every run has a folder of its own"
    assert "failed: x must not be 3" in printed
    assert best(printed) == ["0.2000", "0.1000"], "best first"

    # Again, with one more: what is finished stays, what failed is tried again.
    Path("mended").touch()
    assert main(["sweep", file, "--local", "4"]) == 0
    assert [call[3] for call in calls()] == ["1", "2", "3", "3", "4"]
    assert best(capsys.readouterr().out) == ["0.4000", "0.3000", "0.2000", "0.1000"]


def test_bayes_is_random_here_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mended").touch()
    assert main(["sweep", str(stand_in(method="bayes")), "--local", "2", "--seed", "5"]) == 0
    assert "sweep.yaml: at random over x" in capsys.readouterr().out
    assert len(calls()) == 2


def test_less_is_better_where_the_file_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    file = stand_in(method="grid", metric={"name": "loso/inner/uf1", "goal": "minimize"})
    assert main(["sweep", str(file), "--local", "2"]) == 0
    values = best(capsys.readouterr().out)
    assert values == ["0.1000", "0.2000"]


def test_a_metric_that_no_run_leaves_ends_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    Path("no inner").touch()
    assert main(["sweep", str(stand_in(method="grid")), "--local", "3"]) == 2
    assert "no loso/inner/uf1" in capsys.readouterr().err
    assert len(calls()) == 1, "the others would not have it either"


def test_a_sweep_in_which_everything_fails_fails(capsys: pytest.CaptureFixture[str]) -> None:
    file = stand_in(method="grid")
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"parameters": {"x": {"value": 3}}}))
    assert main(["sweep", str(file), "--local", "1"]) == 1
