"""The true frame of somebody's action on somebody else's face, which only rendered corpora can give.

On real data a tokenizer that carries an expression from one face to another can only be asked whether it
agrees with itself. Here the answer is known: the other face is rendered anew, in its own place, pose and
light, with the change that the first face's actions went through.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.clips import Clip
from datamodules.crops import read_image
from datamodules.demo.corpora import Progress, on_set
from datamodules.demo.motion import Performance
from datamodules.faces.align import FaceAligner, FaceMode
from datamodules.faces.resample import resample
from mefar.errors import UserError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


def has_truth(root: Path) -> bool:
    """Whether a folder holds demo corpora with the truth beside them."""
    return (root / "demo.json").is_file() and (root / "ground_truth").is_dir()


def true_frames(
    root: Path,
    actors: Sequence[tuple[Clip, int]],
    faces: Sequence[Clip],
    size: int,
    mode: FaceMode = "align",
    progress: Progress | None = None,
) -> U8:
    """Actors' changes from onset to apex, shown by other faces, as crops aligned like those faces' onsets.

    The frames have the lens, light and pose of the other face's onset, and no sensor noise.

    Args:
        root: folder of the demo corpora.
        actors: N clips and the frame number of each one's apex.
        faces: N clips whose onset frame is to show the change.
        size: S, side of the crops in pixels.
        mode: how the crops were aligned.
        progress: told (done, total, frames per second) after each frame.

    Returns:
        (N, S, S, 3) uint8 RGB.

    Raises:
        UserError: a clip is not of these corpora, or its face is not found any more.
    """
    aligner, crops = FaceAligner(size, mode), []
    on_set_once = lru_cache(maxsize=64)(on_set)
    start = time.monotonic()
    for done, ((actor, apex), face) in enumerate(zip(actors, faces, strict=True), 1):
        actions, _, _ = _filmed(root, actor)
        rest, pose, gain = (rows[:1] for rows in _filmed(root, face))
        moved = rest + actions[apex - actor.onset] - actions[0]
        shown = Performance(np.clip(moved, 0.0, 1.0), (), np.zeros((1, 0), np.float32), pose, gain)
        identity, scene = on_set_once(root, face.database, face.subject)
        quiet = replace(scene, sensor=replace(scene.sensor, noise=0.0))
        picture = next(quiet.film(identity, shown, np.random.default_rng(0)))
        matrix = aligner.estimate(read_image(face.frames[face.onset]))
        if matrix is None:
            raise UserError(f"{face.frames[face.onset]}: no face found")
        crops.append(resample(picture, matrix, size))
        if progress is not None:
            progress(done, len(faces), done / (time.monotonic() - start))
    return np.stack(crops)


def _filmed(root: Path, clip: Clip) -> tuple[F32, F32, F32]:
    """Actions (T, 52), pose (T, 5) and light gain (T,) of a clip; frame 0 is its onset."""
    path = root / "ground_truth" / clip.database / f"{clip.subject}_{clip.clip}.npz"
    try:
        with np.load(path) as truth:
            return truth["actions"].astype(np.float32), truth["pose"], truth["gain"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: missing or unreadable; render the corpora again") from error
