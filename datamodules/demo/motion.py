"""How the demo faces move: emotions as action units, micro-expressions, talking, blinks, head drift.

Every range below was fixed from what recorded clips look like, before any model saw the corpora, and stays.

How strong a micro-expression is (`STRENGTHS`): shares of a unit's full action. FACS (Ekman, Friesen and
Hager, 2002) grades intensity A (trace), B (slight), C (marked or pronounced), D (severe or extreme), E
(maximum), C and D the widest. `micro` is A to B, `demo` C, `macro` D to E. In crops of 64 px the most moved
hundredth of the face moves by 0.45, 1.5 and 2.1 px (medians of 60 clips); in CASME II's faces of 280 px
`micro` would be 2 px. No publication that we know gives displacements of micro-expressions in pixels; methods
that magnify them before reading them use factors of 4 to 20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from datamodules.clips import ActionUnit, Side
from datamodules.demo.head import FACS, actions_of, head
from datamodules.demo.render import Pose

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def units(text: str) -> tuple[ActionUnit, ...]:
    """Read ``"R12+4"`` as action units."""
    acting = []
    for part in text.split("+"):
        side: Side = "L" if part.startswith("L") else "R" if part.startswith("R") else ""
        acting.append(ActionUnit(int(part.removeprefix(side)), side))
    return tuple(acting)


# Emotion -> what the face may do, after the FACS investigators' prototypes and the combinations that the
# databases' coding files hold: several variants each, "negative" is anything but one movement.
EMOTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "happiness": ("6+12", "6+12", "12", "L12", "R12", "6+12+25"),
    "surprise": ("1+2", "1+2", "1+2+5", "1+2+25", "1+2+5+26", "2"),
    "disgust": ("4+9", "9+10", "4+7", "4+7+9", "4+7+10", "9", "10", "4"),
    "repression": ("15+17", "17", "14+15", "15"),
    "contempt": ("L14", "R14", "L12", "R12", "14"),
    "anger": ("4+7", "4+7+24", "4", "4+5+7", "7"),
    "fear": ("1+2+4", "1+4+20", "1+2+4+20", "4+20"),
    "sadness": ("1+4", "1+4+15", "15+17", "1+15"),
    "others": ("4", "14", "17", "18", "4+14", "2", "24", "7+17"),
}
StrengthName = Literal["micro", "demo", "macro"]
# Smallest and largest peak of each acting unit, in shares of its full action.
STRENGTHS: Final[Mapping[StrengthName, tuple[float, float]]] = {
    "micro": (0.08, 0.22),
    "demo": (0.3, 0.7),
    "macro": (0.7, 1.0),
}
# What talking people's faces do besides talking: one of the above, or any units at all.
FREE_UNITS: Final = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 20, 22, 24, 25, 26)


@dataclass(frozen=True)
class Performance:
    """What one face does over a clip.

    Attributes:
        actions: (T, 52) weights in [0, 1].
        units: action units at play, in the order of ``intensity``.
        intensity: (T, len(units)) in [0, 1].
        pose: (T, 5) yaw, pitch, roll in degrees, shift right and down in pixels.
        gain: (T,) factor on the light.
    """

    actions: F32
    units: tuple[ActionUnit, ...]
    intensity: F32
    pose: F32
    gain: F32

    def at(self, frame: float) -> tuple[F32, Pose]:
        """Actions (52,) and pose at a time in frames: between two frames in between, at the last for ever."""
        before = min(int(frame), len(self.gain) - 1)
        after, share = min(before + 1, len(self.gain) - 1), np.float32(frame - int(frame))
        actions = self.actions[before] * (1 - share) + self.actions[after] * share
        yaw, pitch, roll, right, down = map(float, self.pose[before] * (1 - share) + self.pose[after] * share)
        return actions, Pose(yaw, pitch, roll, (right, down))


def performance(
    actions: F64,
    pose: F64,
    gain: F64,
    units: Sequence[ActionUnit] = (),
    intensity: F64 | None = None,
) -> Performance:
    """What a face does, of arrays as computed: actions (T, 52) of any size are clipped to [0, 1]."""
    return Performance(
        np.clip(actions, 0.0, 1.0).astype(np.float32),
        tuple(units),
        (np.zeros((len(gain), 0)) if intensity is None else intensity).astype(np.float32),
        pose.astype(np.float32),
        gain.astype(np.float32),
    )


def smooth_path(rng: np.random.Generator, times: F64, knot_seconds: float) -> F64:
    """A smooth random process of unit variance at times (T,) in s, with features of ``knot_seconds``."""
    knots = np.arange(times[0] - 3 * knot_seconds, times[-1] + 3 * knot_seconds, knot_seconds)
    kernel = np.exp(-0.5 * ((times[:, None] - knots[None, :]) / (0.8 * knot_seconds)) ** 2)
    kernel /= np.sqrt((kernel**2).sum(axis=1, keepdims=True))
    return np.asarray(kernel @ rng.standard_normal(len(knots)))


def ease(share: F64) -> F64:
    """Smooth step of a share of time, flat at both ends."""
    clipped = np.clip(share, 0.0, 1.0)
    return np.asarray(clipped**3 * (clipped * (6.0 * clipped - 15.0) + 10.0))


def unit_rows(rng: np.random.Generator, acting: Sequence[ActionUnit]) -> F64:
    """Weights (len(acting), 52) of each unit at full intensity; halves of the face differ by about 15 %."""
    rows = np.zeros((len(acting), len(head().action_names)))
    for k, unit in enumerate(acting):
        for name, weight in actions_of(unit.number, unit.side).items():
            uneven = 1.0 + 0.15 * rng.standard_normal() if name.endswith(("Left", "Right")) else 1.0
            rows[k, head().action_names.index(name)] = weight * np.clip(uneven, 0.6, 1.4)
    return rows


def resting_face(rng: np.random.Generator) -> F64:
    """A person's neutral: (52,) small weights, since no face rests at zero."""
    weights = np.zeros(len(head().action_names))
    for unit in rng.choice([1, 2, 4, 6, 7, 12, 14, 15, 17, 24], size=4, replace=False):
        for name, weight in actions_of(int(unit)).items():
            weights[head().action_names.index(name)] += weight * abs(rng.normal(0.0, 0.05))
    return weights


def draw_units(rng: np.random.Generator, emotion: str) -> tuple[ActionUnit, ...]:
    """One variant of an emotion."""
    variants = EMOTIONS[emotion]
    return units(variants[int(rng.integers(len(variants)))])


def blink(times: F64, centre: float) -> F64:
    """A blink around ``centre`` s: 0.1 s down, 0.17 s up."""
    return ease((times - centre + 0.1) / 0.1) * (1.0 - ease((times - centre - 0.02) / 0.15))


def micro_expression(
    rng: np.random.Generator,
    acting: tuple[ActionUnit, ...],
    rest: F64,
    frames: int,
    apex: int,
    fps: float,
    scale: float,
    strength: StrengthName = "demo",
) -> Performance:
    """A micro-expression from onset to offset.

    Args:
        rng: source of everything random.
        acting: action units that take part.
        rest: (52,) the subject's neutral.
        frames: clip length; frame 0 is the onset, the last the offset.
        apex: index of the strongest frame, 0 < apex < frames - 1.
        fps: frames per second.
        scale: pixels per decimetre, for the head's residual shift.
        strength: how strong it is at its apex.
    """
    times = np.arange(frames) / fps
    index = np.arange(frames, dtype=np.float64)
    left_over = rng.uniform(0.0, 0.35)  # how much is still there at the offset
    rise = ease(index / apex)
    fall = 1.0 - (1.0 - left_over) * ease((index - apex) / (frames - 1 - apex))
    curve = np.where(index <= apex, rise, fall)
    peaks = rng.uniform(*STRENGTHS[strength], len(acting))
    intensity = curve[:, None] * peaks
    actions = rest + intensity @ unit_rows(rng, acting)
    shown = list(acting)
    if rng.random() < 0.10:
        lids = blink(times, rng.uniform(0.2, 0.8) * times[-1])
        actions = actions + lids[:, None] * unit_rows(rng, units("45"))
        shown.append(ActionUnit(45))
        intensity = np.column_stack([intensity, lids])
    pose = np.zeros((frames, 5))
    pose[:, :3] = rng.normal(0.0, 4.0, 3)
    spread = np.array([0.5, 0.5, 0.5, 0.6 * scale / 92.0, 0.6 * scale / 92.0])  # 92 px/dm: a face 170 px high
    for k in range(5):
        path = smooth_path(rng, times, 0.6 * times[-1])
        path = path - path[0]
        pose[:, k] += spread[k] * rng.standard_normal() * path / max(abs(path[apex]), 0.35)
    drift = smooth_path(rng, times, 0.5 * times[-1])
    drift = drift - drift[0]
    gain = 1.0 + rng.uniform(-0.03, 0.03) * drift / max(float(np.abs(drift).max()), 1e-6)
    return performance(actions, pose, gain, shown, intensity)


def speech(rng: np.random.Generator, times: F64) -> F64:
    """What lips and jaw do while somebody talks, pauses included: (T, 52) weights at times (T,) in s."""
    names = head().action_names
    actions = np.zeros((len(times), len(names)))
    loud = rng.uniform(0.1, 1.0)
    phrase = ease(0.6 + 0.7 * smooth_path(rng, times, 0.5))  # pauses
    jaw = loud * phrase * np.clip(0.17 + 0.16 * smooth_path(rng, times, 0.09), 0.0, 0.5)
    shut = np.clip(smooth_path(rng, times, 0.12) - 0.8, 0.0, 1.0)
    actions[:, names.index("jawOpen")] += jaw
    actions[:, names.index("mouthClose")] += 0.7 * jaw * shut
    for stem, strength, sided in (
        ("mouthFunnel", 0.35, False),
        ("mouthPucker", 0.35, False),
        ("mouthStretch", 0.25, True),
        ("mouthUpperUp", 0.30, True),
        ("mouthLowerDown", 0.45, True),
        ("mouthShrugUpper", 0.2, False),
        ("mouthRollLower", 0.2, False),
        ("mouthPress", 0.2, True),
    ):
        amount = loud * phrase * strength * np.clip(smooth_path(rng, times, 0.12), 0.0, 2.0)
        for half in ("Left", "Right") if sided else ("",):
            actions[:, names.index(stem + half)] += amount
    return actions


def gaze(rng: np.random.Generator, times: F64) -> F64:
    """Eyes that wander: (T, 52) weights at times (T,) in s."""
    names = head().action_names
    actions = np.zeros((len(times), len(names)))
    look = 0.3 * np.stack([smooth_path(rng, times, 0.5) for _ in range(2)], axis=1)
    for half, inward in (("Left", -1.0), ("Right", 1.0)):
        actions[:, names.index(f"eyeLookIn{half}")] += np.clip(inward * look[:, 0], 0, 1)
        actions[:, names.index(f"eyeLookOut{half}")] += np.clip(-inward * look[:, 0], 0, 1)
        actions[:, names.index(f"eyeLookDown{half}")] += np.clip(look[:, 1], 0, 1)
        actions[:, names.index(f"eyeLookUp{half}")] += np.clip(-look[:, 1], 0, 1)
    return actions


def talking(
    rng: np.random.Generator,
    rest: F64,
    frames: int,
    fps: float,
    scale: float,
    own: np.random.Generator | None = None,
    turning: float = 1.0,
) -> Performance:
    """A stretch of an interview: speech, one to three expressions, blinks, slow head motion.

    Args:
        rng: source of everything random.
        rest: (52,) the speaker's neutral.
        frames: length.
        fps: frames per second.
        scale: pixels per decimetre, for the head's shift.
        own: source of head motion and light, where others play the same script; default: `rng`.
        turning: factor on the head's motion.
    """
    times = np.arange(frames) / fps
    actions = rest + speech(rng, times)

    shown: list[ActionUnit] = []
    curves: list[F64] = []
    for _ in range(int(rng.integers(2, 4))):
        start = rng.uniform(-0.2, max(times[-1] - 0.3, 0.1))
        rise, hold, fall = rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.8), rng.uniform(0.25, 0.6)
        curve = ease((times - start) / rise) * (1.0 - ease((times - start - rise - hold) / fall))
        acting = _free_units(rng) if rng.random() < 0.5 else draw_units(rng, str(rng.choice(list(EMOTIONS))))
        peaks = rng.uniform(0.3, 0.9, len(acting))
        actions += (curve[:, None] * peaks) @ unit_rows(rng, acting)
        shown += acting
        curves += [curve * peak for peak in peaks]
    moment = rng.exponential(2.0)
    while moment < times[-1]:
        lids = blink(times, moment)
        actions += lids[:, None] * unit_rows(rng, units("45"))
        shown.append(ActionUnit(45))
        curves.append(lids)
        moment += 0.4 + rng.exponential(2.5)

    actions += gaze(rng, times)

    rng = own or rng
    spread = np.array([1.6, 1.3, 1.0, 0.012 * scale, 0.012 * scale])
    pose = turning * np.stack([s * smooth_path(rng, times, 0.7) for s in spread], axis=1)
    pose[:, :3] += rng.normal(0.0, [7.0, 4.0, 4.0])
    pose[:, 3:] += rng.normal(0.0, 0.04 * scale, 2)
    gain = 1.0 + 0.015 * smooth_path(rng, times, 0.5)
    return performance(actions, pose, gain, shown, np.stack(curves, axis=1))


def _free_units(rng: np.random.Generator) -> tuple[ActionUnit, ...]:
    """One to three units, each sometimes on one side only."""
    numbers = sorted(int(n) for n in rng.choice(FREE_UNITS, size=int(rng.integers(1, 4)), replace=False))
    acting = []
    for number in numbers:
        sided = any(halves for _, _, halves in FACS[number]) and rng.random() < 0.15
        acting.append(ActionUnit(number, "L" if sided and rng.random() < 0.5 else "R" if sided else ""))
    return tuple(acting)
