"""Tiny synthetic replicas of the databases in their exact layouts: true names, columns and counts, no faces.

Counts follow the published coding files, so that the protocol's numbers come out if and only if the rules
are right: the clips that rules must leave out are there, under their own names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openpyxl

from datamodules.findings import Finding

CASME2_COLUMNS = [
    *("Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None),
    *("Action Units", "Estimated Emotion"),
]
SAMM_COLUMNS = [
    *("Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame"),
    *("Duration", "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes"),
]
CASME3_COLUMNS = ["Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion"]

CASME2_EMOTIONS = {"others": 99, "disgust": 63, "happiness": 32, "repression": 27, "surprise": 25}
CASME2_EMOTIONS |= {"sadness": 7, "fear": 2}
SAMM_EMOTIONS = {"Anger": 57, "Happiness": 26, "Other": 26, "Surprise": 15, "Contempt": 12}
SAMM_EMOTIONS |= {"Disgust": 9, "Fear": 8, "Sadness": 6}
SAMM_SUBJECTS = [6, 7, *range(9, 27), 28, *range(30, 38)]
SMIC_SUBJECTS = [1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 14, 15, 18, 19, 20]
SMIC_EMOTIONS = {"negative": 70, "positive": 51, "surprise": 43}
SMIC_TOKENS = {"negative": "ne", "positive": "po", "surprise": "sur"}

DFME_COLUMNS = [
    *("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame"),
    *("Emotion", "EmotionId", "Fps", "AU"),
]
MMEW_COLUMNS = [
    *("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame"),
    *("Action Units", "Estimated Emotion", "remarks"),
]


@dataclass(frozen=True)
class Row:
    """One row of a coding file, cells as in the file; frames = numbers to write (None: no folder)."""

    subject: Any
    filename: str
    onset: Any = 10
    apex: Any = 12
    offset: Any = 14
    aus: Any = "4+7"
    emotion: Any = "disgust"
    frames: Sequence[int] | None = (10, 12, 14)


@functools.cache
def image_bytes(suffix: str, size: tuple[int, int] = (8, 8), seed: int = 0, gray: bool = False) -> bytes:
    """An encoded smooth random picture of (height, width)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (4, 4) if gray else (4, 4, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(suffix, picture)[1])


def write_frames(folder: Path, numbers: Iterable[int], pattern: str, **look: Any) -> None:
    """Images named by a pattern such as "img{}.jpg"; all frames of a folder look alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        name = pattern.format(number)
        (folder / name).write_bytes(image_bytes(Path(name).suffix, **look))


def write_table(
    file: Path, rows: Sequence[Sequence[Any]], sheet: str = "Sheet1", before: str | None = None
) -> None:
    """An .xlsx file; `before` adds a sheet in front."""
    book = openpyxl.Workbook()
    table = book.active
    assert table is not None
    if before is not None:
        table.title = before
        table.append(["nothing to see here"])
        table = book.create_sheet()
    table.title = sheet
    for row in rows:
        table.append(list(row))
    file.parent.mkdir(parents=True, exist_ok=True)
    book.save(file)


def write_casme2(
    root: Path,
    rows: Sequence[Row],
    layout: str = "raw",
    columns: Sequence[str | None] = CASME2_COLUMNS,
    name: str = "CASME2-coding-20140508.xlsx",
    **look: Any,
) -> Path:
    """CASME II: coding file, and frames in the layouts `raw`, `cropped` or none ("")."""
    by_name = [
        {"Subject": r.subject, "Filename": r.filename, "OnsetFrame": r.onset, "ApexFrame": r.apex,
         "OffsetFrame": r.offset, "Action Units": r.aus, "Estimated Emotion": r.emotion}
        for r in rows
    ]  # fmt: skip
    cells = [[row.get(column) if column else None for column in columns] for row in by_name]
    write_table(root / name, [columns, *cells])
    folder, pattern = {
        "raw": ("CASME2_RAW_selected", "img{}.jpg"),
        "cropped": ("Cropped", "reg_img{}.jpg"),
    }.get(layout, ("", ""))
    for row in rows:
        if folder and row.frames is not None:
            place = root / folder / f"sub{int(row.subject):02d}" / row.filename
            write_frames(place, row.frames, pattern, **look)
    return root


def write_samm(root: Path, rows: Sequence[Row], preamble: int = 13, padding: int = 5, **look: Any) -> Path:
    """SAMM: coding file with preamble and a sheet before, gray frames 006/006_1_2/006_05562.jpg."""
    cells = [
        [r.subject, r.filename, "x", r.onset, r.apex, r.offset, 5, "1/2", r.aus, r.emotion, "1", None]
        for r in rows
    ]
    text = [[f"preamble {i}" if i % 3 else None] for i in range(preamble)]
    write_table(root / "SAMM_Micro_FACS_Codes_v2.xlsx", [*text, SAMM_COLUMNS, *cells], "MICRO_ONLY", "README")
    look = {"gray": True, **look}
    for row in rows:
        if row.frames is not None:
            subject = row.filename.split("_")[0]
            pattern = subject + "_{:0" + str(padding) + "d}.jpg"
            write_frames(root / subject / row.filename, row.frames, pattern, **look)
    return root


def write_casme3(root: Path, rows: Sequence[Row], layout: str = "video", **look: Any) -> Path:
    """CAS(ME)^3 part A: coding file, frames per video (`video`, `flat`) or per clip (`clips`)."""
    cells = [[r.subject, r.filename, r.onset, r.apex, r.offset, r.aus, "I", r.emotion] for r in rows]
    write_table(root / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx", [CASME3_COLUMNS, *cells], "label")
    for row in rows:
        place = {
            "video": root / "part_A" / row.subject / row.filename / "color",
            "flat": root / row.subject / row.filename,
            "clips": root / "Part_A_ME_clip" / "frame" / f"{row.subject}_{row.filename}_{row.onset}",
        }[layout]
        if row.frames is not None:
            write_frames(place, row.frames, "{}.jpg", **look)
    return root


def write_dfme(root: Path, rows: Sequence[Row], fps: object = 500, place: str = "DFME_train") -> Path:
    """DFME: coding file, and frames as png with five digits in a folder per clip."""
    cells = [
        [r.subject, r.filename, r.onset, r.apex, r.offset, r.emotion, 1, fps, r.aus] for r in rows
    ]  # fmt: skip
    write_table(root / "training_full_with_AU.xlsx", [DFME_COLUMNS, *cells])
    for row in rows:
        if row.frames is not None:
            write_frames(root / place / row.filename, row.frames, "{:05d}.png")
    return root


def write_mmew(root: Path, rows: Sequence[Row], by_subject: bool = False) -> Path:
    """MMEW: coding file, micro-expressions by emotion, and a macro-expression of the same name."""
    cells = [
        [r.subject, r.filename, r.onset, r.apex, r.offset, r.aus, r.emotion, None] for r in rows
    ]  # fmt: skip
    write_table(root / "MMEW_Micro_Exp.xlsx", [MMEW_COLUMNS, *cells])
    for row in rows:
        if row.frames is not None:
            person = row.filename.split("-")[0] if by_subject else ""
            write_frames(
                root / "Micro_Expression" / person / row.emotion / row.filename, row.frames, "{}.jpg"
            )
            write_frames(root / "Macro_Expression" / row.emotion / row.filename, range(1, 99), "{}.jpg")
    return root


def write_smic(
    root: Path, clips: Iterable[tuple[int, str, int]], layout: str = "cropped", **look: Any
) -> Path:
    """SMIC-HS: (subject, emotion, number) -> frames, in the layouts `raw` (ids s01), `cropped` (s1)."""
    for subject, emotion, number in clips:
        if layout == "cropped":
            hs, person, pattern = root / "SMIC_all_cropped" / "HS", f"s{subject}", "reg_image{:06d}.bmp"
        else:
            hs, person, pattern = root / "HS", f"s{subject:02d}", "image{:06d}.bmp"
        place = hs / person / "micro" / emotion / f"{person}_{SMIC_TOKENS[emotion]}_{number:02d}"
        write_frames(place, (99998, 99999, 100000), pattern, **look)  # the counter gains a digit
    return root


def complete_casme2_rows(coding: str = "2014") -> list[Row]:
    """255 rows of 26 subjects; sub10 and sub18 have nothing but others."""
    special = {
        (4, "EP12_01f"): replace(
            Row(4, "EP12_01f"), onset=261, apex="/", offset=321, frames=(261, 279, 291, 321)
        ),
        (5, "EP09_05f"): replace(
            Row(5, "EP09_05f"), onset=69, apex=69, offset=123, emotion="repression", frames=(69, 81, 96, 123)
        ),
        **{
            (24, name): replace(Row(24, name), emotion="surprise" if coding == "2019" else "sadness")
            for name in ("EP07_01", "EP07_04f", "EP10_03")
        },
    }
    left = dict(CASME2_EMOTIONS)
    left["disgust"] -= 1
    left["repression"] -= 1
    left["sadness"] -= 3
    rows = list(special.values())
    for subject in (10, 18):
        rows += [Row(subject, f"EP19_{i:02d}", emotion="others") for i in range(1, 6)]
        left["others"] -= 5
    emotions = [emotion for emotion, count in left.items() for _ in range(count)]
    subjects = [s for s in range(1, 27) if s not in (10, 18)]
    for index, emotion in enumerate(emotions):
        # The same names come back for every subject, with and without the trailing f.
        subject, turn = subjects[index % len(subjects)], index // len(subjects)
        rows.append(
            Row(
                subject,
                f"EP02_{turn // 2:02d}{'f' * (turn % 2)}",
                emotion=emotion,
                aus=(4, "4+7", "R12")[index % 3],
            )
        )
    return rows


def complete_samm_rows() -> list[Row]:
    """159 rows of 29 subjects; subject 37 has nothing but Other; subjects are read as numbers."""
    left = dict(SAMM_EMOTIONS)
    rows = [Row(37, f"037_7_{i}", emotion="Other") for i in range(1, 4)]
    left["Other"] -= 3
    emotions = [emotion for emotion, count in left.items() for _ in range(count)]
    for index, emotion in enumerate(emotions):
        subject, turn = SAMM_SUBJECTS[index % 28], index // 28
        rows.append(Row(subject, f"{subject:03d}_1_{turn + 1}", emotion=emotion, aus="R12A or 14"))
    return rows


def complete_smic_clips() -> list[tuple[int, str, int]]:
    """164 clips of 16 subjects."""
    clips = []
    for emotion, count in SMIC_EMOTIONS.items():
        for index in range(count):
            clips.append((SMIC_SUBJECTS[index % 16], emotion, index // 16 + 1))
    return clips


def complete_composite(root: Path, coding: str = "2014") -> Path:
    """All three databases side by side, full size, 8x8 pixels."""
    write_casme2(root / "CASME II", complete_casme2_rows(coding), "cropped")
    write_samm(root / "SAMM", complete_samm_rows())
    write_smic(root / "SMIC-HS", complete_smic_clips())
    return root


def dropped(findings: Iterable[Finding]) -> tuple[tuple[str, str], ...]:
    """(key, first reason) of every clip that is lost, sorted."""
    reasons: dict[str, str] = {}
    for finding in findings:
        if finding.level == "lost" and finding.clip:
            reasons.setdefault(finding.clip, finding.detail)
    return tuple(sorted(reasons.items()))


def notes(findings: Iterable[Finding]) -> tuple[tuple[str, str], ...]:
    """(key or database, remark) of all else, in order."""
    return tuple((f.place, f.detail) for f in findings if f.level != "lost" or not f.clip)
