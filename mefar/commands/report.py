"""`mefar report`: the page of a finished run, written anew from its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mefar.commands import run_function
from mefar.report import write_figure, write_report


def report(run: Path, *, figure: Path | None = None) -> None:
    """Write RUN/report.html from the files that `mefar loso` left there.

    Args:
        run: folder of a finished run, for example runs/loso-samm.
        figure: also write the rows of pictures as one PNG to this file.
    """
    print(write_report(run))
    if figure is not None:
        print(write_figure(run, figure))


def main(argv: Sequence[str]) -> int:
    """Run `mefar report`."""
    return run_function(report, argv, "mefar report")
