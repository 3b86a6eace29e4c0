"""`mefar compare RUN_A RUN_B`: is the difference between two runs more than a choice of subjects?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from mefar.loso import bootstrap
from mefar.loso.results import DRAWS, read_predictions


def compare(first: Path, second: Path, *, selection: Literal["last", "inner", "oracle"] = "last") -> None:
    """Paired bootstrap over subjects of two LOSO runs on the same clips.

    Args:
        first: folder of a finished run.
        second: folder of another on the same clips and labels; seeds may be other ones.
        selection: which epoch of both: last (the score), inner, or oracle (leaks).
    """
    found = bootstrap.compare(read_predictions(first), read_predictions(second), selection)
    title = f"{selection}: {second} against {first}, {DRAWS} draws of the subjects"
    table = Table(title=title, title_justify="left")
    for name in ("", "first", "second", "difference", "95 % interval", "draws against it"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in found.items():
        table.add_row(
            name.upper(), f"{row.first:.4f}", f"{row.second:.4f}", f"{row.second - row.first:+.4f}",
            f"{row.low:+.4f} to {row.high:+.4f}", f"{100 * row.reversed_share:.1f} %",
        )  # fmt: skip
    Console().print(table)
