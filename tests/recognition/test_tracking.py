"""Following faces through a video: who is where, and what ends a track."""

from __future__ import annotations

import numpy as np
import pytest
from rendering import render

from datamodules.demo.head import head
from datamodules.demo.identity import Identity
from datamodules.demo.motion import resting_face
from datamodules.demo.render import Camera, Renderer
from datamodules.faces.align import FaceAligner
from mefar.recognition.motion import SIDE
from mefar.recognition.tracking import Followed, Follower

FPS = 15


@pytest.fixture(scope="module")
def portraits() -> list[np.ndarray]:
    """Two people before a gray wall, 160 x 160."""
    pictures = []
    for seed in (3, 4):
        rng = np.random.default_rng(seed)
        identity = Identity.random(rng)
        renderer = Renderer(Camera(160, 160, 58.0))
        rest = dict(zip(head().action_names, resting_face(rng), strict=True))
        pictures.append(render(renderer, identity, rest))
    return pictures


def follow(frames: list[np.ndarray]) -> tuple[list, Follower]:
    follower = Follower(FaceAligner(SIDE))
    rng = np.random.default_rng(0)
    for number, frame in enumerate(frames):
        noisy = np.clip(frame + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)
        follower.add(number / FPS, noisy)
    return follower.tracks(), follower


def wall(height: int = 160, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 137, np.uint8)


def at(picture: np.ndarray, x: int, width: int = 400) -> np.ndarray:
    """A portrait with its left edge at column x of a wide picture."""
    out = wall(160, width)
    low, high = max(0, x), min(width, x + 160)
    if high > low:
        out[:, low:high] = picture[:, low - x : high - x]
    return out


def test_two_people_are_two_tracks_all_the_time(portraits) -> None:
    tracks, follower = follow([np.concatenate(portraits, 1)] * 20)
    assert [(t.person, len(t.frames)) for t in tracks] == [(1, 20), (2, 20)]
    assert follower.cuts == []


def test_a_face_that_walks_is_followed_by_its_crop(portraits) -> None:
    tracks, _ = follow([at(portraits[0], 3 * k) for k in range(30)])
    assert [len(t.frames) for t in tracks] == [30]
    first, last = tracks[0].matrices[0], tracks[0].matrices[-1]
    moved = np.linalg.solve(last[:, :2], [64, 64] - last[:, 2]) - np.linalg.solve(
        first[:, :2], [64, 64] - first[:, 2]
    )
    assert moved == pytest.approx([87, 0], abs=2.5)
    assert np.abs(tracks[0].traces().regions).max() < 8  # the face itself does nothing


def test_a_face_that_leaves_and_returns_is_two_stretches(portraits) -> None:
    there, away = [at(portraits[0], 120)] * 15, [wall(160, 400)] * 8
    tracks, _ = follow([*there, *away, *there])
    assert [t.person for t in tracks] == [1, 1]  # back at its place within a second
    assert tracks[0].frames[-1] < 16
    assert tracks[1].frames[0] >= 23


def test_a_cut_ends_every_track_and_begins_new_people(portraits) -> None:
    bright = np.clip(np.concatenate([portraits[1], wall() + 90], 1).astype(int) + 25, 0, 255).astype(np.uint8)
    tracks, follower = follow([np.concatenate([wall() - 100, portraits[0]], 1)] * 15 + [bright] * 15)
    assert len(follower.cuts) == 1
    assert [(t.person, t.frames[0]) for t in tracks] == [(1, 0), (2, 15)]


def test_an_empty_wall_has_nobody() -> None:
    assert follow([wall()] * 10)[0] == []


def test_what_was_followed_comes_back_from_its_file(portraits, tmp_path) -> None:
    tracks, _ = follow([portraits[0]] * 12)
    saved = Followed(tuple(tracks), (0.5,), 12, 0.8, ("a note",))
    saved.save(tmp_path / "tracks.npz")
    again = Followed.load(tmp_path / "tracks.npz")
    assert (again.cuts, again.frames, again.seconds, again.notes) == ((0.5,), 12, 0.8, ("a note",))
    for name in ("seconds", "regions", "head", "eyes", "quality"):
        assert np.array_equal(getattr(again.tracks[0].traces(), name), getattr(tracks[0].traces(), name))
    assert np.array_equal(again.tracks[0].matrices, tracks[0].matrices)


def test_two_faces_that_cross_do_not_become_one_another(portraits) -> None:
    """The second walks behind the first and out on its other side."""

    def moment(k: int) -> np.ndarray:
        scene = at(portraits[1], 240 - 7 * k)
        near = at(portraits[0], 120)
        scene[:, 150:250] = near[:, 150:250]
        return scene

    tracks, _ = follow([moment(k) for k in range(40)])
    (near,) = [track for track in tracks if len(track.frames) == 40]
    assert np.ptp([matrix[0, 2] for matrix in near.matrices]) < 4  # stays where it is
    others = [track for track in tracks if track is not near]
    assert {track.person for track in others} == {
        1,
        3,
    }  # whoever comes out again is somebody, and not the first
