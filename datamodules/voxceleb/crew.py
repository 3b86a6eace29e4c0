"""Long work in processes that a broken file may kill or hang: the step that did it is found and left out.

A decoder is C code fed with files from everywhere; some of them end the process that opens them, or never
return. Each worker therefore says what it is about to do. When it dies, or is silent for too long, its task
is done again by a fresh worker; the step at which this happened twice is condemned, and the task, told so,
goes around it. (Twice, because memory may have run out by another's fault.)
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import cv2

from mefar.errors import UserError

PATIENCE = 300.0  # seconds for one step; reading an utterance takes less than one
TRIES = 2

Begin = Callable[[str], None]
Job = Callable[[int, Mapping[str, str], Begin], None]


@dataclass
class _Worker:
    """A process, what it does and since when."""

    process: SpawnProcess
    pipe: Connection
    task: int | None = None
    step: str | None = None
    since: float = field(default_factory=time.monotonic)


def work(jobs: Mapping[int, Job], workers: int, patience: float | None = None) -> Iterator[int]:
    """Do all jobs in worker processes -> their numbers, as they are done.

    Args:
        jobs: number -> picklable callable, called in a worker with its number, the condemned steps with the
            reasons, and `begin`, to be called with the name of each step before it is begun, and with ""
            before anything that cannot be left out.
        workers: processes, at least 1.
        patience: seconds that one step may take; None is PATIENCE.

    Raises:
        UserError: workers die outside of any step.
        Exception: what a job raised, with the worker's traceback as a note.
    """
    patience = PATIENCE if patience is None else patience
    todo, left = deque(jobs), len(jobs)
    condemned: dict[int, dict[str, str]] = {number: {} for number in jobs}
    deaths: Counter[tuple[int | None, str | None]] = Counter()
    crew = [_hired() for _ in range(min(workers, len(jobs)))]
    try:
        while left:
            for worker in crew:
                if worker.task is None and todo:
                    _give(worker, number := todo.popleft(), jobs[number], condemned[number])
            heard = set(wait([worker.pipe for worker in crew], timeout=min(1.0, patience)))
            for place, worker in enumerate(crew):
                died = ""
                if worker.pipe in heard:
                    try:
                        kind, content = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join()
                        died = _cause(worker.process.exitcode)
                    else:
                        if kind == "failed":
                            raise content
                        worker.step, worker.since = content or None, time.monotonic()
                        if kind == "done" and worker.task is not None:
                            left -= 1
                            yield worker.task
                            worker.task = None
                elif worker.step is not None and time.monotonic() - worker.since > patience:
                    died = f"hangs its reader for more than {patience:.0f} s"
                if died:
                    _dismiss(worker)
                    crew[place] = _hired()
                    deaths[worker.task, worker.step] += 1
                    if worker.task is not None:
                        todo.appendleft(worker.task)
                    if deaths[worker.task, worker.step] >= TRIES:
                        if worker.task is None or worker.step is None:
                            raise UserError(f"a worker process ends early ({died}); is there memory left?")
                        condemned[worker.task][worker.step] = died
    finally:
        for worker in crew:
            _dismiss(worker)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"kills its reader ({name})"
    return f"kills its reader (exit code {code})"


def _hired() -> _Worker:
    # Spawned, not forked: a forked child inherits the locks of decoder and thread pools in whatever state.
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
    process.start()
    theirs.close()  # so that its death is the end of the pipe
    return _Worker(process, ours)


def _dismiss(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _give(worker: _Worker, number: int, job: Job, condemned: dict[str, str]) -> None:
    worker.task, worker.step = number, None
    try:
        worker.pipe.send((number, job, condemned))
    except OSError:
        return  # it is dead: the next look at its pipe says so


def _serve(pipe: Connection, parent: int) -> None:
    """A worker's life."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides

    def watch() -> None:  # a killed parent must not leave workers behind that wait for ever
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    while True:
        try:
            number, job, condemned = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            job(number, condemned, lambda step: pipe.send(("step", step)))
        except Exception as error:
            pipe.send(("failed", _portable(error)))
        else:
            pipe.send(("done", None))


def _portable(error: Exception) -> Any:
    """The error itself where it can travel, with the traceback that stays behind."""
    told = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own pickling raises
        return RuntimeError(told)
    copy.add_note(told)
    return copy
