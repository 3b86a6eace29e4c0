"""Ranks that wait for each other must not outlive who started them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from launching import end, start, wait_for
from lightning.pytorch.strategies import DDPStrategy
from test_loso import CPU, run

from mefar.errors import UserError
from mefar.loso.launch import FoldStrategy


def gone(process: int) -> bool:
    """Whether a process that need not be a child of this one has ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_a_rank_that_waits_for_another_ends_with_its_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 never comes; rank 0 waits for it outside of Python."""
    connect = DDPStrategy.setup_environment

    def hesitate(self: DDPStrategy) -> None:
        rank = os.environ["LOCAL_RANK"]
        (tmp_path / f"rank{rank}.tmp").write_text(str(os.getpid()))
        (tmp_path / f"rank{rank}.tmp").rename(tmp_path / f"rank{rank}")
        if rank == "1":
            time.sleep(600)
        connect(self)

    monkeypatch.setattr(DDPStrategy, "setup_environment", hesitate)
    launcher = start(lambda: run(tmp_path / "run", replace(CPU, devices=2)), {}, tmp_path / "log")
    files = [tmp_path / f"rank{rank}" for rank in (0, 1)]
    wait_for(lambda: all(file.exists() for file in files))
    ranks = [int(file.read_text()) for file in files]
    time.sleep(1)  # rank 0 has begun to wait
    assert not any(map(gone, ranks))
    os.kill(launcher, signal.SIGKILL)
    assert end(launcher) == -signal.SIGKILL
    try:
        wait_for(lambda: all(map(gone, ranks)), 10)
    finally:
        for rank in ranks:
            if not gone(rank):
                os.kill(rank, signal.SIGKILL)


def test_a_rank_whose_launcher_died_before_it_could_be_told_does_not_wait() -> None:
    made = FoldStrategy("gloo", "fork")  # by this process, which is not its own parent
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match="the process that started this rank died"):
        made.setup_environment()
    assert signal.getsignal(signal.SIGINT) == handler
