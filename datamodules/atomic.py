"""Files appear whole or not at all: written under a temporary name, then renamed; one builder at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`: it becomes `path` when the block ends well, or is removed."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; files of processes that live are left alone."""
    for path in folder.glob("*.tmp"):
        owner = path.suffixes[-2].lstrip(".") if len(path.suffixes) > 1 else ""
        if owner.isdigit() and not _alive(int(owner)):
            path.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, name: str = "") -> Iterator[int]:
    """Wait until no other process, on any machine that shares the disk, builds here.

    Gives the number of the open lock file: a process that inherits it keeps the lock as long as it lives.

    Args:
        folder: what is built, or holds it.
        name: what is built in the folder, where several things are built at a time.
    """
    with (folder / f"{name}.lock").open("w") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logging.getLogger(__name__).warning("%s: another process builds it; waiting", folder / name)
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError) as error:  # no locks on this system or disk: as good as it goes
            logging.getLogger(__name__).debug("%s: not locked (%s)", folder, error)
        yield file.fileno()  # closing the file gives the lock back, and so does dying


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
