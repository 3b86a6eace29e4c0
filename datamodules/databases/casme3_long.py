"""CAS(ME)^3, part A, the long videos: macro- and micro-expressions of whole recordings, 30 frames per second.

Coding file `CAS(ME)3_part_A_v2.xls` (or v1): Subject (spNO.1), Filename (letter of the video), Onset, Apex,
Offset (0 where not annotated), AU, Expression type (`Macro-expression`, `Micro-expression`), Objective
class. It names no emotions; those of micro-expressions are taken from the coding file of `casme3`. Frames
`part_A/spNO.1/a/color/355.jpg`, as for `casme3`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.databases.casme3 import DATABASE as CASME3
from datamodules.databases.casme3 import SUBJECT
from datamodules.databases.coding_file import read_table
from datamodules.databases.folders import Place
from datamodules.databases.long_videos import CodedMovement, LongDatabase, frame_number, movement_kind

_NEEDED = ("Subject", "Filename", "Onset", "Apex", "Offset", "Expression type")


def _movements(file: Path) -> Iterable[CodedMovement]:
    for row in read_table(file, _NEEDED):
        subject = SUBJECT.read(row.text("Subject"))
        if subject is None:
            raise row.error("Subject", f"{row.text('Subject')!r} is no subject id ({SUBJECT.example})")
        kind, onset = movement_kind(row, "Expression type"), frame_number(row, "Onset")
        yield CodedMovement(
            subject,
            row.text("Filename").casefold(),
            kind,
            onset,
            frame_number(row, "Apex"),
            frame_number(row, "Offset"),
            "",
            row.raw("AU"),
            row,
            f"{row.text('Filename').casefold()}_{onset}" if kind == "micro" else "",
        )


def _recognise(parts: Sequence[str]) -> tuple[Place, int] | None:
    if len(parts) < 2 or not re.fullmatch(r"[a-z]", parts[-1], re.IGNORECASE):
        return None
    subject = SUBJECT.read(parts[-2])
    return ((subject, parts[-1].casefold()), len(parts) - 2) if subject else None


DATABASE = LongDatabase(
    name="casme3_long",
    title="CAS(ME)^3, part A, long videos",
    access="CASME group, Institute of Psychology, Chinese Academy of Sciences (casme.psych.ac.cn)",
    fps=30.0,
    folder=r"cas(\(me\)|me)\^?(3|iii)",
    coding_file="CAS(ME)3_part_A_v2.xls",
    coding_patterns=(r"part_a_v2", r"part_a_v\d"),
    movements=_movements,
    recognise=_recognise,
    below="color",
    emotions=CASME3,
)
