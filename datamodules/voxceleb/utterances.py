"""Which video files a folder holds, of whom; and the windows that are cut from each.

A window is at most two seconds long: short enough that a talking head stays inside one aligned crop.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.voxceleb.video import SUFFIXES, moments, play
from mefar.errors import UserError

WINDOW_SECONDS = 2.0
STRIDE_SECONDS = 0.08

_ID = re.compile(r"id\d{5}")


@dataclass(frozen=True)
class Utterance:
    """One video file of one speaker.

    Attributes:
        speaker: VoxCeleb id, or the path of the file where the tree names no speakers.
        path: relative to the root, with forward slashes.
    """

    speaker: str
    path: str


def find_utterances(root: Path) -> list[Utterance]:
    """All videos below a folder with their speakers, sorted by path.

    A path part that starts with idNNNNN names the speaker (VoxCeleb1 and 2, nested, or flat as
    `idNNNNN#video#start#end.mp4`). A file without one is its own speaker.

    Raises:
        UserError: no such folder, or no video in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds the face videos")
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                path = (Path(folder) / name).relative_to(root)
                ids = [match.group() for part in path.parts if (match := _ID.match(part))]
                found.append(Utterance(ids[0] if ids else path.as_posix(), path.as_posix()))
    if not found:
        raise UserError(f"{root}: holds no video ({', '.join(SUFFIXES)}), at any depth")
    return sorted(found, key=lambda utterance: utterance.path)


def cut(path: Path, frames: int, seed: str) -> Iterator[tuple[list[float], list[NDArray[np.uint8]]]]:
    """Windows spread evenly over a video, in one sequential decode; only one window is in memory at a time.

    Args:
        path: the video.
        frames: how many to keep of it. 25 make one window at steps of 80 ms; more make more windows where the
            file is long enough, finer steps where it is not.
        seed: where in its share of the video each window lies.

    Yields:
        (seconds of each frame since the start, its frames, each (H, W, 3) uint8).

    Raises:
        UserError: unreadable file.
    """
    known = moments(path)
    rows = _choose(known, frames, seed)
    shown = play(path, {row for window in rows for row in window})
    for window in rows:
        images = [image for _, (_, image) in zip(window, shown, strict=False)]
        yield [float(known[row]) for row in window], images


def _choose(known: NDArray[np.float64], frames: int, seed: str) -> list[list[int]]:
    """(T,) seconds of all frames -> the frame numbers of each window, windows in order, none shared."""
    length = float(known[-1])
    most = max(1, frames // round(WINDOW_SECONDS / STRIDE_SECONDS))
    count = int(np.clip(length // WINDOW_SECONDS, 1, most))
    keep = frames // count
    # No coarser than leaves several partners inside a gap range of 0.3 s.
    usable = min(length / count, WINDOW_SECONDS)
    stride = min(STRIDE_SECONDS, max(usable, 1e-3) / max(1, keep - 1))
    span = min(usable, stride * (keep - 1))
    slack = length / count - span
    digest = hashlib.sha256(seed.encode()).digest()
    rows, after = [], -1
    for i in range(count):
        start = i * length / count + slack * (digest[i % 32] / 255)
        wanted = start + np.arange(0.0, span + 1e-6, stride)
        near = np.unique(np.abs(known[None] - wanted[:, None]).argmin(1))
        near = near[near > after]
        if len(near):
            after = int(near[-1])
            rows.append(near.tolist())
    return rows
