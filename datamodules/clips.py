"""What every database becomes: clips.

A `Clip` is one annotated micro-expression (ME): whose face, which files, where it begins, peaks and
ends, what was felt and which action units moved. A `Study` is the set of clips that a protocol asks
for, with their labels, and an account of every clip that is not in it.

Batch keys of every loader: `onset` and `apex`, (B, 3, H, W) uint8 RGB; ME loaders add `label` (B,)
int64, `subject`, `clip`, `database` (lists of B strings). With V > 1 views onset and apex are
(B, V, 3, H, W) and view 0 is the untouched one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from datamodules.findings import Finding

Side = Literal["", "L", "R"]


class Counts(TypedDict):
    """How much a study holds: clips, subjects and clips per class name."""

    clips: int
    subjects: int
    classes: dict[str, int]


@dataclass(frozen=True, order=True)
class ActionUnit:
    """One facial action of the FACS.

    Attributes:
        number: the action unit, 1 to 99.
        side: "L" or "R" where only one half of the face moved, else "".
    """

    number: int
    side: Side = ""

    def __str__(self) -> str:
        return f"{self.side}{self.number}"


def mirrored(aus: tuple[ActionUnit, ...]) -> tuple[ActionUnit, ...]:
    """The action units of a face in a picture that was flipped left to right: its sides change places.

    Returns:
        As many units, sorted.
    """
    other: dict[Side, Side] = {"L": "R", "R": "L", "": ""}
    return tuple(sorted(ActionUnit(unit.number, other[unit.side]) for unit in aus))


@dataclass(frozen=True)
class Clip:
    """One annotated micro-expression.

    Attributes:
        database: its name: casme2, samm, smic, ...
        subject: the database's own id, normalised: "sub01", "006", "s1", "spNO.1".
        clip: the database's own clip name: "EP02_01f", "006_1_2", "s1_ne_01", "a_355".
        emotion: lower case, as annotated.
        onset: frame number (the integer in the file name) of the first frame; always has a file.
        apex: frame number of the strongest frame, inside [onset, offset] and with a file; None = not
            annotated.
        offset: frame number of the last frame, above onset.
        fps: frames per second of the camera.
        aus: annotated action units, sorted, without repeats.
        frames: frame number -> file, in numerical order.
        label: index into the protocol's class names; -1 = not in the protocol.
    """

    database: str
    subject: str
    clip: str
    emotion: str
    onset: int
    apex: int | None
    offset: int
    fps: float
    aus: tuple[ActionUnit, ...]
    frames: Mapping[int, Path]
    label: int = -1

    @property
    def key(self) -> str:
        """Unique over all databases: "casme2/sub01/EP02_01f"."""
        return f"{self.database}/{self.subject}/{self.clip}"

    @property
    def subject_key(self) -> str:
        """A subject is (database, subject), because ids collide: "casme2/sub01"."""
        return f"{self.database}/{self.subject}"

    def between(self) -> list[int]:
        """Numbers of the frames on disk in [onset, offset], ascending."""
        return [number for number in self.frames if self.onset <= number <= self.offset]


@dataclass(frozen=True)
class Study:
    """The clips of one protocol and an account of the others.

    Attributes:
        protocol: composite, or a database.
        class_names: C names; a clip's label indexes them.
        clips: sorted by key, all with label in [0, C).
        excluded: (key, reason) of clips that the protocol leaves out by rule.
        findings: all else that there is to know: clips that the protocol wants and the data does not yield,
            errata applied, annotations treated as missing, files read, counts that differ.
    """

    protocol: str
    class_names: tuple[str, ...]
    clips: tuple[Clip, ...]
    excluded: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()

    def counts(self) -> dict[str, Counts]:
        """Clips, subjects and clips per class, per database and under "all"."""
        databases = sorted({clip.database for clip in self.clips})
        out: dict[str, Counts] = {}
        for name in [*databases, "all"]:
            clips = [clip for clip in self.clips if name in ("all", clip.database)]
            per_class = Counter(clip.label for clip in clips)
            out[name] = {
                "clips": len(clips),
                "subjects": len({clip.subject_key for clip in clips}),
                "classes": {title: per_class[index] for index, title in enumerate(self.class_names)},
            }
        return out
