"""`mefar fit` before its first step, beside its steps, and after its last one."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from filming import barcode, film
from powerless import powerless
from test_cli import config, error_of, fit  # noqa: F401  a fixture is found by its name

from mefar.__main__ import main
from mefar.commands.train import MefarCLI, wandb_run
from mefar.files import claim

RUN = ("--trainer.default_root_dir", "run")


def content(folder: str = "run") -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"}


def step(name: str = "last") -> int:
    return int(torch.load(Path("run/checkpoints") / f"{name}.ckpt", weights_only=True)["global_step"])


def test_the_data_take_the_size_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "faces" / "one.mp4", [barcode(1)])
    seen: list[tuple[int, int]] = []

    def stop(self: MefarCLI, *args: object) -> None:
        seen.append((self.model.image_size, self.datamodule.hparams["image_size"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(MefarCLI, "_callbacks", stop)
    argv = "fit --model FacialActionTokenizer --model.network WarpNetwork --model.network.image_size 64 "
    argv += "--data VoxCelebDataModule --data.init_args.data faces"
    assert main(argv.split()) == 130
    assert seen == [(64, 64)]
    capsys.readouterr()
    assert main([*argv.split(), "--data.init_args.image_size", "96"]) == 2
    assert error_of(capsys, "fit").startswith("image_size: 64 in the model, 96 in the data; the data follow")
    assert not Path("runs").exists(), "nothing was begun"


def test_a_folder_is_one_trainings(config: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """Neither a second training, nor one from elsewhere, nor two at a time."""
    assert fit(config, *RUN) == 0
    assert "run: trained 2 steps\n" in capsys.readouterr().out
    before = content()
    assert fit(config, *RUN) == 2
    assert "of another training; go on with it by --ckpt_path last" in error_of(capsys, "fit")
    assert fit(config, "--trainer.default_root_dir", "other") == 0
    capsys.readouterr()
    elsewhere = ("--ckpt_path", "other/checkpoints/last.ckpt", "--trainer.max_epochs", "2")
    assert fit(config, *RUN, *elsewhere) == 2
    assert "of another training" in error_of(capsys, "fit")
    on = (*RUN, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    with claim(Path("run/.lock")) as ours:
        assert ours
        assert fit(config, *on) == 2
    assert "another `mefar fit` works here" in error_of(capsys, "fit")
    assert content() == before, "what is refused changes nothing"
    assert fit(config, *on) == 0
    assert step() == 4


def test_a_folder_that_may_not_be_written(config: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    Path("locked").mkdir(mode=0o555)
    for folder in ("locked", "locked/run"):
        with powerless():
            assert fit(config, "--trainer.default_root_dir", folder) == 2
        assert "ermission denied" in (line := error_of(capsys, "fit")) and folder in line


def test_a_training_goes_on_only_as_itself(config: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert fit(config, *RUN) == 0
    capsys.readouterr()
    before = content()
    last = ("--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.max_epochs", "2")
    for words, complaint in (
        ((*RUN, "--ckpt_path", "last"), "this training is finished, after 2 steps"),
        ((*RUN, *last[:2], "--trainer.max_epochs", "-1", "--trainer.max_steps", "2"), "is finished"),
        (("--data.init_args.data", "other/corpus", *last), "was trained on nowhere, not on other/corpus"),
        ((*RUN, "--ckpt_path", "best"), "best.ckpt: no such checkpoint"),
    ):
        assert fit(config, *words) == 2
        assert complaint in error_of(capsys, "fit")
    assert content() == before
    assert not Path("runs").exists()
    assert fit(config, "--data.init_args.data", "moved/nowhere", *last) == 0, "a corpus that was moved"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--trainer.limit_train_batches 0", "not one batch for each of 1 ranks"),
        ("--trainer.val_check_interval 5000", "`val_check_interval` (5000) must be less"),
        ("--trainer.precision bf16-true", "give 32-true, bf16-mixed or 16-mixed"),
        ("--trainer.precision 64-true", "give 32-true, bf16-mixed or 16-mixed"),
        ("--trainer.overfit_batches 2", "give trainer.limit_train_batches"),
        ("--trainer.accelerator tpu", "torch_xla"),
        ("--trainer.logger CometLogger", "install that package"),
        ("--trainer.default_root_dir toy.yaml", "toy.yaml"),
        ("--model.init_args.num_classes 5", "has 5 classes, the data 3; the classes of toys are a, b, c"),
        ("--model.init_args.class_names [a,c,b]", "label 1 is c in the model, b in the data"),
        ("--config nowhere", "nowhere: no such file; give a path, or a shipped name: classify, demo"),
    ],
)
def test_settings_that_people_try(
    config: Path,  # noqa: F811
    words: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit(config, "--data.init_args.classes", "[a,b,c]", *words.split()) == 2
    assert complaint in error_of(capsys, "fit")
    assert not list(Path().rglob("*.ckpt"))


def test_a_run_of_few_steps_is_validated_saved_and_told(
    config: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its end falls amid an epoch, before the first line that Lightning would log and before a validation."""
    content = yaml.safe_load(config.read_text())
    content["trainer"] |= {"enable_progress_bar": True, "max_epochs": -1, "max_steps": 3}
    config.write_text(yaml.safe_dump(content))
    assert fit(config, *RUN) == 0
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows if row["train/loss_step"]] == ["0", "1", "2"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["1", "2"], "the epoch's end, and the run's"
    assert step() == 3
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "validated" in line] == ["step 2 validated", "step 3 validated"]
    assert said[-1] == "run: trained 3 steps"


def test_a_log_file_has_a_line_a_minute(
    config: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mefar.commands.trainer_parts.LOG_SECONDS", 0)
    assert fit(config, *RUN, "--trainer.enable_progress_bar", "true", "--trainer.max_epochs", "2") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert len(said) == 4 and re.match(r"step 1 of 4, epoch 0, [\d.]+ steps/s, 0:00:\d\d left", said[0])


def test_predictions_are_a_table(config: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    classes = ("--data.init_args.classes", "[a,b,c]")
    assert fit(config, *RUN, *classes) == 0
    assert fit(config, *RUN, *classes, "--ckpt_path", "last", verb="predict") == 0
    assert "run/predict/predictions.csv: 16 clips" in capsys.readouterr().out
    rows = list(csv.DictReader(Path("run/predict/predictions.csv").read_text().splitlines()))
    assert len(rows) == 16 == len({row["clip"] for row in rows})
    for row in rows:
        odds = {name: float(row[name]) for name in "abc"}
        assert sum(odds.values()) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(odds, key=odds.__getitem__)


def test_all_starts_of_a_training_are_one_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    names = []
    for goes_on in (False, True, False):
        with wandb_run(tmp_path, goes_on):
            names.append(os.environ["WANDB_RUN_ID"])
            assert os.environ["WANDB_RESUME"] == "allow"
    assert names[0] == names[1] != names[2]
    assert "WANDB_RUN_ID" not in os.environ
    monkeypatch.setenv("WANDB_RUN_ID", "draw")
    with wandb_run(tmp_path, True):
        assert os.environ["WANDB_RUN_ID"] == "draw", "a sweep knows its runs itself"
