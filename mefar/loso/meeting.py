"""Where the ranks of a run meet: small files in the run's directory.

Folds need no gradient traffic, so ranks need each other only to know that all are done. A collective would
hold the fast ones until the process group gives up, and tell of a dead one late or never. Instead each rank
renews a sign of life, rank<r>.alive, every few seconds and reads those of the others. One that is not
renewed any more, or says that its rank failed, ends all ranks with one line.

A sign carries the id of the attempt, which rank 0 draws and all ranks share from the start: signs that an
earlier attempt left are never believed. Whether a sign was renewed is judged by its content and the
reader's own clock; clocks of several machines need not agree.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from torch.distributed import DistError
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from mefar.errors import UserError

BEAT = 2.0
"""Seconds between two signs of life."""
PATIENCE = 30.0
"""Seconds without a new sign after which a rank counts as dead."""
KEPT = "finished folds are kept, the same command goes on from there"
_WORKING, _DONE, _CONCLUDED, _FAILED = "working", "done", "concluded", "failed"


class Meeting:
    """One rank's side of one attempt at a run.

    Args:
        folder: the run directory, the same for all ranks.
        attempt: shared id.
        rank: of this process.
        world: number of ranks.
        starter: process that must stay this one's parent, where ranks must not outlive who started them.
    """

    def __init__(self, folder: Path, attempt: str, rank: int, world: int, starter: int | None = None) -> None:
        self.folder, self.attempt, self.rank, self.world = Path(folder), attempt, rank, world
        self.starter = starter
        self.beat, self.patience = BEAT, PATIENCE
        self.others = [other for other in range(world) if other != rank]
        self.trouble: str | None = None
        self._state, self._message, self._count = _WORKING, "", 0
        self._seen: dict[int, dict[str, object]] = {}
        self._silence = dict.fromkeys(self.others, 0.0)
        self._looked, self._ordered_to_stop = time.monotonic(), 0.0
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="sign of life", daemon=True)
        self._handler: Any = None

    def open(self) -> None:
        """Show the first sign of life and go on showing it."""
        if self.others:
            self._show()
            self._thread.start()

    def catch_orders(self) -> None:
        """Let SIGTERM end this rank with one line; launchers send it to all ranks when one dies.

        The handler of Lightning broadcasts, and a broadcast to a dead rank never ends.
        """
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, self._order)
            self._handler = self._handler if before == self._order else before

    def check(self) -> None:
        """Raise if the run cannot go on; to be called every second or so.

        Raises:
            UserError: another rank died or failed, or this one was told to end.
        """
        if self.starter not in (None, os.getppid()) and not self.trouble:
            self.trouble = f"rank {self.rank}: the process that started it died; {KEPT}"
        if self._ordered_to_stop and not self.trouble:
            self._explain_order()
        if self.trouble:
            raise UserError(self.trouble)

    def finish(self, conclude: Callable[[], None]) -> None:
        """Wait until all ranks are done, and until rank 0 has concluded the run.

        Args:
            conclude: called on rank 0, when all are done.

        Raises:
            UserError: as `check`.
        """
        if self.rank:
            self._say(_DONE)
            self._until(lambda: self._state_of(0) == _CONCLUDED, [0])
        else:
            self._until(lambda: all(self._state_of(rank) == _DONE for rank in self.others), self.others)
            conclude()
            self._say(_CONCLUDED)
            self._await_departure()
        self._leave()

    def fail(self, error: BaseException) -> None:
        """Tell the others why this rank ends; what it heard from another is passed on as it is."""
        with suppress(OSError):  # where nothing can be written, silence tells them
            self._say(_FAILED, self.trouble or f"rank {self.rank}: {_line(error)}; {KEPT}")
        self._leave(keep=True)

    # Signs

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.alive"

    def _say(self, state: str, message: str = "") -> None:
        with self._lock:
            self._state, self._message = state, message
            if self.others:
                self._show()

    def _show(self) -> None:
        with self._lock:
            self._count += 1
            sign = {"attempt": self.attempt, "count": self._count, "state": self._state}
            path = self._path(self.rank)
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_text(json.dumps(sign | {"message": self._message}), encoding="utf-8")
            os.replace(temporary, path)

    def _live(self) -> None:
        while not self._over.wait(self.beat):
            try:
                self._show()
                self._look(self.others)
            except OSError:  # a full or absent disk: the others will hear nothing, which is what they should
                continue

    def _look(self, ranks: Iterable[int]) -> None:
        """Read signs, count the silence of ranks that did not renew theirs, and hear of failures."""
        with self._lock:
            # A process that was stopped for a while must not take its own sleep for the others' silence.
            elapsed = min(time.monotonic() - self._looked, 2 * self.beat)
            self._looked = time.monotonic()
            os.listdir(self.folder)  # noqa: PTH208  network disks look again when a folder is listed
            for rank in self.others:
                sign = self._read(rank) if rank in ranks else None
                if sign and sign != self._seen.get(rank):
                    self._seen[rank], self._silence[rank] = sign, 0.0
                else:
                    self._silence[rank] += elapsed
            self._judge()

    def _read(self, rank: int) -> dict[str, object] | None:
        try:
            sign = json.loads(self._path(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return sign if isinstance(sign, dict) and sign.get("attempt") == self.attempt else None

    def _judge(self) -> None:
        if self.trouble or self._state == _CONCLUDED or self._state_of(0) == _CONCLUDED:
            return
        for rank in self.others:
            if self._state_of(rank) == _FAILED:
                self.trouble = str(self._seen[rank].get("message"))
                return
        for rank in self.others:
            if self._silence[rank] > self.patience:
                self.trouble = f"rank {rank} gave no sign of life for {self.patience:.0f} s; {KEPT}"
                return

    def _state_of(self, rank: int) -> object:
        return self._seen.get(rank, {}).get("state")

    # Waiting

    def _until(self, condition: Callable[[], bool], ranks: list[int]) -> None:
        for pause in self._pauses():
            if self.others:
                self._look(ranks)
            self.check()
            if condition():
                return
            time.sleep(pause)

    def _await_departure(self) -> None:
        """Rank 0 leaves last: its sign is what the others wait for."""
        deadline = time.monotonic() + self.patience
        for pause in self._pauses():
            if time.monotonic() > deadline or not any(self._read(rank) for rank in self.others):
                return
            time.sleep(pause)

    def _pauses(self) -> Iterator[float]:
        """Short at first, then sparing of network disks."""
        pause = self.beat / 100
        while True:
            yield pause
            pause = min(1.5 * pause, self.beat / 2)

    def _leave(self, keep: bool = False) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(self.beat)
        if threading.current_thread() is threading.main_thread() and self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        if keep:
            return
        self._path(self.rank).unlink(missing_ok=True)
        if not self.rank:
            sweep(self.folder)

    def _order(self, number: int, frame: FrameType | None) -> None:
        self._ordered_to_stop = self._ordered_to_stop or time.monotonic()

    def _explain_order(self) -> None:
        """Name the rank that died, if one falls silent soon after; a launcher gives half a minute."""
        for rank in self.others:
            if self._silence[rank] > 2.5 * self.beat:
                self.trouble = f"rank {rank} died; {KEPT}"
                return
        if not self.others or time.monotonic() - self._ordered_to_stop > 4 * self.beat:
            self.trouble = f"told to end (SIGTERM); {KEPT}"


def occupy(file: Path, first: bool, seconds: float = 60.0) -> IO[bytes]:
    """Lock a run against other attempts at it: one that was killed may have ranks that still work.

    Ranks of one attempt share the lock. The first waits until nobody else has it, and lets the others come.

    Args:
        file: of the run.
        first: whether this is the first rank of its attempt.
        seconds: to wait for other attempts to end.

    Returns:
        What keeps the lock until it is closed, or the process ends.

    Raises:
        UserError: another attempt goes on.
    """
    stream = file.open("rb+")
    try:
        import fcntl

        deadline, how = time.monotonic() + seconds, fcntl.LOCK_EX if first else fcntl.LOCK_SH
        while True:
            try:
                fcntl.flock(stream, how | fcntl.LOCK_NB)
                fcntl.flock(stream, fcntl.LOCK_SH)
                return stream
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{file.parent}: another process works on this run; end it first"
                    ) from None
                time.sleep(0.1)
    except (ImportError, OSError):  # no locks on this system or disk: as good as it goes
        return stream


def sweep(folder: Path) -> None:
    """Remove the signs of ended attempts."""
    for path in Path(folder).glob("rank*.alive*"):
        path.unlink(missing_ok=True)


def explained(error: Exception) -> UserError | None:
    """What ended the processes of a launcher, as one line.

    Args:
        error: from `Trainer.predict`.

    Returns:
        Which rank ended and why; None for a bug, which keeps its traceback.
    """
    if isinstance(error, ProcessExitedException):
        why = error.signal_name or f"exit code {error.exit_code}"
        memory = "; memory may have run out" if why == "SIGKILL" else ""
        return UserError(f"rank {error.error_index} died ({why}{memory}); {KEPT}")
    if isinstance(error, ProcessRaisedException):
        kind, _, line = str(error).strip().splitlines()[-1].partition(": ")
        if kind.endswith(UserError.__name__):
            return UserError(line)
    else:
        line = _line(error)
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in line):
        return UserError(f"another rank was lost ({line}); {KEPT}")
    return None


def _line(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return " ".join(f"{type(error).__name__}: {error}".split())
