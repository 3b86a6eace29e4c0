"""A database's description and its folder on disk -> clips.

What is the same for every database: which row becomes a clip, which is dropped and why, what is remarked.
Nothing that cannot be used is replaced; it is listed with the reason:

- a clip without a folder, without an onset file, without a file for its annotated apex, or with an offset
  that is not after the onset is dropped; so is one whose frames were renumbered from 1;
- an apex outside [onset, offset] counts as not annotated; so does a blank, `/` or NaN;
- an offset that is not annotated is the last frame on disk;
- a clip's folder that is there but empty, a database with frames for less than half of its clips, and
  rows that contradict each other stop a load: a broken copy, not a gap. `gather` goes on and lists all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from datamodules.clips import Clip
from datamodules.databases.action_units import parse_action_units
from datamodules.databases.coding_file import Row, find_coding_file, read_table
from datamodules.databases.description import Annotated, Annotations, Database
from datamodules.databases.errata import Coded, Correction, Erratum, apply_errata, load_errata
from datamodules.databases.folders import FrameKind, Frames, Place, find_clip_folders, list_frames
from datamodules.databases.video_frames import is_video, number_frames
from datamodules.findings import Finding, Kind, Level
from mefar.errors import UserError


@dataclass(frozen=True)
class _Entry:
    """A row on its way to become a clip."""

    key: str
    clip: str
    coded: Coded
    row: Row
    fps: float
    places: Sequence[Place]


def read(
    database: Database,
    root: Path,
    errata: bool = True,
    prefer: FrameKind = "raw",
    gather: bool = False,
    beside: Path | None = None,
    others: Mapping[str, Sequence[str]] | None = None,
) -> Annotations:
    """Read one copy of a database.

    Args:
        database: what it is.
        root: folder that holds its coding file and its frames, at any depth.
        errata: correct the annotations that are known to be wrong.
        prefer: which copy of the frames to take where raw and cropped ones are there.
        gather: list what would stop a load among the findings.
        beside: folder whose coding file is taken where root has none, see find_coding_file.
        others: patterns of other databases' coding files, to notice a wrong folder.

    Raises:
        UserError: no or no readable coding file, a cell that is not what its column says, no frames at all;
            unless `gather`, the first finding that stops a load.
    """
    if database.reader is not None:
        found = database.reader(root, prefer)
    else:
        found = _Reader(database, root, errata, prefer, beside, others).read()
    if not gather and (fatal := next((f for f in found.findings if f.stops), None)):
        raise UserError(fatal.detail)
    return found


def frames_of(database: str, key: str, folder: Path, findings: list[Finding]) -> dict[int, Path]:
    """The frames of a clip; {} where there are none, two have one number, or the folder cannot be read."""

    def tell(level: Level, kind: Kind, detail: str) -> None:
        findings.append(Finding(level, kind, database, detail, key, str(folder), stops=level == "lost"))

    try:
        frames = Frames(number_frames(folder)) if is_video(folder) else list_frames(folder)
    except UserError as error:
        tell("lost", "unreadable folder", str(error))
        return {}
    if frames.twice:
        tell("lost", "duplicate frames", frames.twice)
    elif not frames.files:
        detail = f"{folder}: a clip without frames ({key}); copy its images again or remove the clip"
        tell("lost", "missing frames", detail)
    elif frames.strays:
        tell("warning", "stray picture", _strays(folder, frames))
    return frames.files


def _strays(folder: Path, frames: Frames) -> str:
    listed = ", ".join(frames.strays[:3]) + (", ..." if len(frames.strays) > 3 else "")
    usual = next(iter(frames.files.values())).name
    return f"{listed} in {folder}: not called like {usual} and the others, so no frame of the clip"


class _Reader:
    """One reading of one copy; collects findings and corrections on the way."""

    def __init__(
        self,
        database: Database,
        root: Path,
        errata: bool,
        prefer: FrameKind,
        beside: Path | None,
        others: Mapping[str, Sequence[str]] | None,
    ) -> None:
        self.database, self.root, self.prefer = database, root, prefer
        self.file = find_coding_file(root, database.file_patterns, database.coding_file, others, beside)
        self.errata: tuple[Erratum, ...] = load_errata(database.errata) if errata else ()
        self.findings: list[Finding] = []
        self.corrections: list[Correction] = []

    def read(self) -> Annotations:
        folders = self.database.folders
        entries = [
            self._entry(row)
            for row in read_table(self.file, self.database.columns.needed, self.database.sheet)
        ]
        if not entries:
            raise UserError(f"{self.file}: no clips below the header; use the complete coding file")
        if (aus := self.database.columns.aus) and not entries[0].row.has(aus):
            detail = f"{self.file}: no column {aus!r}, so no action units"
            self.findings.append(
                Finding("warning", "action units", self.database.name, detail, file=str(self.file))
            )
        wanted = {place for entry in entries for place in entry.places}
        recognise = folders.recognise or self._under_subject
        found, copy, problems = find_clip_folders(
            self.database.name, self.root, recognise, wanted, self.prefer, folders.videos
        )
        self.findings += problems
        below = {place: path / folders.below for place, path in found.items()}
        found = {
            place: below[place] if folders.below and below[place].is_dir() else path
            for place, path in found.items()
        }
        frames = self.root / copy
        clips, used = self._join(entries, found, frames)
        annotated: dict[str, Annotated] = {}
        for entry in entries:
            annotated.setdefault(entry.key, Annotated(entry.coded.emotion, entry.row.number))
        if self.database.checks is not None:
            self.findings += self.database.checks(self.root, used, annotated)
        return Annotations(
            tuple(clip for _, clip in sorted(clips.items())),
            tuple(self.findings),
            annotated,
            tuple(self.corrections),
            self.file,
            frames,
        )

    def _under_subject(self, parts: Sequence[str]) -> tuple[Place, int] | None:
        """A folder with any name below the subject's."""
        for depth in range(len(parts) - 2, -1, -1):
            if subject := self.database.subject.read(parts[depth]):
                return (subject.casefold(), parts[-1].casefold()), depth
        return None

    def _entry(self, row: Row) -> _Entry:
        database, columns = self.database, self.database.columns
        told = row.text(columns.subject)
        subject = database.subject.read(told)
        if subject is None:
            raise row.error(columns.subject, f"{told!r} is no subject id ({database.subject.example})")
        clip = database.clip(row) if database.clip else row.text(columns.clip)
        if database.subject_begins_clip:
            _check_subject(row, database, subject)
        onset, apex, offset = (
            row.frame(name) if name else None for name in (columns.onset, columns.apex, columns.offset)
        )
        video = database.video(clip) if database.video else clip
        emotion = row.text(columns.emotion).casefold()
        coded = Coded(
            subject, video, emotion, onset, apex, offset, row.raw(columns.aus) if columns.aus else None
        )
        fps = row.rate(columns.fps) if columns.fps else database.fps
        places = database.folders.places(subject, clip)
        entry = _Entry(f"{database.name}/{subject}/{clip}", clip, coded, row, fps or database.fps, places)
        if fps is None:
            detail = f"frames per second not annotated: {database.fps:g} assumed"
            self._tell(entry, "note", "frame rate", detail)
        return entry

    def _tell(self, entry: _Entry, level: Level, kind: Kind, detail: str, stops: bool = False) -> None:
        file, row = str(entry.row.file), entry.row.number
        self.findings.append(
            Finding(level, kind, self.database.name, detail, entry.key, file, row, stops=stops)
        )

    def _join(
        self, entries: Sequence[_Entry], folders: Mapping[Place, Path], frames: Path
    ) -> tuple[dict[str, Clip], dict[str, Path]]:
        """Rows and folders, brought together: key -> clip, and key -> folder."""
        clips: dict[str, Clip] = {}
        rows: dict[str, _Entry] = {}
        missing: list[_Entry] = []
        # A video of CAS(ME)^3 holds thousands of files and several clips: list it once.
        listed: dict[Path, dict[int, Path]] = {}
        users: dict[Path, _Entry] = {}
        used: dict[str, Path] = {}
        for entry in entries:
            key, row = entry.key, entry.row
            before = rows.setdefault(key, entry)
            if before is not entry:
                if replace(before.coded, aus=None) == replace(entry.coded, aus=None):
                    detail = f"row {row.number} repeats row {before.row.number}"
                    self._tell(entry, "warning", "duplicate clip", detail)
                else:
                    complaint = f"{key} contradicts row {before.row.number}, which has the same clip"
                    error = row.error(self.database.columns.clip, complaint)
                    self._tell(entry, "lost", "duplicate clip", str(error), stops=True)
                continue
            folder = next((folders[place] for place in entry.places if place in folders), None)
            if folder is None:
                missing.append(entry)
                detail = f"no folder {self._expected(entry)} under {frames}"
                self._tell(entry, "lost", "missing frames", detail)
                continue
            used[key] = folder
            other = users.setdefault(folder, entry)
            if other is not entry and not self.database.folders.shared:
                complaint = f"{folder} is the folder of row {other.row.number} too"
                error = row.error(self.database.columns.clip, complaint)
                self._tell(entry, "lost", "duplicate clip", str(error), stops=True)
                continue
            if folder not in listed:
                listed[folder] = frames_of(self.database.name, key, folder, self.findings)
            elif not listed[folder]:
                self._tell(entry, "lost", "missing frames", f"no frames in {folder}")
            if listed[folder] and (clip := self._clip(entry, listed[folder], folder)) is not None:
                clips[key] = clip
        self._check_missing(missing, len(rows))
        return clips, used

    def _expected(self, entry: _Entry) -> str:
        return self.database.folders.expected.format(subject=entry.coded.subject, clip=entry.clip)

    def _check_missing(self, missing: Sequence[_Entry], rows: int) -> None:
        """A copy with less than half of its clips is another folder, not a copy with gaps."""
        if 2 * len(missing) <= rows:
            return
        first = missing[0]
        detail = (
            f"{self.root}: frames for {rows - len(missing)} of the {rows} clips of {self.file.name} only; "
            f"the first without is {self._expected(first)} (row {first.row.number}); "
            "point to the folder that holds coding file and frames"
        )
        if len(missing) == rows:
            raise UserError(detail)
        self.findings.append(
            Finding("lost", "missing frames", self.database.name, detail, file=str(self.root), stops=True)
        )

    def _clip(self, entry: _Entry, frames: Mapping[int, Path], folder: Path) -> Clip | None:
        """A clip, or None where the row and the frames do not make one; findings say why."""
        where = f"({entry.row.file.name}, row {entry.row.number})"
        shared = self.database.folders.shared
        coded, corrections = apply_errata(self.database.name, entry.key, entry.coded, frames, self.errata)
        self.corrections += corrections
        tell = partial(self._tell, entry)
        for correction in corrections:
            tell("note", "erratum", str(correction))
        onset, apex, offset = coded.onset, coded.apex, coded.offset

        def lost(kind: Kind, detail: str) -> Clip | None:
            tell("lost", kind, detail)
            return None

        if onset is None:
            return lost("onset, apex, offset", f"onset not annotated {where}")
        if offset is None:
            if shared:
                return lost("onset, apex, offset", f"offset not annotated {where}")
            offset = max(frames)
            tell("warning", "onset, apex, offset", f"offset not annotated: the last frame, {offset}")
        if offset <= onset:
            return lost("onset, apex, offset", f"offset {offset} is not after onset {onset} {where}")
        if not shared and _renumbered(frames, onset, offset) and is_video(folder):
            # As many pictures as the clip has frames: the video was cut from onset to offset.
            frames = number_frames(folder, onset)
            tell("note", "source", f"{folder.name} is cut from onset to offset")
        elif not shared and _renumbered(frames, onset, offset):
            numbers = f"{min(frames)} to {max(frames)}"
            detail = f"frames in {folder} are numbered {numbers}, the coding file says {onset} to {offset}"
            detail += f" {where}: give the frames with their original names"
            return lost("renumbered frames", detail)
        if onset not in frames:
            return lost("missing frames", f"onset frame {onset} has no file in {folder}")
        if apex is None:
            if self.database.columns.apex:
                tell("note", "apex missing", "apex not annotated")
        elif not onset <= apex <= offset:
            detail = f"apex {apex} is outside [{onset}, {offset}]: treated as not annotated"
            tell("warning", "onset, apex, offset", detail)
            apex = None
        elif apex not in frames:
            return lost("missing frames", f"apex frame {apex} has no file in {folder}")
        if shared:
            frames = {number: path for number, path in frames.items() if onset <= number <= offset}
        if sum(onset <= number <= offset for number in frames) < 2:
            return lost("missing frames", f"only one frame of [{onset}, {offset}] in {folder}")
        if offset not in frames:
            name, gap = self.database.name, ((offset, offset),)
            detail = f"no file for the offset {offset}; frames end at {max(frames)}"
            self.findings.append(Finding("note", "missing frames", name, detail, entry.key, missing=gap))
        aus, unread = parse_action_units(coded.aus)
        if unread:
            detail = f"not read in {str(coded.aus)!r}: {', '.join(map(repr, unread))} {where}"
            tell("warning", "action units", detail)
        return Clip(
            self.database.name,
            coded.subject,
            entry.clip,
            coded.emotion,
            onset,
            apex,
            offset,
            entry.fps,
            aus,
            frames,
        )


def _renumbered(frames: Mapping[int, Path], onset: int, offset: int) -> bool:
    """Whether a clip's frames were given numbers from 0 or 1, so that no number means what it did."""
    first, last = min(frames), max(frames)
    return (
        first <= 1 < onset
        and last < offset
        and last - first == offset - onset
        and len(frames) == last - first + 1
    )


def _check_subject(row: Row, database: Database, subject: str) -> None:
    """Where file names begin with the subject, folders are found by the file name alone."""
    column, name = database.columns.subject, row.text(database.columns.clip)
    told = re.match(r"[a-z]*0*(\d+)[_-]", name, re.IGNORECASE)
    if told and database.subject.form.format(int(told[1])) != subject:
        raise row.error(column, f"{row.text(column)!r}, but the file name is {name!r}")
