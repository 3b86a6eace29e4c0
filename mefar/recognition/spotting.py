"""Where expressions begin, peak and end: a rule without learning, on the motion of one face's parts.

The rule, in the order of the code. All lengths are seconds, so that any frame rate will do, also one that
varies; the motion is that of `motion.FaceMotion`.

1. *Head.* Motion of a part that goes with the head's own motion (a nod moves the chin as seen by the camera)
   is taken out by a regression over the surrounding twenty seconds.
2. *Blinks.* Where both eyes' openings look unlike themselves, brows, lids, cheeks and nose are bridged by a
   straight line: a blink alone is no event, an expression that goes on around it still is. What the brows
   alone do during the blink itself cannot be seen.
3. *What comes and goes.* For lengths D from 0.1 to 1.6 s: motion now, against the mean of what it was D ago
   and what it will be D from now. Drift cancels, an expression of about that length stands out.
4. *Noise.* Each part's answer is divided by its own usual size (median over half a minute, and never less
   than the measurement's own noise), so that a face before a shaking camera, or a mouth that talks, must do
   more than it always does.
5. *Events.* The largest answer, then the next one outside it, while they are above `threshold`. The motion
   of all parts is read along the direction in which they moved at the peak; where that falls under a share
   of the peak on either side, the expression begins and ends. One that does not fall again within four
   seconds is a change of posture.
6. *Speech.* Lips that alone move for a good part of three seconds talk. A hand before the face, or a head
   turned so far that it looks another, is no event either.
7. *Kind.* Up to half a second from onset to offset is a micro-expression, by definition; longer is macro.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from mefar.recognition.intervals import Kind
from mefar.recognition.motion import PARTS, REGIONS, Float

Bools = NDArray[np.bool_]

LONGEST_MICRO = 0.5
LONGEST = 4.0
SHORTEST = 0.1
BLINK = 0.45  # unlikeness of both eyes' openings
LONGEST_BLINK = 0.6
_RATE = 100.0  # signals are worked on at this many samples a second at most
_SMOOTH = 0.02
_LENGTHS = (0.1, 0.15, 0.22, 0.33, 0.5, 0.75, 1.1, 1.6)
_AROUND = 15.0  # seconds to each side that decide what is usual
_FLOOR = 0.35  # noise of the measurement, in thousandths of the crop's side
_LEAK = 0.08  # share of the head's motion that may pass for the face's
_RETURN = 0.4  # of the way there, the least way back
_FOOT = 0.12  # share of the peak
_HIDDEN = 0.65  # likeness with the reference under which a hand, or another view, is in the way
_GLANCE = 0.3  # unlikeness of an eye's opening that is a blink or a glance where lids alone move
_SYLLABLE = 0.15  # seconds
_BUSY = 0.4  # share of the time that lips move when somebody talks


@dataclass(frozen=True)
class Spotted:
    """One event of one face.

    Attributes:
        kind: micro or macro.
        onset, apex, offset: seconds.
        strength: size of the motion at the apex, the root mean square of the parts that moved, in
            thousandths of the distance of a crop's side (the eyes are about 320 apart).
        certainty: how many times larger than usual.
        parts: names of PARTS that moved, the strongest first.
    """

    kind: Kind
    onset: float
    apex: float
    offset: float
    strength: float
    certainty: float
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Traces:
    """What is known of one face over time.

    Attributes:
        seconds: (T,) ascending, of the frames in which the face was seen.
        regions: (T, R, 2) of Motion.regions.
        head: (T, 6) of Motion.head: what the head did since the frame before.
        eyes: (T, 2) of Motion.eyes.
        quality: (T,) of Motion.quality.
    """

    seconds: Float
    regions: Float
    head: Float
    eyes: Float
    quality: Float


def spot(traces: Traces, threshold: float = 4.5) -> list[Spotted]:
    """Find the events of one face.

    Args:
        traces: of one face; a gap of over a fifth of a second ends what can be seen across it.
        threshold: how many times larger than usual a motion must be.

    Returns:
        In order of time; none overlap.
    """
    found = [event for _, stretch in _stretches(traces) for event in _spot_unbroken(stretch, threshold)]
    return sorted(found, key=lambda event: event.onset)


def blinks(traces: Traces) -> list[tuple[float, float]]:
    """When both eyes shut for a moment: (from, to) in seconds."""
    shut = traces.eyes.min(1) > BLINK
    spans = [(float(traces.seconds[a]), float(traces.seconds[b - 1])) for a, b in _runs(shut)]
    return [(start, stop) for start, stop in spans if stop - start <= LONGEST_BLINK]


@dataclass
class _Stretch:
    """One unbroken stretch, evenly sampled: motion (N, 2R), what is usual for it, and how far it is above."""

    time: Float
    rate: float
    motion: Float
    lengths: list[float]
    shifts: list[int]
    usual: Float  # (lengths, N, 2R)
    size: Float  # (lengths, N, parts), times the usual
    talks: Bools
    quality: Float
    eyes: Float  # (N,) unlikeness of the eye that changed more


def _stretches(traces: Traces) -> list[tuple[NDArray[np.int64], _Stretch]]:
    """Rows of each stretch long enough to see anything in, and what is in it."""
    gaps = np.nonzero(np.diff(traces.seconds) > 0.2 + 1.5 * _period(traces.seconds))[0] + 1
    found = []
    for rows in np.split(np.arange(len(traces.seconds)), gaps):
        if len(rows) >= 8 and traces.seconds[rows[-1]] - traces.seconds[rows[0]] >= 0.8:
            stretch = _prepared(traces, rows)
            if stretch is not None:
                found.append((rows, stretch))
    return found


def _prepared(traces: Traces, rows: NDArray[np.int64]) -> _Stretch | None:
    seconds = traces.seconds[rows]
    rate = min(_RATE, 1.0 / _period(seconds))
    time = np.arange(seconds[0], seconds[-1], 1.0 / rate)
    lengths = [length for length in _LENGTHS if length * rate >= 2 and 2 * length < time[-1] - time[0]]
    if not lengths:
        return None
    motion = _at(time, seconds, traces.regions[rows].reshape(len(rows), -1))
    head = _at(time, seconds, np.cumsum(traces.head[rows], 0))
    shut = np.zeros(len(time), bool)
    for start, stop in blinks(traces):
        shut |= (time >= start) & (time <= stop)
    motion, head = _smoothed(motion, _SMOOTH * rate), _smoothed(head, _SMOOTH * rate)
    motion = _bridged(_without_head(motion, head, rate), _widened(shut, round(0.07 * rate)))
    shifts = [max(1, round(length * rate)) for length in lengths]
    usual = np.stack(
        [_usual(_came_and_went(motion, shift), _came_and_went(head, shift), rate) for shift in shifts]
    )
    talks = _talks(motion[:, _columns(["mouth"])], rate)
    quality = _at(time, seconds, traces.quality[rows][:, None])[:, 0]
    eyes = _at(time, seconds, traces.eyes[rows].max(1)[:, None])[:, 0]
    return _Stretch(
        time, rate, motion, lengths, shifts, usual, _sizes(motion, shifts, usual), talks, quality, eyes
    )


def curves(traces: Traces) -> tuple[Float, Bools, Bools]:
    """What the rule sees in every frame, for tables and figures.

    Returns:
        (T, parts) how many times its usual motion each of PARTS moved, 0 where nothing can be seen; (T,)
        whether the eyes are shut for a moment; (T,) whether the mouth talks.
    """
    moved = np.zeros((len(traces.seconds), len(PARTS)))
    shut, talking = np.zeros(len(moved), bool), np.zeros(len(moved), bool)
    for start, stop in blinks(traces):
        shut |= (traces.seconds >= start) & (traces.seconds <= stop)
    for rows, stretch in _stretches(traces):
        moved[rows] = _at(traces.seconds[rows], stretch.time, stretch.size.max(0))
        places = np.searchsorted(stretch.time, traces.seconds[rows]).clip(0, len(stretch.time) - 1)
        talking[rows] = stretch.talks[places]
    return moved, shut, talking


def _spot_unbroken(stretch: _Stretch, threshold: float) -> list[Spotted]:
    time, rate, motion, size = stretch.time, stretch.rate, stretch.motion.copy(), stretch.size.copy()
    lengths, shifts, usual, talks = stretch.lengths, stretch.shifts, stretch.usual, stretch.talks
    best = size.max(2)  # (lengths, T)
    edge = max(2, round(0.1 * rate))
    best[:, :edge] = best[:, -edge:] = 0.0
    found: list[Spotted] = []
    while best.size and best.max() >= threshold:
        length, peak = (int(i) for i in np.unravel_index(int(best.argmax()), best.shape))
        change, parts = _came_and_went(motion, shifts[length])[peak], size[length, peak].copy()
        pattern = change / usual[length, peak] ** 2
        first, top, last = _extent(motion @ pattern, peak, lengths[length], rate)
        lasting = (last - first) / rate
        if not SHORTEST <= lasting <= LONGEST:
            near = max(1, shifts[length] // 3)
            best[length, max(0, peak - near) : peak + near + 1] = 0.0
            continue
        # What is found is taken out, with the shadows that it casts one length earlier and later.
        ramp = np.linspace(0.0, 1.0, last - first + 1)[:, None]
        motion[first : last + 1] = (1 - ramp) * motion[first] + ramp * motion[last]
        low, high = max(0, first - 3 * shifts[-1]), min(len(time), last + 3 * shifts[-1])
        inner = slice(max(0, first - shifts[-1]), min(len(time), last + shifts[-1] + 1))
        again = _sizes(motion[low:high], shifts, usual[:, low:high])
        size[:, inner] = again[:, inner.start - low : inner.stop - low]
        best[:, inner] = np.minimum(best[:, inner], size[:, inner].max(2))
        best[:, max(0, first - 1) : last + 2] = 0.0
        if stretch.quality[first : last + 1].min() < _HIDDEN:
            continue
        if _alone("mouth", parts) and talks[first : last + 1].mean() > 0.5:
            continue
        if _alone("eyes", parts) and stretch.eyes[first : last + 1].max() > _GLANCE:
            continue
        names = [list(PARTS)[i] for i in np.argsort(-parts) if parts[i] >= max(0.5 * parts.max(), 2.0)]
        moved = change[_columns(names)]
        found.append(
            Spotted(
                "micro" if lasting <= LONGEST_MICRO else "macro",
                float(time[first]), float(time[top]), float(time[last]),
                float(np.sqrt(np.mean(moved**2))), float(parts.max()), tuple(names),
            )
        )  # fmt: skip
    return found


def _alone(part: str, sizes: Float) -> bool:
    """Whether one of PARTS moved and the others hardly did."""
    place = list(PARTS).index(part)
    return bool(np.delete(sizes, place).max() < 0.6 * sizes[place])


def _sizes(motion: Float, shifts: Sequence[int], usual: Float) -> Float:
    """(lengths, T, parts) how many times more than usual each part came and went."""
    return np.stack(
        [_part_sizes(_came_and_went(motion, s) / noise) for s, noise in zip(shifts, usual, strict=True)]
    )


def _period(seconds: Float) -> float:
    """Usual time between two frames."""
    return max(float(np.median(np.diff(seconds))), 1e-3) if len(seconds) > 1 else 1.0


def _at(time: Float, seconds: Float, values: Float) -> Float:
    return np.stack([np.interp(time, seconds, column) for column in values.T], 1)


def _smoothed(values: Float, sigma: float) -> Float:
    """Gaussian over time, sigma in samples; the ends are repeated."""
    reach = max(1, int(np.ceil(3 * sigma)))
    made: Float = gaussian_filter1d(values, max(sigma, 1e-3), axis=0, mode="nearest", radius=reach)
    return made


def _without_head(motion: Float, head: Float, rate: float) -> Float:
    """Take out what goes with the head, by a ridge regression over windows of 20 s that overlap by half."""
    # What is quicker than about two seconds.
    quick, turned = (values - _smoothed(values, rate) for values in (motion, head))
    width, step = round(20 * rate), round(10 * rate)
    total, out = np.zeros(len(motion)), np.zeros(motion.shape)
    for start in range(0, max(1, len(motion) - step), step):
        part = slice(start, min(len(motion), start + width))
        x, y = turned[part], quick[part]
        trust = np.ones(len(x))
        slope: Float = np.zeros((x.shape[1], y.shape[1]))
        for _ in range(3):  # an expression that comes with a nod must not pass for the nod
            weighted = x * trust[:, None]
            normal = weighted.T @ x
            normal[np.diag_indices(len(normal))] += 1.0 * len(x) * 0.5**2
            slope = np.asarray(np.linalg.solve(normal, weighted.T @ y), np.float64)
            off = np.sqrt(np.mean((y - x @ slope) ** 2, 1))
            trust = 1.0 / (1.0 + (off / (2.0 * np.median(off) + 1e-6)) ** 2)
        fade = np.minimum(np.arange(len(x)) + 1, np.arange(len(x), 0, -1)).astype(np.float64)
        out[part] += fade[:, None] * (head[part] @ slope)
        total[part] += fade
    return motion - out / total[:, None]


def _came_and_went(values: Float, shift: int) -> Float:
    """Now, against the mean of `shift` samples earlier and later; the ends are repeated."""
    padded = np.pad(values, ((shift, shift), (0, 0)), mode="edge")
    return values - 0.5 * (padded[: len(values)] + padded[2 * shift :])


def _usual(change: Float, turned: Float, rate: float) -> Float:
    """(T, C) usual size of each column around each moment: 1.48 times the median of its absolute value.

    More where the head moves at that moment, a share of which no model of heads explains.
    """
    step, reach = max(1, round(2 * rate)), round(_AROUND * rate)
    centres = np.arange(0, len(change), step)
    size = np.abs(change)
    spread = np.stack([np.median(size[max(0, c - reach) : c + reach + 1], 0) for c in centres])
    grown = _at(np.arange(len(change), dtype=np.float64), centres.astype(np.float64), 1.4826 * spread)
    leak = _LEAK * np.sqrt((turned**2).sum(1, keepdims=True))
    return np.asarray(np.sqrt(grown**2 + _FLOOR**2 + leak**2), np.float64)


def _columns(parts: Sequence[str]) -> NDArray[np.int64]:
    rows = [list(REGIONS).index(name) for part in parts for name in PARTS[part]]
    return np.array([2 * row + axis for row in rows for axis in (0, 1)])


def _part_sizes(scaled: Float) -> Float:
    """(T, C) in units of noise -> (T, parts) root mean square of each part's three liveliest columns."""
    most = [np.sort(scaled[:, _columns([part])] ** 2, 1)[:, -3:] for part in PARTS]
    return np.stack([np.sqrt(square.mean(1)) for square in most], 1)


def _extent(strength: Float, peak: int, length: float, rate: float) -> tuple[int, int, int]:
    """Onset, apex and offset, in samples, of a movement whose strength peaks near a sample.

    A foot is where the straight line through a twelfth and a half of the height meets the ground.
    """
    near = max(1, round(0.3 * length * rate))
    low = max(0, peak - near)
    top = low + int(np.argmax(strength[low : peak + near + 1]))
    reach = round(LONGEST * rate)
    window = round(2.5 * length * rate) + 1
    sides = [strength[top::direction][: reach + 1] for direction in (-1, 1)]
    heights = [float(strength[top] - side[:window].min()) for side in sides]
    if min(heights) < _RETURN * max(heights):  # it came and stayed: another posture
        return top, top, top
    feet = []
    for side, height in zip(sides, heights, strict=True):
        ground = strength[top] - height
        foot = _first_under(side, ground + _FOOT * height)
        half = _first_under(side, ground + 0.5 * height)
        feet.append(round(foot + (foot - half) * _FOOT / (0.5 - _FOOT)))
    return max(0, top - feet[0]), top, min(len(strength) - 1, top + feet[1])


def _first_under(side: Float, level: float) -> float:
    """Where a falling curve first goes under a level, between samples; its length where it never does."""
    under = np.nonzero(side <= level)[0]
    if not len(under) or under[0] == 0:
        return float(len(side) if not len(under) else 0)
    after = int(under[0])
    drop = side[after - 1] - side[after]
    return after - float((level - side[after]) / drop) if drop > 0 else float(after)


def _talks(mouth: Float, rate: float) -> Bools:
    """Whether lips and jaw, (T, C) motion, move quickly for much of the three seconds around each moment."""
    quick = _came_and_went(mouth, max(1, round(_SYLLABLE * rate)))
    busy = (np.sqrt(np.sort(quick**2, 1)[:, -3:].mean(1)) > 3.0 * _FLOOR).astype(np.float64)
    width = np.ones(2 * round(1.5 * rate) + 1)
    share = np.convolve(busy, width, "same") / np.convolve(np.ones(len(busy)), width, "same")
    return np.asarray(share > _BUSY)


def _bridged(values: Float, cut: Bools) -> Float:
    """Straight lines across the samples that are cut, in every column but the mouth's."""
    if not cut.any() or cut.all():
        return values
    out, place = values.copy(), np.arange(len(values))
    mouth = set(_columns(["mouth"]).tolist())
    for column in range(values.shape[1]):
        if column not in mouth:
            out[cut, column] = np.interp(place[cut], place[~cut], values[~cut, column])
    return out


def _widened(flags: Bools, by: int) -> Bools:
    return np.convolve(flags, np.ones(2 * by + 1), "same") > 0


def _runs(flags: Bools) -> list[tuple[int, int]]:
    """(first, one past the last) of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
