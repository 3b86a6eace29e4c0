"""Sweep files: read as W&B reads them, drawn, expanded, run here, and never for the oracle."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sample_runs import write_run
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from mefar import sweeps
from mefar.__main__ import main
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
    monkeypatch.delenv(sweeps.RUN_ID, raising=False)


def write(content: Any = None, **changes: Any) -> Path:
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump(content or SWEEP | changes))
    return path


def drawn(entry: dict[str, Any], count: int = 300) -> list[Any]:
    """Values of one parameter."""
    parameter = sweeps.read(write(parameters={"x": entry})).parameters["x"]
    generator = np.random.default_rng(0)
    return [parameter.draw(generator) for _ in range(count)]


# Draws


@pytest.mark.parametrize(
    ("entry", "least", "most"),
    [
        ({"min": 0.0, "max": 0.5}, 0.0, 0.5),
        ({"distribution": "uniform", "min": 1, "max": 2}, 1, 2),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}, 1e-4, 1e-1),
        ({"distribution": "log_uniform", "min": -2, "max": 0}, np.exp(-2), 1),
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
        ({"distribution": "q_uniform", "min": 0.1, "max": 0.3, "q": 0.1}, {0.1, 0.2, 0.3}),
        ({"distribution": "q_uniform", "min": 8, "max": 32, "q": 8}, {8, 16, 24, 32}),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 3, "q": 1}, {1, 2, 3}),
    ],
)
def test_steps_and_lists_are_all_drawn_and_nothing_else(entry: dict[str, Any], values: set[Any]) -> None:
    found = set(drawn(entry))
    assert found == values
    assert {type(value) for value in found} == {type(value) for value in values}


def test_normal_kinds_have_their_middle_and_spread() -> None:
    values = drawn({"distribution": "normal", "mu": 2.0, "sigma": 0.5}, 2000)
    assert (np.mean(values), np.std(values)) == (pytest.approx(2, abs=0.05), pytest.approx(0.5, abs=0.03))
    values = drawn({"distribution": "log_normal", "mu": 2.0, "sigma": 0.5}, 2000)
    assert np.log(values).mean() == pytest.approx(2, abs=0.05)


def test_draws_are_seeded_nested_and_different() -> None:
    sweep = sweeps.read(write())
    assert sweep.draws(4, 0) == sweep.draws(6, 0)[:4]
    assert sweep.draws(4, 0) != sweep.draws(4, 1)
    every = sweep.draws(50, 0)  # 3 depths, 2 numbers of views
    assert len(every) == 6 == len({json.dumps(settings) for settings in every})


def test_a_grid_is_whole_and_in_order() -> None:
    sweep = sweeps.read(write(method="grid"))
    rows = [(settings["head.depth"], settings["views"]) for settings in sweep.draws(99, 0)]
    assert rows == [(depth, views) for depth in (1, 2, 3) for views in (1, 8)]
    assert len(sweep.draws(4, 0)) == 4
    with pytest.raises(UserError, match=r"parameters\.x: a grid needs values"):
        sweeps.read(write(method="grid", parameters={"x": {"min": 0.0, "max": 1.0}})).draws(1, 0)


# The command


def test_macros_are_expanded_as_wandb_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_1", "/some where")
    command = ["${env}", "${interpreter}", "${program}", "mefar", "loso", "--out=o/{run}"]
    command += ["a${envvar:DATA_1}b", "${args}", "${args_no_hyphens}"]
    sweep = sweeps.read(write(command=command, program="train.py"))
    settings = {"head.depth": 2, "training.inner": True, "lr": 1e-05}
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in settings.items()}})
    expected = ["/usr/bin/env", "PYTHON", "train.py", *create_sweep_command(list(command))[3:-2]]
    expected += [*theirs["args"], *theirs["args_no_hyphens"]]
    assert sweep.words(settings) == [sweeps.sys.executable if word == "PYTHON" else word for word in expected]
    assert sweep.folder == "o/{run}"

    name = sweep.name(settings)
    monkeypatch.setenv("DATA_1", "/elsewhere")
    assert sweep.name(settings) != name, "the same settings on other data are another run"
    monkeypatch.delenv("DATA_1")
    with pytest.raises(UserError, match="DATA_1 is missing"):
        sweep.words(settings)


def test_names_in_braces_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("K{num_codes}-L{num_tokens}/last.ckpt")
    assert sweeps.fill(path, num_codes=32, num_tokens=16) == Path("K32-L16/last.ckpt")
    assert sweeps.fill(Path("plain"), num_codes=3) == Path("plain")
    with pytest.raises(UserError, match=r"nothing to put for \{num_tokens\}; give --num_tokens"):
        sweeps.fill(path, num_codes=32, num_tokens=None)
    with pytest.raises(UserError, match="WANDB_RUN_ID, which a sweep sets"):
        sweeps.fill(Path("runs/{run}"))
    assert sweeps.name_run(["--out", "runs/{run}"]) == ["--out", "runs/{run}"]
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert sweeps.name_run(["--out", "runs/{run}"]) == ["--out", "runs/abc"]


def test_a_fit_is_judged_by_its_last_validation() -> None:
    command = ["mefar", "fit", "--trainer.default_root_dir", "r/{run}", "${args}"]
    sweep = sweeps.read(write(command=command, metric={"name": "val/gain", "goal": "maximize"}))
    Path("metrics.csv").write_text("step,train/loss,val/gain\n1,0.5,\n2,,3.0\n3,0.4,\n4,,2.5\n")
    assert sweep.score(Path()) == 2.5
    Path("metrics.csv").write_text("step,train/loss\n1,0.5\n")
    with pytest.raises(UserError, match=r"no val/gain, which .* optimises; there are step, train/loss"):
        sweep.score(Path())


def test_a_loso_is_judged_by_its_summary(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    scores = json.loads((folder / "summary.json").read_text())["scores"]
    for name, value in (("loso/last/uf1", scores["last"]["full"]["uf1"]),
                        ("loso/last/samm/uar", scores["last"]["samm"]["uar"])):  # fmt: skip
        assert sweeps.read(write(metric={"name": name, "goal": "maximize"})).score(folder) == value
    with pytest.raises(UserError, match=r"set training\.inner"):
        sweeps.read(write()).score(folder)


# What is refused


def metric(name: str) -> dict[str, Any]:
    return {"metric": {"name": name, "goal": "maximize"}}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"parameters": {}}, "no parameters"),
        ({"method": "guess"}, "method is 'guess'; give one of grid, random, bayes"),
        ({"metric": None}, "metric.name is missing"),
        ({"metric": {"name": "loso/inner/uf1"}}, "metric.goal is None; give maximize or minimize"),
        (metric("loso/oracle/uf1"), "metric loso/oracle/uf1 is chosen on the tested subjects"),
        (metric("loso/uf1"), "take loso/inner/uf1, or say loso/last/uf1 if you mean it"),
        (metric("loso/inner/f1"), "metric loso/inner/f1 is unknown"),
        ({"command": None}, "command is missing"),
        ({"command": ["mefar", "demo", "${args}"]}, "must run `mefar loso` or `mefar fit`"),
        ({"command": ["mefar", "loso", "--out", "runs/all", "${args}"]}, "needs --out with {run} in it"),
        ({"command": ["mefar", "loso", "${args}"]}, "needs --out with {run} in it"),
        ({"command": ["mefar", "loso", "--out=r/{run}", "${args_json}"]}, "nothing to put for ${args_json}"),
        ({"command": ["mefar", "loso", "--out=r/{run}", "${program}"]}, "nothing to put for ${program}"),
        ({"command": ["mefar", "loso", "--out=r/{run}", "${envvar:NOWHERE_SET}"]}, "NOWHERE_SET is missing"),
        ({"parameters": {"x": 3}}, "parameters.x: give value, values, or min and max"),
        ({"parameters": {"x": {"parameters": {}}}}, "parameters.x: is nested"),
        ({"parameters": {"x": {"values": []}}}, "parameters.x: values is not a list"),
        ({"parameters": {"x": {"values": [1, 2], "probabilities": [1]}}}, "probabilities do not fit"),
        ({"parameters": {"x": {"min": 1}}}, "parameters.x: max is None; give a number"),
        ({"parameters": {"x": {"min": "1e-4", "max": 1}}}, "min is '1e-4'; give a number, such as 0.001"),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, "min 2, max 1, q 1 are no range"),
        (
            {"parameters": {"x": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}},
            "no range of log_u",
        ),
        ({"parameters": {"x": {"min": 0, "max": 1, "distribution": "beta"}}}, "distribution beta is unknown"),
    ],
)
def test_a_mistake_is_one_line(
    changes: dict[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(write(**changes)), "--local", "2"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mefar sweep: error: ") and line.count("\n") == 1
    assert complaint in line and ("sweep.yaml" in line)
    assert not Path("runs").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "no such file"), ("a: [", "not YAML"), ("- 1", "no parameters")]
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
    assert capsys.readouterr().out == "sweep.yaml: bayes over 2 parameters for loso/inner/uf1\n"
    assert main(["sweep", "sweep.yaml", "--local", "-1"]) == 2
    assert not Path("runs").exists()


# Running


def stand_in(**changes: Any) -> Path:
    Path("stand_in.py").write_text(STAND_IN)
    command = ["${interpreter}", "stand_in.py", "mefar", "loso", "--out", "runs/{run}", "${args}"]
    return write(command=command, parameters={"x": {"values": [1, 2, 3, 4]}}, **changes)


def calls() -> list[list[str]]:
    return [json.loads(line) for line in Path("calls").read_text().splitlines()]


def results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("runs/sweeps/sweep/results.jsonl").read_text().splitlines()]


def test_a_sweep_runs_here_survives_a_failure_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(stand_in(method="grid"))
    assert main(["sweep", file, "--local", "3"]) == 0
    printed = capsys.readouterr()
    assert [call[3] for call in calls()] == ["1", "2", "3"]
    assert all(call[0] == "offline" and call[2] == f"runs/{call[1]}" for call in calls())
    assert len({call[1] for call in calls()}) == 3, "every run has a folder of its own"
    assert [row["value"] for row in results()] == [0.1, 0.2, None]
    assert results()[2]["error"] == "exit code 1: x must not be 3"
    assert "x must not be 3" in printed.err
    values = [line.split("│")[1].strip() for line in printed.out.splitlines() if line.startswith("│")]
    assert values == ["0.2000", "0.1000", "failed"], "best first"

    # Again, with one more: what is finished stays, what failed is tried again.
    Path("mended").touch()
    assert main(["sweep", file, "--local", "4"]) == 0
    assert [call[3] for call in calls()] == ["1", "2", "3", "3", "4"]
    values = [
        line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")
    ]
    assert values == ["0.4000", "0.3000", "0.2000", "0.1000"]
    assert {Path(row["folder"]) for row in results()} == {Path(call[2]) for call in calls()}


SLOW = """
import json, sys, time
from pathlib import Path
options = sys.argv[1:]
out = Path(options[options.index("--out") + 1])
assert not Path("works").exists(), "two draws at a time"
Path("works").touch()
time.sleep(1.5)
out.mkdir(parents=True, exist_ok=True)
scores = {"last": (score := {"full": {"uf1": 0.5, "uar": 0.5}}), "inner": score, "oracle": score}
summary = {"protocol": "smic", "classes": ["a"], "counts": {}, "scores": scores}
(out / "summary.json").write_text(json.dumps(summary))
Path("works").unlink()
"""


def test_a_draw_that_outlives_its_sweep_is_waited_for() -> None:
    Path("slow.py").write_text(SLOW)
    command = ["${interpreter}", "slow.py", "mefar", "loso", "--out", "runs/{run}", "${args}"]
    file = str(write(command=command, parameters={"x": {"values": [1]}}, method="grid"))
    process = os.fork()
    if not process:
        os._exit(main(["sweep", file, "--local", "1"]))
    deadline = time.monotonic() + 30
    while not Path("works").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert Path("works").exists(), "the draw goes on"
    assert main(["sweep", file, "--local", "1"]) == 0
    assert [row["value"] for row in results()] == [0.5]


def test_bayes_is_random_here_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mended").touch()
    assert main(["sweep", str(stand_in(method="bayes")), "--local", "2", "--seed", "5"]) == 0
    assert "bayes needs W&B's server: 2 draws at random instead, seed 5" in capsys.readouterr().out
    assert len(calls()) == 2


def test_less_is_better_where_the_file_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    file = stand_in(method="grid", metric={"name": "loso/inner/uf1", "goal": "minimize"})
    assert main(["sweep", str(file), "--local", "2"]) == 0
    values = [
        line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")
    ]
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
