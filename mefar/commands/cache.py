"""`mefar cache VOXCELEB OUT`: decode and align every utterance once, so that training never decodes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from datamodules.faces.align import FaceMode
from datamodules.voxceleb.shards import StoreChoice, build, left_out
from mefar.progress import shown


def cache(
    voxceleb: Path,
    out: Path,
    *,
    size: int = 256,
    frames: int = 25,
    faces: FaceMode = "align",
    stabilise: bool = True,
    store: StoreChoice = "auto",
    workers: int = 0,
    seed: int = 0,
) -> None:
    """Build a cache of aligned crops, or what is missing of it, and say what it holds.

    Args:
        voxceleb: folder of face videos, any depth.
        out: folder for the cache; resumed if it was begun.
        size: side of the crops in pixels.
        frames: crops kept per video: 25 are one window of 2 s at 80 ms, 50 two windows of a longer file.
        faces: find and align faces, or take frames as they are.
        stabilise: take out the head's own motion.
        store: raw crops, jpeg (a twelfth of the bytes) or video (decoded for every pair); auto goes by size.
        workers: processes; 0 for one per core.
        seed: which parts of long videos are kept.
    """
    with shown("decoding") as progress:
        made = build(
            voxceleb,
            out,
            size,
            frames,
            faces,
            workers=workers or os.cpu_count() or 1,
            seed=seed,
            progress=progress,
            stabilise=stabilise,
            store=store,
            tell=partial(print, flush=True),  # before the bar, in a log file too
        )
    print(
        f"{out}: {made.frames} crops in {made.windows} windows of {made.utterances} videos, "
        f"{made.speakers} speakers, {made.bytes / 1e6:.0f} MB"
    )
    if line := left_out(out):
        print(line)
