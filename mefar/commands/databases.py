"""`mefar databases [FOLDER]`: which databases there are, and which of them a folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

from datamodules.databases import catalogue
from datamodules.databases.description import Database
from datamodules.databases.long_videos import LongDatabase
from datamodules.databases.looking import Sight, look
from datamodules.protocols import COMPOSITES


def databases(folder: Path | None = None, *, json: bool = False) -> None:
    """List all databases, their classes and where to apply; with a folder, what it holds of them.

    A database of your own appears here once it is installed (entry point group `mefar.databases`), or is
    given as a file: mefar loso --dataset path/to/my_database.py.

    Args:
        folder: a folder of databases, or one database's own; may be given as the first word. Coding files
            are counted, frames are not looked at: that is `mefar doctor`.
        json: print JSON and nothing else.
    """
    known: dict[str, Database | LongDatabase] = {**catalogue.known(), **catalogue.long_videos()}
    sights = look(known, folder) if folder is not None else {}
    if json:
        told = [_as_json(one, sights.get(name) if folder else None) for name, one in known.items()]
        told += [
            {"name": name, "title": f"{', '.join(members)} together", "protocols": {classes: members}}
            for name, (members, classes) in COMPOSITES.items()
        ]
        print(dumps(told, indent=2))
        return
    for name, database in known.items():
        _show(database)
        if folder is not None:
            print(f"  in {folder}: {_found(sights.get(name))}")
    for name, (members, classes) in COMPOSITES.items():
        print(f"{name}: {', '.join(members)} together, {classes} classes; one folder for each")


def _show(database: Database | LongDatabase) -> None:
    print(f"{database.name}: {database.title}, {_size(database)}{database.fps:g} frames per second")
    if isinstance(database, Database):
        for rule in database.protocols.values():
            print(f"  {len(rule.names)} classes: {', '.join(rule.names)}")
    else:
        print("  for spotting")
    print(f"  apply to: {database.access}")


def _size(database: Database | LongDatabase) -> str:
    if isinstance(database, LongDatabase):
        return "".join(f"{number} {what}, " for what, number in database.published.items())
    if database.published is None:
        return ""
    return f"{database.published.clips} clips, {database.published.subjects} subjects, "


def _found(sight: Sight | None) -> str:
    if sight is None:
        return "nothing"
    if sight.problem:
        return sight.problem
    what = f"{sight.entries} listed in {sight.coding_file}" if sight.coding_file else f"{sight.entries} clips"
    return f"{what}; folder {sight.folder}"


def _as_json(database: Database | LongDatabase, sight: Sight | None) -> dict[str, Any]:
    published: Mapping[str, object] | None
    if isinstance(database, LongDatabase):
        published, protocols = database.published, {}
    else:
        published = asdict(database.published) if database.published else None
        protocols = {classes: rule.names for classes, rule in database.protocols.items()}
    return {
        "name": database.name,
        "title": database.title,
        "kind": "long videos" if isinstance(database, LongDatabase) else "clips",
        "access": database.access,
        "fps": database.fps,
        "coding_file": database.coding_file,
        "published": published,
        "protocols": protocols,
        "found": asdict(sight) if sight else None,
    }
