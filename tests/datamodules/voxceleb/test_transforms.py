"""Both frames of a pair go through the same draw; draws differ by number and repeat from the seed."""

import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.clips import ActionUnit, mirrored
from datamodules.counter_random import uniforms
from datamodules.databases.action_units import parse_action_units
from datamodules.voxceleb.augmentation import PairTransform

QUIET = {"noise": 0.0, "camera": 0.0}
STILL = {**QUIET, "turn": 0.0, "grow": 0.0, "shift": 0.0, "light": 0.0, "gray": 0.0}


def pair(transform, onset, apex, number, view=0):
    """One pair, with the draw of its number."""
    return transform.apply(transform.draw(np.array([number]), view)[0], onset, apex)


def picture(seed=0, size=72):
    """Smooth colours, so that geometry can be read from them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [
        np.sin(6 * x * rng.uniform(0.5, 2) + rng.uniform(0, 6)) * np.cos(6 * y * rng.uniform(0.5, 2))
        for _ in "rgb"
    ]
    return (128 + 60 * np.stack(waves, -1)).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, 2**50),
    seed=st.integers(0, 1000),
    view=st.integers(0, 5),
    side=st.sampled_from([64, 72, 90]),
)
def test_equal_frames_stay_equal_but_for_the_sensor(number, seed, view, side):
    frame = picture(1, side)
    transform = PairTransform(64, True, seed, noise=0.0, camera=0.5)
    onset, apex = pair(transform, frame, frame.copy(), number, view)
    assert onset.shape == apex.shape == (64, 64, 3)
    assert onset.dtype == apex.dtype == np.uint8
    np.testing.assert_array_equal(onset, apex)


def test_geometry_is_shared_where_the_frames_differ():
    """A spot that only the apex has lies where the onset's transform puts that place."""
    transform = PairTransform(64, True, 3, **{**QUIET, "light": 0.0, "gray": 0.0})
    rows, columns = np.mgrid[:72, :72]
    spot = np.exp(-((rows - 30) ** 2 + (columns - 45) ** 2) / 18)[..., None].repeat(3, 2)
    for number in range(20):
        frames = (100 * spot).astype(np.uint8), (200 * spot).astype(np.uint8)
        one, two = pair(transform, *frames, number)
        centres = [
            [(np.mgrid[:64, :64][axis] * image[..., 0]).sum() / image[..., 0].sum() for axis in (0, 1)]
            for image in (one.astype(float), two.astype(float))
        ]
        np.testing.assert_allclose(centres[0], centres[1], atol=0.25)


def test_sensor_noise_is_drawn_for_each_frame():
    transform = PairTransform(64, True, 0, **{**STILL, "noise": 5.0, "flip": 0.0})
    frame, sigmas, overlap = np.full((72, 72, 3), 128, np.uint8), [], []
    for number in range(40):
        onset, apex = (image.astype(float) - 128 for image in pair(transform, frame, frame, number))
        sigmas.append(onset.std())
        if onset.std() > 1:
            assert apex.std() == pytest.approx(onset.std(), rel=0.15)
            overlap.append(np.corrcoef(onset.ravel(), apex.ravel())[0, 1])
    assert 3.5 < max(sigmas) < 5.6
    assert min(sigmas) < 1.0
    assert np.abs(overlap).max() < 0.1


def test_a_number_repeats_and_another_differs():
    frame, transform = picture(), PairTransform(64, True, 5)
    pairs = {number: pair(transform, frame, frame, number) for number in (0, 1, 2, 10**12)}
    for number, (onset, apex) in pairs.items():
        again = pair(PairTransform(64, True, 5), frame, frame, number)
        np.testing.assert_array_equal(onset, again[0])
        np.testing.assert_array_equal(apex, again[1])
        for other in pairs:
            assert other == number or np.abs(onset.astype(int) - pairs[other][0]).mean() > 0.5
    other = pair(PairTransform(64, True, 6), frame, frame, 0)
    assert np.abs(other[0].astype(int) - pairs[0][0]).mean() > 0.5


def test_draws_do_not_depend_on_the_batch():
    transform = PairTransform(64, True, 1)
    together = transform.draw(np.arange(50), view=1)
    assert together == [transform.draw(np.array([i]), view=1)[0] for i in range(50)]


def test_views_share_the_flip_alone():
    transform = PairTransform(64, True, 1)
    first, second = (transform.draw(np.arange(300), view) for view in (0, 1))
    assert [draw.flip for draw in first] == [draw.flip for draw in second]
    assert all(
        a.turn != b.turn and a.gamma != b.gamma and a.noise != b.noise
        for a, b in zip(first, second, strict=True)
    )
    assert 110 < sum(draw.flip for draw in first) < 190


def test_a_flip_mirrors():
    frame = picture(2)
    onset, apex = pair(PairTransform(64, True, 0, **STILL, flip=1.0), frame, frame, 7)
    np.testing.assert_array_equal(onset, frame[4:-4, 4:-4][:, ::-1])
    np.testing.assert_array_equal(apex, onset)
    kept, _ = pair(PairTransform(64, True, 0, **STILL, flip=0.0), frame, frame, 7)
    np.testing.assert_array_equal(kept, frame[4:-4, 4:-4])


def test_a_flip_swaps_the_sides_of_action_units():
    aus = parse_action_units("L12+R4+7+L1+R1")[0]
    assert mirrored(aus) == parse_action_units("R12+L4+7+R1+L1")[0]
    assert mirrored(()) == ()


@given(
    st.lists(st.builds(ActionUnit, st.integers(1, 99), st.sampled_from(["", "L", "R"]))).map(
        lambda units: tuple(sorted(units))
    )
)
def test_flipping_twice_is_nothing(aus):
    assert mirrored(mirrored(aus)) == aus
    assert [unit.number for unit in mirrored(aus)] == [unit.number for unit in aus]
    assert {unit for unit in mirrored(aus) if not unit.side} == {unit for unit in aus if not unit.side}


def test_gray_takes_colour_from_both_and_from_the_noise():
    onset, apex = pair(PairTransform(64, True, 0, gray=1.0, camera=0.0), picture(1), picture(2), 3)
    for image in (onset, apex):
        assert np.ptp(image.astype(int), axis=2).max() == 0


def test_the_middle_is_cut_out_or_enlarged():
    frame = picture(4, 80)
    np.testing.assert_array_equal(PairTransform(64, False).middle(frame), frame[8:72, 8:72])
    assert PairTransform(96, False).middle(frame).shape == (96, 96, 3)


def test_a_transform_is_ready_before_its_first_pair():
    """What a first pair loads, every forked worker would load again in every epoch."""
    from datamodules.voxceleb import augmentation as transforms

    held = (transforms._camera, transforms._bank)
    for loaded in held:
        loaded.cache_clear()
    PairTransform(64, True).ready()
    assert [loaded.cache_info().currsize for loaded in held] == [1, 1]


def test_input_is_not_changed():
    """albumentations writes into what it is given in places; the cache's pages must never see it."""
    frame, apex = picture(5), picture(6)
    before, later = frame.copy(), apex.copy()
    frame.flags.writeable = apex.flags.writeable = False
    for number in range(12):
        pair(PairTransform(64, True, 0, camera=1.0), frame, apex, number)
    np.testing.assert_array_equal(frame, before)
    np.testing.assert_array_equal(apex, later)


def _in_a_child(number: int) -> tuple[np.ndarray, np.ndarray]:
    np.random.seed(number)  # noqa: NPY002 - whatever a worker's own generators hold must not matter
    return pair(PairTransform(64, True, 2, camera=0.5), picture(), picture(3), number)


def test_processes_agree():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        theirs = pool.map(_in_a_child, range(12))
    for number, made in enumerate(theirs):
        for one, two in zip(made, _in_a_child(number), strict=True):
            np.testing.assert_array_equal(one, two)


def test_uniforms_are_uniform_and_unrelated():
    numbers = uniforms(0, np.arange(20_000), 6)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(numbers.var(0), 1 / 12, atol=0.002)
    table = np.concatenate([numbers[:-1], numbers[1:], uniforms(1, np.arange(19_999), 6)], 1)
    assert np.abs(np.corrcoef(table.T) - np.eye(18)).max() < 0.03
    np.testing.assert_array_equal(uniforms(0, np.array([17, 3]), 4), numbers[[17, 3], :4])
