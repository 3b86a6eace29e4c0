"""Frames of a video file, exactly: the n-th frame that playing the file from its start would show.

One interface, two decoders. decord (Apache-2.0) is quick to seek but version 0.6.0 returns wrong frames, or
hangs, on edit lists, open groups of pictures, AVI, and readers inherited by a forked worker; it is used only
where a look at the packets says that none of this can happen, and is opened and closed inside the call.
Everything else goes through PyAV with a seek whose result is checked by its time stamp.

A phone held upright writes lying pictures and a note how to turn them (the display matrix); television has
pixels that are not square. Frames come out as a player shows them, and sizes are those of the shown picture.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from mefar.errors import UserError

UInt8 = NDArray[np.uint8]
Backend = Literal["auto", "decord", "pyav"]

HAS_DECORD = importlib.util.find_spec("decord") is not None  # built for x86-64 only
SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".flv", ".wmv", ".gif"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        frames: number of frames that playing it shows.
        fps: mean frames per second.
        width, height: pixels as shown.
        codec: FFmpeg's name of the codec, such as h264.
    """

    frames: int
    fps: float
    width: int
    height: int
    codec: str


@dataclass(frozen=True)
class _Turn:
    """Rows and columns change places first; then left and right, then top and bottom."""

    transposed: bool
    across: bool
    down: bool

    @property
    def mirrored(self) -> bool:
        return (self.transposed + self.across + self.down) % 2 == 1


_NOT_TURNED = _Turn(False, False, False)


@dataclass(frozen=True)
class _Index:
    """Time stamps of the shown frames in order, and what decides whether decord may be used."""

    info: VideoInfo
    stamps: tuple[int, ...] | None  # None: the container gives none, count frames instead
    seconds: float  # per tick
    seekable: bool  # stamps survive a seek: not in AVI, which has none and lets FFmpeg guess them
    plain: bool  # every packet shown, starts at zero, closed groups, constant rate, not turned, square pixels
    mirrored: bool  # as the selfie cameras of some phones do


def info(path: Path) -> VideoInfo:
    """Frames, rate, size and codec of a video, from its packets (only the first is decoded).

    Raises:
        UserError: missing, not a video, or without a picture stream.
    """
    return _index(Path(path)).info


def moments(path: Path) -> NDArray[np.float64]:
    """When each frame is shown -> (T,) float64 seconds since the first, from the packets.

    Raises:
        UserError: as `info`.
    """
    index = _index(Path(path))
    if index.stamps is None:
        return np.arange(index.info.frames) / index.info.fps
    return (np.array(index.stamps) - index.stamps[0]) * index.seconds


def frames(path: Path, indices: Sequence[int], backend: Backend = "auto") -> UInt8:
    """Frames by number, in the order asked for; repeats allowed.

    Args:
        path: video file.
        indices: numbers in [0, info(path).frames).
        backend: `auto` uses decord where the stream is provably safe for it, else PyAV. decord cannot show
            mirrored videos: PyAV reads those.

    Returns:
        (T, H, W, 3) uint8 RGB.

    Raises:
        UserError: unreadable file, or a number outside the video.
    """
    path = Path(path)
    index = _index(path)
    for number in indices:
        if not 0 <= number < index.info.frames:
            raise UserError(f"{path}: has no frame {number}, only 0 to {index.info.frames - 1}")
    if (backend == "decord" and not index.mirrored) or (backend == "auto" and index.plain and HAS_DECORD):
        return _decord(path, indices)
    wanted = sorted(set(indices))
    found = _seek(path, index.stamps, wanted) if index.stamps is not None and index.seekable else None
    if found is None:
        found = _count(path, wanted)
    return np.stack([found[number] for number in indices])


def play(path: Path, only: Collection[int] | None = None) -> Iterator[tuple[float, UInt8]]:
    """Decode from the start, one frame at a time -> (seconds, (H, W, 3) uint8 RGB).

    Args:
        path: video file; seconds count from its first frame.
        only: numbers of the frames to give, in order; decoding stops after the last. None gives all.

    Single-threaded: meant for worker processes.

    Raises:
        UserError: unreadable file, no frames, damage that the decoder notices (it does not notice all), or an
            end before the last frame asked for.
    """
    path, first, shown = Path(path), None, 0
    last = None if only is None else max(only, default=-1)
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, screen = "NONE", _screen(path, stream)
        rate = float(stream.average_rate or stream.base_rate or 25)
        try:
            for frame in container.decode(stream):
                time = frame.time if frame.time is not None else shown / rate
                first = time if first is None else first
                if only is None or shown in only:
                    if frame.is_corrupt:  # the decoder made up what it could not read
                        raise UserError(f"{path}: frame {shown} is damaged")
                    yield time - first, _as_shown(screen, frame)
                shown += 1
                if last is not None and shown > last:
                    return
        except av.FFmpegError as error:
            raise UserError(f"{path}: decoding stops after {shown} frames ({_reason(error)})") from error
    if shown == 0:
        raise UserError(f"{path}: holds no decodable frame; the file is empty or truncated")
    if last is not None:
        raise UserError(f"{path}: ends after {shown} frames, frame {last} is missing; the file is truncated")


def read_all(path: Path, max_frames: int | None = None) -> tuple[UInt8, NDArray[np.float64]]:
    """A whole video -> (T, H, W, 3) uint8 RGB and (T,) seconds since its first frame.

    Args:
        path: video file.
        max_frames: stop after so many.

    Raises:
        UserError: as `play`.
    """
    images, times = [], []
    for time, image in play(path):
        images.append(image)
        times.append(time)
        if max_frames is not None and len(images) >= max_frames:
            break
    return np.stack(images), np.array(times)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        container: Any = av.open(str(path))
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: not a readable video ({_reason(error)})") from error
    if not container.streams.video:
        container.close()
        raise UserError(f"{path}: has no picture stream; audio only?")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise UserError(f"{path}: has pictures of an unknown codec; the file is damaged or of a newer kind")
    return container


def _index(path: Path) -> _Index:
    stamps: list[int | None] = []
    hidden, keys, last_key, open_group = 0, 0, None, False
    first: list[Any] = []  # the first frame: only frames carry the display matrix
    with _open(path) as container:
        stream = container.streams.video[0]
        codec, width, height = stream.codec_context.name, stream.width, stream.height
        rate, tick = stream.average_rate or stream.base_rate, float(stream.time_base or 0)
        start, kind, aspect = stream.start_time, container.format.name, _aspect(stream)
        stream.thread_type = "NONE"
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.is_discard or packet.is_corrupt:
                    hidden += 1
                    continue
                stamps.append(packet.pts)
                if not first:
                    first = _shown(packet)
                if packet.is_keyframe:
                    keys, last_key = keys + 1, packet.pts
                elif last_key is not None and packet.pts is not None and packet.pts < last_key:
                    open_group = True
        except av.FFmpegError as error:
            raise UserError(f"{path}: damaged after {len(stamps)} frames ({_reason(error)})") from error
    if not stamps or not width or not height:
        raise UserError(f"{path}: holds no frame; the file is empty or truncated")
    known = [stamp for stamp in stamps if stamp is not None]
    complete = len(known) == len(stamps) == len(set(known))
    ordered = tuple(sorted(known)) if complete else None
    fps = float(rate or 25)
    if ordered is not None and len(ordered) > 1 and tick:
        fps = (len(ordered) - 1) / ((ordered[-1] - ordered[0]) * tick)
    turn = _turn(first[0]) if first else _NOT_TURNED
    width = round(width * aspect)
    if turn.transposed:
        width, height = height, width
    steps = set(np.diff(ordered).tolist()) if ordered is not None else set()
    plain = (
        codec == "h264"
        and path.suffix.lower() == ".mp4"
        and ordered is not None
        and len(steps) <= 1
        and hidden == 0
        and start == 0 == ordered[0]
        and keys > 0
        and not open_group
        and turn == _NOT_TURNED
        and aspect == 1.0
    )
    seekable = "mp4" in kind or "matroska" in kind or keys == len(stamps)
    about = VideoInfo(len(stamps), fps, width, height, codec)
    return _Index(about, ordered, tick, seekable, plain, turn.mirrored)


def _shown(packet: Any) -> list[Any]:
    """The frames that a packet gives: none (yet), or some."""
    try:
        return list(packet.decode())
    except av.FFmpegError:
        return []  # whoever wants these frames will be told


def _turn(frame: Any) -> _Turn:
    """How a frame is turned for showing; other than right angles (no camera writes them) are not applied."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _NOT_TURNED
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if a == d == 0 != b * c:
        return _Turn(True, c < 0, b < 0)
    return _Turn(False, a < 0, d < 0) if b == c == 0 else _NOT_TURNED


def _aspect(stream: Any) -> float:
    """Width of a pixel in heights of it; 1 where the stream does not say."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.1 < aspect < 10 else 1.0


@dataclass
class _Screen:
    """What a player decides when a stream begins: width and height as coded, how wide a pixel is, what is up.

    The first frame says what is up; others are not asked, since a frame whose side data were looked at lives
    until Python collects its garbage: hundreds of megabytes of them.
    """

    path: Path
    width: int
    height: int
    aspect: float
    turn: _Turn | None = None


def _screen(path: Path, stream: Any) -> _Screen:
    return _Screen(path, stream.width, stream.height, _aspect(stream))


def _as_shown(screen: _Screen, frame: Any) -> UInt8:
    """A decoded frame as a player shows it, (H, W, 3) uint8 RGB.

    Raises:
        UserError: its size is not that of the stream's beginning.
    """
    if (frame.width, frame.height) != (screen.width, screen.height):
        change = f"from {screen.width} x {screen.height} to {frame.width} x {frame.height}"
        raise UserError(f"{screen.path}: changes its size midway, {change}; cut it there")
    if screen.turn is None:
        screen.turn = _turn(frame)
    image, turn = frame.to_ndarray(format="rgb24"), screen.turn
    if screen.aspect != 1.0:
        size = (round(screen.width * screen.aspect), screen.height)
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    if turn == _NOT_TURNED:
        return np.asarray(image, np.uint8)
    image = image.transpose(1, 0, 2) if turn.transposed else image
    return np.ascontiguousarray(image[:: -1 if turn.down else 1, :: -1 if turn.across else 1])


def _decord(path: Path, indices: Sequence[int]) -> UInt8:
    import decord  # here, so that nothing of it lives in a process that never asks for it

    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        batch = reader.get_batch(list(indices)).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise UserError(f"{path}: does not decode ({str(error).splitlines()[-1]})") from error
    del reader
    return np.asarray(batch, np.uint8)


def _seek(path: Path, stamps: tuple[int, ...], wanted: list[int]) -> dict[int, UInt8] | None:
    """Frames by time stamp; None where the stream does not keep to the stamps of its packets."""
    number = {stamp: i for i, stamp in enumerate(stamps)}
    found: dict[int, UInt8] = {}
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, screen = "NONE", _screen(path, stream)
        position = -1  # number of the last frame decoded; -1 before the first
        todo = list(wanted)
        try:
            while todo:
                goal = todo[0]
                # Decoding on is cheaper than seeking back to a key frame for near goals.
                if position < 0 or goal > position + 50:
                    container.seek(stamps[goal], stream=stream, backward=True)
                before = len(todo)
                for frame in container.decode(stream):
                    position = number.get(frame.pts, -1) if frame.pts is not None else -1
                    if position < 0 or position > todo[0]:
                        return None  # landed behind the goal, or unknown stamp: count instead
                    if position == todo[0]:
                        if frame.is_corrupt:
                            return None
                        found[todo.pop(0)] = _as_shown(screen, frame)
                        if not todo or todo[0] > position + 50:
                            break
                if len(todo) == before:
                    return None
        except av.FFmpegError:
            return None
    return found


def _count(path: Path, wanted: list[int]) -> dict[int, UInt8]:
    """Frames by counting from the start: slow and always right."""
    goals = sorted(set(wanted))
    return {number: image for number, (_, image) in zip(goals, play(path, set(goals)), strict=True)}


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().rstrip(".")
