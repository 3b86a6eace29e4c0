"""What loaders and checks find, as data; sentences for people are made of it at the very end.

A `Finding` says what it is about (`kind`), how bad that is (`level`), which clip, which file and row, and one
line of detail. Loaders yield findings, `Study.findings` keeps them, the doctor adds its own; terminal,
`summary.json`, reports and `mefar doctor --json` render the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["lost", "warning", "note"]

Kind = Literal[
    "source",  # what was read: coding file, frames
    "erratum",  # a correction that met this copy
    "unusable database",
    "unreadable folder",
    "missing frames",
    "renumbered frames",
    "duplicate frames",
    "stray picture",
    "frame sizes",
    "unreadable image",
    "no face",
    "duplicate clip",
    "same pictures",
    "misplaced clip",
    "onset, apex, offset",
    "apex missing",
    "apex rule",
    "frame rate",
    "emotion",
    "action units",
    "coding file",  # it lists other clips than the published one
    "protocol counts",
]


@dataclass(frozen=True)
class Finding:
    """Something to know about a copy of a database.

    Attributes:
        level: `lost`: the clip is dropped, or a run stops; `warning`: a run works with less or other data;
            `note`: for information, or outside the protocol.
        kind: what it is about.
        database: the database's name.
        detail: one line.
        clip: the clip's key; "" where it is about the database.
        file: the file or folder that it is about; "" where it is not about one.
        row: row of the coding file as a spreadsheet program shows it, from 1; 0 = none.
        missing: for missing frames, first and last number of each run of them.
        stops: a load stops here: the copy is broken, not incomplete.
    """

    level: Level
    kind: Kind
    database: str
    detail: str
    clip: str = ""
    file: str = ""
    row: int = 0
    missing: tuple[tuple[int, int], ...] = ()
    stops: bool = False

    @property
    def place(self) -> str:
        """The clip's key, or the database."""
        return self.clip or self.database


def differences(counts: Iterable[tuple[str, int, int]]) -> tuple[str, bool]:
    """Of (what, found, expected) those that differ, "surprise 28 of 25, ...", and whether one is too few."""
    differing = [(what, found, expected) for what, found, expected in counts if found != expected]
    told = ", ".join(f"{what} {found} of {expected}" for what, found, expected in differing)
    return told, any(found < expected for _, found, expected in differing)
