"""A window is one take of one face: it ends at cuts, dissolves, black cards and frames without a face."""

import numpy as np
import pytest
from filming import film
from rendering import face

from datamodules.demo.render import Pose
from datamodules.faces.align import FaceAligner
from datamodules.voxceleb.windows import longest_take, read_windows

SIZE, STEPS = 64, 25
TIMES = np.arange(STEPS) * 0.08


def talking(seed):
    """A face that talks and nods, 25 frames at 80 ms, 160 px."""
    return [
        face(seed, {"jawOpen": 0.25 + 0.25 * np.sin(i)}, Pose(pitch=3 * np.sin(i / 5), yaw=3 * np.cos(i / 7)))
        for i in range(STEPS)
    ]


@pytest.fixture(scope="module")
def people():
    return talking(1), talking(8)  # unlike each other, as rendered faces go


@pytest.fixture(scope="module")
def aligner():
    return FaceAligner(SIZE, margin=4)


def cropped(frames, aligner):
    matrix = aligner.estimate(frames[0])
    return np.stack([aligner.crop(frame, matrix) for frame in frames])


def take(frames, aligner):
    found = longest_take(cropped(frames, aligner), TIMES[: len(frames)], aligner)
    return found.start, found.stop


def test_one_take_stays_whole(people, aligner):
    assert take(people[0], aligner) == (0, STEPS)
    assert take(people[1], aligner) == (0, STEPS)


@pytest.mark.parametrize("at", [8, 15])
def test_a_hard_cut_to_another_face_in_the_same_place_ends_the_window(people, aligner, at):
    one, other = (cropped(frames, aligner) for frames in people)
    found = longest_take(np.concatenate([one[:at], other[at:]]), TIMES, aligner)
    assert (found.start, found.stop) == ((0, at) if at > STEPS - at else (at, STEPS))


@pytest.mark.parametrize("length", [4, 8])
def test_a_dissolve_ends_the_window_where_it_begins(people, aligner, length):
    one, other = (cropped(frames, aligner).astype(float) for frames in people)
    weight = np.clip((np.arange(STEPS) - 16 + length / 2) / length, 0, 1)[:, None, None, None]
    found = longest_take(((1 - weight) * one + weight * other).astype(np.uint8), TIMES, aligner)
    assert found.start == 0
    assert 8 <= found.stop <= 16 - length / 2 + 2, "at most a fifth of the other face"


def test_a_black_card_and_a_hidden_face_end_the_window(people, aligner):
    frames = list(people[0])
    for spoilt in (np.zeros_like(frames[0]), np.full_like(frames[0], 120)):
        assert take([*frames[:16], *[spoilt] * 4, *frames[20:]], aligner) == (0, 16)
        assert take([*frames[:3], spoilt, *frames[4:]], aligner) == (4, STEPS)


def filmed(path, frames):
    """Each frame for 80 ms."""
    shown = [frame for frame in frames for _ in range(2)]
    return film(path, shown, options={"preset": "ultrafast", "threads": "1", "crf": "12"})


def test_a_file_is_searched_for_a_face(people, aligner, tmp_path):
    """Nine seconds of a wall and two of a face, wherever the first window falls."""
    rng = np.random.default_rng(0)
    wall = [rng.integers(60, 90, (160, 160, 3), dtype=np.uint8) for _ in range(5)] * 22
    path = filmed(tmp_path / "v.mp4", [*wall[:80], *people[0], *wall[80:]])
    for seed in range(3):
        (window,) = read_windows(path, "v.mp4", aligner, 25, True, seed)
        assert 80 * 0.08 - 0.1 < window.times[0] < window.times[-1] < 105 * 0.08 + 0.1
        assert len(window.times) > 10
        assert np.allclose(window.numbers / 25, window.times, atol=1e-3)
    assert read_windows(filmed(tmp_path / "w.mp4", wall[:40]), "w.mp4", aligner, 25, True, 0) == []


def test_a_cut_inside_a_film_gives_one_of_its_sides(people, aligner, tmp_path):
    path = filmed(tmp_path / "cut.mp4", [*people[0][:15], *np.roll(people[1][15:], 30, axis=2)])
    (window,) = read_windows(path, "cut.mp4", aligner, 25, False, 0)
    assert window.times[-1] < 15 * 0.08
    assert window.times[-1] - window.times[0] >= 0.5
    reference = FaceAligner(SIZE, margin=4)
    for number, matrix, crop in zip(window.numbers, window.matrices, window.crops, strict=True):
        again = reference.crop(people[0][number // 2], matrix)
        assert np.abs(again.astype(int) - crop).mean() < 4, "the transform that is kept makes the crop"
