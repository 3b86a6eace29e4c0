"""Where a database keeps its frames: folders found by what they are called, files by their number.

Copies differ in how deep the frames lie, whether raw and cropped versions are both there, how numbers
are padded and what precedes them. So nothing here knows a whole path: a database says how to recognise
a clip's folder from its name and its parents, and frames are ordered by the integer in the file name.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.findings import Finding
from mefar.errors import UserError

FrameKind = Literal["raw", "cropped"]
# What tells a clip's folder from all others, such as (subject, clip name), in lower case.
Place = tuple[str, ...]
# A recogniser gets the parts of a folder's path below the database's root, and answers with the clip's place
# and how many leading parts precede the subject's folder: those name the copy that the folder belongs to.
Recogniser = Callable[[Sequence[str]], tuple[Place, int] | None]

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
VIDEOS = {".avi", ".mp4", ".mov", ".mkv", ".wmv", ".mpg"}
TABLES = {".xlsx", ".xls", ".csv"}
_DEEPEST = 8


def existing_folder(path: Path) -> Path:
    """The path, if it is a folder that can be looked into.

    Raises:
        UserError: it is not there, is a file, or cannot be read.
    """
    try:
        if path.is_dir():
            os.scandir(path).close()
            return path
        there = path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        reason = getattr(error, "strerror", None) or "a link that leads to itself"
        raise UserError(f"{path}: cannot be read ({reason}); give a folder that you may read") from error
    missing = "a link that leads nowhere" if path.is_symlink() else "no such folder"
    what = "is a file" if there else missing
    raise UserError(f"{path}: {what}; give the folder that holds the databases or one of them")


def find_root(data: Path, database: str, name: str, required: bool = False) -> Path:
    """The folder of one database: `data` itself or a child with its name, however it is spelled.

    Args:
        data: the database's folder or its parent.
        database: its name, for the error message.
        name: regular expression for its folder's name without spaces, `_`, `-`, in lower case.
        required: refuse to fall back on `data` itself where no child has the name.

    Raises:
        UserError: `data` is no folder, or `required` and there is none.
    """
    existing_folder(data)
    pattern = re.compile(name)
    there = sorted(entry for entry in data.iterdir() if not entry.name.startswith((".", "~")))
    # The database's own folder, a folder with a coding file, or one with several folders of that name such
    # as CASME2_RAW_selected and CASME2_cropped: we are inside already. The searches go down from there.
    tables = any(entry.suffix.casefold() in TABLES for entry in there)
    if pattern.match(_plain(data.resolve().name)) or tables:
        return data
    named = [entry for entry in there if pattern.match(_plain(entry.name))]
    folders = [entry for entry in named if entry.is_dir()]
    exact = [folder for folder in folders if pattern.fullmatch(_plain(folder.name))]
    for found in (exact, folders):
        if len(found) == 1:
            return found[0]
    if required and not named:
        listed = ", ".join(entry.name for entry in there if entry.is_dir()) or "none"
        raise UserError(f"{data}: no folder for {database}; folders: {listed}; name one of them {database}")
    return data


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]+", "", name).casefold()


def find_clip_folders(
    database: str,
    root: Path,
    recognise: Recogniser,
    wanted: Collection[Place] | None,
    prefer: FrameKind,
    videos: bool = False,
) -> tuple[dict[Place, Path], str, list[Finding]]:
    """Find the folders that hold the frames of clips.

    Where a database lies there in several copies, say raw and cropped, all clips come from one of them:
    the one with most of the wanted clips, and among equals the preferred kind.

    Args:
        database: its name, for the findings.
        root: its folder.
        recognise: tells a clip's folder, see `Recogniser`.
        wanted: places to look for; None = all that are recognised.
        prefer: `cropped` copies have "crop" somewhere in their path.
        videos: take video files too, which are called like the folder of their frames; a copy that is there
            as pictures goes first.

    Returns:
        place -> folder or video file; the chosen copy's path below root ("" = root itself); two folders of
        one copy that claim the same clip, and folders that cannot be read.
    """
    copies: dict[Place, dict[Place, Path]] = defaultdict(dict)
    findings: list[Finding] = []
    pending: list[tuple[Path, Place]] = [(root, ())]
    seen: set[str] = set()
    while pending:
        folder, parts = pending.pop()
        real = os.path.realpath(folder)  # databases are often linked together; a link may lead back up
        if real in seen:
            continue
        seen.add(real)
        try:
            names = _entries(folder, videos)
        except OSError as error:
            detail = f"{folder}: cannot be read ({error.strerror}), nothing in it is used"
            findings.append(Finding("warning", "unreadable folder", database, detail, file=str(folder)))
            continue
        for name in names:
            path = folder / name
            is_video = path.suffix.casefold() in VIDEOS and path.is_file()
            below = (*parts, path.stem if is_video else name)
            known = recognise(below)
            if known is not None and (wanted is None or known[0] in wanted):
                other = copies[below[: known[1]]].setdefault(known[0], path)
                if other is not path:
                    detail = f"{other} and {path}: two folders for one clip; remove one"
                    findings.append(
                        Finding("lost", "duplicate clip", database, detail, file=str(path), stops=True)
                    )
            elif len(below) < _DEEPEST and not is_video:
                pending.append((path, below))
    if not copies:
        return {}, "", findings

    def rank(copy: Place) -> tuple[int, int, bool, Place]:
        cropped = "crop" in "/".join(copy).casefold()
        files = sum(path.suffix.casefold() in VIDEOS for path in copies[copy].values())
        return -len(copies[copy]), files, cropped != (prefer == "cropped"), copy

    best = min(copies, key=rank)
    return copies[best], "/".join(best), findings


def _entries(folder: Path, videos: bool) -> list[str]:
    """Names of folders, and of video files if they are asked for."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            try:
                if entry.is_dir() or (videos and Path(entry.name).suffix.casefold() in VIDEOS):
                    found.append(entry.name)
            except OSError:  # a link to itself is no folder
                continue
    return sorted(found)


@dataclass(frozen=True)
class Frames:
    """The pictures of a folder.

    Attributes:
        files: frame number -> file, in numerical order.
        strays: names of pictures that are called otherwise than the others, and are no frames.
        twice: says which two files have the same number; files are {} then.
    """

    files: dict[int, Path]
    strays: tuple[str, ...] = ()
    twice: str = ""


def list_frames(folder: Path) -> Frames:
    """The images of a folder by the last integer of their names, in numerical order.

    `img46.jpg`, `reg_img46.jpg`, `006_05562.jpg`, `image0181234.bmp`, `355.jpg`. Padding does not matter.
    The frames of a folder are called alike: what precedes and follows the number is the same in all of
    them. A picture with another name, such as a file manager's copy `image101 2.bmp`, is a stray.

    Args:
        folder: where to look; its subfolders and hidden files are passed over.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); copy it again") from error
    pictures: dict[str, tuple[str, str, int] | None] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix.casefold() in IMAGES:
            found = re.fullmatch(r"(.*?)(\d+)(\D*)", stem, re.DOTALL)
            pictures[name] = (found[1], found[3], int(found[2])) if found else None
    patterns = Counter(known[:2] for known in pictures.values() if known is not None)
    # Of equally many the shorter name: a copy's name is the original's with something added.
    usual = min(patterns, key=lambda p: (-patterns[p], len(p[0]) + len(p[1]), p), default=None)
    files: dict[int, Path] = {}
    strays = []
    for name, known in pictures.items():
        if known is None or known[:2] != usual:
            strays.append(name)
            continue
        if known[2] in files:
            other = files[known[2]].name
            return Frames({}, twice=f"{folder}: {other} and {name} are both frame {known[2]}; remove one")
        files[known[2]] = folder / name
    return Frames(dict(sorted(files.items())), tuple(strays))
