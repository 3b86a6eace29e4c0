"""A progress bar with rate and time left for long passes over files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

LOG_SECONDS = 60.0


@contextmanager
def shown(title: str, unit: str = "files") -> Iterator[Callable[[int, int, float], None]]:
    """Show a bar while the block runs; what is yielded takes (done, total, rate per second).

    Nothing is shown until the first call: work that is already done stays silent.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} {task.fields[unit]}/s"),
        TextColumn("{task.fields[left]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))  # stdout is for results
    task = bar.add_task(title, total=None, rate=0.0, unit=unit, left="")
    said = time.monotonic()

    def progress(done: int, total: int, rate: float) -> None:
        nonlocal said
        # From the rate over the whole pass: files come in by hundreds, minutes apart.
        left = f"{time_left(done, total, rate)} left"
        bar.start()
        bar.update(task, completed=done, total=total, rate=rate, left=left)
        if not bar.console.is_terminal and time.monotonic() - said > LOG_SECONDS:
            said = time.monotonic()  # a log file shows no bar before its end
            bar.console.print(f"{title}: {done} of {total} {unit}, {rate:.1f}/s, {left}")

    try:
        yield progress
    finally:
        if bar.live.is_started:  # stopping a bar that never was shown prints an empty line
            bar.stop()


def time_left(done: int, total: int, rate: float) -> str:
    """How long the rest takes, as h:mm:ss."""
    return str(timedelta(seconds=round((total - done) / rate))) if rate > 0 else "?"
