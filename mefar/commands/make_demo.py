"""`mefar make-demo DIR`: render the demo corpora."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from datamodules.demo import make_databases, make_voxceleb


def make_demo(out: Path, seed: int = 0, size: Literal["demo", "tiny"] = "demo", workers: int = 0) -> None:
    """Render demo corpora in the real databases' layouts; what is there already is kept.

    Args:
        out: folder to write: voxceleb, casme2, samm, smic, casme3 and ground_truth.
        seed: same seed, same files.
        size: demo (350 speakers; 8 subjects x 13 clips per database; about 2 minutes on 2 cores, 350 MB) or
            tiny (seconds; for tests).
        workers: processes; 0 = one per core (tiny: this process alone).
    """
    workers = workers or (1 if size == "tiny" else 0)
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TextColumn("people"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bars:

        def bar(name: str) -> Callable[[int, int], None]:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        make_databases(out, seed, size, workers, bar("databases"))
        make_voxceleb(out, seed, size, workers, bar("voxceleb"))


def main(argv: Sequence[str]) -> int:
    """Parse arguments and render."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="mefar make-demo", description="Render demo corpora in the real databases' layouts.")
    parser.add_function_arguments(make_demo, as_positional=True)
    arguments = parser.parse_args(list(argv))
    make_demo(**vars(parser.instantiate_classes(arguments)))
    return 0
