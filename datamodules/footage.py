"""Anybody's own pictures in order of time, from a video file or numbered images; and writing a video."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar, cast

import av
import numpy as np
from numpy.typing import NDArray

from datamodules.crops import read_image
from datamodules.databases.folders import IMAGES, list_frames
from datamodules.voxceleb import video
from mefar.errors import UserError
from mefar.files import replacing

UInt8 = NDArray[np.uint8]
T = TypeVar("T")

_TICKS = 1000  # a second, in written videos
_BT601 = 6  # as FFmpeg counts: how it makes YUV of RGB


@dataclass(frozen=True)
class Footage:
    """A video file or an image sequence.

    Attributes:
        path: the file or the folder.
        frames: how many there are, by the container.
        fps: mean frames per second.
        size: (width, height) in pixels.
        notes: what a user should know of it, a line each.
        images: files of a sequence in order of their numbers; empty for a video file.
        seconds: (T,) of a sequence: by the numbers, so that a missing image is a gap in time.
    """

    path: Path
    frames: int
    fps: float
    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    seconds: tuple[float, ...] = ()

    def play(self) -> Iterator[tuple[float, UInt8]]:
        """(seconds, (H, W, 3) uint8 RGB) from the start.

        Raises:
            UserError: as `video.play`, or an image that cannot be read.
        """
        if not self.images:
            yield from video.play(self.path)
            return
        for second, image in zip(self.seconds, self.images, strict=True):
            yield second, read_image(image)

    def at(self, numbers: Sequence[int]) -> list[UInt8]:
        """Frames by number, counted from 0."""
        if self.images:
            return [read_image(self.images[number]) for number in numbers]
        return list(video.frames(self.path, numbers)) if numbers else []


def footage(path: Path, fps: float | None = None) -> Footage:
    """Look at a video file or a folder of numbered images.

    Args:
        path: what to look at.
        fps: of an image sequence, which does not say; a video file knows by itself.

    Raises:
        UserError: nothing there, nothing that can be decoded, or images without `fps`.
    """
    if path.is_dir():
        return _sequence(path, fps)
    if fps is not None:
        raise UserError(f"{path}: a video file says itself when its frames are shown; leave out --fps")
    about = video.info(path)
    return Footage(path, about.frames, about.fps, (about.width, about.height))


def films_in(folder: Path) -> list[Path]:
    """What `footage` reads under a folder: videos of any depth, and folders that hold images and no video."""
    videos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in video.SUFFIXES and p.is_file())
    folders = {p.parent for p in folder.rglob("*") if p.suffix.lower() in IMAGES}
    taken = {p.parent for p in videos}
    found = sorted([*videos, *(folders - taken)])
    if not found:
        raise UserError(f"{folder}: no video and no numbered images in it ({' '.join(video.SUFFIXES)})")
    return found


def ahead(items: Iterable[T], count: int = 4) -> Iterator[T]:
    """The same items, `count` of them fetched ahead by a thread: one core decodes while another looks."""
    source, end = iter(items), object()

    def fetch() -> T | object:
        return next(source, end)

    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(fetch) for _ in range(count))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(fetch))
            yield cast(T, item)


def write_video(path: Path, frames: Iterable[tuple[float, UInt8]], crf: int = 23) -> None:
    """Write H.264 in MP4, each frame shown at its time; whole or not at all.

    Args:
        path: file to write, `.mp4`.
        frames: (seconds, (H, W, 3) uint8 RGB), all of one size; an odd last row or column is left out.
        crf: x264's constant rate factor.
    """
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_TICKS)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "ultrafast"}
        stream.codec_context.time_base = Fraction(1, _TICKS)
        # Untold, a browser takes pictures of 720 rows or more for BT.709, and shows other colours.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        last = -1
        for number, (seconds, frame) in enumerate(frames):
            even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
            if number == 0:
                stream.height, stream.width = even.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            last = max(last + 1, round(seconds * _TICKS))
            picture.pts, picture.time_base = last, Fraction(1, _TICKS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _sequence(folder: Path, fps: float | None) -> Footage:
    listed = list_frames(folder)
    if listed.twice:
        raise UserError(listed.twice)
    if len(listed.files) < 2:
        raise UserError(f"{folder}: fewer than two numbered images in it")
    if fps is None or not 0 < fps <= 10_000:
        raise UserError(f"{folder}: a folder of images does not say how fast it was filmed; give --fps")
    numbers, images, notes = list(listed.files), tuple(listed.files.values()), []
    if missing := numbers[-1] - numbers[0] + 1 - len(numbers):
        notes.append(f"{missing} images are missing between {numbers[0]} and {numbers[-1]}: gaps in time")
    if listed.strays:
        notes.append(f"not called like the others and left out: {', '.join(listed.strays[:3])}")
    seconds = tuple((number - numbers[0]) / fps for number in numbers)
    height, width = read_image(images[0]).shape[:2]
    return Footage(folder, len(numbers), fps, (width, height), tuple(notes), images, seconds)
