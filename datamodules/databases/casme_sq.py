"""CAS(ME)^2: 22 subjects, 300 macro- and 57 micro-expressions in long videos, 30 frames per second.

Coding file `CAS(ME)^2code_final.xlsx` (also `CASME_sq_gt.xlsx`, `code_final.xlsx`), sheet `CASFEcode_final`,
without a header: subject (1), clip (`anger1_1`: video, number), onset, apex, offset (0 where the movement is
still there at the end of the video), action units, emotion class, `macro-expression` or `micro-expression`,
felt emotion. Folders have other names for both: subject 1 is `s15`, anger1 is 0401. Frames
`rawpic/s15/15_0401girlcrashing/img1.jpg`, or videos `rawvideo/s15/15_0401girlcrashing.avi`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.databases.coding_file import read_table
from datamodules.databases.folders import Place
from datamodules.databases.long_videos import CodedMovement, LongDatabase, frame_number, movement_kind

TITLES = ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Class", "Type", "Emotion")
# The workbook's sheets `naming rule1` and `naming rule2`.
SUBJECTS = dict(enumerate((*range(15, 17), *range(19, 28), *range(29, 39), 40), 1))
VIDEOS = {
    "disgust1": "0101",
    "disgust2": "0102",
    "anger1": "0401",
    "anger2": "0402",
    "happy1": "0502",
    "happy2": "0503",
    "happy3": "0505",
    "happy4": "0507",
    "happy5": "0508",
}
_NAMES = {code: name for name, code in VIDEOS.items()}


def _movements(file: Path) -> Iterable[CodedMovement]:
    for row in read_table(file, TITLES, "CASFEcode_final", titles=TITLES):
        told, video = row.text("Subject"), row.text("Filename").casefold().split("_")[0]
        found = re.fullmatch(r"(s?)0*(\d+)", told, re.IGNORECASE)
        subject = (int(found[2]) if found[1] else SUBJECTS.get(int(found[2]))) if found else None
        if subject is None:
            raise row.error("Subject", f"{told!r} is no subject of 1 to {len(SUBJECTS)}")
        if video not in VIDEOS:
            raise row.error("Filename", f"{video!r} is no video; there are {', '.join(VIDEOS)}")
        yield CodedMovement(
            f"s{subject}",
            video,
            movement_kind(row, "Type"),
            frame_number(row, "Onset"),
            frame_number(row, "Apex"),
            frame_number(row, "Offset"),
            row.text("Class").casefold(),
            row.raw("AU"),
            row,
        )


def _recognise(parts: Sequence[str]) -> tuple[Place, int] | None:
    found = re.fullmatch(r"0*(\d+)_(\d{4})\D.*", parts[-1])
    if found is None or found[2] not in _NAMES:
        return None
    subject = f"s{int(found[1])}"
    above = [d for d, part in enumerate(parts[:-1]) if part.casefold() in (subject, subject[1:])]
    return (subject, _NAMES[found[2]]), above[-1] if above else len(parts) - 1


DATABASE = LongDatabase(
    name="casme_sq",
    title="CAS(ME)^2",
    access="CASME group, Institute of Psychology, Chinese Academy of Sciences (casme.psych.ac.cn)",
    fps=30.0,
    folder=r"cas\(me\)\^?2|casme\^2|casmesq",
    coding_file="CAS(ME)^2code_final.xlsx",
    coding_patterns=(r"cas\(me\)\^?2.*code", r"casme.?sq", r"code.?final"),
    movements=_movements,
    recognise=_recognise,
    open_end=True,
    published={"subjects": 22, "micro": 57, "macro": 300},
)
