"""Ranks of a run as processes of their own, started from a warm one: importing everything takes seconds."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mefar.commands import guard
from mefar.loso import meeting


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def slurm(rank: int, world: int, port: int) -> dict[str, str]:
    """What `srun` tells each of its tasks; the ranks that live are told nothing of a dead one."""
    return {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "loso", "SLURM_NTASKS": str(world),
        "SLURM_NTASKS_PER_NODE": str(world), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip


def start(work: Callable[[], object], told: dict[str, str], log: Path, beat: float = 0.1) -> int:
    """Fork a process that works as the `mefar` command would, with its lines in `log`; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.environ.update(told)
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        meeting.BEAT, meeting.PATIENCE = beat, 15 * beat
        torch.set_num_threads(1)

        def call() -> int:
            work()
            return 0

        code = guard("mefar loso", call)
    except BaseException as error:
        print(f"bug: {error!r}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def end(process: int, seconds: float = 30.0) -> int:
    """Exit code of a process, minus the number of the signal that killed it; fails if it does not end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, 9)
    os.waitpid(process, 0)
    raise AssertionError(f"still running after {seconds} s")


def children() -> set[int]:
    """Processes that this one has started and that are still there; others than ranks may be among them."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(process) for process in listed.split()}


def ended(process: int) -> bool:
    """Whether a process has ended; it can still be asked for its exit code."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
