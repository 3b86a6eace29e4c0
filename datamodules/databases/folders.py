"""Where a database keeps its frames: folders found by what they are called, files by their number.

Copies differ in how deep the frames lie, whether raw and cropped versions are both there, how numbers
are padded and what precedes them. So nothing here knows a whole path: a database says how to recognise
a clip's folder from its name and its parents, and frames are ordered by the integer in the file name.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from mefar.errors import UserError

FrameKind = Literal["raw", "cropped"]
Id = TypeVar("Id")
# A recogniser gets the parts of a folder's path below the database's root, and answers with the clip's id
# and how many leading parts precede the subject's folder: those name the copy that the folder belongs to.
Recogniser = Callable[[Sequence[str]], tuple[Id, int] | None]
# (key or "", error): what makes a load stop, gathered for a reader who wants to know all of it.
Faults = list[tuple[str, str]]

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
_DEEPEST = 8

_NAMES = {
    "casme2": re.compile(r"casme(2|ii)(?!i)"),
    "casme3": re.compile(r"casme(3|iii)"),
    "samm": re.compile(r"samm"),
    "smic": re.compile(r"smic"),
    "dfme": re.compile(r"dfme"),
    "mmew": re.compile(r"mmew"),
}


def existing_folder(path: Path) -> Path:
    """The path, if it is a folder.

    Raises:
        UserError: it is not there or is a file.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder; give the folder that holds the databases or one of them")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; give the folder that holds the databases or one of them")
    return path


def find_database(data: Path, database: str, required: bool = False) -> Path:
    """The folder of one database: `data` itself or a child with its name, however it is spelled.

    Args:
        data: the database's folder or its parent.
        database: casme2, samm, smic, casme3, dfme or mmew.
        required: refuse to fall back on `data` itself where no child has the name.

    Raises:
        UserError: `data` is no folder, or `required` and there is none.
    """
    existing_folder(data)
    pattern = _NAMES[database]
    # The database's own folder, a folder with a coding file, or one with several folders of that name such
    # as CASME2_RAW_selected and CASME2_cropped: we are inside already. The searches go down from there.
    if _is_named(data.resolve().name, pattern) or any(_is_table(entry) for entry in data.iterdir()):
        return data
    named = [entry for entry in sorted(data.iterdir()) if _is_named(entry.name, pattern)]
    folders = [entry for entry in named if entry.is_dir()]
    exact = [folder for folder in folders if pattern.fullmatch(_plain(folder.name))]
    for found in (exact, folders):
        if len(found) == 1:
            return found[0]
    if required and not named:
        there = ", ".join(entry.name for entry in sorted(data.iterdir()) if entry.is_dir()) or "none"
        raise UserError(f"{data}: no folder for {database}; folders: {there}; name one of them {database}")
    return data


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _is_table(entry: Path) -> bool:
    return entry.suffix.casefold() in (".xlsx", ".csv") and not entry.name.startswith(("~", "."))


def _is_named(name: str, pattern: re.Pattern[str]) -> bool:
    return pattern.match(_plain(name)) is not None and not name.startswith(".")


def find_clip_folders(
    root: Path,
    recognise: Recogniser[Id],
    wanted: Collection[Id] | None,
    prefer: FrameKind,
    faults: Faults | None = None,
) -> tuple[dict[Id, Path], str]:
    """Find the folders that hold the frames of clips.

    Where a database lies there in several copies, say raw and cropped, all clips come from one of them:
    the one with most of the wanted clips, and among equals the preferred kind.

    Args:
        root: the database's folder.
        recognise: tells a clip's folder, see `Recogniser`.
        wanted: ids to look for; None = all that are recognised.
        prefer: `cropped` copies have "crop" somewhere in their path.
        faults: takes up what would be raised; of two folders the first is kept.

    Returns:
        id -> folder, and the chosen copy's path below root ("" = root itself).

    Raises:
        UserError: two folders of one copy claim the same clip.
    """
    copies: dict[tuple[str, ...], dict[Id, Path]] = defaultdict(dict)
    pending: list[tuple[Path, tuple[str, ...]]] = [(root, ())]
    seen: set[str] = set()
    while pending:
        folder, parts = pending.pop()
        real = os.path.realpath(folder)  # databases are often linked together; a link may lead back up
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith((".", "__MACOSX")) and e.is_dir())
        for name in names:
            below, path = (*parts, name), folder / name
            known = recognise(below)
            if known is not None and (wanted is None or known[0] in wanted):
                copy = copies[below[: known[1]]]
                if known[0] in copy:
                    problem = f"{copy[known[0]]} and {path}: two folders for one clip; remove one"
                    if faults is None:
                        raise UserError(problem)
                    faults.append(("", problem))
                    continue
                copy[known[0]] = path
            elif len(below) < _DEEPEST:
                pending.append((path, below))
    if not copies:
        return {}, ""

    def rank(copy: tuple[str, ...]) -> tuple[int, bool, tuple[str, ...]]:
        cropped = "crop" in "/".join(copy).casefold()
        return -len(copies[copy]), cropped != (prefer == "cropped"), copy

    best = min(copies, key=rank)
    return copies[best], "/".join(best)


def list_frames(folder: Path) -> dict[int, Path]:
    """The images of a folder by the last integer of their names, in numerical order.

    `img46.jpg`, `reg_img46.jpg`, `006_05562.jpg`, `image0181234.bmp`, `355.jpg`. Padding does not matter.
    Hidden files, files without a number and copies that a desktop made (`img46 (1).jpg`) are left out.

    Args:
        folder: where to look; its subfolders are passed over.

    Raises:
        UserError: two files have the same number.
    """
    frames: dict[int, Path] = {}
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        found = re.search(r"(\d+)\D*$", stem)
        if dot + suffix.casefold() not in IMAGES or found is None or re.search(r"\(\d+\)$", stem):
            continue
        number = int(found[1])
        if number in frames:
            raise UserError(f"{folder}: {frames[number].name} and {name} are both frame {number}; remove one")
        frames[number] = folder / name
    return dict(sorted(frames.items()))
