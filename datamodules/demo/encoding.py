"""Encode the demo's talking faces as VoxCeleb's are: H.264, yuv420p, in MP4."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

CRF = 20


def write_h264(path: Path, pictures: Iterable[npt.NDArray[np.uint8]], fps: int, crf: int = CRF) -> None:
    """Encode pictures into one file; the same pictures give the same bytes.

    Args:
        path: file to write, ``.mp4``.
        pictures: (T, H, W, 3) or T frames (H, W, 3), uint8 RGB, even height and width.
        fps: frames per second.
        crf: x264's constant rate factor, lower is better.
    """
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.pix_fmt = "yuv420p"
        # One thread, since several split the stream by their number; and no macroblock tree, whose assembly
        # reads memory it never wrote: with it, some files differ from run to run.
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "threads=1:mbtree=0"}
        stream.thread_count = 1
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
