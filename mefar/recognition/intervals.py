"""Intervals of expression in long videos, and the csv files that hold them.

A file has one row per interval. Columns, in any order and under the names that challenges and databases use:
video, kind (micro or macro), onset, offset (frame numbers, both part of the interval), and where there are
any subject, database and emotion. A row with a video and no onset says that this video was looked at and has
no interval: without it nobody knows of the video.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from mefar.errors import UserError
from mefar.files import csv_text, write_text

Kind = Literal["micro", "macro"]
KINDS: tuple[Kind, ...] = get_args(Kind)

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "database": ("database", "dataset"),
    "subject": ("subject", "sub"),
    "video": ("video", "vid", "video_name", "clip", "filename"),
    "kind": ("kind", "type", "expression", "exp_type"),
    "onset": ("onset", "pred_onset", "start", "onset_frame"),
    "offset": ("offset", "pred_offset", "end", "offset_frame"),
    "emotion": ("emotion", "class", "label", "pred_emotion"),
}
"""What a column means -> the names it may have; case, blanks and hyphens do not count."""

_KINDS: Mapping[str, Kind] = {
    "micro": "micro", "me": "micro", "micro-expression": "micro", "micro - 1/2": "micro",
    "macro": "macro", "mae": "macro", "macro-expression": "macro",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Interval:
    """One expression, true or found.

    Attributes:
        video: whole name, unique over databases and subjects, such as "samm/006/006_1".
        kind: micro or macro.
        onset: number of the first frame.
        offset: number of the last frame, which is part of the interval; not before the onset.
        emotion: lower case, "" = not said.
    """

    video: str
    kind: Kind
    onset: int
    offset: int
    emotion: str = ""

    def __post_init__(self) -> None:
        if self.offset < self.onset:
            raise ValueError(f"{self.video}: offset {self.offset} before onset {self.onset}")

    def __len__(self) -> int:
        return self.offset - self.onset + 1

    def common(self, other: Interval) -> int:
        """Frames that are part of both."""
        if self.video != other.video:
            return 0
        return max(0, min(self.offset, other.offset) - max(self.onset, other.onset) + 1)

    def iou(self, other: Interval) -> float:
        """Frames in both over frames in either."""
        common = self.common(other)
        return common / (len(self) + len(other) - common)


@dataclass(frozen=True)
class IntervalTable:
    """What a file holds.

    Attributes:
        intervals: in the order of the file.
        videos: every video that it names, also those without an interval.
        subjects: video -> "database/subject", where the file says so.
    """

    intervals: tuple[Interval, ...]
    videos: frozenset[str]
    subjects: Mapping[str, str]


def read_intervals(path: Path) -> IntervalTable:
    """Read a csv file; see the head of this module.

    Raises:
        UserError: missing file or column, or a row that cannot be an interval; file and row are named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as csv ({error})") from error
    if not lines:
        raise UserError(f"{path}: is empty; the first row must name the columns")
    place = _columns(path, lines[0])
    intervals, videos, subjects = [], set(), {}
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        row = {name: line[at].strip() if at < len(line) else "" for name, at in place.items()}
        where = f"{path}, row {number}"
        if not row["video"]:
            raise UserError(f"{where}: no video named")
        owner = "/".join(row[name] for name in ("database", "subject") if row.get(name))
        video = f"{owner}/{row['video']}" if owner else row["video"]
        videos.add(video)
        if owner:
            subjects[video] = owner
        if not row["onset"] and not row["offset"]:
            continue
        kind = _KINDS.get(row["kind"].casefold())
        if kind is None:
            raise UserError(f"{where}: kind is {row['kind']!r}; write micro or macro")
        onset, offset = (_frame(where, name, row[name]) for name in ("onset", "offset"))
        if offset < onset:
            raise UserError(f"{where}: offset {offset} lies before onset {onset}; correct the row")
        intervals.append(Interval(video, kind, onset, offset, row.get("emotion", "").casefold()))
    return IntervalTable(tuple(intervals), frozenset(videos), subjects)


def write_intervals(path: Path, intervals: Iterable[Interval], videos: Iterable[str] = ()) -> None:
    """Write a file that `read_intervals` reads; `videos` without an interval get a row of their own."""
    rows = [asdict(one) for one in sorted(intervals)]
    silent = sorted(set(videos) - {row["video"] for row in rows})
    rows += [{"video": video} for video in silent]
    write_text(path, csv_text(("video", "kind", "onset", "offset", "emotion"), rows))


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    names = [cell.strip().casefold().replace(" ", "_").replace("-", "_") for cell in header]
    place = {
        meaning: next(names.index(name) for name in accepted if name in names)
        for meaning, accepted in COLUMNS.items()
        if any(name in names for name in accepted)
    }
    for needed in ("video", "kind", "onset", "offset"):
        if needed not in place:
            said = ", ".join(header) or "nothing"
            raise UserError(f"{path}: no column {needed} ({' or '.join(COLUMNS[needed])}); it has {said}")
    return place


def _frame(where: str, name: str, text: str) -> int:
    try:
        value = float(text)
        return round(value)  # SAMM's coding file holds fractions of frames
    except (ValueError, OverflowError):
        raise UserError(f"{where}: {name} is {text!r}, not a frame number") from None
