"""Ctrl-C, as a terminal sends it, to all processes of a command at once, at the worst moment; and SIGTERM."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from diary import number_pairs
from test_resume import folder, shipped  # noqa: F401  a fixture is found by its name
from waiting import gone, wait_for

from mefar.__main__ import main
from mefar.tokenizer.module import FacialActionTokenizer


def _in_a_terminal(words: list[str], said: Path) -> None:
    """Ctrl-C comes when the first loader process begins, and again when the second does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # a forked process must not wake the thread pool of its parent
    with said.open("w") as sys.stderr:
        os.dup2(sys.stderr.fileno(), 2)
        plain = BaseProcess.start

        def start(process: BaseProcess) -> None:
            plain(process)
            os.killpg(0, signal.SIGINT)

        BaseProcess.start = start
        code = main(words)
    sys.exit(code)


def test_ctrl_c_while_loader_processes_start(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    words = [*shipped(folder, tmp_path / "run", {}, "demo"), "--data.init_args.num_workers", "2"]
    said = tmp_path / "said"
    run = multiprocessing.get_context("fork").Process(target=_in_a_terminal, args=(words, said))
    run.start()
    run.join()
    assert (run.exitcode, said.read_text()) == (130, "mefar fit: interrupted\n")
    wait_for(lambda: gone(run.pid))


def _ends_itself(words: list[str], said: Path, kind: type, step: str) -> None:
    """SIGTERM comes in the first step of a training, as `kill` and `scancel` send it."""
    torch.set_num_threads(1)
    plain = getattr(kind, step)

    def once(self: object, *given: object) -> object:
        setattr(kind, step, plain)
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *given)

    setattr(kind, step, once)
    with said.open("w") as sys.stderr:
        os.dup2(sys.stderr.fileno(), 2)
        code = main(words)
    sys.exit(code)


def test_a_training_that_is_told_to_end_says_so_and_is_no_success(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number_pairs(monkeypatch)
    words = [*shipped(folder, tmp_path / "run", {}, "demo"), "--data.init_args.num_workers", "0"]
    given = words, tmp_path / "said", FacialActionTokenizer, "training_step"
    run = multiprocessing.get_context("fork").Process(target=_ends_itself, args=given)
    run.start()
    run.join()
    assert run.exitcode == 143
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last == "mefar fit: ended by SIGTERM"
