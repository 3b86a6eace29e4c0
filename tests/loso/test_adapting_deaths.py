"""Folds that adapt the tokenizer, on ranks of which one dies: a line within a minute, and the run goes on."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from launching import end, free_port, slurm, start
from pair_sets import SUBJECTS, adaptation, material
from test_loso import trained

from mefar.classifier.head import HeadSize
from mefar.errors import UserError
from mefar.loso.adapting import AdaptingFold
from mefar.loso.engine import Training
from mefar.loso.run import Machine, Run

SIZE = HeadSize(dim=8, depth=1, heads=2, feedforward=12, dropout=0.25)
TRAINING = Training(epochs=3, batch_size=4, learning_rate=1e-3, weight_decay=1e-5)
GO_ON = "finished folds are kept, the same command goes on from there"
TWO = Machine(accelerator="cpu", devices=2)
ALL = Counter((subject, 0) for subject in set(SUBJECTS))  # every fold once


def run(out: Path) -> dict[str, Any]:
    return Run(
        out=out, study=material(), size=SIZE, training=TRAINING, adaptation=adaptation(), machine=TWO
    ).execute()


def die(monkeypatch: pytest.MonkeyPatch, dead: int) -> None:
    """Kill a rank in the middle of the second fold, between two of its steps."""
    real = AdaptingFold.training_step

    def step(self: AdaptingFold, batch: dict[str, Any], batch_idx: int) -> None:
        if self.trainer.global_rank == dead and self.fold.subject == "casme2/1" and self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, batch, batch_idx)

    monkeypatch.setattr(AdaptingFold, "training_step", step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """predictions.csv of an undisturbed run by two ranks."""
    out = tmp_path_factory.mktemp("whole")
    run(out)
    assert trained(out) == ALL
    return (out / "predictions.csv").read_bytes()


def test_forked_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes) -> None:
    with monkeypatch.context() as patched:
        die(patched, 1)
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"^rank 1 died \(SIGKILL; memory may have run out\); {GO_ON}"):
            run(tmp_path)
        assert time.monotonic() - began < 60
    assert len(trained(tmp_path)) == 1 and not (tmp_path / "summary.json").exists()
    run(tmp_path)
    assert trained(tmp_path) == ALL
    assert (tmp_path / "predictions.csv").read_bytes() == whole


@pytest.mark.parametrize("dead", [0, 1])
def test_ranks_that_nobody_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, dead: int
) -> None:
    """As under SLURM: no launcher tells the one that is left."""
    out, port = tmp_path / "run", free_port()
    with monkeypatch.context() as patched:
        die(patched, dead)
        started = [start(lambda: run(out), slurm(rank, 2, port), tmp_path / str(rank)) for rank in range(2)]
        assert end(started[dead]) == -signal.SIGKILL
        assert end(started[1 - dead], 60) == 2
    lines = (tmp_path / str(1 - dead)).read_text().splitlines()
    assert lines[-1].startswith("mefar loso: error: another rank was lost (")
    assert lines[-1].endswith(f"; {GO_ON}")
    assert len(trained(out)) == 1 and not (out / "summary.json").exists()
    run(out)
    assert trained(out) == ALL
    assert (out / "predictions.csv").read_bytes() == whole
