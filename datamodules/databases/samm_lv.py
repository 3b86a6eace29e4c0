"""SAMM Long Videos: 147 videos, 159 micro- and 340 macro-movements, 200 frames per second, gray.

Coding file `SAMM_LongVideos_V3_Release.xlsx`, sheet `FACS_Movement_Only`, below a key of symbols: Subject
(006), Filename (`006_1_1`: subject, inducement, number), Inducement Code, Onset, Apex (-1 where not
annotated), Offset, Duration, Type (`Macro`, `Micro - 1/2`), Action Units, Notes. Frame numbers may be
fractions (566.4000000000001), which are rounded. What micro-movements show stands in the coding file of
`samm`. Frames `SAMM_longvideos/006_1/006_1_0001.jpg`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.databases.coding_file import read_table
from datamodules.databases.folders import Place
from datamodules.databases.long_videos import CodedMovement, LongDatabase, frame_number, movement_kind
from datamodules.databases.samm import DATABASE as SAMM

_NEEDED = ("Subject", "Filename", "Onset", "Apex", "Offset", "Type")


def _movements(file: Path) -> Iterable[CodedMovement]:
    for row in read_table(file, _NEEDED, "FACS_Movement_Only"):
        found = re.fullmatch(r"0*(\d+)_0*(\d+)(_\d+)?", row.text("Filename"))
        if found is None:
            raise row.error("Filename", f"{row.text('Filename')!r} is no movement such as 006_1_1")
        subject, kind = f"{int(found[1]):03d}", movement_kind(row, "Type")
        yield CodedMovement(
            subject,
            f"{subject}_{int(found[2])}",
            kind,
            frame_number(row, "Onset"),
            frame_number(row, "Apex"),
            frame_number(row, "Offset"),
            "",
            row.raw("Action Units"),
            row,
            row.text("Filename") if kind == "micro" else "",
        )


def _recognise(parts: Sequence[str]) -> tuple[Place, int] | None:
    found = re.fullmatch(r"0*(\d{1,3})_0*(\d)", parts[-1])
    if found is None:
        return None
    subject = f"{int(found[1]):03d}"
    above = [d for d, part in enumerate(parts[:-1]) if part.isdigit()]
    return (subject, f"{subject}_{int(found[2])}"), above[-1] if above else len(parts) - 1


DATABASE = LongDatabase(
    name="samm_lv",
    title="SAMM Long Videos",
    access="Manchester Metropolitan University (helward.mmu.ac.uk/STAFF/M.Yap/dataset.php)",
    fps=200.0,
    folder=r"samm(lv|long)",
    coding_file="SAMM_LongVideos_V3_Release.xlsx",
    coding_patterns=(r"samm.*long.*v3", r"samm.*long"),
    movements=_movements,
    recognise=_recognise,
    emotions=SAMM,
    published={"videos": 147, "micro": 159, "macro": 340},
)
