"""`mefar loso` in process: tiny databases in their real layouts in, table and report out."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from places import ROOT
from powerless import powerless
from replicas import Row, write_casme2, write_samm, write_smic
from sklearn.metrics import f1_score
from wandb.errors import UsageError
from wandb.proto.wandb_internal_pb2 import Record

from datamodules.crops import PairSettings, PairStore
from mefar.__main__ import main
from mefar.classifier.head import TokenHead
from mefar.classifier.pretrained import PretrainedHead, save_head
from mefar.loso import study, token_table
from mefar.loso.engine import Trainer
from mefar.loso.results import read_predictions, worst_mistakes
from mefar.loso.token_table import TokenTable
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.warp_network import WarpNetwork

QUICK = ["--faces", "precropped", "--accelerator", "cpu", "--devices", "1", "--views", "2", "--epochs", "2"]
SMALL = [*QUICK, "--head.dim", "8", "--head.heads", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects per database, three clips each; one SAMM clip has no frames."""
    root = tmp_path_factory.mktemp("data")
    emotions = ("happiness", "disgust", "surprise")
    units = ("12", "4+7", "1+2")
    rows = [Row(s, f"EP02_{i:02d}", emotion=e, aus=units[i]) for s in (1, 2) for i, e in enumerate(emotions)]
    write_casme2(root / "CASME II", rows, "cropped", size=(64, 64))
    rows = [
        Row(s, f"{s:03d}_1_{i}", emotion=e.title(), aus=units[i])
        for s in (6, 7)
        for i, e in enumerate(emotions)
    ]
    write_samm(root / "SAMM", [*rows, Row(7, "007_9_9", emotion="Anger", frames=None)], size=(64, 64))
    smic = [(s, e, 1) for s in (1, 2) for e in ("negative", "positive", "surprise")]
    write_smic(root / "SMIC", smic, size=(64, 64))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer."""
    torch.manual_seed(0)
    model = FacialActionTokenizer(WarpNetwork(48, 16, 1, 8, code_dim=4))
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

    def call(*words: str, dataset: str = "composite", small: list[str] = SMALL) -> int:
        start = ["loso", "--dataset", dataset, "--data", str(data), "--tokenizer", str(checkpoint)]
        return main([*start, "--out", str(tmp_path / "run"), "--cache-dir", str(cache), *small, *words])

    return call


def test_from_databases_to_report(
    loso: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loso("--shuffled-control") == 0
    out, printed = tmp_path / "run", capsys.readouterr().out
    for words in ("last", "oracle*", "leaks; only to compare", "pixels", "shuffled", "report.html"):
        assert words in printed
    assert "samm/007/007_9_9" in printed
    lines = printed.splitlines()
    assert any(line.startswith("casme2: 6 clips, 145 in the protocol: negative 2 of 88") for line in lines)
    listed = next(line for line in lines if line.startswith("samm: the coding file lists"))
    assert listed.startswith("samm: the coding file lists 7 clips, the published one 159: anger 1 of 57, ")
    assert listed.endswith("subjects 2 of 29")
    assert "smic: apex: middle 6" in lines
    left = {path.name for path in out.iterdir()}
    assert left == {
        "study.json", "folds.jsonl", "predictions.csv", "confusion.json", "attention.json", "summary.json",
        "pictures.npz", "report.html", "shuffled", "locks",
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
    lost = {f["clip"] for f in summary["findings"] if f["level"] == "lost" and f["clip"]}
    assert lost == {"samm/007/007_9_9"}
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
    wrong = [mistake.clip for mistake in worst_mistakes(read_predictions(out))]
    assert wrong and shown == wrong
    assert json.loads((out / "shuffled" / "summary.json").read_text())["control"] == "shuffled"

    # Again: neither tokens nor folds are made twice.
    def never(*_: object) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr("mefar.loso.token_table.tokenize", never)
    monkeypatch.setattr("mefar.loso.callback.train_group", never)
    before = (out / "predictions.csv").read_bytes()
    assert loso("--shuffled-control") == 0
    assert (out / "predictions.csv").read_bytes() == before
    assert json.loads((out / "summary.json").read_text())["scores"] == summary["scores"]


def test_another_run_finds_the_tokens_and_damaged_ones_are_made_anew(
    loso: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = token_table.tokenize

    def counted(*arguments: Any) -> TokenTable:
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(token_table, "tokenize", counted)
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
def test_ranks_that_share_a_disk_tokenize_once(
    tmp_path: Path, dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first; where the first dies, it takes over."""
    table = TokenTable(("smic/s1/a",), torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2).long(), torch.ones(1, 4))

    def tokens(line: str, pause: float = 0.0, dies: bool = False) -> TokenTable:
        def make(*_: object) -> TokenTable:
            with (tmp_path / "made").open("a") as file:
                file.write(f"{line}\n")
            time.sleep(pause)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return table

        monkeypatch.setattr(token_table, "tokenize", make)
        return study.tokens_of([1], object(), tmp_path / "cache", "key")  # type: ignore[arg-type]

    child = os.fork()
    if child == 0:
        tokens("first", 0.5, dies)
        os._exit(0)
    while not (tmp_path / "made").exists():
        time.sleep(0.01)
    found = tokens("second")
    os.waitpid(child, 0)
    assert torch.equal(found.embeddings, table.embeddings)
    assert (tmp_path / "made").read_text().split() == (["first", "second"] if dies else ["first"])


def test_a_place_that_cannot_be_written_is_one_line(
    loso: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tokens").touch()
    (tmp_path / "locked").mkdir(mode=0o555)
    for words, place in (
        ("--cache-dir cache", "cache/tokens"),
        ("--cache-dir cache/tokens", "cache/tokens/pairs: cannot be made"),
        ("--cache-dir locked", "locked/pairs: cannot be made"),
        ("--out cache/tokens", "cache/tokens"),
        ("--out locked", "locked"),
    ):
        option, name = words.split()
        with powerless():
            assert loso(option, str(tmp_path / name), dataset="smic") == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "clips/s" not in line]
        assert len(said) == 1 and f"{tmp_path / place}" in said[0], said
    assert not (tmp_path / "run").exists() and not list((tmp_path / "locked").iterdir())


def test_the_published_settings_reach_the_crops(
    loso: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[PairSettings] = []

    def stop(self: PairStore, *_: object) -> None:
        asked.append(self.settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(PairStore, "prepare", stop)
    for words in (("--config", "loso_paper", "--faces", "precropped"), ("--faces", "precropped")):
        assert loso(*words, dataset="smic", small=[]) == 130
    assert [(one.stretch, one.stabilise, one.views) for one in asked] == [(True, False, 1), (False, True, 32)]


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


def test_folds_that_adapt_the_tokenizer(
    loso: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--adapt-tokenizer", "0.1", "--keep-models")
    assert loso(*words, dataset="smic") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["adapt_tokenizer"] == 0.1
    assert (summary["folds"], summary["clips"]) == (2, 6)
    assert "every fold went on training a copy" in (tmp_path / "run" / "report.html").read_text()
    assert loso(dataset="smic") == 2
    assert "adapt_tokenizer (0.1 there, None asked for)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["--head", "foreign_heads.MeanHead", "--head.dropout", "0.3"], "MeanHead"),
        (["--head", "foreign_heads.OneHotHead", "--head.codes", "4"], "OneHotHead"),
        (["--head", "foreign_heads.ConvolutionHead"], "ConvolutionHead"),
        (["--head", "foreign_heads.GRUHead", "--head.width", "4"], "GRUHead"),
    ],
)
def test_a_head_in_a_users_file(
    loso: Callable[..., int], tmp_path: Path, words: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loso(*words, "--pixels=false", dataset="smic", small=QUICK) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["head"]["class_path"] == f"foreign_heads.{kind}"
    for option, value in zip(words[2::2], words[3::2], strict=True):
        assert summary["head"]["init_args"][option.removeprefix("--head.")] == pytest.approx(float(value))
    assert (tmp_path / "run" / "report.html").is_file()


def test_folds_that_are_told_to_end_end_and_go_on(
    loso: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--out", str(tmp_path / "run"), "--pixels", "false", "--epochs", "40"]
    plain = Trainer.run

    def told(*given: object) -> object:  # as `kill` and `scancel` tell it; a program that stays says 0
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*given)

    monkeypatch.setattr(Trainer, "run", told)
    told_to_end = get_context("fork").Process(target=lambda: sys.exit(loso(*words, dataset="smic")))
    told_to_end.start()
    told_to_end.join()
    assert told_to_end.exitcode == -signal.SIGTERM
    assert not (tmp_path / "run" / "predictions.csv").exists()
    monkeypatch.setattr(Trainer, "run", plain)
    assert loso(*words, dataset="smic") == 0


def test_folds_that_start_from_a_head_in_a_file(loso: Callable[..., int], tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_head(TokenHead(16, 17, 7, dim=8, heads=2, feedforward=4), path)
    words = ["--head", "mefar.classifier.pretrained.PretrainedHead", "--head.weights", str(path)]
    words += ["--pixels=false", "--keep-models=true"]
    assert loso(*words, dataset="smic", small=QUICK) == 0
    kept = next((tmp_path / "run" / "heads").iterdir())
    assert PretrainedHead(16, 17, 3, weights=kept, heads=2), "what loso keeps can be started from"
    save_head(TokenHead(16, 17, 7, dim=8, heads=2, feedforward=4), path)
    assert loso(*words, dataset="smic", small=QUICK) == 2, "other weights in the file are another study"


def test_a_tokenizer_in_a_users_file(loso: Callable[..., int], tmp_path: Path) -> None:
    words = ["--tokenizer", "toy_tokenizer.QuadrantTokenizer", "--tokenizer.levels", "5"]
    assert loso(*words, "--pixels=false", dataset="smic") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["num_codes"], summary["num_tokens"]) == (5, 4)
    assert loso(*words[:3], "6", "--pixels=false", dataset="smic") == 2, "another tokenizer"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "/nowhere"], "/nowhere"),
        (["--tokenizer", "/nowhere.ckpt"], "/nowhere.ckpt: no such checkpoint"),
        (["--dataset", "casme9"], "casme9"),
        (["--seeds", "0"], "seeds is 0"),
        (["--edclip=true", "--anchors", "/nowhere.safetensors"], "no such anchors file"),
        (["--anchors", "/nowhere.safetensors"], "add edclip true"),
        (["--zero-shot", "surprise"], "add edclip true"),
        (["--head.dim", "9"], "multiple of heads"),
        (["--epochs", "0"], "epochs is 0"),
        (["--training.eval_views", "3"], "eval_views is 3 but there are 2"),
        (["--classes", "4"], "4"),
        (["--tokenizer", "K{num_codes}.ckpt"], "nothing to put for {num_codes}; give --num_codes"),
        (["--tokenizer", "K{num_codes}.ckpt", "--num-codes", "7"], "K7.ckpt: no such checkpoint"),
        (["--num-tokens", "8"], "num_tokens is 16, not 8"),
        (["--out", "runs/{run}"], "WANDB_RUN_ID, which a sweep sets"),
        (["--frobnicate", "1"], "frobnicate"),
        (["--adapt-tokenizer", "-0.1"], "adapt_tokenizer is -0.1"),
        (["--adapt-tokenizer", ".nan"], "adapt_tokenizer is nan"),
        (["--adapt-tokenizer", "yes"], "adapt_tokenizer"),
        (["--tokenizer", "toys.NoTokenizer"], "toys.NoTokenizer"),
        (["--head", "foreign_heads.NoSuchHead"], "NoSuchHead"),
        (["--head", "torch.optim.SGD"], "torch.optim.SGD"),
        (["--head", "foreign_heads.Bad", "--head.how", "shape"], "foreign_heads.Bad: logits of a batch of 2"),
        (["--head", "foreign_heads.MeanHead", "--head.width", "3"], "width"),
        (["--adapt-tokenizer", "0.1", "--group", "2"], "group is 2"),
        (["--adapt-tokenizer", "0.1", "--training.inner", "true"], "inner selection is not offered"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    loso: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
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
    for option, value, says in (
        ("--views", "1", "made otherwise (data"),
        ("--epochs", "3", "(training.epochs (2 there, 3 asked for)); give another --out"),
        ("--head.dim", "16", "head.init_args.dim (8 there, 16"),
    ):
        assert loso(option, value, dataset="smic") == 2
        assert says in capsys.readouterr().err
    torch.manual_seed(1)
    other = FacialActionTokenizer(WarpNetwork(48, 16, 1, 8, code_dim=4))
    torch.save(
        {"state_dict": other.state_dict(), "hyper_parameters": dict(other.hparams)}, tmp_path / "o.ckpt"
    )
    assert loso("--tokenizer", str(tmp_path / "o.ckpt"), dataset="smic") == 2
    assert "made otherwise" in capsys.readouterr().err
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"nothing of the kind")
    assert loso("--tokenizer", str(broken), dataset="smic") == 2
    assert "broken.ckpt" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_a_study_is_one_wandb_run_with_the_values_of_its_summary(
    loso: Callable[..., int], tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B itself, offline, in a sweep: the run's name fills the folder, and its file is read back."""
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path), "RUN_ID": "draw1"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    pattern = str(checkpoint.with_stem("K{num_codes}-L{num_tokens}"))
    shutil.copy(checkpoint, checkpoint.with_stem("K8-L16"))
    words = ("--tokenizer", pattern, "--num_codes=8", "--num_tokens=16", "--out", str(tmp_path / "{run}"))
    assert loso(*words, "--training.inner=true", "--wandb", "faces") == 0
    wandb.teardown()  # as at the end of a process: its service closes the file

    summary = json.loads((tmp_path / "draw1" / "summary.json").read_text())
    assert "{run}" not in summary["command"]
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-draw1")
    (log,) = folder.glob("*.wandb")
    told = wandb_records(log)
    run = next(record.run for record in told if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_id) == ("faces", "draw1")
    digest = summary["tokenizer"]["sha256"][:8]
    assert run.run_group == f"composite-{digest}"
    assert list(run.tags) == ["composite", f"tokenizer-{digest}", "selection-last", "selection-inner"]
    said = [item for record in told for item in record.summary.update]
    values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in said}
    scores = summary["scores"]
    for name in ("uf1", "uar"):
        assert values[f"loso/{name}"] == scores["last"]["full"][name]
        assert values[f"loso/inner/{name}"] == scores["inner"]["full"][name]
        assert values[f"loso/oracle/samm/{name}"] == scores["oracle"]["samm"][name]
        assert values[f"control/pixels/{name}"] == summary["controls"]["pixels"]["full"][name]
        ends = [values[f"loso/last/{name}_{end}"] for end in ("low", "high")]
        assert ends == summary["intervals"]["last"]["full"][name]
    assert "leaks" in values["loso/oracle/warning"]
    config = {item.key: json.loads(item.value_json) for record in told for item in record.config.update}
    assert config["training"]["epochs"] == 2 and config["num_codes"] == 8
    (table,) = folder.rglob("folds_*.table.json")
    columns, rows = (json.loads(table.read_text())[name] for name in ("columns", "data"))
    assert columns[:6] == ["database", "subject", "seed", "clips", "right last", "epoch last"]
    assert columns[8:] == ["right inner", "epoch inner"] and columns[7] == "epoch oracle (leaks)"
    assert len(rows) == 6 and sum(row[3] for row in rows) == 18 and {row[5] for row in rows} == {2}
    assert all(1 <= row[7] <= 2 for row in rows)
    confused = {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("samm_*.table.json")}
    assert set(confused) == {"last", "inner"}
    assert sum(sum(row[1:]) for row in confused["last"]["data"]) == 6
    hits = sum(row[1 + place] for place, row in enumerate(confused["last"]["data"]))
    assert hits == sum(row[4] for row in rows if row[0] == "samm")
    assert [row[0] for row in confused["last"]["data"]] == summary["classes"]


def wandb_records(path: Path) -> list[Record]:
    """The records of an offline run: a LevelDB log, in blocks of 32 KiB, after a header of 7 bytes."""
    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(whole))
            whole = b""
    return found


def test_wandb_without_an_account_leaves_the_run_and_one_line(
    loso: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*_: object) -> None:
        raise UsageError("No API key configured.")

    monkeypatch.setattr("mefar.loso.tracker.write", refused)
    assert loso("--wandb", "faces", "--pixels=false", dataset="smic") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    expected = "W&B: No API key configured. (WANDB_MODE=offline needs no account)"
    assert lines == [f"mefar loso: error: {expected}"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_one_subject_alone_is_one_line(
    loso: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_smic(tmp_path / "alone", [(1, e, 1) for e in ("negative", "positive", "surprise")], size=(64, 64))
    assert loso("--data", str(tmp_path / "alone"), dataset="smic") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert lines == ["mefar loso: error: leave-one-subject-out needs at least 2 subjects, found 1; add data"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_writes_the_bytes_of_one_process(
    loso: Callable[..., int], data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert loso("--group", "2") == 0
    words = ["loso", "--dataset", "composite", "--data", str(data), "--tokenizer", str(checkpoint), *SMALL]
    words += ["--group", "2", "--devices", "2", "--out", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mefar"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, *words, "--cache-dir", str(tmp_path / "cache")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tokenizing") + done.stdout.count("tokenizing") == 1, "by one rank"
    for name in ("predictions.csv", "confusion.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


# Probes


def test_a_study_without_action_units_is_probed_but_for_them(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", str(checkpoint), str(data), "--dataset", "smic", "--faces", "precropped"]
    words += ["--views", "1", "--cache-dir", str(tmp_path / "cache"), "--out"]
    assert main([*words, str(tmp_path / "numbers.json")]) == 0
    assert "action units: none is shown by 10 clips" in capsys.readouterr().out
    (numbers,) = {tuple(each["probes"]["tokens"]) for each in json.loads(
        (tmp_path / "numbers.json").read_text())["domains"].values()}  # fmt: skip
    assert "identity" in numbers and "au_f1" not in numbers
    (tmp_path / "notes").write_text("mine")
    assert main([*words, str(tmp_path / "notes")]) == 2
    assert "notes: a folder, or holds something else" in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == "mine"


# Baselines


def test_a_baseline_stands_where_the_tokenizer_stands(
    loso: Callable[..., int], data: Path, tmp_path: Path
) -> None:
    words = ["loso", "--dataset", "composite", "--data", str(data), "--cache-dir", str(tmp_path / "cache"),
             "--out", str(tmp_path / "run"), *QUICK[:6]]  # fmt: skip
    assert main([*words, "--method", "STSTNet", "--epochs", "2"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["method"] == "mefar.baselines.ststnet.STSTNet"
    assert summary["head"]["parameters"] == 1651
    settings = summary["training"]
    assert (settings["epochs"], settings["batch_size"], settings["learning_rate"]) == (2, 256, 5e-5)
    assert summary["views"] == 1 and summary["edclip"] is None
    assert set(summary["scores"]["last"]) == {"full", "casme2", "samm", "smic"}
    assert (tmp_path / "run" / "report.html").is_file()
    assert main([*words, "--out", str(tmp_path / "svm"), "--method", "FlowSVM"]) == 0


def test_a_baseline_and_a_tokenizer_exclude_each_other(
    loso: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert loso("--method", "Majority", small=[]) == 2
    assert "either --tokenizer or --method" in capsys.readouterr().err
    assert loso("--method", "NoSuchNet", small=[]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_action_before_the_codebook_is_a_ceiling_of_the_tokens(
    loso: Callable[..., int], tmp_path: Path
) -> None:
    assert loso("--continuous") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["method"] == "mefar.baselines.continuous.Continuous"
    assert summary["head"]["class_path"].endswith("TokenHead") and summary["views"] == 2


def test_action_units_leaving_a_database_out(
    loso: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = loso("--task", "units", "--leave-out", "database")
    printed = capsys.readouterr()
    assert found == 0, printed.err
    summary = json.loads((tmp_path / "run" / "units.json").read_text())
    assert summary["databases_without_units"] == ["smic"] and summary["leave_out"] == "database"
    assert set(summary["scores"]) == {"casme2", "samm", "mean"}
    assert summary["head"]["class_path"].endswith("TokenHead") and summary["training_seconds"] > 0
    assert "without action units, left out: smic" in printed.out
    assert loso("--task", "units", dataset="smic") == 2
    assert "no clip of smic has action units" in capsys.readouterr().err
