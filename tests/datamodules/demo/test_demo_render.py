"""The demo renderer: where action units move the face, what moves with the head, what is drawn by chance."""

import numpy as np
import pytest
from rendering import render, weights

from datamodules.clips import ActionUnit
from datamodules.demo.head import FACS, SKIN, actions_of, head
from datamodules.demo.identity import Identity
from datamodules.demo.motion import (
    EMOTIONS,
    draw_units,
    micro_expression,
    resting_face,
    smooth_path,
    talking,
    units,
)
from datamodules.demo.render import DISTANCE, ORIGIN, Camera, Light, Pose, Renderer
from datamodules.demo.scene import Scene, Sensor, plain_wall

CAMERA = Camera(120, 120, 46.0)


@pytest.fixture(scope="module")
def person() -> Identity:
    return Identity.random(np.random.default_rng(7))


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(CAMERA)


def rows_of(renderer, low, high):
    """Picture rows between two heights (dm) of the face."""
    points = np.array([[0, high, 1.4], [0, low, 1.4]], np.float32) - ORIGIN - [0, 0, DISTANCE]
    top, bottom = renderer.project(points.astype(np.float32))[:, 1]
    return slice(int(top), int(bottom) + 1)


# Action unit -> heights (dm) of the region it moves: eyes at 7.28, brows 7.47, nose base 6.85, mouth 6.64.
REGIONS = {
    **dict.fromkeys((1, 2, 4), (7.30, 7.80)),
    **dict.fromkeys((5, 7, 45), (7.05, 7.45)),
    6: (6.65, 7.35),  # cheeks bulge from the mouth's height to the lower lid
    9: (6.85, 7.55),
    **dict.fromkeys((10, 12, 14, 15, 16, 17, 18, 20, 22, 24, 25, 28), (6.25, 6.95)),
    **dict.fromkeys((26, 27), (5.9, 6.95)),
}


@pytest.mark.parametrize("unit", sorted(FACS))
def test_every_action_unit_moves_its_region(unit, person, renderer):
    still = render(renderer, person).astype(float)
    moved = render(renderer, person, actions_of(unit)).astype(float)
    change = np.abs(moved - still).sum(axis=(1, 2))
    region = rows_of(renderer, *REGIONS[unit])
    assert change.sum() > 3000
    assert change[region].sum() > 0.75 * change.sum()


@pytest.mark.parametrize("unit", [2, 4, 6, 9, 12, 14, 15])
def test_left_is_the_subjects_left(unit, person, renderer):
    still = render(renderer, person).astype(float)
    for side, half in (("L", slice(60, None)), ("R", slice(None, 60))):
        change = np.abs(render(renderer, person, actions_of(unit, side)).astype(float) - still)
        assert change[:, half].sum() > 0.75 * change.sum()  # a smile pulls the other corner along


def test_the_whole_head_follows_the_pose(person, renderer):
    def centre(pose):
        picture = renderer.linear(person, weights({}), pose, Light(), np.zeros((120, 120, 3), np.float32))
        return np.argwhere(picture.sum(axis=2) > 0).mean(axis=0)

    there = centre(Pose())
    assert centre(Pose(shift=(5.0, 0.0)))[1] - there[1] == pytest.approx(5.0, abs=0.5)
    assert centre(Pose(yaw=15))[1] > there[1] + 0.5
    assert centre(Pose(roll=15))[1] > there[1] + 2.0
    nose = head().vertices[:, 2].argmax()
    up = renderer.project(renderer.place(head().vertices, Pose(shift=(0.0, -5.0))))[nose]
    still = renderer.project(renderer.place(head().vertices, Pose()))[nose]
    down = renderer.project(renderer.place(head().vertices, Pose(pitch=10)))[nose]
    assert down[1] > still[1] + 2.0
    assert still[1] - up[1] == pytest.approx(5.0, abs=0.5)


def test_light_from_the_left_brightens_the_left(person, renderer):
    wall = np.zeros((120, 120, 3), np.float32)
    picture = renderer.linear(person, weights({}), Pose(), Light(azimuth=-60), wall)
    assert picture[:, :60].sum() > 1.3 * picture[:, 60:].sum()


def test_sharper_sampling_changes_no_position(person):
    small, large = Renderer(Camera(80, 80, 30.0)), Renderer(Camera(160, 160, 60.0))
    shrunk = render(large, person).reshape(80, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - render(small, person)).mean() < 3.0


def test_people_differ_in_shape_and_colour_and_are_drawn_from_the_seed():
    first, again, other = (Identity.random(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.shape, again.shape)
    assert np.array_equal(first.paint, again.paint)
    assert np.abs(first.shape - other.shape).max() > 0.05
    assert np.abs(first.paint - other.paint).mean() > 0.01
    assert first.macro.sum() == pytest.approx(1.0, abs=1e-5)
    assert 0.05 < np.sqrt((first.targets**2).mean()) < 0.2


def test_everybodys_eyes_are_at_the_same_place():
    eyes = head().vertex_material != SKIN
    eyes &= head().vertices[:, 1] > 7.1
    for seed in range(5):
        shape = Identity.random(np.random.default_rng(seed)).shape
        assert np.allclose(shape[eyes].mean(axis=0), head().vertices[eyes].mean(axis=0), atol=1e-3)


def test_units_are_read_with_their_side():
    assert units("R12+4") == (ActionUnit(12, "R"), ActionUnit(4))
    assert {u.number for text in EMOTIONS.values() for t in text for u in units(t)} <= set(FACS)


def test_emotions_follow_the_facs():
    must = {"happiness": {12}, "surprise": {2}, "contempt": {12, 14}, "repression": {15, 17}}
    for emotion, some in must.items():
        for variant in EMOTIONS[emotion]:
            assert some & {unit.number for unit in units(variant)}, (emotion, variant)
    forbidden = {"happiness": {4, 9, 15}, "surprise": {4, 9, 12, 15}, "disgust": {12}, "repression": {12}}
    for emotion, none in forbidden.items():
        assert not none & {unit.number for text in EMOTIONS[emotion] for unit in units(text)}


def test_a_micro_expression_rises_to_the_apex_and_falls():
    rng = np.random.default_rng(0)
    for emotion in EMOTIONS:
        rest, acting = resting_face(rng), draw_units(rng, emotion)
        shown = micro_expression(rng, acting, rest, 31, 14, 200.0, 80.0)
        curves = shown.intensity[:, : len(acting)]
        assert (np.diff(curves[:15], axis=0) >= 0).all()
        assert (np.diff(curves[14:], axis=0) <= 1e-6).all()
        assert shown.actions.shape == (31, 52)
        assert np.allclose(shown.actions[0], np.clip(rest, 0, 1), atol=1e-5) or len(shown.units) > len(acting)
        assert shown.pose[:, :3].std(axis=0).max() < 3.0


def test_residual_head_motion_is_small_and_smooth():
    rng = np.random.default_rng(1)
    turns, jumps = [], []
    for _ in range(300):
        shown = micro_expression(rng, units("12"), np.zeros(52), 31, 15, 200.0, 92.0)
        turns.append(shown.pose[15] - shown.pose[0])
        jumps.append(np.abs(np.diff(shown.pose, axis=0)).max(axis=0))
    spread = np.std(turns, axis=0)
    assert spread[:3] == pytest.approx([0.5] * 3, rel=0.3)
    assert spread[3:] == pytest.approx([0.6] * 2, rel=0.3)
    assert np.median(jumps) < 0.2


def test_talkers_talk():
    shown = [talking(np.random.default_rng(s), np.zeros(52), 50, 25.0, 55.0) for s in range(20)]
    jaw = np.array([p.actions[:, head().action_names.index("jawOpen")] for p in shown])
    assert (jaw.std(axis=1) > 0.01).mean() > 0.8
    for p in shown:
        assert p.intensity.shape == (50, len(p.units))
        assert p.actions.min() >= 0
        assert p.actions.max() <= 1
        assert np.abs(np.diff(p.pose[:, :3], axis=0)).max() < 1.5  # degrees per frame


def test_smooth_paths_have_unit_variance():
    rng = np.random.default_rng(0)
    paths = np.array([smooth_path(rng, np.arange(30) / 25, 0.3) for _ in range(2000)])
    assert paths.std(axis=0) == pytest.approx(np.ones(30), abs=0.08)


def test_the_sensor_adds_the_noise_it_says():
    sensor = Sensor(noise=4.0)
    flat = np.full((64, 64, 3), 0.2, np.float32)
    rng = np.random.default_rng(0)
    first, second = (sensor.expose(flat, 1.0, rng).astype(float) for _ in range(2))
    assert first.std() == pytest.approx(4.0, rel=0.05)
    assert (first - second).std() == pytest.approx(4.0 * 2**0.5, rel=0.05)  # new in every frame
    assert sensor.expose(flat, 1.03, rng).mean() > first.mean() + 0.5
    gray = Sensor(gray=True, noise=2.0).expose(flat * np.array([1.0, 0.2, 0.4], np.float32), 1.0, rng)
    assert (gray[..., 0] == gray[..., 1]).all()


def test_a_filmed_expression_changes_most_at_its_apex(person):
    camera = Camera(120, 120, 46.0)
    scene = Scene(camera, Light(), Sensor(blur=0.5), plain_wall(camera, (0.3, 0.3, 0.3), 0.2))
    rng = np.random.default_rng(3)
    shown = micro_expression(rng, units("1+2+26"), np.zeros(52), 15, 7, 200.0, camera.scale)
    still = np.repeat(shown.pose[:1], 15, axis=0)
    shown = type(shown)(shown.actions, shown.units, shown.intensity, still, np.ones(15, np.float32))
    pictures = np.array([*scene.film(person, shown, rng)], float)
    assert np.abs(pictures - pictures[0]).sum(axis=(1, 2, 3)).argmax() == 7
