"""A progress bar with rate and time left for long passes over files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def shown(title: str, unit: str = "files") -> Iterator[Callable[[int, int, float], None]]:
    """Show a bar while the block runs; what is yielded takes (done, total, rate per second).

    Nothing is shown until the first call: work that is already done stays silent.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} {task.fields[unit]}/s"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns)
    task = bar.add_task(title, total=None, rate=0.0, unit=unit)

    def progress(done: int, total: int, rate: float) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, rate=rate)

    try:
        yield progress
    finally:
        bar.stop()
