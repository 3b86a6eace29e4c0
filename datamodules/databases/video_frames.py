"""Clips that are video files: every picture of the file is a frame, with a path of its own.

`EP02_01f.avi/46` is the 46th picture of `EP02_01f.avi`. What lists frames gives such paths, what reads them
knows them; all between handles paths.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.databases.folders import VIDEOS

UInt8 = NDArray[np.uint8]

_MOST = 500_000_000  # bytes of one video that a thread keeps
_kept = threading.local()  # the video that this thread read last: clips are read frame by frame


def is_video(path: Path) -> bool:
    """Whether a path is that of a video file, by its name."""
    return path.suffix.casefold() in VIDEOS


def number_frames(video: Path, first: int = 1) -> dict[int, Path]:
    """The pictures of a video: frame number -> path.

    Args:
        video: video file.
        first: number of the first picture.

    Raises:
        UserError: it cannot be read.
    """
    from datamodules.voxceleb import video as decoder  # here: who only lists databases waits for no decoder

    return {first + i: video / f"{i + 1}" for i in range(decoder.info(video).frames)}


def source(frame: Path) -> Path:
    """The file that holds a frame: its own, or the video that it is a picture of."""
    return frame.parent if is_video(frame.parent) and frame.name.isdigit() else frame


def read_frame(frame: Path) -> UInt8:
    """A picture of a video, (H, W, 3) uint8 RGB.

    Raises:
        UserError: the video cannot be read, or is shorter.
    """
    from datamodules.voxceleb import video as decoder

    video, index = frame.parent, int(frame.name) - 1
    key = (video, video.stat().st_mtime_ns) if video.exists() else (video, 0)
    if getattr(_kept, "key", None) == key:
        return np.asarray(_kept.frames[index], np.uint8)
    about = decoder.info(video)
    if about.frames * about.width * about.height * 3 > _MOST:
        return np.asarray(decoder.frames(video, [index])[0], np.uint8)
    _kept.frames, _kept.key = decoder.frames(video, range(about.frames)), key
    return np.asarray(_kept.frames[index], np.uint8)
