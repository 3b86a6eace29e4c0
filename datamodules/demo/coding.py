"""Write the coding files of the database replicas with the real names, columns and quirks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import openpyxl

from datamodules.clips import ActionUnit
from datamodules.demo.replicas import ClipPlan
from mefar.files import replacing

CODING_FILES: Final[Mapping[str, str]] = {
    "casme2": "CASME2-coding-20140508.xlsx",
    "samm": "SAMM_Micro_FACS_Codes_v2.xlsx",
    "casme3": "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx",
}
CASME2_COLUMNS: Final = (
    "Subject",
    "Filename",
    None,
    "OnsetFrame",
    "ApexFrame",
    "OffsetFrame",
    None,
    "Action Units",
    "Estimated Emotion",
)
SAMM_COLUMNS: Final = (
    "Subject",
    "Filename",
    "Inducement Code",
    "Onset Frame",
    "Apex Frame",
    "Offset Frame",
    "Duration",
    "Micro",
    "Action Units",
    "Estimated Emotion",
    "Objective Classes",
    "Notes",
)
CASME3_COLUMNS: Final = ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
_OBJECTIVE: Final = {
    "happiness": "I",
    "surprise": "II",
    "anger": "III",
    "disgust": "IV",
    "sadness": "V",
    "fear": "VI",
    "contempt": "VII",
    "others": "VII",
}
_CASME3_EMOTION: Final = {"happiness": "happy", "sadness": "sad"}

Cell = str | int | None


def unit_text(units: Sequence[ActionUnit]) -> str | int:
    """Write units as coders do: ``4+7``, ``R12``; a lone bilateral unit becomes a number cell."""
    text = "+".join(map(str, units))
    return int(text) if text.isdigit() else text


def coding_rows(database: str, plans: Sequence[ClipPlan]) -> list[list[Cell]]:
    """All rows of a coding file, preamble and header included."""
    rows: list[list[Cell]] = []
    if database == "casme2":
        rows.append([*CASME2_COLUMNS])
        for p in plans:
            apex: Cell = "/" if p.written_apex is None else p.written_apex
            number = int(p.subject.removeprefix("sub"))
            rows.append([number, p.clip, None, p.onset, apex, p.offset, None, unit_text(p.units), p.emotion])
    elif database == "samm":
        rows += [[None] for _ in range(13)]
        rows[0] = ["Demo replica in the layout of SAMM: rendered faces, nobody's recordings"]
        rows[2] = ["Frames are counted at 200 frames per second"]
        rows.append([*SAMM_COLUMNS])
        for k, p in enumerate(plans):
            emotion = "Other" if p.emotion == "others" else p.emotion.title()
            # Some coders add intensities.
            text = "+".join(f"{unit}B" for unit in p.units) if k % 7 == 3 else unit_text(p.units)
            row: list[Cell] = [p.subject, p.clip, k % 7 + 1, p.onset, p.written_apex, p.offset, p.frames]
            rows.append([*row, "Micro - 1/2", text, emotion, _OBJECTIVE[p.emotion], None])
    else:
        rows.append([*CASME3_COLUMNS])
        for p in plans:
            row = [p.subject, p.clip.split("_")[0], p.onset, p.written_apex, p.offset, unit_text(p.units)]
            rows.append([*row, _OBJECTIVE[p.emotion], _CASME3_EMOTION.get(p.emotion, p.emotion)])
    return rows


def write_coding(folder: Path, database: str, plans: Sequence[ClipPlan]) -> None:
    """Write the coding file of one replica into its folder; SMIC has none and must not be asked for."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = {"casme2": "Sheet1", "samm": "MICRO_ONLY", "casme3": "label"}[database]
    for row in coding_rows(database, plans):
        sheet.append(row)
    with replacing(folder / CODING_FILES[database]) as temporary:
        book.save(temporary)
