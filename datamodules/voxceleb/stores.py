"""How the crops of a shard lie on disk, in three ways.

| store | files of shard 12 | what is read for a pair |
|---|---|---|
| raw | shard-00012.npy (N, side, side, 3) uint8 | two crops, as they are |
| jpeg | shard-00012.jpg, N JPEG files one after another | two crops, decoded: about a twelfth of the bytes |
| video | nothing | two frames of the video itself, cropped as the table says |

Beside them lies in every store shard-00012.rows.npy, a table of N rows: the frame's number in its video, the
transform that makes its crop, where its bytes end, and their CRC-32. It is checked whenever a crop is read:
what a disk or a program has changed is named and made anew, and never trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from datamodules.faces.resample import resample
from datamodules.voxceleb import video
from datamodules.voxceleb.windows import Window
from mefar.errors import UserError
from mefar.files import replacing

UInt8 = NDArray[np.uint8]
Store = Literal["raw", "jpeg", "video"]
STORES: tuple[Store, ...] = get_args(Store)

# Libjpeg's quality and colour resolution: 45 dB on crops of real faces.
_JPEG_QUALITY, _JPEG_COLOURS = 95, "420"

ROW = np.dtype([("frame", "<i8"), ("matrix", "<f8", (2, 3)), ("end", "<i8"), ("crc", "<u4")])


def write_shard(folder: Path, shard: int, store: Store, windows: Sequence[Window], side: int) -> None:
    """Write the crops of a shard's windows and their table.

    Raises:
        OSError: the disk is full.
    """
    crops = [crop for window in windows for crop in window.crops]
    rows = np.zeros(len(crops), ROW)
    if windows:
        rows["frame"] = np.concatenate([window.numbers for window in windows])
        rows["matrix"] = np.concatenate([window.matrices for window in windows])
    if store == "video":
        rows["crc"] = [_check(row) for row in rows]
    if store == "raw":
        rows["crc"] = [zlib.crc32(crop) for crop in crops]
        with replacing(_pixels(folder, shard)) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(crops) if crops else np.zeros((0, side, side, 3), np.uint8))
    if store == "jpeg":
        files = [simplejpeg.encode_jpeg(crop, _JPEG_QUALITY, "RGB", _JPEG_COLOURS) for crop in crops]
        rows["end"], rows["crc"] = (
            np.cumsum([len(file) for file in files]),
            [zlib.crc32(file) for file in files],
        )
        with replacing(_pixels(folder, shard).with_suffix(".jpg")) as temporary:
            temporary.write_bytes(b"".join(files))
    with replacing(_table(folder, shard)) as temporary, temporary.open("wb") as file:
        np.save(file, rows)


def bytes_on_disk(folder: Path, shard: int) -> int:
    """Size of a shard without its list of windows."""
    return sum(path.stat().st_size for path in folder.glob(f"shard-{shard:05d}.*") if path.suffix != ".json")


def open_shard(folder: Path, shard: int, store: Store, videos: Path, side: int) -> Shard:
    """A shard to read crops from.

    Args:
        folder: of the cache.
        shard: its number.
        store: how the cache keeps its crops.
        videos: folder of the corpus, for the store `video`.
        side: of the crops in pixels.

    Raises:
        UserError: its files are missing or damaged.
    """
    return {"raw": _RawShard, "jpeg": _JpegShard, "video": _VideoShard}[store](folder, shard, videos, side)


class Shard:
    """The crops of a shard by row."""

    def __init__(self, folder: Path, shard: int, videos: Path, side: int) -> None:
        self.folder, self.shard, self.videos, self.side = folder, shard, videos, side
        try:
            self.rows = np.load(_table(folder, shard))
            if self.rows.dtype != ROW:
                raise ValueError("of another kind")
            self._open()
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(_table(folder, shard)) from error

    def _open(self) -> None:
        """Open what holds the pixels."""

    def pair(self, onset: int, apex: int, path: str) -> tuple[UInt8, UInt8]:
        """Two crops of one window, (side, side, 3) uint8 each.

        Args:
            onset: row of the one.
            apex: row of the other.
            path: of the window's video, relative to the corpus.

        Raises:
            UserError: the shard or the video is damaged; the shard is then forgotten, and made anew by the
                next start.
        """
        raise NotImplementedError

    def _damaged(self, path: Path, row: int | None = None) -> UserError:
        # Forgotten here: a shard is there when its list of windows is, a cache when its index is.
        for name in (f"shard-{self.shard:05d}.json", "index.json"):
            (self.folder / name).unlink(missing_ok=True)
        where = "" if row is None else f", crop {row}"
        return UserError(
            f"{path}{where}: damaged; start again, and this shard alone is made anew from the videos"
        )


class _RawShard(Shard):
    def _open(self) -> None:
        self.crops = np.load(_pixels(self.folder, self.shard), mmap_mode="r")
        if self.crops.shape != (len(self.rows), self.side, self.side, 3):
            raise ValueError("of another shape")

    def pair(self, onset: int, apex: int, path: str) -> tuple[UInt8, UInt8]:
        return self._crop(onset), self._crop(apex)

    def _crop(self, row: int) -> UInt8:
        crop = np.asarray(self.crops[row])
        if zlib.crc32(crop.data) != self.rows["crc"][row]:
            raise self._damaged(_pixels(self.folder, self.shard), row)
        return crop


class _JpegShard(Shard):
    def _open(self) -> None:
        self.path = _pixels(self.folder, self.shard).with_suffix(".jpg")
        size = int(self.rows["end"][-1]) if len(self.rows) else 0
        if self.path.stat().st_size != size:
            raise ValueError("of another size")
        self.bytes = np.memmap(self.path, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def pair(self, onset: int, apex: int, path: str) -> tuple[UInt8, UInt8]:
        return self._crop(onset), self._crop(apex)

    def _crop(self, row: int) -> UInt8:
        file = self.bytes[int(self.rows["end"][row - 1]) if row else 0 : int(self.rows["end"][row])]
        if zlib.crc32(file.data) != self.rows["crc"][row]:
            raise self._damaged(self.path, row)
        return np.asarray(simplejpeg.decode_jpeg(file), np.uint8)


class _VideoShard(Shard):
    def pair(self, onset: int, apex: int, path: str) -> tuple[UInt8, UInt8]:
        for row in (onset, apex):
            if _check(self.rows[row]) != self.rows["crc"][row]:
                raise self._damaged(_table(self.folder, self.shard), row)
        numbers = [int(self.rows["frame"][row]) for row in (onset, apex)]
        frames = video.frames(self.videos / path, numbers)
        first, second = (
            resample(frame, self.rows["matrix"][row], self.side)
            for frame, row in zip(frames, (onset, apex), strict=True)
        )
        return first, second


def _check(row: np.void) -> int:
    return zlib.crc32(row["frame"].tobytes() + row["matrix"].tobytes())


def _pixels(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.npy"


def _table(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.rows.npy"
