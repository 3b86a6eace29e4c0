from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.views import AMPLITUDE, JITTER, LIGHT, SCALE, SHIFT, TURN, View, draw_view


def test_view_zero_changes_nothing() -> None:
    view = draw_view(3, "casme2/sub01/EP02_01f", 0)
    assert view == View()
    assert np.array_equal(view.matrix(64), np.eye(2, 3))
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert view.relit(image) is image
    assert view.jittered(7, [5, 6, 7, 8]) == 7
    assert view.amplified(image // 2, image) is image


def test_a_view_depends_on_seed_clip_and_number_only() -> None:
    views = {draw_view(seed, key, v) for seed in (0, 1) for key in ("a", "b") for v in range(1, 4)}
    assert len(views) == 12
    assert draw_view(1, "b", 3) in views


def test_views_stay_in_their_ranges_and_half_are_mirrored() -> None:
    views = [draw_view(0, f"clip{i}", 1) for i in range(400)]
    assert all(max(map(abs, v.shift)) <= SHIFT and abs(v.scale - 1) <= SCALE for v in views)
    assert all(abs(v.turn) <= TURN for v in views)
    assert all(max(abs(v.brightness - 1), abs(v.contrast - 1)) <= LIGHT for v in views)
    assert min(v.amplitude for v in views) < 0.8 and max(v.amplitude for v in views) > 1.2
    assert all(abs(v.amplitude - 1) <= AMPLITUDE for v in views)
    assert 0.4 < np.mean([v.flip for v in views]) < 0.6
    assert np.std([v.turn for v in views]) == pytest.approx(TURN / np.sqrt(3), rel=0.15)


def test_mirroring_and_moving_are_about_the_centre() -> None:
    flip = View(flip=True).matrix(10)
    assert np.allclose(flip @ [0, 3, 1], [9, 3])
    moved = View(scale=1.04, turn=3.0, shift=(0.03, -0.02)).matrix(101)
    assert np.allclose(moved @ [50, 50, 1], [53.03, 47.98])


def test_light_is_relative_to_middle_gray() -> None:
    levels = np.array([0, 128, 255], np.uint8)
    assert View(contrast=1.1).relit(levels).tolist() == [0, 128, 255]
    assert View(contrast=0.9).relit(levels).tolist() == [13, 128, 242]
    assert View(brightness=0.9).relit(levels).tolist() == [0, 115, 230]


def test_a_stronger_expression_goes_farther_the_same_way() -> None:
    onset, apex = np.array([100, 100, 250, 7], np.uint8), np.array([120, 60, 255, 7], np.uint8)
    assert View(amplitude=1.25).amplified(onset, apex).tolist() == [125, 50, 255, 7]
    assert View(amplitude=0.75).amplified(onset, apex).tolist() == [115, 70, 254, 7]


@given(
    later=st.sets(st.integers(11, 60), min_size=1),
    pick=st.integers(0, 100),
    v=st.integers(1, 50),
)
def test_a_jittered_apex_is_a_frame_of_the_clip_near_the_apex(later: set[int], pick: int, v: int) -> None:
    numbers = sorted(later)
    apex = numbers[pick % len(numbers)]
    found = draw_view(0, "clip", v).jittered(apex, numbers)
    assert found in later
    assert abs(found - apex) <= JITTER


def test_every_frame_near_the_apex_is_drawn() -> None:
    drawn = {draw_view(0, "clip", v).jittered(20, range(11, 31)) for v in range(1, 60)}
    assert drawn == {18, 19, 20, 21, 22}
