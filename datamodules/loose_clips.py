"""A clip of nobody's database: a video, or a folder of numbered images."""

from __future__ import annotations

from pathlib import Path

from datamodules.clips import Clip
from datamodules.databases.video_frames import is_video, number_frames
from datamodules.footage import footage
from mefar.errors import UserError

LONGEST = 20.0
"""Seconds of a clip; a longer one is a video with many events."""


def picture_at(path: Path) -> Path:
    """What read_image reads of a picture, or of a video its first frame."""
    return number_frames(path)[1] if is_video(path) else path


def loose_clip(path: Path, onset: float | None = None, apex: float | None = None) -> Clip:
    """A video, or a folder of numbered images, that begins with the onset.

    Args:
        path: file or folder.
        onset: seconds; None: the first frame.
        apex: seconds; None: not known.

    Raises:
        UserError: cannot be read, a time outside of it, or so long that there is more than one event.
    """
    film = footage(path, 25.0 if path.is_dir() else None)
    frames = dict(enumerate(film.images)) if film.images else number_frames(path, 0)
    times = [None if moment is None else round(moment * film.fps) for moment in (onset, apex)]
    first, top = times[0] or 0, times[1]
    last = max(frames) if top is None else top
    if not 0 <= first < last <= max(frames):
        raise UserError(f"{path}: has {len(frames) / film.fps:.2f} s; give an onset before the apex in it")
    if top is None and len(frames) > LONGEST * film.fps:
        raise UserError(
            f"{path}: longer than {LONGEST:.0f} s; find its events by `mefar recognise` and give one's times"
        )
    return Clip("", "", path.stem, "", first, top, last, film.fps, (), frames)
