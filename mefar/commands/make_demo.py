"""`mefar make-demo DIR`: render the demo corpora."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from datamodules.demo.corpora import make_databases, make_voxceleb
from mefar.commands import run_function
from mefar.progress import shown


def make_demo(out: Path, seed: int = 0, size: Literal["demo", "tiny"] = "demo", workers: int = 0) -> None:
    """Render faces and write them in the layouts of the real databases; what is there already is kept.

    Args:
        out: folder to write: voxceleb, casme2, samm, smic, casme3 and ground_truth.
        seed: same seed, same files.
        size: demo (350 speakers, 8 subjects x 13 clips per database; about 2 minutes on 2 cores, 300 MB) or
            tiny (seconds; for tests).
        workers: processes; 0 = one per core (tiny: this one alone).
    """
    if size == "tiny" and workers == 0:
        workers = 1  # starting processes would take longer than the work
    with shown("rendering databases", "subjects") as progress:
        make_databases(out, seed, size, workers, progress)
    with shown("rendering voxceleb", "speakers") as progress:
        make_voxceleb(out, seed, size, workers, progress)
    print(f"{out}: demo corpora of rendered faces, seed {seed}: voxceleb, casme2, samm, smic, casme3")


def main(argv: Sequence[str]) -> int:
    """Run `mefar make-demo`."""
    return run_function(make_demo, argv, "mefar make-demo")
