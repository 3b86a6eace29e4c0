"""Long rendered videos with true intervals: what a spotter is measured on.

One face, half a minute to some minutes: micro- and macro-expressions with pauses between them, blinks, a gaze
that wanders, a head that drifts, nods and turns, and, where asked for, stretches of talking. The truth is
known to the frame. Onset and offset are where the movement begins and ends; a coder sees it some frames
later and loses it some frames earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from datamodules.clips import ActionUnit
from datamodules.demo.encoding import write_h264
from datamodules.demo.identity import Identity
from datamodules.demo.motion import (
    EMOTIONS,
    STRENGTHS,
    Performance,
    StrengthName,
    blink,
    draw_units,
    ease,
    gaze,
    performance,
    resting_face,
    smooth_path,
    speech,
    unit_rows,
    units,
)
from datamodules.demo.replicas import STUDIOS
from mefar.files import csv_text, replacing, write_text

F64 = npt.NDArray[np.float64]
Content = Literal["expressions", "calm", "talking"]
Kind = Literal["micro", "macro"]

MICRO_SECONDS: Final = (0.2, 0.5)  # onset to offset: shorter than half a second makes it micro
MACRO_SECONDS: Final = (0.7, 3.0)
PAUSE_SECONDS: Final = (1.5, 6.0)
MACRO_SHARE = 0.25
MACRO_PEAKS: Final = (0.3, 1.0)
_CLASS: Final = {"happiness": "positive", "surprise": "surprise", "others": "others"}


@dataclass(frozen=True)
class TrueEvent:
    """One expression as it was acted.

    Attributes:
        kind: micro or macro.
        onset, apex, offset: seconds since the first frame.
        emotion: negative, positive, surprise or others.
        units: action units that moved.
        peak: largest share of a unit's full action.
    """

    kind: Kind
    onset: float
    apex: float
    offset: float
    emotion: str
    units: tuple[ActionUnit, ...]
    peak: float


@dataclass(frozen=True)
class LongVideo:
    """What happens in a long video.

    Attributes:
        fps: frames per second.
        performance: of T frames.
        events: the expressions, in order of time.
    """

    fps: float
    performance: Performance
    events: tuple[TrueEvent, ...]


def perform(
    rng: np.random.Generator,
    seconds: float,
    fps: float,
    scale: float,
    content: Content = "expressions",
    strength: StrengthName = "demo",
) -> LongVideo:
    """Decide everything that a face does.

    Args:
        rng: source of everything random.
        seconds: length, at least 4.
        fps: frames per second.
        scale: pixels per decimetre, for the head's shift.
        content: `expressions`; `calm` has blinks, gaze and head motion only; `talking` is talking all the
            time and has expressions besides.
        strength: of the micro-expressions.
    """
    times = np.arange(round(seconds * fps)) / fps
    actions = np.repeat(resting_face(rng)[None], len(times), axis=0)
    talking: list[tuple[float, float]] = []
    if content == "talking":
        talking = [(0.0, float(times[-1]))]
    elif content == "expressions" and seconds >= 30:
        start = float(rng.uniform(0.3, 0.6)) * seconds
        talking = [(start, start + 0.15 * seconds)]
    said = speech(rng, times)
    for start, stop in talking:
        actions += said * (ease((times - start) / 0.3) * (1.0 - ease((times - stop + 0.3) / 0.3)))[:, None]

    events: list[TrueEvent] = []
    clock = float(rng.uniform(*PAUSE_SECONDS))
    while content != "calm":
        kind: Kind = "macro" if rng.random() < MACRO_SHARE else "micro"
        length = float(rng.uniform(*(MICRO_SECONDS if kind == "micro" else MACRO_SECONDS)))
        onset, clock = clock, clock + length + float(rng.uniform(*PAUSE_SECONDS))
        if onset + length > times[-1] - 1.0:
            break
        if content == "expressions" and any(a - 1 < onset + length and onset < b + 1 for a, b in talking):
            continue  # nobody could say where it begins
        emotion = str(rng.choice([name for name in EMOTIONS if name != "contempt"]))
        acting = draw_units(rng, emotion)
        peaks = rng.uniform(*(STRENGTHS[strength] if kind == "micro" else MACRO_PEAKS), len(acting))
        rise = length * float(rng.uniform(0.3, 0.6))
        hold = 0.0 if kind == "micro" else length * float(rng.uniform(0.0, 0.3))
        fall = length - rise - hold
        shape = ease((times - onset) / rise) * (1.0 - ease((times - onset - rise - hold) / fall))
        actions += (shape[:, None] * peaks) @ unit_rows(rng, acting)
        feeling = _CLASS.get(emotion, "negative")
        events.append(
            TrueEvent(kind, onset, onset + rise, onset + length, feeling, acting, float(peaks.max()))
        )

    moment = float(rng.exponential(2.0)) + 0.3
    while moment < times[-1]:
        actions += blink(times, moment)[:, None] * unit_rows(rng, units("45"))
        moment += 0.4 + float(rng.exponential(3.0))
    actions += 0.5 * gaze(rng, times)
    gain = 1.0 + 0.01 * smooth_path(rng, times, 1.5)
    shown = performance(actions, _head(rng, times, scale), gain)
    return LongVideo(fps, shown, tuple(events))


def _head(rng: np.random.Generator, times: F64, scale: float) -> F64:
    """(T, 5) pose of somebody who sits: slow drift, a tremble, now and then a nod or a turn."""
    slow = np.array([1.5, 1.2, 0.8, 0.012 * scale, 0.012 * scale])
    pose = np.stack([s * smooth_path(rng, times, 2.5) for s in slow], axis=1)
    pose += 0.12 * np.stack([s * smooth_path(rng, times, 0.5) for s in slow], axis=1)
    moment = float(rng.exponential(8.0))
    while moment < times[-1]:
        axis, lasting = int(rng.integers(3)), float(rng.uniform(0.5, 1.2))
        there = ease((times - moment) / lasting) * (1 - ease((times - moment - 2 * lasting) / lasting))
        pose[:, axis] += float(rng.choice([-1, 1]) * rng.uniform(2.0, 6.0)) * there
        moment += 3 * lasting + float(rng.exponential(10.0))
    pose[:, :3] += rng.normal(0.0, 3.0, 3)
    return pose


def make_long_video(
    path: Path,
    seed: int,
    seconds: float = 30.0,
    fps: int = 30,
    content: Content = "expressions",
    strength: StrengthName = "demo",
    studio: str = "casme2",
) -> LongVideo:
    """Render one long video and its truth: PATH (H.264) and, beside it, PATH with the suffix .truth.csv.

    The truth has the columns of mefar.recognition.intervals, onset, apex and offset in seconds after them,
    and the action units.

    Args:
        path: file to write, `.mp4`.
        seed: of person, scene and everything that happens.
        seconds: length, at least 4.
        fps: frames per second.
        content: see `perform`.
        strength: of the micro-expressions.
        studio: key of STUDIOS: camera and light.
    """
    rng = np.random.default_rng([seed, 17])
    identity, scene = Identity.random(rng), STUDIOS[studio].scene(rng, 1.0)
    video = perform(rng, seconds, fps, scene.camera.scale, content, strength)
    with replacing(path) as temporary:
        write_h264(temporary, scene.film(identity, video.performance, rng), fps)
    _write_truth(path, video)
    return video


def _write_truth(path: Path, video: LongVideo) -> None:
    last = len(video.performance.pose) - 1
    truth = path.with_suffix(".truth.csv")
    names = ["video", "kind", "onset", "offset", "emotion"]
    columns = [*names, "onset_s", "apex_s", "offset_s", "peak", "units"]
    rows = []
    for event in video.events:
        first, final = (min(last, round(s * video.fps)) for s in (event.onset, event.offset))
        seconds = [f"{s:.4f}" for s in (event.onset, event.apex, event.offset)]
        acted = "+".join(str(unit) for unit in event.units)
        row = [path.stem, event.kind, first, final, event.emotion]
        rows.append([*row, *seconds, f"{event.peak:.3f}", acted])
    write_text(truth, csv_text(columns, rows or [{"video": path.stem}]))
