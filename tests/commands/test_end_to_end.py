"""The whole road by the real commands, in process, on a tiny corpus: videos and databases to a report."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from places import ROOT
from sklearn.metrics import f1_score, recall_score

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
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora, a tokenizer of three steps, a composite study."""
    out = tmp_path_factory.mktemp("road")
    assert main(["make-demo", str(out / "corpora"), "--size", "tiny"]) == 0
    assert main(fit(out / "tokenizer", out / "corpora" / "voxceleb", out / "cache", 1)) == 0
    assert main([
        "loso", "--dataset", "composite", "--data", str(out / "corpora"),
        "--tokenizer", str(out / "tokenizer" / "checkpoints" / "last.ckpt"), "--out", str(out / "run"),
        "--cache-dir", str(out / "cache"), "--epochs", "3", "--views", "2", "--accelerator", "cpu",
        "--shuffled-control",
    ]) == 0  # fmt: skip
    return out


def test_training_leaves_what_repeats_it(made: Path) -> None:
    folder = made / "tokenizer"
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (folder / "checkpoints").iterdir()}
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["model"]["init_args"]["image_size"] == 64
    assert "val/gain_over_copy" in (folder / "metrics.csv").read_text().splitlines()[0]
    page = (folder / "report.html").read_text()
    assert "After 3 steps the reconstruction is" in page
    assert page.count("<img") == 6 * 6 and "mefar fit --config" in page


def test_scores_are_scikit_learns_on_the_predictions(made: Path) -> None:
    with (made / "run" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((made / "run" / "summary.json").read_text())
    assert len(rows) == summary["clips"] == 36 and summary["folds"] == 9
    assert len({(row["database"], row["subject"], row["clip"]) for row in rows}) == len(rows)
    for selection in ("last", "oracle"):
        for place, found in summary["scores"][selection].items():
            inside = [row for row in rows if place in ("full", row["database"])]
            truth = [int(row["label"]) for row in inside]
            guess = [int(row[selection]) for row in inside]
            options = {"average": "macro", "labels": range(3), "zero_division": 0}
            assert found["uf1"] == pytest.approx(f1_score(truth, guess, **options))
            assert found["uar"] == pytest.approx(recall_score(truth, guess, **options))
    assert set(summary["controls"]) == {"pixels", "shuffled"}
    assert len(summary["tokenizer"]["sha256"]) == 64 and summary["command"].startswith("mefar loso")
    page = (made / "run" / "report.html").read_text()
    assert "oracle" in page and "<svg" in page and "http" not in page.replace("http://www.w3.org", "")


def test_a_second_call_reuses_the_folds(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (made / "run" / "predictions.csv").read_bytes()

    def never(*args: object) -> None:
        raise AssertionError("a finished fold was trained again")

    monkeypatch.setattr("mefar.loso.folds.train_group", never)
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


def test_the_demo_needs_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_demo_runs_its_stages_in_order_and_skips_a_finished_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    ran: list[str] = []

    def stage(run: Callable[[str], None]) -> Callable[..., None]:
        return lambda title, *words: run(words[0])

    monkeypatch.setattr("mefar.commands.demo._stage", stage(ran.append))
    (tmp_path / "tokenizer" / "checkpoints").mkdir(parents=True)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert ran == ["make-demo", "fit", "loso"]
    (tmp_path / "tokenizer" / "checkpoints" / "last.ckpt").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert ran[3:] == ["make-demo", "loso"]
    assert main(["demo", "--out", str(tmp_path), "--seed", "1"]) == 2  # another training lies there
