"""The DataLoader of both datamodules: workers that cannot do their work end the run with one line."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from mefar.errors import UserError

SHARED_MEMORY = Path("/dev/shm")  # where Linux lets processes share memory; containers often have 64 MB of it


class PictureLoader(DataLoader[Any]):
    """A DataLoader that forks cleanly and does not wait for workers that cannot answer.

    Args:
        batch_bytes: size of one batch.
        arguments: of DataLoader.
    """

    def __init__(self, *arguments: Any, batch_bytes: int, **named: Any) -> None:
        # No timeout: torch then looks every few seconds whether its workers live, whoever handles signals.
        super().__init__(*arguments, **named)
        self.batch_bytes = batch_bytes

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches.

        Raises:
            UserError: workers have too little shared memory, or die.
        """
        self._check_shared_memory()
        with _ctrl_c_later():
            batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader" not in str(error):  # torch's own words for workers that die
                    raise
                raise UserError(
                    f"a loader process ended ({str(error).splitlines()[0]}); is there room in "
                    f"{SHARED_MEMORY} and in memory? Try fewer num_workers, or 0"
                ) from error
            yield batch

    def _check_shared_memory(self) -> None:
        if not self.num_workers or not SHARED_MEMORY.is_dir():
            return
        # Without room a worker's batch is lost, not its life: the run would wait for ever.
        need = self.num_workers * ((self.prefetch_factor or 2) + 1) * self.batch_bytes
        free = shutil.disk_usage(SHARED_MEMORY).free
        if need > free:
            raise UserError(
                f"{SHARED_MEMORY}: {free / 1e6:.0f} MB free, {self.num_workers} loader processes need "
                f"{need / 1e6:.0f} MB; set num_workers to 0 or fewer, or give the container more (docker run "
                "--shm-size=8g)"
            )


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Ctrl-C reaches this process when the block ends, and those that are started in it never.

    A loader that is ended while it starts its processes complains, and so do they; whole, it ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
