"""`mefar doctor DATASET DIR`: what a database folder lacks, before a run finds out."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from json import dumps
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datamodules.crops import Progress
from datamodules.doctor import Count, Report, examine
from datamodules.faces.align import FaceMode
from datamodules.faces.apex import ApexRule
from mefar.progress import shown

_LISTED = 10  # findings of one kind that are listed without --verbose
_COLOURS = {"lost": "red", "warning": "yellow", "note": "dim"}


def doctor(
    dataset: str,
    data: Path,
    *,
    classes: int | None = None,
    faces: FaceMode = "align",
    apex: ApexRule = "annotated",
    errata: bool = True,
    views: int = 8,
    all_frames: bool = False,
    verbose: bool = False,
    json: bool = False,
) -> int:
    """Check a database folder against what the protocol needs: mefar doctor DATASET DIR.

    Exit code 0: nothing would be lost. 1: a clip would be dropped, or a run would stop. 2: wrong folder.
    Nothing in the folder is changed.

    Args:
        dataset: composite, a database's name (`mefar databases` lists them), or the path of a file that
            describes one.
        data: for composite the folder with one folder per database, else the database's folder or its parent;
            of a database of long videos the movements are checked.
        classes: number of classes; null = the protocol's own.
        faces: as for loso: `align` looks for raw frames first, `precropped` for cropped ones.
        apex: the apex rule that runs will use.
        errata: correct annotations that are known to be wrong.
        views: as for loso; the frames around the apex that they show are decoded.
        all_frames: decode every frame, not only those that runs read.
        verbose: show the tables in any case, and every finding.
        json: print JSON and nothing else.
    """
    bar: AbstractContextManager[Progress | None] = nullcontext()
    if sys.stdout.isatty() and not json:
        bar = shown("reading images", "images")
    with bar as progress:
        prefer: Literal["raw", "cropped"] = "raw" if faces == "align" else "cropped"
        report = examine(dataset, data, classes, errata, prefer, apex, all_frames, views, progress=progress)
    if json:
        print(dumps(report.as_json(), indent=2))
    else:
        if verbose or not report.complete:
            _show(report, verbose)
        print(_verdict(report))
    return 1 if report.lost else 0


def _show(report: Report, verbose: bool) -> None:
    # In a pipe there is no width to fit in, and a line that is not broken can be searched.
    console = Console(width=None if sys.stdout.isatty() else 2000, highlight=False)
    with console.capture() as shown_text:
        _show_counts(report, console)
        _show_findings(report, console, None if verbose else _LISTED)
        _show_errata(report, console, None if verbose else _LISTED)
    for line in shown_text.get().splitlines():
        print(line.rstrip())


def _show_counts(report: Report, console: Console) -> None:
    names = list(next(iter(report.parts.values())).classes)
    # Narrow enough for five classes in 80 columns.
    table = Table("database", "clips", "subjects", *names, box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for name, part in report.parts.items():
        cells = [_cell(count) for count in (part.clips, part.subjects, *part.classes.values())]
        table.add_row(name, *cells)
    console.print(f"{report.dataset}: found/expected\n", markup=False)
    console.print(table)
    console.print()
    for name, part in report.parts.items():
        rules = ", ".join(f"{rule} {count}" for rule, count in part.apex.items())
        coding = f", coding file {part.coding_file}" if part.coding_file else ""
        where = f"frames from {part.frames}" if part.frames else f"{part.folder} could not be used"
        console.print(f"{name}: apex {rules or 'of none'}; {where}{coding}", markup=False, soft_wrap=True)


def _cell(count: Count) -> str:
    if count.expected is None:
        return f"{count.found}"
    text = f"{count.found}/{count.expected}"
    if count.found == count.expected:
        return text
    return f"[{'red' if count.found < count.expected else 'yellow'}]{text}"


def _show_findings(report: Report, console: Console, limit: int | None) -> None:
    if not report.findings:
        return
    table = Table("", "finding", "clip", "detail", box=SIMPLE)
    for (level, kind), group in groupby(report.findings, key=lambda f: (f.level, f.kind)):
        found = list(group)
        colour = _COLOURS[level]
        for finding in found[:limit]:
            table.add_row(
                f"[{colour}]{level}", kind, escape(finding.clip or finding.database), escape(finding.detail)
            )
        if limit is not None and len(found) > limit:
            table.add_row(f"[{colour}]{level}", kind, f"and {len(found) - limit} more", "--verbose lists all")
    console.print(table)


def _show_errata(report: Report, console: Console, limit: int | None) -> None:
    if not report.errata:
        return
    table = Table("erratum", "field", "was", "is", "source", box=SIMPLE)
    for one in report.errata[:limit]:
        new = f"{one.new} not applied: {one.refused}" if one.refused else one.new
        table.add_row(*map(escape, (one.clip, one.field, one.old, new, one.source)))
    if limit is not None and len(report.errata) > limit:
        table.add_row(f"and {len(report.errata) - limit} more", "", "", "", "--verbose lists all")
    console.print(table)


def _verdict(report: Report) -> str:
    """What it comes to, in one line."""
    clips = sum(part.clips.found for part in report.parts.values())
    subjects = sum(part.subjects.found for part in report.parts.values())
    rules: Counter[str] = Counter()
    for part in report.parts.values():
        rules.update(part.apex)
    levels = Counter(finding.level for finding in report.findings)
    if report.lost:
        state = f"data would be lost (losses {levels['lost']}, warnings {levels['warning']})"
    elif not report.complete:
        state = f"nothing would be lost (warnings {levels['warning']})"
    else:
        state = "complete"
    applied = sum(not one.refused for one in report.errata)
    chosen = ", ".join(f"{rule} {count}" for rule, count in sorted(rules.items())) or "of none"
    return (
        f"{report.dataset}: {state}: {clips} clips, {subjects} subjects, apex {chosen}, "
        f"{applied} errata applied, {report.images} images read"
    )
