"""What `mefar make-demo --realism` adds: where it is seen, and that nothing else changes."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from rendering import weights

from datamodules.demo.corpora import Corpora, make_voxceleb
from datamodules.demo.encoding import CRF
from datamodules.demo.head import actions_of, head
from datamodules.demo.identity import Identity
from datamodules.demo.motion import Performance, talking
from datamodules.demo.realism import LINES, TURNING, WORST_CRF, Extra, Glasses, folded
from datamodules.demo.render import Camera, Light
from datamodules.demo.scene import Scene, Sensor, as_real, plain_wall, street_scene
from datamodules.voxceleb.video import info
from mefar.__main__ import main
from mefar.errors import UserError

CAMERA = Camera(120, 120, 46.0)


@pytest.fixture(scope="module")
def person() -> Identity:
    return Identity.random(np.random.default_rng(7))


@pytest.fixture
def scene() -> Scene:
    return Scene(CAMERA, Light(), Sensor(), plain_wall(CAMERA, (0.2, 0.2, 0.2), 0.0))


def still(unit: int | None, frames: int = 2, turn: float = 0.0) -> Performance:
    """A face that shows one unit all the time and turns by so many degrees from frame to frame."""
    shown = weights(actions_of(unit) if unit else {})
    pose = np.zeros((frames, 5), np.float32)
    pose[:, 0] = turn * np.arange(frames)
    actions = np.repeat(shown[None], frames, axis=0)
    return Performance(actions, (), actions[:, :0], pose, np.ones(frames, np.float32))


def filmed(scene: Scene, person: Identity, performance: Performance) -> np.ndarray:
    return np.stack([*scene.film(person, performance, np.random.default_rng(0))]).astype(float)


def test_wrinkles_are_where_the_skin_folds_and_nowhere_at_rest(scene, person):
    wrinkled = replace(scene, wrinkles=0.4)
    assert (filmed(wrinkled, person, still(None)) == filmed(scene, person, still(None))).all()
    for unit, low, high in ((1, 7.55, 7.95), (4, 7.3, 7.65), (12, 6.45, 7.0)):
        darker = filmed(scene, person, still(unit)) - filmed(wrinkled, person, still(unit))
        change = np.abs(darker[0]).sum(axis=(1, 2))
        row = CAMERA.centre[1] * CAMERA.height + (7.15 - np.array([high, low])) * CAMERA.scale
        assert change.sum() > 500
        assert change[int(row[0]) - 2 : int(row[1]) + 3].sum() > 0.8 * change.sum()
        assert darker.sum() > 0  # lines are darker than their rims are lighter


def test_every_line_belongs_to_an_action_of_the_head_and_grows_with_it(person):
    names = head().action_names
    for stems, _ in LINES:
        for stem in stems:
            found = [name for name in names if name in (stem, f"{stem}Left", f"{stem}Right")]
            assert found, stem
            actions = np.zeros(52, np.float32)
            depths = []
            for weight in (0.5, 1.0):
                actions[names.index(found[0])] = weight
                depths.append(np.abs(np.log(folded(person, actions, 0.3).paint / person.paint)).sum())
            assert 0 < 1.5 * depths[0] < depths[1]


def test_glasses_stay_on_a_face_that_moves_its_lids_and_go_along_with_its_head(scene, person):
    glasses = Glasses(0.22, 0.17, 3.0, 0.03, (0.01, 0.01, 0.01), 0.0)
    worn = replace(scene, glasses=glasses)
    frames = filmed(scene, person, still(None, 2, turn=15.0)) - filmed(
        worn, person, still(None, 2, turn=15.0)
    )
    centres = [np.average(np.arange(120), weights=np.clip(f, 0, None).sum(axis=(0, 2))) for f in frames]
    assert centres[1] > centres[0] + 5  # to the right of the picture, as the face
    open_, closed = (
        filmed(scene, person, still(unit)) - filmed(worn, person, still(unit)) for unit in (None, 45)
    )
    rim = open_[0].sum(-1) > 120
    assert rim.sum() > 100
    assert (closed[0].sum(-1)[rim] > 60).mean() > 0.95


def test_a_shutter_blurs_what_turns_and_nothing_that_rests(scene, person):
    blurred = replace(scene, shutter=0.5)
    assert np.abs(filmed(blurred, person, still(12)) - filmed(scene, person, still(12))).max() <= 1
    sharp, soft = (filmed(s, person, still(None, 3, turn=20.0))[0] for s in (scene, blurred))
    assert np.abs(np.diff(soft, axis=1)).mean() < 0.95 * np.abs(np.diff(sharp, axis=1)).mean()


def test_a_cameras_noise_grows_with_the_light_and_is_smooth():
    ramp = np.repeat(np.linspace(0.01, 0.9, 200, dtype=np.float32)[None, :, None], 200, axis=0).repeat(
        3, axis=2
    )
    rng = np.random.default_rng(0)
    plain, processed = (
        Sensor(noise=4.0, processed=p).expose(ramp, 1.0, rng) - Sensor().expose(ramp, 1.0, rng).astype(float)
        for p in (False, True)
    )
    dark, bright = processed[:, 5:50].std(), processed[:, 140:190].std()
    assert bright > 1.3 * dark
    assert abs(plain[:, 5:50].std() / plain[:, 140:190].std() - 1) < 0.1
    neighbours = [np.corrcoef(n[:, 50:-1, 0].ravel(), n[:, 51:, 0].ravel())[0, 1] for n in (plain, processed)]
    assert neighbours[0] < 0.1 < 0.4 < neighbours[1]


def test_heads_turn_further_and_the_face_does_the_same():
    calm, lively = (
        talking(np.random.default_rng(3), np.zeros(52), 50, 25.0, 55.0, turning=t) for t in (1.0, TURNING)
    )
    assert (calm.actions == lively.actions).all()
    assert lively.pose.std(axis=0) == pytest.approx(TURNING * calm.pose.std(axis=0), rel=1e-3)


def test_what_is_not_asked_for_does_not_change_what_is():
    scene = street_scene(np.random.default_rng(0), 96)
    drawn = {}
    for seed in range(20):
        everything, crf = as_real(scene, get_args(Extra), np.random.default_rng(seed))
        alone, same = as_real(scene, ["glasses"], np.random.default_rng(seed))
        assert CRF <= crf <= WORST_CRF
        assert same == CRF
        assert everything.glasses == alone.glasses
        assert replace(alone, glasses=None) == as_real(scene, [], np.random.default_rng(seed))[0]
        drawn[seed] = everything.glasses is not None
    assert 2 <= sum(drawn.values()) <= 15


def test_the_corpus_has_the_same_people_who_do_the_same(tiny_corpora, tmp_path, capsys):
    make_voxceleb(Corpora(tmp_path, 0, "tiny", realism=["glasses", "camera", "wrinkles"]), workers=1)
    with pytest.raises(UserError, match="made otherwise"):
        make_voxceleb(Corpora(tmp_path, 0, "tiny"))
    truth = sorted((tmp_path / "ground_truth" / "voxceleb").glob("*.npz"))
    for path in truth:
        here, there = np.load(path), np.load(tiny_corpora / "ground_truth" / "voxceleb" / path.name)
        for key in ("targets", "actions", "pose"):
            assert (here[key] == there[key]).all()
    videos = sorted((tmp_path / "voxceleb").rglob("*.mp4"))
    sizes = [(v.stat().st_size, (tiny_corpora / v.relative_to(tmp_path)).stat().st_size) for v in videos]
    assert info(videos[0]).frames == 20
    assert sum(here for here, _ in sizes) < sum(there for _, there in sizes)
    assert main(["make-demo", str(tmp_path / "other"), "--size", "tiny", "--realism", "[beards]"]) == 2
    assert "beards" in capsys.readouterr().err
