"""Long work on many files in processes, of which a broken file may end or hang one: that file is left out.

A decoder is C code fed with files from everywhere; some of them end the process that opens them, or never
return. Each process says which file it is about to open. When it dies, or is silent for too long, its job is
done again in a fresh process; a file at which this happened twice is left out, and the job, told so, goes
around it. (Twice, because memory may have run out by another's fault.)

Every worker is a pool of one process: the death of a process in a larger pool would end its neighbours' jobs
too, and hide whose file it was.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any

import cv2

from mefar.errors import UserError

PATIENCE = 300.0  # seconds for one file; reading an utterance takes less than one
TRIES = 2

_STARTING = threading.Lock()

Begin = Callable[[str], None]
Job = Callable[[Mapping[str, str], Begin], None]


def work(jobs: Mapping[int, Job], workers: int, patience: float | None = None) -> Iterator[int]:
    """Do all jobs in worker processes -> their numbers, as they are done.

    Args:
        jobs: number -> picklable callable, called in a worker with the files to leave out, each with the
            reason, and `begin`, to be called with the name of each file before it is opened, and with ""
            before anything that cannot be left out.
        workers: processes, at least 1.
        patience: seconds that one file may take; None is PATIENCE.

    Raises:
        UserError: workers die outside of any file.
        Exception: what a job raised, with the worker's traceback as its cause.
    """
    patience = PATIENCE if patience is None else patience
    stop, mine = threading.Event(), threading.local()
    started: list[_Worker] = []

    def do(job: Job) -> None:
        if not hasattr(mine, "worker"):
            mine.worker = _Worker(stop, patience)
            started.append(mine.worker)
        mine.worker.do(job)

    with ThreadPoolExecutor(min(workers, len(jobs)) or 1) as threads:
        try:
            numbers = {threads.submit(do, job): number for number, job in jobs.items()}
            for future in as_completed(numbers):
                future.result()
                yield numbers[future]
        finally:
            stop.set()
            threads.shutdown(cancel_futures=True)
            for worker in started:
                worker.end()


class _Worker:
    """A process that is replaced when it dies."""

    def __init__(self, stop: threading.Event, patience: float) -> None:
        self.stop, self.patience = stop, patience
        self._start()

    def _start(self) -> None:
        # Spawned: a forked child would inherit the locks of decoder and thread pools in whatever state.
        context = get_context("spawn")
        self.file = context.RawArray("c", 8192)  # without a lock: its holder may die
        self.since = context.RawValue("d", 0.0)
        self.pool = ProcessPoolExecutor(1, context, _begin_life, (os.getpid(), self.file, self.since))
        with _STARTING:
            before = set(active_children())
            self.pool.submit(str)  # starts the process, which the pool itself does not show
            (self.process,) = set(active_children()) - before

    def do(self, job: Job) -> None:
        """Do a job, again and again while files end the process.

        Raises:
            UserError: the process dies twice outside of any file.
        """
        left_out: dict[str, str] = {}
        deaths: Counter[str] = Counter()
        while not self.stop.is_set():
            self.file.value, self.since.value = b"", 0.0
            future = self.pool.submit(_run, job, left_out)
            died = self._watch(future)
            if died is None:
                return
            file = self.file.value.decode()
            self.pool.shutdown()
            self._start()
            deaths[file] += 1
            if deaths[file] >= TRIES:
                if not file:
                    raise UserError(f"a worker process ends early ({died}); is there memory left?")
                left_out[file] = died

    def _watch(self, future: Future[None]) -> str | None:
        """How the process ended before its job was done; None where the job is done, or nobody waits."""
        hangs = False
        while not future.done():
            wait([future], timeout=min(0.2, self.patience))
            hangs = bool(self.file.value) and time.monotonic() - self.since.value > self.patience
            if (hangs or self.stop.is_set()) and not future.done():
                self.process.kill()
                wait([future])
        try:
            future.result()
        except BrokenProcessPool:
            if hangs:
                return f"hangs its reader for more than {self.patience:.0f} s"
            self.process.join()
            deadline = time.monotonic() + 5.0
            # The system tells it once, perhaps to a thread of the pool that has yet to write it down.
            while self.process.exitcode is None and time.monotonic() < deadline:
                time.sleep(0.01)
            return _cause(self.process.exitcode)
        return None

    def end(self) -> None:
        self.pool.shutdown()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"kills its reader ({name})"
    return f"kills its reader (exit code {code})"


_file: Any = None
_since: Any = None


def _begin_life(parent: int, file: Any, since: Any) -> None:
    """Runs in the worker, first."""
    global _file, _since
    _file, _since = file, since
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides

    def watch() -> None:  # a killed parent must not leave workers behind that wait for ever
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Job, left_out: Mapping[str, str]) -> None:
    """Runs in the worker."""
    job(left_out, _opening)


def _opening(file: str) -> None:
    _since.value, _file.value = time.monotonic(), file.encode()
