"""Long videos and the movements in them: what spotting is trained and judged on.

`casme_sq.py` and its neighbours each hold one `LongDatabase`; `read` makes `LongVideo`s of it:

    study = protocols.load_long_videos("samm_lv", Path("data/SAMM_longvideos"))
    for video in study.videos:              # those without any movement too: a false alarm in them counts
        video.key                           # "samm_lv/006/006_1", unique over databases
        video.frames                        # number -> picture; {} where `source` is a video file
        for one in video.movements:         # Movement(kind="micro", onset=562, apex=None, offset=610, ...)
            ...

Onset and offset are frame numbers and both part of the movement. A movement is micro or macro as the coders
said, which is not a matter of length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from datamodules.clips import ActionUnit
from datamodules.databases.action_units import parse_action_units
from datamodules.databases.coding_file import Row, find_coding_file, known_coding_file, read_table
from datamodules.databases.description import Database, Source
from datamodules.databases.folders import (
    FrameKind,
    Place,
    Recogniser,
    existing_folder,
    find_clip_folders,
    find_root,
    list_frames,
)
from datamodules.databases.video_frames import number_frames
from datamodules.findings import Finding, Kind, Level, differences
from mefar.errors import UserError

MovementKind = Literal["micro", "macro"]


@dataclass(frozen=True)
class Movement:
    """One annotated facial movement in a long video.

    Attributes:
        video: the video's key.
        kind: micro or macro.
        onset: number of the first frame.
        offset: number of the last frame, which is part of it; above the onset.
        apex: number of the strongest frame, inside [onset, offset]; None = not annotated.
        emotion: negative, positive, surprise or others; "" = not annotated.
        aus: annotated action units, sorted, without repeats.
        row: row of the coding file.
    """

    video: str
    kind: MovementKind
    onset: int
    offset: int
    apex: int | None = None
    emotion: str = ""
    aus: tuple[ActionUnit, ...] = ()
    row: int = 0


@dataclass(frozen=True)
class LongVideo:
    """One recording, whole.

    Attributes:
        database: its name.
        subject: the database's own id, normalised: "s15", "006", "spNO.1", "s3".
        name: the database's own name of the video.
        fps: frames per second.
        source: the folder of its frames, or a video file.
        frames: frame number -> file, in numerical order; {} where source is a video file, whose pictures
            are counted from 1: video_frames.number_frames(source) gives each a path.
        movements: in order of time.
    """

    database: str
    subject: str
    name: str
    fps: float
    source: Path
    frames: Mapping[int, Path]
    movements: tuple[Movement, ...]

    @property
    def key(self) -> str:
        """Unique over all databases: "samm_lv/006/006_1"."""
        return f"{self.database}/{self.subject}/{self.name}"

    @property
    def subject_key(self) -> str:
        """A subject is (database, subject), because ids collide: "samm_lv/006"."""
        return f"{self.database}/{self.subject}"


@dataclass(frozen=True)
class LongStudy:
    """The long videos of one copy of a database.

    Attributes:
        database: its name.
        videos: sorted by key.
        findings: movements and videos that cannot be used and why, and all else.
        coding_file: the coding file read.
    """

    database: str
    videos: tuple[LongVideo, ...]
    findings: tuple[Finding, ...]
    coding_file: Path

    def counts(self) -> dict[str, int]:
        """How many videos, subjects, micro and macro movements there are."""
        kinds = Counter(one.kind for video in self.videos for one in video.movements)
        subjects = {video.subject_key for video in self.videos}
        return {
            "videos": len(self.videos),
            "subjects": len(subjects),
            "micro": kinds["micro"],
            "macro": kinds["macro"],
        }


@dataclass(frozen=True)
class CodedMovement:
    """What a row of a coding file says, before anything is believed.

    Attributes:
        subject: normalised id, as `LongDatabase.recognise` gives it for the video's folder.
        video: the video's name, likewise.
        kind: micro or macro.
        onset: frame number or None where not annotated.
        apex: likewise.
        offset: likewise.
        emotion: its class, "" where the row does not tell.
        aus: the cell of the action units.
        row: the row, for messages.
        clip: the micro-expression's name in the database of clips, see `LongDatabase.emotions`.
    """

    subject: str
    video: str
    kind: MovementKind
    onset: int | None
    apex: int | None
    offset: int | None
    emotion: str
    aus: object
    row: Row
    clip: str = ""


@dataclass(frozen=True, kw_only=True)
class LongDatabase(Source):
    """A database of long videos.

    Attributes (beside those of a `Source`):
        movements: coding file -> what its rows say.
        recognise: tells the folder (or video file) of a video: its place is (subject, video).
        below: folder inside it that holds the frames, where there is one.
        emotions: the database of clips whose coding file, if it lies there too, tells what micro-expressions
            show; emotions become the classes of its protocol of three, all others are `others`.
        open_end: a movement without an offset lasts until the end of its video.
        published: how many videos, subjects, micro and macro movements the complete database has.
    """

    movements: Callable[[Path], Iterable[CodedMovement]]
    recognise: Recogniser
    below: str = ""
    emotions: Database | None = None
    open_end: bool = False
    published: Mapping[str, int] = field(default_factory=dict)


def movement_kind(row: Row, column: str) -> MovementKind:
    """Micro or macro, of `Macro`, `Micro - 1/2`, `macro-expression`, ...

    Raises:
        UserError: the cell says neither.
    """
    text = row.text(column)
    if text.casefold().startswith("micro"):
        return "micro"
    if text.casefold().startswith("macro"):
        return "macro"
    raise row.error(column, f"{text!r} is neither micro nor macro")


def frame_number(row: Row, column: str) -> int | None:
    """A frame number, to the nearest whole one; None where blank, 0 or below (not annotated).

    Raises:
        UserError: the cell holds something else than a number.
    """
    text = row.text(column)
    if not text:
        return None
    if not re.fullmatch(r"-?\d{1,12}(\.\d*)?", text):
        raise row.error(column, f"{text!r} is not a frame number")
    number = round(float(text))
    return number if number > 0 else None


def read(database: LongDatabase, data: Path, prefer: FrameKind = "raw") -> LongStudy:
    """Read the long videos of a database and their movements.

    Args:
        database: what it is.
        data: its folder or the parent of that.
        prefer: which copy to take where raw and cropped ones are there.

    Returns:
        Every video on disk, with the movements that the coding file has for it.

    Raises:
        UserError: no or no readable coding file, a cell that is not what its column says, or no video.
    """
    root = find_root(existing_folder(data), database.name, database.folder_pattern)
    file = find_coding_file(root, database.file_patterns, database.coding_file, beside=data)
    told, findings = _emotions(database, root, data)
    coded = [
        replace(one, emotion=told.get((one.subject, one.clip), one.emotion))
        for one in database.movements(file)
    ]
    folders, copy, problems = find_clip_folders(
        database.name, root, database.recognise, None, prefer, videos=True
    )
    findings += problems
    if not folders:
        raise UserError(f"{root}: no videos of {database.title}; point to the folder that holds them")
    by_video: dict[Place, list[CodedMovement]] = {place: [] for place in folders}
    for one in coded:
        if (one.subject, one.video) in by_video:
            by_video[one.subject, one.video].append(one)
        else:
            where = f"({file.name}, row {one.row.number})"
            detail = f"no video {one.subject}/{one.video} under {root / copy} {where}"
            _tell(findings, database, one, "lost", "missing frames", detail)
    videos = []
    for (subject, name), rows in by_video.items():
        path = folders[subject, name]
        if database.below and (path / database.below).is_dir():
            path = path / database.below
        videos.append(_video(database, subject, name, path, rows, findings))
    study = LongStudy(database.name, tuple(sorted(videos, key=lambda v: v.key)), tuple(findings), file)
    return replace(study, findings=(*study.findings, *_against_published(database, study)))


def _emotions(
    database: LongDatabase, root: Path, data: Path
) -> tuple[dict[tuple[str, str], str], list[Finding]]:
    """(subject, clip) -> class, of the coding file of the database of clips, where that is there."""
    clips = database.emotions
    if clips is None:
        return {}, []
    file = known_coding_file(root, clips.file_patterns, data)
    if file is None:
        detail = f"{root}: no {clips.coding_file}, which tells what micro-expressions show: no emotions"
        return {}, [Finding("note", "emotion", database.name, detail, file=str(root))]
    classes, told = clips.protocols[3].emotions, {}
    for row in read_table(file, clips.columns.needed, clips.sheet):
        subject = clips.subject.read(row.text(clips.columns.subject))
        clip = clips.clip(row) if clips.clip else row.text(clips.columns.clip)
        if subject and (emotion := row.text(clips.columns.emotion).casefold()):
            told[subject, clip] = classes.get(emotion, "others")
    return told, [Finding("note", "source", database.name, f"emotions from {file}", file=str(file))]


def _video(
    database: LongDatabase,
    subject: str,
    name: str,
    path: Path,
    rows: Sequence[CodedMovement],
    findings: list[Finding],
) -> LongVideo:
    key = f"{database.name}/{subject}/{name}"
    frames: dict[int, Path] = {}
    if path.is_dir():
        listed = list_frames(path)
        frames = listed.files
        if listed.twice:
            raise UserError(listed.twice)
        if not frames:
            raise UserError(f"{path}: a video without frames ({key}); copy its images again or remove it")
        if listed.strays:
            detail = f"{', '.join(listed.strays[:3])} in {path}: not called like the others, so no frame"
            findings.append(Finding("warning", "stray picture", database.name, detail, key, str(path)))
    movements: dict[Movement, None] = {}
    for one in rows:
        made = _movement(database, key, one, path, frames, findings)
        if made is None:
            continue
        plain = [Movement(m.video, m.kind, m.onset, m.offset) for m in movements]
        if Movement(key, made.kind, made.onset, made.offset) in plain:
            detail = f"row {made.row} repeats another"
            _tell(findings, database, one, "warning", "duplicate clip", detail)
        else:
            movements[made] = None
    ordered = sorted(movements, key=lambda one: (one.onset, one.offset, one.kind))
    return LongVideo(database.name, subject, name, database.fps, path, frames, tuple(ordered))


def _movement(
    database: LongDatabase,
    key: str,
    one: CodedMovement,
    path: Path,
    frames: Mapping[int, Path],
    findings: list[Finding],
) -> Movement | None:
    """A movement, or None where the row does not make one; findings say why."""
    where = f"({one.row.file.name}, row {one.row.number})"
    tell = partial(_tell, findings, database, one)
    last = max(frames, default=None)
    offset, apex = one.offset, one.apex
    if one.onset is None:
        tell("lost", "onset, apex, offset", f"onset not annotated {where}")
        return None
    if offset is None:
        if not database.open_end:
            tell("lost", "onset, apex, offset", f"offset not annotated {where}")
            return None
        offset = last = last or len(number_frames(path))
        tell("note", "onset, apex, offset", f"lasts until the end of the video, frame {last}")
    if offset <= one.onset:
        tell("lost", "onset, apex, offset", f"offset {offset} is not after onset {one.onset} {where}")
        return None
    if last is not None and offset > last:
        tell("warning", "missing frames", f"offset {offset}, but frames end at {last} {where}")
    if apex is not None and not one.onset <= apex <= offset:
        detail = f"apex {apex} is outside [{one.onset}, {offset}]: treated as not annotated"
        tell("warning", "onset, apex, offset", detail)
        apex = None
    aus, unread = parse_action_units(one.aus)
    if unread:
        detail = f"not read in {str(one.aus)!r}: {', '.join(map(repr, unread))} {where}"
        tell("warning", "action units", detail)
    return Movement(key, one.kind, one.onset, offset, apex, one.emotion, aus, one.row.number)


def _tell(
    findings: list[Finding], database: LongDatabase, one: CodedMovement, level: Level, kind: Kind, detail: str
) -> None:
    key = f"{database.name}/{one.subject}/{one.video}"
    findings.append(Finding(level, kind, database.name, detail, key, str(one.row.file), one.row.number))


def _against_published(database: LongDatabase, study: LongStudy) -> Iterable[Finding]:
    found = study.counts()
    differing, fewer = differences((what, found[what], count) for what, count in database.published.items())
    if differing:
        yield Finding("lost" if fewer else "warning", "protocol counts", database.name, differing)
