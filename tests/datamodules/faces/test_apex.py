from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from datamodules.clips import Clip
from datamodules.faces.apex import Apex, choose_apex, middle, motion_curve, spot

UInt8 = NDArray[np.uint8]


def clip(onset: int, apex: int | None, offset: int, numbers: list[int]) -> Clip:
    frames = {number: Path(f"img{number}.jpg") for number in numbers}
    return Clip("casme2", "sub01", "EP02_01f", "disgust", onset, apex, offset, 200.0, (), frames)


def refuse(_: Clip) -> int:
    raise AssertionError("spotted without being asked")


@pytest.mark.parametrize(
    ("onset", "offset", "numbers", "expected"),
    [
        (10, 20, range(10, 21), 15),
        (10, 21, range(10, 22), 15),  # of two the earlier
        (10, 20, [10, 11, 20], 11),
        (10, 20, [10, 19], 19),
        (10, 30, range(5, 17), 13),  # cut off at 16: the middle of what is there
        (99998, 100000, [99998, 99999, 100000], 99999),
    ],
)
def test_middle(onset: int, offset: int, numbers: list[int], expected: int) -> None:
    assert middle(clip(onset, None, offset, list(numbers))) == expected


@given(
    st.integers(0, 10**6),
    st.sets(st.integers(1, 300), min_size=1, max_size=60),
    st.integers(1, 400),
)
def test_the_middle_is_a_frame_of_the_clip(onset: int, steps: set[int], length: int) -> None:
    numbers = [onset, onset + 1, *sorted(onset + step for step in steps)]
    found = middle(clip(onset, None, onset + length, numbers))
    assert found in numbers
    assert onset < found <= onset + length


def test_annotated_falls_back_on_the_middle_and_says_so() -> None:
    frames = list(range(69, 124))
    assert choose_apex(clip(69, 81, 123, frames), "annotated", refuse) == Apex(81, "annotated")
    assert choose_apex(clip(69, None, 123, frames), "annotated", refuse) == Apex(96, "middle")
    assert choose_apex(clip(69, 69, 123, frames), "annotated", refuse) == Apex(96, "middle")
    assert choose_apex(clip(69, 81, 123, frames), "middle", refuse) == Apex(96, "middle")
    assert choose_apex(clip(69, 81, 123, frames), "spotted", lambda c: c.offset) == Apex(123, "spotted")


def film(seed: int, length: int, peak: float, noise: float = 3.0) -> tuple[list[UInt8], int]:
    """A textured picture of which a part moves by a pixel and back, with drifting light and camera noise.

    Returns the frames and the position of the largest motion.
    """
    rng = np.random.default_rng(seed)
    size = 128
    texture = cv2.GaussianBlur(rng.uniform(0, 255, (size, size)).astype(np.float32), (0, 0), 2.0)
    texture = 128 + 40 * (texture - texture.mean()) / texture.std()
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    cx, cy = rng.uniform(0.4, 0.6, 2) * size
    bump = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 14.0**2)).astype(np.float32)
    t = np.linspace(0, 1, length)
    strength = np.where(t < peak, t / peak, (1 - t) / (1 - peak)).clip(0, 1) ** 1.5
    drift = rng.normal(0, 0.4, 2)  # pixels over the clip
    frames = []
    for i in range(length):
        moved = cv2.remap(
            texture,
            x + drift[0].astype(np.float32) * t[i].astype(np.float32),
            y + np.float32(1.2 * strength[i]) * bump + np.float32(drift[1] * t[i]),
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )
        lit = moved * (1 + 0.03 * t[i]) + 2 * np.sin(9 * t[i])
        frames.append((lit + rng.normal(0, noise, lit.shape)).clip(0, 255).astype(np.uint8))
    return frames, int(np.argmax(strength))


@pytest.mark.parametrize(("fps", "length"), [(100.0, 34), (200.0, 70)])
@pytest.mark.parametrize("peak", [0.25, 0.5, 0.7])
def test_the_spotted_frame_is_within_a_tenth_of_the_clip(fps: float, length: int, peak: float) -> None:
    errors = []
    for seed in range(4):
        frames, true = film(seed, length, peak)
        errors.append(abs(spot(frames, fps, aligned=False) - true) / length)
    assert np.mean(errors) < 0.1


def test_a_clip_that_ends_before_it_relaxes() -> None:
    frames, true = film(5, 60, 0.5)
    assert abs(spot(frames[:45], 200.0, aligned=False) - true) <= 5


def test_light_alone_is_no_expression() -> None:
    frames, true = film(1, 40, 0.4, noise=0.0)
    flash = 1 + 0.3 * np.exp(-((np.arange(40) - 30) ** 2) / 8)
    lit = [
        (frame * factor * 0.7).clip(0, 255).astype(np.uint8)
        for frame, factor in zip(frames, flash, strict=True)
    ]
    assert abs(spot(lit, 100.0, aligned=False) - true) <= 4


def test_the_curve_begins_at_zero_and_is_the_same_for_colour() -> None:
    frames, _ = film(2, 20, 0.5)
    curve = motion_curve(frames, 100.0)
    assert curve.shape == (20,)
    assert curve[0] == pytest.approx(0, abs=1e-6)
    colour = [np.repeat(frame[..., None], 3, 2) for frame in frames]
    assert np.allclose(motion_curve(colour, 100.0), curve)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_very_short_or_still_clips_have_an_apex_after_the_onset(length: int) -> None:
    frames, _ = film(3, 8, 0.5)
    assert 1 <= spot(frames[:length], 100.0) < length
    assert 1 <= spot([frames[0]] * length, 100.0) < length
