"""The spotted apex against the true one, on rendered faces with camera noise, head drift and blinks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.clips import Clip
from datamodules.crops import FaceAligner, PairSettings, render
from datamodules.demo.identity import Identity
from datamodules.demo.motion import EMOTIONS, draw_units, micro_expression, resting_face, unit_rows, units
from datamodules.demo.replicas import STUDIOS
from datamodules.faces.apex import middle


def filmed(folder: Path, studio_name: str, seed: int, blink: bool) -> Clip:
    """A clip on disk whose true apex, anywhere from 0.2 to 0.8 of its length, is its annotated one."""
    studio, rng = STUDIOS[studio_name], np.random.default_rng([7, seed])
    identity, rest, scene = Identity.random(rng), resting_face(rng), studio.scene(rng, 0.7)
    length = int(rng.integers(*studio.frames))
    apex = round((length - 1) * rng.uniform(0.2, 0.8))
    acting = draw_units(rng, str(rng.choice(list(EMOTIONS))))
    shown = micro_expression(rng, acting, rest, length, apex, studio.fps, scene.camera.scale)
    if blink:
        centre = rng.uniform(0.1, 0.9) * length / studio.fps
        lids = np.exp(-(((np.arange(length) / studio.fps - centre) / 0.06) ** 2))  # shut and open in 0.2 s
        actions = shown.actions + lids[:, None] * unit_rows(rng, units("45"))
        shown = replace(shown, actions=np.clip(actions, 0, 1).astype(np.float32))
    frames = {}
    for number, picture in enumerate(scene.film(identity, shown, rng), 10):
        frames[number] = folder / f"{seed}-{number}.png"
        cv2.imwrite(str(frames[number]), picture[..., ::-1])
    return Clip(
        "casme2", "sub01", f"{seed}", "disgust", 10, 10 + apex, 9 + length, studio.fps, acting, frames
    )


@pytest.mark.parametrize(("studio", "clips"), [("casme2", 6), ("smic", 8)])
@pytest.mark.parametrize("blink", [False, True])
def test_the_spotted_apex_of_a_face_is_within_a_tenth_of_the_clip(
    tmp_path: Path, studio: str, clips: int, blink: bool
) -> None:
    aligner, settings = FaceAligner(128, "align"), PairSettings(128, apex="spotted")
    errors, of_middle = [], []
    for seed in range(clips):
        clip = filmed(tmp_path, studio, seed, blink)
        pair = render(clip, settings, aligner)
        assert pair is not None
        assert clip.apex is not None
        errors.append(abs(pair.chosen.number - clip.apex) / len(clip.frames))
        of_middle.append(abs(middle(clip) - clip.apex) / len(clip.frames))
    assert np.mean(errors) < 0.1
    assert np.mean(errors) < 0.75 * np.mean(of_middle)
