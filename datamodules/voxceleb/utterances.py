"""Which video files a folder holds, and of whom."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from datamodules.voxceleb.video import SUFFIXES
from mefar.errors import UserError

_ID = re.compile(r"id\d{5}")
_PARTS = {"train", "training", "dev", "val", "valid", "validation", "test", "testing", "mp4"}  # nobody's name


@dataclass(frozen=True)
class Utterance:
    """One video file of one speaker.

    Attributes:
        speaker: VoxCeleb id, or a folder's name, or the path of the file where the tree names no speakers.
        path: relative to the root, with forward slashes.
    """

    speaker: str
    path: str


def find_utterances(root: Path) -> list[Utterance]:
    """All videos below a folder with their speakers, sorted by path.

    A path part that starts with idNNNNN names the speaker (VoxCeleb1 and 2, nested, or flat as
    `idNNNNN#video#start#end.mp4`). In other trees each folder is one person's: the first one below what all
    files share that is not called train, test or the like. A file in no such folder is its own speaker.

    Raises:
        UserError: no such folder, or no video in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds the face videos")
    found: list[Path] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                path = (Path(folder) / name).relative_to(root)
                found.append(path)
    if not found:
        raise UserError(f"{root}: holds no video ({', '.join(SUFFIXES)}), at any depth")
    shared = len(Path(os.path.commonpath([path.parent.as_posix() or "." for path in found])).parts)
    if all(len(path.parts) - 1 == shared for path in found):
        shared = max(0, shared - 1)
    made = [Utterance(_speaker(path, shared), path.as_posix()) for path in found]
    return sorted(made, key=lambda utterance: utterance.path)


def _speaker(path: Path, shared: int) -> str:
    ids = [match.group() for part in path.parts if (match := _ID.match(part))]
    people = [part for part in path.parts[shared:-1] if part.lower() not in _PARTS]
    return (ids or people or [path.as_posix()])[0]
