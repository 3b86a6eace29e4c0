"""One function and one fact sheet per database: folder on disk -> clips.

Every function takes the database's folder, finds coding file and frames in it (coding.py, layouts.py),
corrects what errata.csv knows to be wrong (errata.py), and returns all usable clips with every emotion
(joining.py); protocols.py chooses and labels. What cannot be used is listed with the reason, never replaced:

- a clip without a folder, without an onset file, without a file for its annotated apex, or with an offset
  that is not after the onset is dropped;
- an apex outside [onset, offset] counts as not annotated; so does a blank, `/` or NaN;
- an offset that is not annotated is the last frame on disk;
- a clip's folder that is there but empty, a database with frames for less than half of its clips, and
  rows that contradict each other are errors: a broken copy, not a gap. A caller that hands in a list of
  `faults` gets them there instead, and the clips in `dropped`.

CASME (2013) and 4DME have no loader: what is known of their coding files and folders does not suffice to read
them without guessing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.clips import Clip
from datamodules.databases.coding_file import Row, find_coding_file, read_table
from datamodules.databases.folders import Faults, FrameKind, find_clip_folders
from datamodules.databases.matching import Annotations, Entry, coded_row, frames_of, join
from mefar.errors import UserError

__all__ = ["CODING_FILES", "PUBLISHED", "Annotations", "casme2", "casme3", "dfme", "mmew", "samm", "smic"]

CODING_FILES = {
    "casme2": (r"casme.?(2|ii)\D*coding.*20140508", r"casme.?(2|ii)(?!i).*coding", r"casme.?(2|ii)(?!i)"),
    "samm": (r"samm.*micro.*facs", r"samm.*micro", r"samm"),
    "casme3": (r"part_a.*label.*v2", r"part_a.*label", r"cas(\(me\)|me)\^?(3|iii).*label"),
    "dfme": (r"train.*full.*au", r"dfme.*train", r"dfme"),
    "mmew": (r"mmew.*micro", r"mmew(?!.*macro)"),
}
_CASME2 = {"others": 99, "disgust": 63, "happiness": 32, "repression": 27, "surprise": 25}
_SAMM = {"anger": 57, "happiness": 26, "other": 26, "surprise": 15, "contempt": 12}
_CASME3 = {"disgust": 250, "surprise": 187, "others": 161, "fear": 86, "anger": 64, "sad": 57, "happy": 55}
PUBLISHED: dict[str, tuple[int, dict[str, int]]] = {
    "casme2": (26, {**_CASME2, "sadness": 7, "fear": 2}),
    "samm": (29, {**_SAMM, "disgust": 9, "fear": 8, "sadness": 6}),
    "casme3": (94, _CASME3),
}
"""Subjects and clips per emotion of the published coding files: 20140508, v2 and part A v2."""

_CASME2_SUBJECT = r"(?:sub)?0*(\d+)"
_SAMM_SUBJECT = r"0*(\d+)"
_CASME3_SUBJECT = r"sp\s*no\.?\s*0*(\d+)"
_DFME_SUBJECT = r"(?:sub|s)?[_\s]*0*(\d+)"
_MMEW_SUBJECT = r"(?:sub|s)?0*(\d+)"


def casme2(
    root: Path, errata: bool = True, prefer: FrameKind = "raw", faults: Faults | None = None
) -> Annotations:
    """CASME II: 26 subjects, 255 clips, 200 frames per second.

    Coding file `CASME2-coding-20140508.xlsx` (protocol counts are those of this version; `-20190701` and
    `-updated` also occur): Subject (1), Filename (EP02_01f; the trailing f matters), OnsetFrame,
    ApexFrame (`/` or blank where missing), OffsetFrame, Action Units (4, "4+7", "R12"), Estimated
    Emotion: others 99, disgust 63, happiness 32, repression 27, surprise 25, sadness 7, fear 2.
    Frames `CASME2_RAW_selected/sub01/EP02_01f/img46.jpg` (640x480) or
    `Cropped/sub01/EP02_01f/reg_img46.jpg` (about 280x340).

    Args:
        root: folder that holds the coding file and the frames, at any depth.
        errata: apply errata.csv.
        prefer: which copy of the frames to take where both are there.
        faults: takes up what is wrong with single clips instead of raising the first.

    Raises:
        UserError: see the module's docstring and coding.read_table.
    """
    columns = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion")
    file = find_coding_file(root, CODING_FILES["casme2"], "CASME2-coding-20140508.xlsx", _others("casme2"))
    entries = []
    for row in read_table(file, columns, "Sheet1"):
        subject = f"sub{_number(row, _CASME2_SUBJECT, 'an integer such as 1'):02d}"
        name = row.text("Filename")
        coded = coded_row(row, subject, name, columns, "Action Units")
        entries.append(Entry(name, coded, row, [(subject, name.casefold())], f"{subject}/{name}", 200.0))

    def recognise(parts: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
        for depth in range(len(parts) - 2, -1, -1):
            if found := re.fullmatch(_CASME2_SUBJECT, parts[depth], re.IGNORECASE):
                return (f"sub{int(found[1]):02d}", parts[-1].casefold()), depth
        return None

    folders, copy = find_clip_folders(root, recognise, _wanted(entries), prefer, faults)
    return join("casme2", root, file, entries, folders, copy, errata, faults)


def samm(
    root: Path, errata: bool = True, prefer: FrameKind = "raw", faults: Faults | None = None
) -> Annotations:
    """SAMM: 29 subjects, 159 clips, 200 frames per second, gray.

    Coding file `SAMM_Micro_FACS_Codes_v2.xlsx`, sheet MICRO_ONLY, header in row 14 of the published file
    and in row 1 of stripped copies: Subject (006, often read as 6), Filename (006_1_2), Onset Frame, Apex
    Frame, Offset Frame, Action Units, Estimated Emotion in title case: Anger 57, Happiness 26, Other 26,
    Surprise 15, Contempt 12, Disgust 9, Fear 8, Sadness 6. Frames `006/006_1_2/006_05562.jpg`.

    Args:
        root: folder that holds the coding file and the frames, at any depth.
        errata: apply errata.csv.
        prefer: which copy of the frames to take where both are there.
        faults: takes up what is wrong with single clips instead of raising the first.

    Raises:
        UserError: see the module's docstring and coding.read_table.
    """
    columns = ("Subject", "Filename", "Onset Frame", "Apex Frame", "Offset Frame", "Estimated Emotion")
    file = find_coding_file(root, CODING_FILES["samm"], "SAMM_Micro_FACS_Codes_v2.xlsx", _others("samm"))
    entries = []
    for row in read_table(file, columns, "MICRO_ONLY"):
        subject = f"{_leading(row, _SAMM_SUBJECT, 'a number such as 006'):03d}"
        name = row.text("Filename")
        coded = coded_row(row, subject, name, columns, "Action Units")
        entries.append(Entry(name, coded, row, [(name.casefold(),)], f"{subject}/{name}", 200.0))

    def recognise(parts: Sequence[str]) -> tuple[tuple[str, ...], int]:
        above = [depth for depth, part in enumerate(parts[:-1]) if part.isdigit()]
        return (parts[-1].casefold(),), above[-1] if above else len(parts) - 1

    folders, copy = find_clip_folders(root, recognise, _wanted(entries), prefer, faults)
    return join("samm", root, file, entries, folders, copy, errata, faults)


def smic(
    root: Path, errata: bool = True, prefer: FrameKind = "raw", faults: Faults | None = None
) -> Annotations:
    """SMIC-HS: 16 subjects, 164 clips (negative 70, positive 51, surprise 43), 100 frames per second.

    No coding file, no apex, no action units. Frames `SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01/
    reg_image181234.bmp` or `HS/s01/micro/...`: the clip's folder spans onset (its first frame) to offset
    (its last); numbers are camera counters. Subjects occur as s1 and s01, clips as s1_ne_01 and
    s01_ne_01; both are read as s1. The VIS and NIR recordings, the longer clips of SMIC-HS-E and the
    non-micro clips are other data and are passed over.

    Args:
        root: folder that holds HS or its subjects, at any depth.
        errata: not used, there are none; the three loaders are called alike.
        prefer: which copy of the frames to take where both are there.
        faults: takes up what is wrong with single clips instead of raising the first.

    Raises:
        UserError: no clip, or a clip's folder without frames.
    """
    emotions = {"ne": "negative", "po": "positive", "su": "surprise", "sur": "surprise"}
    name = re.compile(r"s0*(\d+)_(ne|po|su|sur)_0*(\d+)", re.IGNORECASE)
    other = re.compile(r"vis|nir|non.?micro|.*long.*|.*hs.e(_.*)?", re.IGNORECASE)

    def recognise(parts: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
        found = name.fullmatch(parts[-1])
        if found is None or any(other.fullmatch(part) for part in parts):
            return None
        above = [d for d, part in enumerate(parts[:-1]) if re.fullmatch(r"s\d+", part, re.IGNORECASE)]
        subject, token = f"s{int(found[1])}", found[2].lower()
        return (subject, f"{subject}_{token}_{int(found[3]):02d}"), above[-1] if above else len(parts) - 1

    folders, copy = find_clip_folders(root, recognise, None, prefer, faults)
    if not folders:
        raise UserError(
            f"{root}: no SMIC-HS clips; expected folders such as HS/s1/micro/negative/s1_ne_01 below it"
        )
    clips: list[Clip] = []
    dropped: list[tuple[str, str]] = []
    annotated: dict[str, str] = {}
    for (subject, clip), folder in folders.items():
        key, emotion = f"smic/{subject}/{clip}", emotions[clip.split("_")[1]]
        annotated[key] = emotion
        told = {part.casefold() for part in folder.relative_to(root).parts} & set(emotions.values())
        frames = frames_of(key, folder, faults)
        numbers = list(frames)
        if told - {emotion}:
            dropped.append((key, f"named {emotion}, but lies under {', '.join(sorted(told))}: {folder}"))
        elif len(numbers) < 2:
            dropped.append((key, f"{'only one frame' if numbers else 'no frames'} in {folder}"))
        else:
            first, last = numbers[0], numbers[-1]
            clips.append(Clip("smic", subject, clip, emotion, first, None, last, 100.0, (), frames))
    note = ("smic", f"frames from {root / copy}")
    ordered = tuple(sorted(clips, key=lambda c: c.key))
    return Annotations(ordered, tuple(sorted(dropped)), (note,), annotated)


def casme3(
    root: Path, errata: bool = True, prefer: FrameKind = "raw", faults: Faults | None = None
) -> Annotations:
    """CAS(ME)^3, part A: 94 subjects, 860 clips, 30 frames per second.

    Coding file `cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx`, sheet `label`: Subject (spNO.1), Filename
    (letter of the video), Onset, Apex, Offset, AU, Objective class, emotion: disgust 250, surprise 187,
    others 161, fear 86, anger 64, sad 57, happy 55. A video holds several clips: a clip's name is its
    letter and its annotated onset, `a_355`. Frames `part_A/spNO.1/a/color/355.jpg`, `spNO.1/a/355.jpg`, or
    the clip release `Part_A_ME_clip/frame/spNO.1_a_355/355.jpg`. Some rows have an onset, apex or offset
    that cannot be; errata.csv has the known corrections.

    Args:
        root: folder that holds the coding file and the frames, at any depth.
        errata: apply errata.csv.
        prefer: which copy of the frames to take where both are there.
        faults: takes up what is wrong with single clips instead of raising the first.

    Raises:
        UserError: see the module's docstring and coding.read_table.
    """
    columns = ("Subject", "Filename", "Onset", "Apex", "Offset", "emotion")
    title = "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
    file = find_coding_file(root, CODING_FILES["casme3"], title, _others("casme3"))
    entries = []
    for row in read_table(file, columns, "label"):
        subject = f"spNO.{_number(row, _CASME3_SUBJECT, 'such as spNO.1')}"
        letter = row.text("Filename")
        coded = coded_row(row, subject, letter, columns, "AU")
        name = f"{letter}_{row.text('Onset')}"
        places = [(subject.casefold(), name.casefold()), (subject.casefold(), letter.casefold())]
        entries.append(Entry(name, coded, row, places, f"{subject}/{letter}/color", 30.0))

    def recognise(parts: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
        if found := re.fullmatch(r"(spno\.\d+)_([a-z]_\d+)", parts[-1], re.IGNORECASE):
            return (found[1].casefold(), found[2].casefold()), len(parts) - 1
        if len(parts) > 1 and re.fullmatch(r"spno\.\d+", parts[-2], re.IGNORECASE):
            return (parts[-2].casefold(), parts[-1].casefold()), len(parts) - 2
        return None

    folders, copy = find_clip_folders(root, recognise, _wanted(entries), prefer, faults)
    colour = {place: path / "color" if (path / "color").is_dir() else path for place, path in folders.items()}
    return join("casme3", root, file, entries, colour, copy, errata, faults)


def dfme(
    root: Path, errata: bool = True, prefer: FrameKind = "raw", faults: Faults | None = None
) -> Annotations:
    """DFME: high-speed recordings at 200, 300 or 500 frames per second, told per clip.

    Coding file `training_full_with_AU.xlsx` (not those of the test sets): Subject, Filename (sub0003_01),
    OnsetFrame, ApexFrame, OffsetFrame, Emotion, EmotionId, Fps, AU. Frames
    `DFME_train/sub0003_01/00012.png`. Written from what public code reads, never held against a copy of
    the database, so lenient: subjects as sub0003, S3 or 3; clip folders at any depth; a clip without Fps
    counts as 200, which matters for the spotted apex only and is remarked.

    Args:
        root: folder that holds the coding file and the frames, at any depth.
        errata: apply errata.csv.
        prefer: which copy of the frames to take where both are there.
        faults: takes up what is wrong with single clips instead of raising the first.

    Raises:
        UserError: see the module's docstring and coding.read_table.
    """
    columns = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Emotion")
    file = find_coding_file(root, CODING_FILES["dfme"], "training_full_with_AU.xlsx", _others("dfme"))
    entries, notes = [], []
    for row in read_table(file, columns):
        subject = f"sub{_leading(row, _DFME_SUBJECT, 'such as sub0003'):04d}"
        name = row.text("Filename")
        coded = coded_row(row, subject, name, columns, "AU")
        fps = row.rate("Fps")
        if fps is None:
            notes.append((f"dfme/{subject}/{name}", "frames per second not annotated: 200 assumed"))
        entries.append(Entry(name, coded, row, [(name.casefold(),)], name, fps or 200.0))

    def recognise(parts: Sequence[str]) -> tuple[tuple[str, ...], int]:
        return (parts[-1].casefold(),), len(parts) - 1

    folders, copy = find_clip_folders(root, recognise, _wanted(entries), prefer, faults)
    return join("dfme", root, file, entries, folders, copy, errata, faults, notes)


def mmew(
    root: Path, errata: bool = True, prefer: FrameKind = "raw", faults: Faults | None = None
) -> Annotations:
    """MMEW, the micro-expressions: 90 frames per second.

    Coding file `MMEW_Micro_Exp.xlsx`: Subject, Filename (S13-07-001: subject, emotion, sample), OnsetFrame,
    ApexFrame, OffsetFrame, Action Units, Estimated Emotion, remarks. Frames
    `Micro_Expression/<emotion>/S13-07-001/1.jpg`, with or without a folder per subject in between; the
    macro-expressions beside them are other data and are passed over. Written from what public code reads,
    never held against a copy of the database, so lenient: subjects as S13, 13 or sub13, and a clip that
    lies under another emotion than its row's is read and remarked, since names of folders vary.

    Args:
        root: folder that holds the coding file and the frames, at any depth.
        errata: apply errata.csv.
        prefer: which copy of the frames to take where both are there.
        faults: takes up what is wrong with single clips instead of raising the first.

    Raises:
        UserError: see the module's docstring and coding.read_table.
    """
    columns = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion")
    file = find_coding_file(root, CODING_FILES["mmew"], "MMEW_Micro_Exp.xlsx", _others("mmew"))
    entries = []
    emotions: dict[tuple[str, ...], tuple[str, str]] = {}
    for row in read_table(file, columns):
        subject = f"S{_leading(row, _MMEW_SUBJECT, 'such as S13'):02d}"
        name = row.text("Filename")
        coded = coded_row(row, subject, name, columns, "Action Units")
        emotions[(name.casefold(),)] = (f"mmew/{subject}/{name}", coded.emotion)
        entries.append(Entry(name, coded, row, [(name.casefold(),)], name, 90.0))
    known = {emotion for _, emotion in emotions.values()}

    def recognise(parts: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
        if any(part.casefold().startswith("macro") for part in parts):
            return None
        above = [d for d, part in enumerate(parts[:-1]) if part.casefold() in known]
        return (parts[-1].casefold(),), above[-1] if above else len(parts) - 1

    folders, copy = find_clip_folders(root, recognise, _wanted(entries), prefer, faults)
    notes = []
    for place, folder in folders.items():
        key, emotion = emotions[place]
        told = {part.casefold() for part in folder.relative_to(root).parts} & known
        if told - {emotion}:
            notes.append((key, f"coded {emotion}, but lies under {', '.join(sorted(told))}: {folder}"))
    return join("mmew", root, file, entries, folders, copy, errata, faults, notes)


def _others(database: str) -> dict[str, tuple[str, ...]]:
    return {name: patterns for name, patterns in CODING_FILES.items() if name != database}


def _wanted(entries: Iterable[Entry]) -> set[tuple[str, ...]]:
    return {place for entry in entries for place in entry.folders}


def _number(row: Row, pattern: str, example: str) -> int:
    found = re.fullmatch(pattern, row.text("Subject"), re.IGNORECASE)
    if found is None:
        raise row.error("Subject", f"{row.text('Subject')!r} is no subject id ({example})")
    return int(found[1])


def _leading(row: Row, pattern: str, example: str) -> int:
    """The subject, where file names begin with it: folders are found by the file name alone."""
    subject = _number(row, pattern, example)
    told = re.match(r"[a-z]*0*(\d+)[_-]", row.text("Filename"), re.IGNORECASE)
    if told and int(told[1]) != subject:
        raise row.error("Subject", f"{row.text('Subject')!r}, but the file name is {row.text('Filename')!r}")
    return subject
