"""Hand fixes of annotations, kept as data in errata.csv and applied only where they hold.

Columns: database, subject, clip, onset, field, value, when, source. A row belongs to the clip with that
id *and* that onset: another onset means another numbering of the frames, for which the value says nothing.
`when` names what must be wrong in the copy at hand (alternatives joined by `|`):

| when | holds if |
|---|---|
| missing | the field is blank, `/` or NaN |
| equal onset | the apex is the onset |
| outside | the apex is outside [onset, offset] |
| before onset | the apex is below the onset |
| after offset | the onset is above the offset |
| zero | the field is 0 |
| equals N | the field is N |
| differs | the field is anything but the value |
| apex missing | the apex is blank (for a field that goes with the corrected apex) |
| ambiguous | the action units leave a choice ("12 or 14") |

All corrections of a clip's frame numbers are taken together or not at all: not if they would leave the
apex outside [onset, offset], or name an onset or apex that has no file.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path

from mefar.errors import UserError


@dataclass(frozen=True)
class Coded:
    """What a coding file says about a clip, before anything is believed.

    Attributes:
        subject: normalised id.
        filename: the database's file name column ("EP02_01f", "006_1_2", "a").
        emotion: lower case.
        onset: frame number or None where not annotated.
        apex: frame number or None where not annotated.
        offset: frame number or None where not annotated.
        aus: the cell of the action-unit column.
    """

    subject: str
    filename: str
    emotion: str
    onset: int | None
    apex: int | None
    offset: int | None
    aus: object = None


@dataclass(frozen=True)
class Erratum:
    """One row of errata.csv."""

    database: str
    subject: str
    clip: str
    onset: int
    field: str
    value: str
    when: str
    source: str

    def holds(self, coded: Coded) -> bool:
        """Whether this copy of the coding file has the fault, and not the value already."""
        if str(getattr(coded, self.field)) == self.value:
            return False
        return any(self._holds(condition.strip(), coded) for condition in self.when.split("|"))

    def _holds(self, condition: str, coded: Coded) -> bool:
        value = getattr(coded, self.field)
        onset, apex, offset = coded.onset, coded.apex, coded.offset
        match condition.split():
            case ["missing"]:
                return value is None
            case ["equal", "onset"]:
                return apex is not None and apex == onset
            case ["outside"]:
                return not _inside(onset, apex, offset)
            case ["before", "onset"]:
                return apex is not None and onset is not None and apex < onset
            case ["after", "offset"]:
                return onset is not None and offset is not None and onset > offset
            case ["zero"]:
                return bool(value == 0)
            case ["equals", number]:
                return bool(value == int(number))
            case ["differs"]:
                return bool(value != int(self.value))
            case ["apex", "missing"]:
                return apex is None
            case ["ambiguous"]:
                return " or " in str(coded.aus)
            case _:
                raise ValueError(f"errata.csv: unknown condition {condition!r}")


@dataclass(frozen=True)
class Correction:
    """An erratum that met a copy; `refused` says why it was not applied, "" if it was."""

    clip: str
    field: str
    old: str
    new: str
    source: str
    refused: str = ""

    def __str__(self) -> str:
        refused = f" not applied, {self.refused}" if self.refused else ""
        return f"erratum{refused}: {self.field} {self.old} -> {self.new} ({self.source})"


def load_errata(file: Path | None = None) -> tuple[Erratum, ...]:
    """The rows of errata.csv, or of another file with its columns.

    Raises:
        UserError: the other file cannot be read, or has other columns.
    """
    if file is None:
        text = resources.files("datamodules.databases").joinpath("errata.csv").read_text(encoding="utf-8")
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: errata cannot be read ({error}); give a csv file in UTF-8") from error
    try:
        return tuple(
            Erratum(**{**row, "onset": int(row["onset"])})  # type: ignore[arg-type]
            for row in csv.DictReader(text.splitlines())
        )
    except (TypeError, KeyError, ValueError) as error:
        columns = ", ".join(field.name for field in fields(Erratum))
        raise UserError(f"{file}: no errata ({error}); give the columns {columns}") from error


def apply_errata(
    database: str, key: str, coded: Coded, files: Collection[int], errata: Iterable[Erratum]
) -> tuple[Coded, list[Correction]]:
    """Correct what is known to be wrong.

    Args:
        database: its name.
        key: the clip's, for the corrections.
        coded: the row as read.
        files: numbers of the frames on disk.
        errata: from load_errata.

    Returns:
        The corrected row, and every correction made or refused.
    """
    rows = [
        row
        for row in errata
        if (row.database, row.subject, row.clip, row.onset)
        == (database, coded.subject, coded.filename, coded.onset)
        and row.holds(coded)
    ]
    numbers = {row.field: int(row.value) for row in rows if row.field != "aus"}
    fixed = replace(coded, **numbers)  # type: ignore[arg-type]
    refused = ""
    if not _inside(fixed.onset, fixed.apex, fixed.offset):
        refused = "the apex would lie outside [onset, offset]"
    elif any(numbers[field] not in files for field in ("onset", "apex") if field in numbers):
        refused = "the frame has no file"
    corrections = []
    for row in rows:
        why = "" if row.field == "aus" else refused
        old = _shown(getattr(coded, row.field))
        corrections.append(Correction(key, row.field, old, row.value, row.source, why))
        if row.field == "aus":
            fixed = replace(fixed, aus=row.value)
    return (replace(coded, aus=fixed.aus) if refused else fixed), corrections


def _inside(onset: int | None, apex: int | None, offset: int | None) -> bool:
    """Whether an annotated apex lies in [onset, offset]; an unknown bound excludes nothing."""
    return apex is None or ((onset is None or onset <= apex) and (offset is None or apex <= offset))


def _shown(value: object) -> str:
    return "missing" if value is None else str(value)
