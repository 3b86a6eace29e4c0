"""What a folder seems to hold, at a glance: folders and coding files by their names, rows counted.

Frames are not looked at; that is the doctor's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datamodules.databases.coding_file import known_coding_file, read_table
from datamodules.databases.description import Database
from datamodules.databases.folders import existing_folder, find_root
from datamodules.databases.long_videos import LongDatabase
from mefar.errors import UserError


@dataclass(frozen=True)
class Sight:
    """A database that a folder seems to hold.

    Attributes:
        folder: where it lies.
        coding_file: its coding file; "" = it has none.
        entries: clips or movements that the coding file lists, or clips where there is none; None = it could
            not be read.
        problem: why not; "" = it could.
    """

    folder: str
    coding_file: str
    entries: int | None
    problem: str = ""


def look(databases: Mapping[str, Database | LongDatabase], data: Path) -> dict[str, Sight]:
    """Look for databases in a folder: name -> what is there, for those that are.

    Args:
        databases: which to look for.
        data: a folder of databases, or one database's own.

    Raises:
        UserError: no such folder.
    """
    existing_folder(data)
    found = {}
    for name, database in databases.items():
        try:
            sight = _sight(database, data)
        except UserError as error:
            sight = Sight(str(data), "", None, str(error))
        if sight is not None:
            found[name] = sight
    return found


def _sight(database: Database | LongDatabase, data: Path) -> Sight | None:
    root = find_root(data, database.name, database.folder_pattern)
    if isinstance(database, Database) and database.reader is not None:
        try:  # known by its folders only, so not searched for in other databases
            root = find_root(data, database.name, database.folder_pattern, required=True)
            return Sight(str(root), "", len(database.reader(root, "raw").annotated))
        except UserError:
            return None
    file = known_coding_file(root, database.file_patterns, data)
    if file is None:
        return None
    try:
        if isinstance(database, LongDatabase):
            return Sight(str(root), str(file), len(list(database.movements(file))))
        rows = read_table(file, database.columns.needed, database.sheet)
        return Sight(str(root), str(file), len(rows))
    except UserError as error:
        return Sight(str(root), str(file), None, str(error))
