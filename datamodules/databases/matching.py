"""Rows of a coding file and folders of frames, brought together as clips.

What is the same for every database: which row becomes a clip, which is dropped and why, what is remarked.
annotations.py says what is different.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamodules.clips import ActionUnit, Clip, parse_action_units
from datamodules.databases.coding_file import Row
from datamodules.databases.errata import Coded, apply_errata
from datamodules.databases.folders import Faults, list_frames
from mefar.errors import UserError

_SHARED = {"casme3"}  # one folder, a whole video: only the frames from onset to offset are the clip's


@dataclass(frozen=True)
class Annotations:
    """What one database yields.

    Attributes:
        clips: usable clips of all emotions, sorted by key.
        dropped: (key, reason) of annotated clips that cannot be used.
        notes: (key or database, remark).
        emotions: key -> emotion of every annotated clip, usable or not.
    """

    clips: tuple[Clip, ...]
    dropped: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    emotions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A row on its way to become a clip.

    Attributes:
        clip: the clip's name.
        coded: what the row says.
        row: the row itself, for messages.
        folders: ids of the folders that may hold its frames, by preference; see layouts.Recogniser.
        expected: such a folder as a reader would write it.
        fps: frames per second.
    """

    clip: str
    coded: Coded
    row: Row
    folders: Sequence[tuple[str, ...]]
    expected: str
    fps: float


def coded_row(row: Row, subject: str, filename: str, columns: Sequence[str], aus: str) -> Coded:
    """What a row says; columns 2 to 5 name onset, apex, offset and emotion, `aus` the action units.

    Raises:
        UserError: a frame number is none.
    """
    onset, apex, offset = (row.frame(column) for column in columns[2:5])
    return Coded(subject, filename, row.text(columns[5]).casefold(), onset, apex, offset, row.raw(aus))


def frames_of(key: str, folder: Path, faults: Faults | None) -> dict[int, Path]:
    """The frames of a clip, at least one.

    Raises:
        UserError: there are none or two have one number, and no list of faults takes that up.
    """
    try:
        if frames := list_frames(folder):
            return frames
        raise UserError(f"{folder}: a clip without frames ({key}); copy its images again or remove the clip")
    except UserError as error:
        if faults is None:
            raise
        faults.append((key, str(error)))
        return {}


def join(
    database: str,
    root: Path,
    file: Path,
    entries: Sequence[Entry],
    folders: Mapping[tuple[str, ...], Path],
    copy: str,
    errata: bool,
    faults: Faults | None,
    remarks: Iterable[tuple[str, str]] = (),
) -> Annotations:
    """Bring rows and frames together.

    Args:
        database: its id.
        root: its folder.
        file: its coding file.
        entries: the rows.
        folders: clip id -> folder.
        copy: path of the chosen copy of the frames below root.
        errata: apply errata.csv.
        faults: takes up what is wrong with single clips instead of raising the first.
        remarks: go into the notes.

    Raises:
        UserError: see annotations.
    """
    if not entries:
        raise UserError(f"{file}: no clips below the header; use the complete coding file")
    clips: dict[str, Clip] = {}
    dropped: list[tuple[str, str]] = []
    notes = [(database, f"coding file {file}"), (database, f"frames from {root / copy}"), *remarks]
    rows: dict[str, Entry] = {}
    missing: list[Entry] = []
    # A video of CAS(ME)^3 holds thousands of files and several clips: list it once.
    listed: dict[Path, dict[int, Path]] = {}
    users: dict[Path, Entry] = {}
    for entry in entries:
        key = f"{database}/{entry.coded.subject}/{entry.clip}"
        if key in rows:
            before = rows[key]
            if replace(before.coded, aus=None) != replace(entry.coded, aus=None):
                complaint = f"{key} contradicts row {before.row.number}, which has the same clip"
                problem = entry.row.error("Filename", complaint)
                if faults is None:
                    raise problem
                faults.append((key, str(problem)))
                continue
            notes.append((key, f"row {entry.row.number} repeats row {before.row.number}"))
            continue
        rows[key] = entry
        folder = next((folders[place] for place in entry.folders if place in folders), None)
        if folder is None:
            missing.append(entry)
            dropped.append((key, f"no folder {entry.expected} under {root / copy}"))
            continue
        other = users.setdefault(folder, entry)
        if other is not entry and database not in _SHARED:
            problem = entry.row.error("Filename", f"{folder} is the folder of row {other.row.number} too")
            if faults is None:
                raise problem
            faults.append((key, str(problem)))
            dropped.append((key, f"{folder} is the folder of row {other.row.number} too"))
            continue
        if folder not in listed:
            listed[folder] = frames_of(key, folder, faults)
        if not listed[folder]:
            dropped.append((key, f"no frames in {folder}"))
            continue
        made = _clip(database, key, entry, listed[folder], errata, notes)
        if isinstance(made, str):
            dropped.append((key, made))
        else:
            clips[key] = made
    if 2 * len(missing) > len(rows) and (faults is None or len(missing) == len(rows)):
        raise UserError(
            f"{root}: frames for {len(rows) - len(missing)} of the {len(rows)} clips of {file.name} only; "
            f"the first without is {missing[0].expected} (row {missing[0].row.number}); "
            "point to the folder that holds coding file and frames"
        )
    return Annotations(
        tuple(clip for _, clip in sorted(clips.items())),
        tuple(sorted(dropped)),
        tuple(sorted(notes)),
        {key: entry.coded.emotion for key, entry in rows.items()},
    )


def _clip(
    database: str,
    key: str,
    entry: Entry,
    frames: Mapping[int, Path],
    errata: bool,
    notes: list[tuple[str, str]],
) -> Clip | str:
    """A clip, or why there is none; remarks are added to notes."""
    coded = entry.coded
    shared = database in _SHARED
    folder = next(iter(frames.values())).parent
    if errata:
        coded, remarks = apply_errata(database, coded, frames)
        notes.extend((key, remark) for remark in remarks)
    onset, apex, offset = coded.onset, coded.apex, coded.offset
    if onset is None:
        return f"onset not annotated ({entry.row.file.name}, row {entry.row.number})"
    if offset is None:
        if shared:
            return f"offset not annotated ({entry.row.file.name}, row {entry.row.number})"
        offset = max(frames)
        notes.append((key, f"offset not annotated: the last frame, {offset}"))
    if offset <= onset:
        return f"offset {offset} is not after onset {onset} ({entry.row.file.name}, row {entry.row.number})"
    if onset not in frames:
        return f"onset frame {onset} has no file in {folder}"
    if apex is None:
        notes.append((key, "apex not annotated"))
    elif not onset <= apex <= offset:
        notes.append((key, f"apex {apex} is outside [{onset}, {offset}]: treated as not annotated"))
        apex = None
    elif apex not in frames:
        return f"apex frame {apex} has no file in {folder}"
    if shared:
        frames = {number: path for number, path in frames.items() if onset <= number <= offset}
    inside = sum(onset <= number <= offset for number in frames)
    if inside < 2:
        return f"only one frame of [{onset}, {offset}] in {folder}"
    if offset not in frames:
        notes.append((key, f"no file for the offset {offset}; frames end at {max(frames)}"))
    aus: tuple[ActionUnit, ...] = ()
    try:
        aus = parse_action_units(coded.aus)
    except ValueError as error:
        notes.append((key, f"action units not read: {error} ({entry.row.file.name}, row {entry.row.number})"))
    return Clip(
        database, coded.subject, entry.clip, coded.emotion, onset, apex, offset, entry.fps, aus, frames
    )
