"""Which databases there are: those of this folder, those of installed packages, and a file of one's own.

A package brings its database by an entry point in the group `mefar.databases` that names a `Database`:

    [project.entry-points."mefar.databases"]
    mine = "our_package.mine:DATABASE"
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

import datamodules.databases as here
from datamodules.databases.description import Database
from datamodules.databases.long_videos import LongDatabase
from mefar.errors import UserError

GROUP = "mefar.databases"


@functools.cache
def _described() -> tuple[object, ...]:
    """What the files of this folder describe; a new file is a new database."""
    names = sorted(module.name for module in pkgutil.iter_modules(here.__path__))
    modules = [importlib.import_module(f"{here.__name__}.{name}") for name in names]
    return tuple(module.DATABASE for module in modules if hasattr(module, "DATABASE"))


def shipped() -> dict[str, Database]:
    """The databases of clips in this folder: name -> description."""
    return {one.name: one for one in _described() if isinstance(one, Database)}


def long_videos() -> dict[str, LongDatabase]:
    """The databases of long videos in this folder: name -> description."""
    return {one.name: one for one in _described() if isinstance(one, LongDatabase)}


def known() -> dict[str, Database]:
    """Shipped and installed databases: name -> description.

    Raises:
        UserError: an installed one cannot be loaded, or has the name of another.
    """
    every = dict(shipped())
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        where = f"entry point {point.name!r} of group {GROUP} ({point.value})"
        try:
            one = point.load()
        except Exception as error:
            raise UserError(f"{where}: cannot be loaded ({_reason(error)}); mend or uninstall it") from error
        if not isinstance(one, Database):
            raise UserError(f"{where}: is a {type(one).__name__}, no Database; mend or uninstall it")
        if one.name in every:
            raise UserError(f"{where}: its name {one.name!r} is taken; rename it or uninstall it")
        every[one.name] = one
    return every


def is_file(dataset: str) -> bool:
    """Whether a dataset is the path of a file that describes a database, not a name."""
    return dataset.endswith(".py") or os.sep in dataset


def from_file(path: Path) -> Database:
    """The one database that a file describes.

    Raises:
        UserError: no such file, it cannot be run, or it defines none or several, or one whose name is taken.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that defines a Database, or the name of a database")
    spec = importlib.util.spec_from_file_location(f"mefar_database_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; give one that defines a Database")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); mend it") from error
    # What the file only imports is not its own.
    others = {id(one) for one in shipped().values()}
    found = {id(v): v for v in vars(module).values() if isinstance(v, Database) and id(v) not in others}
    if len(found) != 1:
        raise UserError(
            f"{path}: defines {len(found) or 'no'} databases; define one, DATABASE = Database(...)"
        )
    (one,) = found.values()
    if one.name in shipped():
        raise UserError(f"{path}: the name {one.name!r} is taken; give the database another")
    return one


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
