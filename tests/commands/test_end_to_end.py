"""The whole road by the real commands, in process, on a tiny corpus: videos and databases to a report."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pages import check_alone
from places import ROOT
from waiting import wait_for

import mefar
from mefar.__main__ import main

CONFIG = ROOT / "experiments" / "configs" / "demo.yaml"
FEW = ["--data.init_args.pairs_per_epoch", "96", "--data.init_args.val_pairs", "16",
       "--data.init_args.val_fraction", "0.2"]  # fmt: skip


def fit(folder: Path, data: Path, cache: Path, epochs: int, *more: str) -> list[str]:
    return [
        "fit", "--config", str(CONFIG), "--trainer.default_root_dir", str(folder),
        "--trainer.max_epochs", str(epochs), "--trainer.accelerator", "cpu",
        "--data.init_args.data", str(data), "--data.init_args.cache_dir", str(cache), *FEW, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny_corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora, a tokenizer of three steps, a composite study."""
    out = tmp_path_factory.mktemp("road")
    (out / "corpora").symlink_to(tiny_corpora)
    assert main(fit(out / "tokenizer", out / "corpora" / "voxceleb", out / "cache", 1)) == 0
    assert main([
        "loso", "--dataset", "composite", "--data", str(out / "corpora"),
        "--tokenizer", str(out / "tokenizer" / "checkpoints" / "last.ckpt"), "--out", str(out / "run"),
        "--cache-dir", str(out / "cache"), "--epochs", "3", "--views", "2", "--accelerator", "cpu",
        "--shuffled-control", "--final",
    ]) == 0  # fmt: skip
    return out


def test_a_run_becomes_a_model_to_hand_on(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(made / "run"), str(made / "model")]) == 0
    model = mefar.load(made / "model")
    assert model.readers is not None and model.readers.about.classes == ("negative", "positive", "surprise")
    tokens = model.tokens([1] * 16)
    assert sum(model.classify(tokens)[0].values()) == pytest.approx(1)
    summary = json.loads((made / "run" / "summary.json").read_text())
    card = (made / "model" / "README.md").read_text()
    full = summary["scores"]["last"]["full"]
    assert f"| full | {full['uf1']:.4f} / {full['uar']:.4f} |" in card
    assert "**all 9 subjects**" in card and "license: mit" in card and summary["command"] in card
    (made / "tokenizer" / "checkpoints" / "last.ckpt").rename(made / "moved.ckpt")
    assert main(["export", str(made / "run"), str(made / "again")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    (made / "moved.ckpt").rename(made / "tokenizer" / "checkpoints" / "last.ckpt")


def test_training_leaves_what_repeats_it(made: Path) -> None:
    folder = made / "tokenizer"
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (folder / "checkpoints").iterdir()}
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["model"]["init_args"]["network"]["init_args"]["image_size"] == 64
    assert "val/gain_over_copy" in (folder / "metrics.csv").read_text().splitlines()[0]
    page = (folder / "report.html").read_text()
    assert "After 3 steps the reconstruction is" in page
    assert page.count("<img") == 6 * 6 and "mefar fit --config" in page


def test_a_study_leaves_predictions_controls_and_a_page(made: Path) -> None:
    with (made / "run" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((made / "run" / "summary.json").read_text())
    assert len(rows) == summary["clips"] == 36 and summary["folds"] == 9
    assert len({(row["database"], row["subject"], row["clip"]) for row in rows}) == len(rows)
    assert set(summary["controls"]) == {"pixels", "shuffled"}
    assert len(summary["tokenizer"]["sha256"]) == 64 and summary["command"].startswith("mefar loso")
    page = (made / "run" / "report.html").read_text()
    assert "oracle" in page and "<svg" in page
    check_alone(page)


def test_a_second_call_reuses_the_folds(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (made / "run" / "predictions.csv").read_bytes()

    def never(*args: object) -> None:
        raise AssertionError("a finished fold was trained again")

    monkeypatch.setattr("mefar.loso.callback.train_group", never)
    checkpoint = made / "tokenizer" / "checkpoints" / "last.ckpt"
    words = ["--dataset", "composite", "--data", str(made / "corpora"), "--tokenizer", str(checkpoint)]
    words += ["--out", str(made / "run"), "--cache-dir", str(made / "cache"), "--epochs", "3", "--views", "2"]
    assert main(["loso", *words, "--accelerator", "cpu", "--shuffled-control"]) == 0
    assert (made / "run" / "predictions.csv").read_bytes() == before


def test_a_stopped_training_goes_on(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(made / "tokenizer", folder)
    words = fit(folder, made / "corpora" / "voxceleb", made / "cache", 2, "--ckpt_path", "last")
    assert main(words) == 0
    steps = [int(row["step"]) for row in csv.DictReader((folder / "metrics.csv").open()) if row["step"]]
    assert steps and min(steps) >= 3  # the first epoch's three steps were not made again
    page = (folder / "report.html").read_text()
    assert "After 6 steps" in page and "All 2 starts" in page and "rebuilt, step 3" in page


def test_the_demo_runs_its_stages_in_order_and_skips_a_finished_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr("mefar.commands.demo._stage", lambda title, *words: ran.append(words))
    assert main(["demo", "--out", "demo"]) == 0
    road = ["make-demo", "make-demo", "fit", "loso", "loso"]
    assert [words[0] for words in ran] == road
    assert "--ckpt_path" not in ran[2]
    weak = "demo/corpora-micro"
    assert ran[1][1] == weak and "micro" in ran[1] and weak in ran[3], "the weak ones are reported first"
    last = tmp_path / "demo" / "tokenizer" / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    for epochs, stages in ((4, road), (5, road[:2] + road[3:])):
        ran.clear()
        progress = {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}}
        torch.save({"state_dict": {}, "loops": progress}, last)
        assert main(["demo", "--out", "demo"]) == 0
        assert [words[0] for words in ran] == stages
        assert epochs == 5 or ran[2][-2:] == ("--ckpt_path", "last")
    assert main(["demo", "--out", "demo", "--seed", "1"]) == 2
    assert "trained with other settings" in capsys.readouterr().err


def test_a_stage_ends_with_the_demo_that_started_it(tmp_path: Path) -> None:
    """Also where the demo is killed and cannot tell it."""
    stage = "import os, pathlib, time; from mefar.commands import follow_parent; follow_parent();"
    stage += "pathlib.Path('stage').write_text(str(os.getpid())); time.sleep(120)"
    demo = "import subprocess, sys; from mefar.commands import child_environment;"
    demo += f"subprocess.run([sys.executable, '-c', {stage!r}], env=child_environment())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", demo], cwd=tmp_path, env=environment) as process:
        wait_for(lambda: (tmp_path / "stage").exists() and (tmp_path / "stage").read_text())
        process.kill()
    stage_process = int((tmp_path / "stage").read_text())
    wait_for(lambda: not running(stage_process))


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
