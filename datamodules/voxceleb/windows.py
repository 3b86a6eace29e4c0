"""The windows of a video: at most two seconds of one face in one take, each aligned once.

Where in a file the windows lie is drawn. Where a drawn window shows no face that stays, its share of the file
is searched: one look per second tells where faces are, and the windows there are tried, the nearest first.

A window ends where its take ends: at a hard cut, a dissolve, a black card, a frame without a face. Two looks
decide, on the aligned crops:

- *Is there a face?* The detector's last network on the place where aligned faces are (real faces score above
  .99, anything else under .01).
- *Is it the same take?* Dense optical flow from a crop to a later one explains what moves; of the rest the
  share of the picture's variance is taken. On 41 windows of 18 real people and pictures spliced from them,
  aligned alike: after 80 ms flow explains at least .84 in 95 % of the windows, and at most .56 over a hard
  cut. A dissolve shows over a longer time only: after .64 and .96 s at least .6 is explained in 92 % of the
  windows, and less than that over every dissolve of .32 or .64 s and nine in ten of 1 s. Strong turns of the
  head count as an end too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.counter_random import number_of, uniforms
from datamodules.faces.align import FaceAligner, Stabiliser
from datamodules.faces.geometry import compose
from datamodules.voxceleb.video import moments, play
from mefar.errors import UserError

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

WINDOW_SECONDS = 2.0
STRIDE_SECONDS = 0.08
SHORTEST_SECONDS = 0.5  # of what a cut leaves of a window
LOOKS = 120  # at most, in search of faces, per file

# Explained shares below which crops are not of one take: of neighbours; of those so many seconds apart.
_NEIGHBOURS = 0.7
_LATER = ((0.64, 0.6), (0.96, 0.55))
_FADE = 0.32  # seconds in which what changes slowly has not yet changed by so much, left out too
_SIDE = 64  # pixels of the crops that are compared


@dataclass(frozen=True)
class Window:
    """Frames of one face in one take, T of them.

    Attributes:
        times: (T,) float64 seconds since the file's first frame.
        numbers: (T,) int64 frame numbers in the file.
        matrices: (T, 2, 3) float64, frame pixels -> crop pixels.
        crops: (T, side, side, 3) uint8.
    """

    times: Float
    numbers: NDArray[np.int64]
    matrices: Float
    crops: UInt8


def read_windows(
    path: Path, name: str, aligner: FaceAligner, frames: int, steady: bool, seed: int
) -> list[Window]:
    """The windows of one video, spread evenly over it, in order of time.

    Args:
        path: the video.
        name: of the video in its corpus; with `seed` it decides where the windows lie.
        aligner: of the crops.
        frames: how many to keep. 25 make one window at steps of 80 ms; more make more windows where the file
            is long enough, finer steps where it is not.
        steady: take out the head's rigid motion inside each window.
        seed: of the places.

    Raises:
        UserError: unreadable file, or one of a single frame.
    """
    known = moments(path)
    if len(known) < 2:
        raise UserError(f"{path}: has one frame only; a pair needs two")
    count = window_count(known, frames)
    places = uniforms(seed, number_of(name), count)[0]
    drawn = {i: choose(known, frames, i, float(places[i])) for i in range(count)}
    found: dict[int, Window] = {}
    for (i, rows), images in zip(drawn.items(), _decoded(path, list(drawn.values())), strict=True):
        if (window := _window(known, rows, images, aligner, steady)) is not None:
            found[i] = window
    missing = [i for i in range(count) if i not in found]
    if missing and aligner.mode == "align":
        for i, rows in _where_faces_are(path, known, frames, missing, places, aligner):
            if i not in found and len(rows) > 1:
                (images,) = _decoded(path, [rows])
                if (window := _window(known, rows, images, aligner, steady)) is not None:
                    found[i] = window
    return [found[i] for i in sorted(found)]


def window_count(known: Float, frames: int) -> int:
    """How many windows a file gives, from the (T,) seconds of its frames."""
    most = max(1, frames // round(WINDOW_SECONDS / STRIDE_SECONDS))
    return int(np.clip(known[-1] // WINDOW_SECONDS, 1, most))


def choose(known: Float, frames: int, i: int, place: float) -> list[int]:
    """Frame numbers of the i-th window, in its own share of the file.

    Args:
        known: (T,) seconds of all frames.
        frames: to be kept of the file.
        i: in [0, window_count).
        place: in [0, 1]: where in its share the window lies.
    """
    count = window_count(known, frames)
    share, keep = float(known[-1]) / count, frames // count
    # No coarser than leaves several partners inside a gap range of 0.3 s.
    usable = min(share, WINDOW_SECONDS)
    stride = min(STRIDE_SECONDS, max(usable, 1e-3) / max(1, keep - 1))
    span = min(usable, stride * (keep - 1))
    wanted = i * share + (share - span) * place + np.arange(0.0, span + 1e-6, stride)
    near = np.unique(np.abs(known[None] - wanted[:, None]).argmin(1))
    # A frame on the border belongs to one share only.
    mine = (known[near] >= i * share) & ((known[near] < (i + 1) * share) | (i == count - 1))
    near = near[mine]
    return [int(row) for row in near]


def _decoded(path: Path, windows: Sequence[list[int]]) -> Iterator[list[UInt8]]:
    """The frames of each window, in one sequential decode; only one window is in memory at a time."""
    shown = play(path, {row for rows in windows for row in rows})
    for rows in windows:
        yield [image for _, image in islice(shown, len(rows))]


def _where_faces_are(
    path: Path, known: Float, frames: int, missing: list[int], places: Float, aligner: FaceAligner
) -> Iterator[tuple[int, list[int]]]:
    """Windows of the missing shares whose middle frame shows a face, the nearest to the drawn place first."""
    share = float(known[-1]) / window_count(known, frames)
    steps = int(np.clip(np.ceil(share) + 1, 2, max(2, LOOKS // len(missing))))
    trials = [(i, float(place)) for i in missing for place in np.linspace(0.0, 1.0, steps)]
    windows = {trial: choose(known, frames, *trial) for trial in trials}
    windows = {trial: rows for trial, rows in windows.items() if rows}
    middles = {rows[len(rows) // 2] for rows in windows.values()}
    faces = {
        row
        for row, (_, image) in zip(sorted(middles), play(path, middles), strict=True)
        if aligner.detect(image)
    }
    for i, place in sorted(windows, key=lambda trial: abs(trial[1] - places[trial[0]])):
        rows = windows[i, place]
        if rows[len(rows) // 2] in faces:
            yield i, rows


def _window(
    known: Float, rows: list[int], images: list[UInt8], aligner: FaceAligner, steady: bool
) -> Window | None:
    """The longest part of a window that is one take of one face; None where it is too short to be of use."""
    if len(rows) < 2:
        return None
    matrix = aligner.estimate_many([images[0], images[len(images) // 2], images[-1]])
    if matrix is None:  # the face comes, goes, or changes: each half may still be one take
        half = len(rows) // 2
        if known[rows[half - 1]] - known[rows[0]] < SHORTEST_SECONDS:
            return None
        halves = [
            _window(known, rows[part], images[part], aligner, steady)
            for part in (slice(half), slice(half, None))
        ]
        whole = [window for window in halves if window is not None]
        return max(whole, key=lambda window: float(np.ptp(window.times)), default=None)
    matrices, crops = _cropped(aligner, images, matrix, steady)
    times = known[rows]
    part = longest_take(crops, times, aligner)
    if part.stop - part.start < 2 or (
        part.stop - part.start < len(rows) and times[part.stop - 1] - times[part.start] < SHORTEST_SECONDS
    ):
        return None
    return Window(times[part], np.array(rows)[part], matrices[part], crops[part])


def _cropped(aligner: FaceAligner, images: list[UInt8], matrix: Float, steady: bool) -> tuple[Float, UInt8]:
    """Frames of one window -> their (T, 2, 3) transforms and (T, side, side, 3) crops."""
    matrices, crops = [matrix] * len(images), [aligner.crop(image, matrix) for image in images]
    if steady:
        middle = len(images) // 2
        stabiliser = Stabiliser(
            crops[middle], "aligned" if aligner.mode == "align" else "any", aligner.margin
        )
        for order in (range(middle + 1, len(images)), range(middle - 1, -1, -1)):
            guess = None
            for i in order:  # outward from the middle: each frame starts from its neighbour's answer
                guess = stabiliser.motion(crops[i], guess)
                matrices[i] = compose(guess, matrix)
                crops[i] = aligner.crop(images[i], matrices[i])
    return np.stack(matrices), np.stack(crops)


def longest_take(crops: UInt8, times: Float, aligner: FaceAligner) -> slice:
    """The longest run of (T, side, side, 3) crops without a cut, a dissolve or a frame without a face.

    Args:
        crops: aligned alike, in order of time.
        times: (T,) seconds.
        aligner: that made them.
    """
    usable, small = aligner.shows_face(crops), [_small(crop) for crop in crops]
    ends = [0]  # of runs without a cut or a missing face
    for i in range(len(crops)):
        if not usable[i]:
            ends += [i, i + 1]
        elif i > 0 and _explained(small[i - 1], small[i]) < _NEIGHBOURS:
            ends.append(i)
    best = slice(0, 0)
    for first, last in zip(ends, [*ends[1:], len(crops)], strict=True):
        if first < last and usable[first]:
            best = max(
                best, _without_dissolve(small, times, first, last), key=lambda run: run.stop - run.start
            )
    return best


def _without_dissolve(small: list[_Small], times: Float, first: int, last: int) -> slice:
    """The longest part of the crops first to last - 1 in which nothing changes slowly into something else."""
    apart = []
    for seconds, least in _LATER:
        for i in range(first, last, 2):
            later = int(np.searchsorted(times, times[i] + seconds - 1e-6))
            if i + 1 < later < last and _explained(small[i], small[later]) < least:
                apart.append((i, later))
    best = slice(first, first)
    for start in [first, *(int(np.searchsorted(times, times[i] + _FADE)) for i, _ in apart)]:
        end = min((later for i, later in apart if i >= start), default=None)
        stop = last if end is None else int(np.searchsorted(times, times[end] - _FADE))
        best = max(best, slice(start, stop), key=lambda run: run.stop - run.start)
    return best


_Small = tuple[UInt8, UInt8]


def _small(crop: UInt8) -> _Small:
    """A crop at 64 pixels, in colour and in gray."""
    colour = np.asarray(cv2.resize(crop, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    return colour, np.asarray(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY), np.uint8)


_FLOW = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
_COLUMNS, _ROWS = np.meshgrid(np.arange(_SIDE, dtype=np.float32), np.arange(_SIDE, dtype=np.float32))


def _explained(first: _Small, second: _Small) -> float:
    """Share of the first picture's variance that the second explains, moved back by flow: at most 1."""
    flow = np.asarray(_FLOW.calc(first[1], second[1], np.zeros((_SIDE, _SIDE, 2), np.float32)), np.float32)
    x, y = _COLUMNS + flow[..., 0], _ROWS + flow[..., 1]
    moved = cv2.remap(second[0], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    a, b = (_inner(image) for image in (first[0], np.asarray(moved, np.uint8)))
    # Half a gray level is noise: pictures of nothing explain nothing.
    return 1.0 - float((((a - b) ** 2).mean() + 0.25) / (((a**2).mean() + (b**2).mean()) / 2 + 0.25))


def _inner(image: UInt8) -> NDArray[np.float32]:
    """Without noise, without the border, and each colour without its mean, which is light."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.0)[4:-4, 4:-4]
    return np.asarray(smooth - smooth.mean((0, 1)), np.float32)
