"""`mefar loso` in process: tiny databases in their real layouts in, table and report out."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from replicas import Row, write_casme2, write_samm, write_smic
from sklearn.metrics import f1_score

from mefar.__main__ import main
from mefar.commands import loso as command
from mefar.record import worst_mistakes
from mefar.token_table import TokenTable
from mefar.tokenizer import FacialActionTokenizer

SMALL = ["--faces", "precropped", "--views", "2", "--epochs", "2", "--head.dim", "8", "--head.heads", "2",
         "--accelerator", "cpu", "--workers", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects per database, three clips each; one SAMM clip has no frames."""
    root = tmp_path_factory.mktemp("data")
    emotions = ("happiness", "disgust", "surprise")
    rows = [Row(s, f"EP02_{i:02d}", emotion=e) for s in (1, 2) for i, e in enumerate(emotions)]
    write_casme2(root / "CASME II", rows, "cropped", size=(64, 64))
    rows = [Row(s, f"{s:03d}_1_{i}", emotion=e.title()) for s in (6, 7) for i, e in enumerate(emotions)]
    write_samm(root / "SAMM", [*rows, Row(7, "007_9_9", emotion="Anger", frames=None)], size=(64, 64))
    smic = [(s, e, 1) for s in (1, 2) for e in ("negative", "positive", "surprise")]
    write_smic(root / "SMIC", smic, size=(64, 64))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer."""
    torch.manual_seed(0)
    model = FacialActionTokenizer(image_size=48, dim=16, depth=1, num_codes=8, code_dim=4)
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.ckpt"
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(content | {"datamodule_hyper_parameters": {"data": "/data/vox"}}, path)
    return path


@pytest.fixture
def loso(
    data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Callable[..., int]:
    """Run the command on the replicas; later words win."""
    cache = tmp_path_factory.getbasetemp() / "crops"

    def call(*words: str, dataset: str = "composite") -> int:
        start = ["loso", "--dataset", dataset, "--data", str(data), "--tokenizer", str(checkpoint)]
        return main([*start, "--out", str(tmp_path / "run"), "--cache-dir", str(cache), *SMALL, *words])

    return call


def test_from_databases_to_report(
    loso: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loso("--shuffled-control") == 0
    out, printed = tmp_path / "run", capsys.readouterr().out
    for words in (
        "last",
        "oracle*",
        "leaks; only to compare",
        "pixels",
        "shuffled",
        "report.html",
    ):
        assert words in printed
    assert "samm/007/007_9_9" in printed
    lines = printed.splitlines()
    assert "casme2: negative: 2 clips, 88 in the complete database" in lines
    listed = next(line for line in lines if line.startswith("samm: coding file lists"))
    assert listed.startswith(
        "samm: coding file lists 7 clips, 159 in the published one: anger 1 (published 57), "
    )
    assert listed.endswith("subjects 2 (published 29)")
    assert "smic: apex: middle 6" in lines
    left = {path.name for path in out.iterdir()}
    assert left == {
        "study.json", "folds.jsonl", "predictions.csv", "confusion.json", "attention.json", "summary.json",
        "pictures.npz", "report.html", "shuffled",
    }  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["protocol"] == "composite"
    assert summary["classes"] == ["negative", "positive", "surprise"]
    assert (summary["folds"], summary["clips"]) == (6, 18)
    assert summary["counts"]["samm"] == {
        "clips": 6, "subjects": 2, "classes": {"negative": 2, "positive": 2, "surprise": 2}
    }  # fmt: skip
    assert summary["tokenizer"]["pretrained_on"] == "/data/vox"
    assert len(summary["tokenizer"]["sha256"]) == 64
    assert summary["command"].startswith("mefar loso --dataset composite")
    assert summary["dropped"][0][0] == "samm/007/007_9_9"
    for name in ("pixels", "shuffled"):
        assert set(summary["controls"][name]) == {"full", "casme2", "samm", "smic"}
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels, guesses = ([int(row[name]) for row in rows] for name in ("label", "last"))
    expected = f1_score(labels, guesses, average="macro", labels=[0, 1, 2], zero_division=0)
    assert summary["scores"]["last"]["full"]["uf1"] == pytest.approx(expected)
    with np.load(out / "pictures.npz") as pictures:
        assert pictures["casme2_reconstruction"].shape == (48, 48, 3)
        assert pictures["usage"].sum() == 18 * 16
        shown = list(pictures["mistakes_clips"])
        assert pictures["mistakes_apex"].shape == (len(shown), 48, 48, 3)
    wrong = [mistake.clip for mistake in worst_mistakes(rows, summary["classes"])]
    assert wrong and shown == wrong
    assert json.loads((out / "shuffled" / "summary.json").read_text())["control"] == "shuffled"

    # Again: neither tokens nor folds are made twice.
    def never(*_: object) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr(command, "_tokenize", never)
    monkeypatch.setattr("mefar.folds.train_group", never)
    before = (out / "predictions.csv").read_bytes()
    assert loso("--shuffled-control") == 0
    assert (out / "predictions.csv").read_bytes() == before
    assert json.loads((out / "summary.json").read_text())["scores"] == summary["scores"]


def test_another_run_finds_the_tokens_and_damaged_ones_are_made_anew(
    loso: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = command._tokenize

    def counted(*arguments: Any) -> TokenTable:
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(command, "_tokenize", counted)
    start = ("--cache-dir", str(tmp_path / "cache"), "--pixels=false")
    assert loso(*start, dataset="smic") == 0
    assert len(made) == 1
    assert loso(*start, "--out", str(tmp_path / "sweep"), "--seed", "1", dataset="smic") == 0
    assert len(made) == 1, "another run of the same clips"
    (path,) = (tmp_path / "cache" / "tokens").glob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert loso(*start, dataset="smic") == 0
    assert len(made) == 2
    assert path.read_bytes() == whole
    assert loso(*start, "--views", "3", "--out", str(tmp_path / "views"), dataset="smic") == 0
    assert len(made) == 3, "other views"


@pytest.mark.parametrize("dies", [False, True])
def test_ranks_that_share_a_disk_tokenize_once(tmp_path: Path, dies: bool) -> None:
    """The second waits for the first; where the first dies, it takes over."""
    table = TokenTable(("smic/s1/a",), torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2).long(), torch.ones(1, 4))

    def make(line: str, pause: float = 0.0, dies: bool = False) -> TokenTable:
        with (tmp_path / "made").open("a") as file:
            file.write(f"{line}\n")
        time.sleep(pause)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return table

    child = os.fork()
    if child == 0:
        command._tokens(tmp_path / "cache", "key", lambda: make("first", 0.5, dies))
        os._exit(0)
    while not (tmp_path / "made").exists():
        time.sleep(0.01)
    found = command._tokens(tmp_path / "cache", "key", lambda: make("second"))
    os.waitpid(child, 0)
    assert torch.equal(found.embeddings, table.embeddings)
    assert (tmp_path / "made").read_text().split() == (["first", "second"] if dies else ["first"])


def test_a_cache_that_cannot_be_written_is_one_line(
    loso: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tokens").touch()
    assert loso("--cache-dir", str(tmp_path / "cache"), dataset="smic") == 2
    assert "cache/tokens: cannot be written (File exists); free space or set" in capsys.readouterr().err


def test_one_database_and_shuffled_labels_only(
    loso: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--shuffle-labels", "--pixels=false", "--edclip=false", "--classes", "3")
    assert loso(*words, dataset="samm") == 0
    assert "CONTROL" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["control"] == "shuffled"
    assert summary["controls"] == {}
    assert set(summary["scores"]["last"]) == {"full", "samm"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "/nowhere"], "/nowhere"),
        (["--tokenizer", "/nowhere.ckpt"], "/nowhere.ckpt: no such checkpoint"),
        (["--dataset", "casme9"], "casme9"),
        (["--seeds", "0"], "seeds is 0"),
        (["--anchors", "/nowhere.safetensors"], "no such anchors file"),
        (["--head.dim", "9"], "multiple of heads"),
        (["--epochs", "0"], "epochs is 0"),
        (["--training.eval_views", "3"], "eval_views is 3 but there are 2"),
        (["--classes", "4"], "4"),
        (["--frobnicate", "1"], "frobnicate"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    loso: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert loso(*words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert lines[0].startswith("mefar loso: error: ")
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_another_configuration_and_a_checkpoint_that_is_none(
    loso: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loso(dataset="smic") == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert loso("--views", "1", dataset="smic") == 2
    assert "choose another --out" in capsys.readouterr().err
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"nothing of the kind")
    assert loso("--tokenizer", str(broken), dataset="smic") == 2
    assert "broken.ckpt" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
