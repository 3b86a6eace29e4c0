"""The spotting rule on made-up motion, and the measurement of motion on rendered faces."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from datamodules.demo.identity import Identity
from datamodules.demo.long_videos import perform
from datamodules.demo.motion import ease, resting_face, unit_rows, units
from datamodules.demo.replicas import STUDIOS
from datamodules.faces.align import FaceAligner
from mefar.recognition.motion import PARTS, REGIONS, SIDE, FaceMotion
from mefar.recognition.spotting import Traces, spot

BROWS = [list(REGIONS).index(name) for name in PARTS["brows"]]
MOUTH = [list(REGIONS).index(name) for name in PARTS["mouth"]]


def still(seconds: np.ndarray, seed: int = 0) -> Traces:
    """A face that does nothing, as the camera's noise shows it, on a head that drifts."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(0, 0.3, (len(seconds), 6)), 0)
    head = np.diff(drift, axis=0, prepend=drift[:1])
    regions = rng.normal(0, 0.3, (len(seconds), len(REGIONS), 2)) + 0.1 * drift[:, None, :2]
    return Traces(
        seconds, regions, head, np.abs(rng.normal(0, 0.02, (len(seconds), 2))), np.full(len(seconds), 0.95)
    )


def pulse(seconds: np.ndarray, onset: float, apex: float, offset: float) -> np.ndarray:
    rise = ease((seconds - onset) / (apex - onset))
    return rise * (1 - ease((seconds - apex) / (offset - apex)))


def clock(fps: float, length: float = 30.0, uneven: bool = False) -> np.ndarray:
    times = np.arange(round(length * fps)) / fps
    return times + uneven * np.random.default_rng(1).uniform(-0.3, 0.3, len(times)) / fps


@pytest.mark.parametrize(("fps", "uneven"), [(25, False), (30, True), (60, False), (200, False), (300, True)])
def test_one_brow_is_found_in_seconds_whatever_the_frame_rate(fps: float, uneven: bool) -> None:
    traces = still(clock(fps, uneven=uneven))
    traces.regions[:, BROWS, 1] += 4.0 * pulse(traces.seconds, 12.0, 12.2, 12.45)[:, None]
    [event] = spot(traces)
    assert (event.kind, event.parts[0]) == ("micro", "brows")
    assert event.onset == pytest.approx(12.0, abs=0.09)
    assert event.apex == pytest.approx(12.2, abs=0.06)
    assert event.offset == pytest.approx(12.45, abs=0.09)
    assert 2.0 < event.strength < 4.5


def test_what_lasts_longer_than_half_a_second_is_macro_and_what_stays_is_none() -> None:
    traces = still(clock(30))
    traces.regions[:, MOUTH, 0] += 10.0 * pulse(traces.seconds, 8.0, 8.8, 9.8)[:, None]
    traces.regions[:, BROWS, 1] += 10.0 * ease((traces.seconds - 20.0) / 0.3)[:, None]  # a new posture
    assert [event.kind for event in spot(traces)] == ["macro"]


@pytest.mark.parametrize("seed", range(4))
def test_a_still_face_does_nothing(seed: int) -> None:
    assert spot(still(clock(30, 60), seed)) == []


def test_a_blink_is_no_event_but_an_expression_around_it_is() -> None:
    traces = still(clock(30))
    for moment in (6.0, 12.0, 20.0):
        lids = pulse(traces.seconds, moment, moment + 0.1, moment + 0.3)
        traces.eyes[:] += 1.2 * (lids > 0.3)[:, None]
        traces.regions[:, BROWS, 1] += 3.0 * lids[:, None]
    assert spot(traces) == []
    traces.regions[:, BROWS, 1] += 8.0 * pulse(traces.seconds, 19.6, 20.2, 20.9)[:, None]
    [event] = spot(traces)
    assert event.onset < 20.0 < event.offset


def test_a_mouth_that_talks_is_no_event_and_a_brow_above_it_is() -> None:
    traces = still(clock(30, 40))
    rng = np.random.default_rng(2)
    words = np.interp(traces.seconds, np.arange(0, 41, 0.12), rng.normal(0, 8, 342))
    words *= (traces.seconds > 10) & (traces.seconds < 30)
    traces.regions[:, MOUTH] += words[:, None, None]
    assert spot(traces) == []
    traces.regions[:, BROWS, 1] += 5.0 * pulse(traces.seconds, 20.0, 20.2, 20.4)[:, None]
    assert [event.parts[0] for event in spot(traces)] == ["brows"]


def test_a_nod_that_shows_in_the_face_is_no_event() -> None:
    traces = still(clock(30, 60))
    rng = np.random.default_rng(3)
    nods = sum(rng.uniform(20, 60) * pulse(traces.seconds, t, t + 0.5, t + 1.1) for t in range(5, 55, 6))
    traces.head[1:, 1] += np.diff(nods)
    traces.regions[..., 1] += 0.15 * nods[:, None]
    assert spot(traces) == []


def test_nothing_is_seen_across_a_gap_and_events_on_both_sides_are() -> None:
    whole = still(clock(30))
    for moment in (7.0, 22.0):
        whole.regions[:, BROWS, 1] += 5.0 * pulse(whole.seconds, moment, moment + 0.2, moment + 0.4)[:, None]
    whole.regions[whole.seconds > 15, :, :] += 50.0  # the face came back elsewhere
    keep = (whole.seconds < 13) | (whole.seconds > 15)
    parts = [getattr(whole, name)[keep] for name in ("seconds", "regions", "head", "eyes", "quality")]
    assert [round(event.onset) for event in spot(Traces(*parts))] == [7, 22]


def test_a_hand_before_the_face_is_no_event() -> None:
    traces = still(clock(30))
    traces.regions[:, MOUTH, 1] += 20.0 * pulse(traces.seconds, 12.0, 12.2, 12.5)[:, None]
    assert len(spot(traces)) == 1
    traces.quality[(traces.seconds > 12.1) & (traces.seconds < 12.4)] = 0.55
    assert spot(traces) == []


def test_few_frames_and_slow_video_do_not_break_it() -> None:
    for count, fps in ((1, 30), (7, 30), (9, 30), (30, 5), (40, 1)):
        assert spot(still(np.arange(count) / fps)) == []


def test_brows_that_rise_are_told_from_the_head_that_turns() -> None:
    """Rendered: the head shifts by 5 px and turns; the brows move by a tenth of full strength."""
    rng = np.random.default_rng(5)
    identity, scene, rest = Identity.random(rng), STUDIOS["casme2"].scene(rng, 1.0), resting_face(rng)
    video = perform(rng, 4, 30, scene.camera.scale, "calm").performance
    strength = pulse(np.arange(20) / 30, 0.2, 0.35, 0.6)
    raised = 0.1 * unit_rows(rng, units("1+2")).sum(0)
    video.actions[:20] = np.clip(rest + strength[:, None] * raised, 0, 1)
    video.pose[:20, 0] += np.linspace(0, 3, 20)
    video.pose[:20, 3] += np.linspace(0, 5, 20)
    frames = list(islice(scene.film(identity, video, rng), 20))
    aligner = FaceAligner(SIDE)
    matrix = aligner.estimate(frames[0])
    assert matrix is not None
    motion = FaceMotion(matrix, aligner.crop(frames[0], matrix), 0.0)
    seen = [motion.measure(aligner.crop(frame, motion.matrix)) for frame in frames[1:]]
    up = -np.array([one.regions[BROWS, 1].mean() for one in seen])
    chin = np.array([one.regions[list(REGIONS).index("chin")] for one in seen])
    truth = strength[1:]
    assert np.corrcoef(up, truth)[0, 1] > 0.9
    assert np.ptp(up) > 1.2
    assert np.ptp(chin[:, 1]) < 0.5 * np.ptp(up)
    assert min(one.quality for one in seen) > 0.8
    head = np.sum([one.head for one in seen], 0)
    assert head[0] > 20  # 5 px of a face whose crop is 240 px wide, and the turn
