"""The `mefar` command: quick to answer, one line for a mistake, a folder per training."""

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from places import ROOT
from powerless import powerless

from mefar import __version__
from mefar.__main__ import TRAINER_VERBS, VERBS, main
from mefar.commands import guard, plain, quiet, run_function
from mefar.errors import UserError
from mefar.files import write_text

CONFIG = {
    "model": {"class_path": "ToyModel", "init_args": {"width": 4}},
    "data": {"class_path": "ToyData", "init_args": {"data": "nowhere"}},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
}


def error_of(capsys: pytest.CaptureFixture[str], verb: str) -> str:
    """The one line that a mistake must leave on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"mefar {verb}: error: ")
    return lines[0].removeprefix(f"mefar {verb}: error: ")


# The table of verbs


def test_help_answers_without_torch() -> None:
    code = "import sys; from mefar.__main__ import main; main([]); main(['--version'])\n"
    code += "heavy = {'torch', 'lightning', 'numpy', 'jsonargparse'}\n"
    code += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb} " in done.stdout for verb in [*TRAINER_VERBS, *VERBS])
    assert f"mefar {__version__}" in done.stdout


def test_every_verb_exists_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        assert main([verb, "--help"]) == 0, verb
        assert f"usage: mefar {verb}" in capsys.readouterr().out


def test_unknown_verbs_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lose"]) == 2
    assert "no verb 'lose'; choose from fit" in capsys.readouterr().err
    for verb in VERBS:
        assert main([verb, "--no-such-option", "1"]) == 2, verb
        captured = capsys.readouterr().err
        assert captured.startswith(f"mefar {verb}: error: "), captured
        assert captured.count("\n") == 1, captured


def test_an_unknown_data_set_is_answered_with_those_that_are_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "casme9", "x"]) == 2
    line = error_of(capsys, "doctor")
    assert "casme9" in line
    assert "composite" in line


# A function as a command


@dataclass(frozen=True)
class Training:
    """How.

    Attributes:
        epochs: how long.
    """

    epochs: int = 3

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"training: epochs {self.epochs} is less than 1; give more")


def example(
    folder: Path,
    *,
    dataset: Literal["composite", "samm"],
    out: Path = Path("runs"),
    batch_size: int = 4,
    seeds: list[int] | None = None,
    download: bool = False,
    training: Training = Training(),
) -> None:
    """Do nothing, by way of example.

    Args:
        folder: where.
        dataset: which.
        out: whereto.
        batch_size: clips per step.
        seeds: several.
        download: from the network.
        training: how.
    """
    if dataset == "samm":
        raise UserError(f"{folder}: no coding file; put it there")
    print(folder, out, batch_size, seeds, download, training.epochs)


def run_example(*argv: str) -> int:
    return run_function(example, argv, "mefar example")


def test_a_function_becomes_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ("here", "--dataset", "composite", "--batch-size=8", "--download", "--out", "there")
    assert run_example(*argv) == 0
    assert capsys.readouterr().out == "here there 8 None True 3\n"
    options = {"dataset": "composite", "seeds": [1, 2], "download": True, "training": {"epochs": 5}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(options))
    assert run_example("here", "--config", str(tmp_path / "x.yaml"), "--batch_size", "3") == 0
    assert capsys.readouterr().out == "here runs 3 [1, 2] True 5\n"
    assert run_example("--help") == 0
    shown = capsys.readouterr().out
    assert "Do nothing, by way of example." in shown
    assert "clips per step" in shown


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "following arguments are required: folder, dataset"),
        (["x", "--dataset", "casme9"], "Literal['composite', 'samm']. Got value: casme9"),
        (
            ["x", "--dataset", "composite", "--batch-size", "many"],
            '"batch_size": Expected a int. Got value: many',
        ),
        (
            ["x", "--dataset", "composite", "--seeds", "a"],
            '"seeds": expected one of [list[int], NoneType]; got a',
        ),
        (["x", "--dataset", "composite", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["x", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["x", "--dataset", "samm", "--training.epochs", "0"], "training: epochs 0 is less than 1"),
        (["x", "--dataset", "samm", "--training.color", "0"], "--training.color"),
        (["x", "--dataset", "samm"], "x: no coding file; put it there"),
    ],
)
def test_mistakes_end_in_one_line(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_example(*argv) == 2
    assert complaint in error_of(capsys, "example")


def test_a_wrong_key_in_yaml_names_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("dataset: composite\ncolour: red\n")
    assert run_example("here", "--config", str(tmp_path / "x.yaml")) == 2
    line = error_of(capsys, "example")
    assert "'colour' is not accepted" in line
    assert "x.yaml" in line


def test_what_a_disk_answers_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "locked").mkdir(mode=0o555)

    def write(path: str) -> Callable[[], int]:
        return lambda: (tmp_path / path).write_text("ours")

    for path, complaint in (
        ("file/below", "not a directory; a file stands where a folder is meant"),
        ("locked/x", "permission denied; give a place that you may read and write"),
        ("loop", "too many levels of symbolic links; a link that leads to itself"),
        (".", "is a directory; a folder stands where a file is meant"),
        ("nowhere/x", "no such file or directory; give a path that exists"),
        ("x" * 300, "give a shorter path"),
    ):
        with powerless():
            assert guard("mefar x", write(path)) == 2
        assert complaint in error_of(capsys, "x")

    with powerless():
        assert guard("mefar x", lambda: write_text(tmp_path / "locked/x", "ours") or 0) == 2
    assert "/locked/x: permission denied" in error_of(capsys, "x"), "not of a temporary file"

    def full() -> int:
        raise ValueError("the library's words") from OSError(errno.ENOSPC, "No space left on device")

    assert guard("mefar x", full) == 2
    assert error_of(capsys, "x") == "no space left on device; make room, or give another place"
    with pytest.raises(ConnectionRefusedError):  # no disk's answer: a bug
        guard("mefar x", lambda: socket.create_connection(("127.0.0.1", 1)) and 0)


def test_ranks_tell_their_number_with_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One machine of several may lack a file: whoever runs into it says so."""

    def fail() -> int:
        raise UserError("too few pairs")

    for rank, mark in (("0", ""), ("1", " (rank 1)")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert guard("mefar x", fail) == 2
        assert capsys.readouterr().err == f"mefar x{mark}: error: too few pairs\n"


def test_a_reader_that_goes_away_ends_us_quietly(tmp_path: Path) -> None:
    code = "import sys; from mefar.commands import guard; "
    code += "sys.exit(guard('mefar x', lambda: print('line\\n' * 100_000) or 0))"
    words = f'{sys.executable} -c "{code}" | head -n 1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "line\n141\n" and done.stderr == ""


def test_anchors_replace_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("my notes")
    assert main(["anchors", "--out", str(tmp_path / "mine"), "--text-model", str(tmp_path)]) == 2
    assert "holds something else, not anchors by" in error_of(capsys, "anchors")
    assert (tmp_path / "mine").read_text() == "my notes"


def test_interrupts_and_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    def wrong() -> int:
        raise ZeroDivisionError

    assert guard("mefar x", interrupted) == 130
    assert capsys.readouterr().err == "mefar x: interrupted\n"
    with pytest.raises(ZeroDivisionError):
        guard("mefar x", wrong)


def test_messages_of_workers_are_unwrapped() -> None:
    message = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\n    raise UserError\ndatamodules.sample.UserError: a.mp4: no frames\n'
    )
    assert plain(message) == "a.mp4: no frames"


def test_quiet_keeps_what_matters(recwarn: pytest.WarningsRecorder) -> None:
    import warnings

    with quiet():
        warnings.warn("The 'train_dataloader' does not have many workers which may be", stacklevel=1)
        warnings.warn("loss is nan", stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["loss is nan"]


# LightningCLI


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import toy  # noqa: F401  its classes are found by their names

    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(CONFIG))
    return Path("toy.yaml")


def fit(config: Path, *argv: str, verb: str = "fit") -> int:
    return main([verb, "--config", str(config), *argv])


def test_one_folder_per_training_and_resuming(config: Path) -> None:
    assert fit(config) == 0
    run = Path("runs/fit-ToyModel")
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.csv", "checkpoints"}
    assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == 0
    first = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert first["epoch"] == 0

    # The saved configuration is complete: it resumes the run by itself.
    assert (
        main(
            ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--trainer.max_epochs", "2"]
        )
        == 0
    )
    second = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert second["global_step"] == 2 * first["global_step"]
    assert (run / "metrics-1.csv").is_file(), "the curve of the first start is lost"

    before = (run / "config.yaml").read_bytes(), (run / "metrics.csv").read_bytes()
    root = ("--trainer.default_root_dir", str(run))
    assert fit(config, "--ckpt_path", "last", *root, verb="test") == 0
    assert ((run / "config.yaml").read_bytes(), (run / "metrics.csv").read_bytes()) == before
    assert (run / "test" / "metrics.csv").is_file()


def test_training_is_seeded(config: Path) -> None:
    weights = []
    for name in ("a", "b"):
        assert fit(config, "--trainer.default_root_dir", name) == 0
        state = torch.load(Path(name) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        weights.append(state["net.weight"])
    assert torch.equal(*weights)


def test_wandb_comes_on_top_of_the_training_s_own_record(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    root = ("--trainer.default_root_dir", "runs/{run}")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    assert fit(config, *root) == 2
    assert "WANDB_RUN_ID, which a sweep sets" in error_of(capsys, "fit")
    for name, value in {"MODE": "offline", "SILENT": "true", "RUN_ID": "draw1"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    assert (
        fit(config, *root, "--trainer.logger", "WandbLogger", "--trainer.logger.init_args.project", "p") == 0
    )
    wandb.finish()
    run = Path("runs/draw1")
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert "val/loss" in (run / "metrics.csv").read_text()
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["default_root_dir"] == str(run)
    assert len(list(Path("wandb").glob("offline-run-*-draw1/*.wandb"))) == 1


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ("--model.init_args.colour red", "Option 'colour' is not accepted"),
        ("--model.init_args.width wide", '"width": Expected a int. Got value: wide'),
        ("--model NoSuchModel", "got NoSuchModel"),
        ("--trainer.max_epochs few", '"trainer.max_epochs": expected one of [int, NoneType]; got few'),
        ("--colour red", "unrecognized arguments: --colour red"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("--model.init_args.fails init", "no such anchors file"),
        ("--data.init_args.broken true", "does not decode; fetch it again"),
        ("--data.init_args.broken true --data.init_args.num_workers 1", "does not decode; fetch it again"),
        ("--ckpt_path nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
        ("--ckpt_path toy.yaml", "toy.yaml: not a checkpoint that can be read"),
        ("--ckpt_path other.ckpt", "other.ckpt: holds no state_dict"),
        ("--ckpt_path stranger.ckpt", "stranger.ckpt: a checkpoint of another class than ToyModel"),
        ("--ckpt_path half.ckpt", 'missing tensor "net.weight"'),
        ("--ckpt_path narrow.ckpt", "net.weight is [1, 2] in the file and [1, 4] in the model"),
    ],
)
def test_mistakes_in_training_end_in_one_line(
    config: Path, argv: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weights": torch.zeros(2)}, "other.ckpt")
    torch.save({"state_dict": {"x": torch.zeros(2)}}, "stranger.ckpt")
    half = {"state_dict": {"net.bias": torch.zeros(1)}, "pytorch-lightning_version": "2.4.0"}
    torch.save({**half, "loops": {}, "epoch": 0, "global_step": 0}, "half.ckpt")
    if "narrow" in argv:
        assert fit(config, "--model.init_args.width", "2", "--trainer.default_root_dir", "narrow") == 0
        os.replace("narrow/checkpoints/last.ckpt", "narrow.ckpt")
        capsys.readouterr()
    assert fit(config, *argv.split()) == 2
    assert complaint in error_of(capsys, "fit")


def test_a_resume_that_fails_leaves_the_run_as_it_was(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--trainer.default_root_dir", "run")
    assert fit(config, *run) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert fit(config, *run, "--model.init_args.width", "3", "--ckpt_path", "last") == 2
    assert "net.weight is [1, 4] in the file and [1, 3] in the model" in error_of(capsys, "fit")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_interrupts_and_bugs_in_training(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config, "--model.init_args.fails", "step") == 130
    assert "mefar fit: interrupted" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        fit(config, "--model.init_args.fails", "bug")


def test_the_shipped_make_targets_are_documented() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    targets = set(re.findall(r"^  make (\S+)", done.stdout, re.MULTILINE))
    assert targets == {
        "help", "setup", "demo", "test", "lowest", "lint", "pretrain", "loso", "sweep", "bench", "clean",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("loso", "DATASET"),
        ("loso DATASET=samm", "DATA"),
        ("loso DATASET=samm DATA=x", "TOKENIZER"),
        ("sweep", "SWEEP"),
    ],
)
def test_make_says_which_variable_is_missing(call: str, name: str) -> None:
    # As typed by hand: `make test` hands its own flags and depth on to a make inside it.
    unwanted = ("DATASET", "DATA", "TOKENIZER", "SWEEP", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    done = subprocess.run(
        ["make", *call.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2
    assert re.search(rf"make {call.split()[0]}: {name} is missing", done.stderr)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
