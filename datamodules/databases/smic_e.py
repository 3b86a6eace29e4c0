"""SMIC-HS-E: 157 longer clips of SMIC-HS around one to three micro-expressions, 100 frames per second.

Coding file `SMIC-HS-E_annotation.xlsx`, sheet `HS`: Subject (in the first row of each subject only),
Filename (`s20_ne_01`), OnsetF, OffsetF, Onset2F, Offset2F, Onset3F, Offset3F, FirstF, LastF, TotalMF1, ...,
Emotion. Frame numbers are camera counters. Frames `SMIC-HS-E/s03/s3_sur_01/image308866.jpg`. No apex, no
action units, no macro-expressions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.databases.coding_file import read_table
from datamodules.databases.folders import Place
from datamodules.databases.long_videos import CodedMovement, LongDatabase, frame_number
from datamodules.databases.smic import clip_id

_PAIRS = (("OnsetF", "OffsetF"), ("Onset2F", "Offset2F"), ("Onset3F", "Offset3F"))


def _movements(file: Path) -> Iterable[CodedMovement]:
    for row in read_table(file, ("Filename", "Filename", "OnsetF", "OffsetF"), "HS"):
        known = clip_id(row.text("Filename"))
        if known is None:
            raise row.error("Filename", f"{row.text('Filename')!r} is no clip such as s20_ne_01")
        subject, video, emotion = known
        for number, (first, last) in enumerate(_PAIRS):
            onset, offset = frame_number(row, first), frame_number(row, last)
            if number == 0 or onset is not None or offset is not None:
                if onset is not None and offset is None:
                    raise row.error(last, "is blank, but there is an onset")
                yield CodedMovement(subject, video, "micro", onset, None, offset, emotion, None, row)


def _recognise(parts: Sequence[str]) -> tuple[Place, int] | None:
    known = clip_id(parts[-1])
    if known is None or any(re.fullmatch(r"(?i)vis|nir|.*(vis|nir).e|micro|non.?micro", p) for p in parts):
        return None
    above = [d for d, part in enumerate(parts[:-1]) if re.fullmatch(r"(?i)s\d+", part)]
    return known[:2], above[-1] if above else len(parts) - 1


DATABASE = LongDatabase(
    name="smic_e",
    title="SMIC-HS-E",
    access="CMVS, University of Oulu (SMIC, extended version)",
    fps=100.0,
    folder=r"smic(hs)?e|smiclong|hslong",
    coding_file="SMIC-HS-E_annotation.xlsx",
    coding_patterns=(r"smic.hs.e.*annot", r"smic.*hs.*e"),
    movements=_movements,
    recognise=_recognise,
    published={"videos": 157, "subjects": 16},
)
