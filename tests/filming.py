"""Small videos for tests: frames with their number drawn in as a barcode, in the containers that occur."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, BLOCK = 10, 8


def barcode(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A gray pattern that moves slowly, as faces do; its top rows hold the number in dark and light."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    plane = 120 + 90 * np.sin((x + number / 3) / 9) * np.cos((y - number / 5) / 7)
    for bit in range(BITS):
        column = (bit % (width // BLOCK)) * BLOCK
        plane[:BLOCK, column : column + BLOCK] = 160 if number >> bit & 1 else 92
    return np.repeat(plane[..., None], 3, 2).astype(np.uint8)


def number_in(frame: np.ndarray) -> int:
    """Read the barcode of an (H, W, 3) frame."""
    half = BLOCK // 2
    return sum(int(frame[half, bit * BLOCK + half].mean() > 126) << bit for bit in range(BITS))


def film(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    fps: int = 25,
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Encode frames; `times`: when each is shown, in ticks of 1 / (4 fps)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container or {}) as out:
        stream = None
        for number, image in enumerate(frames):
            if stream is None:
                stream = out.add_stream(codec, rate=fps, options=options or {})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
                if times is not None:
                    stream.codec_context.time_base = Fraction(1, 4 * fps)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 4 * fps)
            out.mux(stream.encode(frame))
        assert stream is not None
        out.mux(stream.encode())
    return path


def turned(path: Path, source: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy of an mp4 that is to be shown by x' = a x + c y, y' = b x + d y, for matrix (a, b, c, d)."""
    data = bytearray(source.read_bytes())
    start = data.find(b"tkhd") + 44  # the display matrix of a version 0 track header
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def sound_only(path: Path) -> Path:
    """A tone without pictures."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        samples = (0.2 * np.sin(np.arange(16000) / 10)).astype(np.float32)[None]
        for start in range(0, 15 * 1024, 1024):
            frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path
