"""Small replicas of CASME II, SAMM, SMIC-HS and CAS(ME)^3: what is in them, before anything is rendered.

Layouts, file and column names and quirks follow the real databases; faces and annotations are the demo's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from datamodules.clips import ActionUnit
from datamodules.demo.motion import draw_units
from datamodules.demo.render import Camera, Light
from datamodules.demo.scene import Scene, Sensor, plain_wall


@dataclass(frozen=True)
class ClipPlan:
    """One clip to film.

    Attributes:
        subject: the database's id, normalised.
        clip: name, unique within the subject.
        emotion: key of ``motion.EMOTIONS``.
        units: action units that move.
        onset: number of the first frame file.
        frames: clip length.
        apex: index of the strongest frame, counted from 0.
        written_apex: what the coding file says, None = its sign for "missing".
    """

    subject: str
    clip: str
    emotion: str
    units: tuple[ActionUnit, ...]
    onset: int
    frames: int
    apex: int
    written_apex: int | None

    @property
    def offset(self) -> int:
        """Frame number of the offset."""
        return self.onset + self.frames - 1


@dataclass(frozen=True)
class Studio:
    """How one database was filmed.

    Attributes:
        fps: frames per second.
        size: (width, height) in pixels.
        scale: pixels per decimetre at the face.
        light, sensor: see there.
        wall: linear colour of the background; fall_off: how much darker its right side is.
        frames: fewest and most frames of a clip.
        quality: JPEG quality; 0 = BMP.
    """

    fps: float
    size: tuple[int, int]
    scale: float
    light: Light
    sensor: Sensor
    wall: tuple[float, float, float]
    fall_off: float
    frames: tuple[int, int]
    quality: int

    def scene(self, rng: np.random.Generator, shrink: float) -> Scene:
        """Set up for one subject: lamps and camera stand almost as for the others."""
        width, height = (2 * round(side * shrink / 2) for side in self.size)
        near = float(np.exp(rng.normal(0.0, 0.03)))
        camera = Camera(width, height, self.scale * shrink * near, (0.5 + float(rng.normal(0, 0.012)), 0.52))
        azimuth = self.light.azimuth + float(rng.normal(0, 5))
        elevation = self.light.elevation + float(rng.normal(0, 3))
        red, green, blue = np.exp(rng.uniform(-3.5, -1.0) + rng.normal(0, 0.25, 3)).tolist()
        wall = plain_wall(camera, self.wall, self.fall_off)
        light = replace(self.light, azimuth=azimuth, elevation=elevation)
        return Scene(camera, light, self.sensor, wall, (red, green, blue))


# CASME II: LED lamps, even and bright; SAMM: gray, lights from the front; SMIC: dim office, soft;
# CAS(ME)^3: a consumer depth camera, side light.
STUDIOS: Final[Mapping[str, Studio]] = {
    "casme2": Studio(
        fps=200.0,
        size=(320, 240),
        scale=84.0,
        light=Light(20.0, 35.0, 0.75, 0.3, 0.4),
        sensor=Sensor(1.2, (1.0, 1.02, 1.05), 1.0, 0.6, 2.5),
        wall=(0.42, 0.44, 0.46),
        fall_off=0.25,
        frames=(26, 40),
        quality=92,
    ),
    "samm": Studio(
        fps=200.0,
        size=(360, 240),
        scale=90.0,
        light=Light(-8.0, 20.0, 0.7, 0.25, 0.3),
        sensor=Sensor(0.85, (1.0, 1.0, 1.0), 1.12, 0.8, 3.0, gray=True),
        wall=(0.10, 0.10, 0.10),
        fall_off=0.1,
        frames=(26, 40),
        quality=90,
    ),
    "smic": Studio(
        fps=100.0,
        size=(160, 192),
        scale=64.0,
        light=Light(40.0, 45.0, 0.55, 0.2, 0.4, (1.06, 1.0, 0.9)),
        sensor=Sensor(1.05, (1.08, 1.0, 0.88), 0.9, 0.7, 4.5),
        wall=(0.30, 0.29, 0.26),
        fall_off=0.4,
        frames=(15, 21),
        quality=0,
    ),
    "casme3": Studio(
        fps=30.0,
        size=(320, 180),
        scale=64.0,
        light=Light(-35.0, 30.0, 0.8, 0.2, 0.3, (0.96, 1.0, 1.05)),
        sensor=Sensor(1.15, (0.96, 1.0, 1.06), 1.05, 0.5, 3.5),
        wall=(0.22, 0.25, 0.30),
        fall_off=0.15,
        frames=(8, 14),
        quality=85,
    ),
}

SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "casme2": ("sub01", "sub02", "sub03", "sub04", "sub05", "sub06", "sub07", "sub08"),
    "samm": ("006", "007", "009", "010", "011", "012", "013", "014"),
    "smic": ("s1", "s2", "s3", "s4", "s5", "s6", "s8", "s9"),
    "casme3": ("spNO.1", "spNO.2", "spNO.3", "spNO.5"),
}

# 13 clips of a subject: 7 negative, 3 positive, 3 surprise, as the database's own emotions; then extras.
_MIX: Final[Mapping[str, tuple[str, ...]]] = {
    "casme2": ("disgust",) * 5 + ("repression",) * 2 + ("happiness",) * 3 + ("surprise",) * 3,
    "samm": ("anger", "anger", "anger", "contempt", "disgust", "fear", "sadness")
    + ("happiness",) * 3
    + ("surprise",) * 3,
    "smic": ("disgust", "disgust", "anger", "sadness", "fear", "repression", "contempt")
    + ("happiness",) * 3
    + ("surprise",) * 3,
    "casme3": ("disgust", "surprise", "others", "happiness", "anger", "fear", "sadness", "disgust"),
}
# Every composite class early: a tiny replica takes the first clips of each subject.
_ORDER: Final = {"happiness": 1, "surprise": 2}


def plan(
    database: str, seed: int, subjects: int, clips: int, frames: tuple[int, int] | None = None
) -> list[ClipPlan]:
    """Decide all clips of one replica.

    Args:
        database: key of ``STUDIOS``.
        seed: same seed, same plan.
        subjects: how many of ``SUBJECTS``.
        clips: per subject, without the extra ones ("others" and the known quirks).
        frames: fewest and most frames of a clip; None = the studio's own.
    """
    rng = np.random.default_rng([seed, 1, sorted(STUDIOS).index(database)])
    shortest, longest = frames or STUDIOS[database].frames
    plans: list[ClipPlan] = []
    for number, subject in enumerate(SUBJECTS[database][:subjects]):
        mix = _emotions(rng, database, clips, number)
        counts: dict[str, int] = {}
        clock = int(rng.integers(20, 60)) if database != "smic" else int(rng.integers(150_000, 900_000))
        for k, emotion in enumerate(mix):
            length = int(rng.integers(shortest, longest + 1))
            apex = round((length - 1) * rng.uniform(0.4, 0.6))
            first = clock
            clock += length + int(rng.integers(5, 60))
            name = _clip_name(database, subject, emotion, k, counts, first)
            written = None if database == "smic" else first + apex
            units = draw_units(rng, emotion)
            plans.append(ClipPlan(subject, name, emotion, units, first, length, apex, written))
    if database == "casme2":
        plans += _casme2_quirks({p.subject for p in plans}, rng)
    return plans


def _emotions(rng: np.random.Generator, database: str, clips: int, number: int) -> list[str]:
    mix = list(_MIX[database])
    if clips < len(mix):
        groups: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for emotion in mix:
            groups[_ORDER.get(emotion, 0)].append(emotion)
        turns = [groups[k % 3] for k in range(3 * len(mix))]
        shift = number % 3  # tiny subjects differ in what they begin with
        picked: list[str] = []
        for group in turns[shift:]:
            if group and len(picked) < clips:
                picked.append(group.pop(0))
        mix = picked
    # Subjects differ in how often they show what.
    elif database != "casme3":
        lost = int(rng.integers(len(mix)))
        mix[lost] = mix[int(rng.integers(len(mix)))]
    if database in ("casme2", "samm") and number % 2 == 0:
        mix.append("others")
    if database == "casme2" and number in (2, 5):
        mix.append("sadness" if number == 2 else "fear")
    return [mix[k] for k in rng.permutation(len(mix))]


def _clip_name(database: str, subject: str, emotion: str, k: int, counts: dict[str, int], first: int) -> str:
    if database == "casme2":
        return f"EP{k // 4 + 1:02d}_{k % 4 + 1:02d}" + ("f" if k % 3 == 0 else "")
    if database == "samm":
        return f"{subject}_{k // 5 + 1}_{k % 5 + 1}"
    if database == "smic":
        token = {"happiness": "po", "surprise": "sur"}.get(emotion, "ne")
        counts[token] = counts.get(token, 0) + 1
        return f"{subject}_{token}_{counts[token]:02d}"
    return f"{'ab'[k // 4 % 2]}_{first}"


def _casme2_quirks(subjects: set[str], rng: np.random.Generator) -> list[ClipPlan]:
    """Two clips that the real coding file is known for: a missing apex, and an apex at the onset."""
    quirks = []
    if "sub04" in subjects:
        units = draw_units(rng, "disgust")
        quirks.append(ClipPlan("sub04", "EP12_01f", "disgust", units, 261, 35, 18, None))
    if "sub05" in subjects:
        units = draw_units(rng, "repression")
        quirks.append(ClipPlan("sub05", "EP09_05f", "repression", units, 69, 35, 12, 69))
    return quirks
