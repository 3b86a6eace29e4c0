"""A video with what was found drawn into it: faces, what moves in them, events, and where in time we are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from mefar.recognition.events import Event, Recognition
from mefar.recognition.motion import SIDE, Float, UInt8
from mefar.recognition.spotting import curves

Colour = tuple[int, int, int]

LARGEST = 1280  # longer side of what is written
MICRO: Colour = (255, 140, 40)
MACRO: Colour = (70, 170, 255)
_PLAIN: Colour = (230, 230, 230)
_DARK: Colour = (25, 29, 35)
_STRIP = 26  # pixels of the time line


def annotate(found: Recognition, frames: Iterable[tuple[float, UInt8]]) -> Iterator[tuple[float, UInt8]]:
    """Draw what was found into the frames of its video.

    Args:
        found: of this video.
        frames: (seconds, (H, W, 3) uint8 RGB) of the same video, from its start.

    Yields:
        (seconds, frame) of at most LARGEST pixels, a time line under the picture.
    """
    moved = [curves(track.traces())[0] for track in found.tracks]
    strip: UInt8 | None = None
    for number, (seconds, frame) in enumerate(frames):
        ratio = min(1.0, LARGEST / max(frame.shape[:2]))
        picture = _shrunk(frame, ratio)
        for track, motion in zip(found.tracks, moved, strict=True):
            row = number - track.frames[0]
            if 0 <= row < len(track.frames):
                mine = [event for event in found.events if event.person == track.person]
                now = next((e for e in mine if e.onset_frame <= number <= e.offset_frame), None)
                # The label stays for a second: a micro-expression is over before anybody can read.
                told = next((e for e in mine if e.onset <= seconds <= e.offset + 1.0), None)
                _face(picture, track.matrices[row], ratio, f"{track.person}", motion[row], now, told)
        if strip is None or strip.shape[1] != picture.shape[1]:
            strip = _time_line(found, picture.shape[1])
        line = strip.copy()
        x = round(seconds / max(found.seconds, 1e-6) * (line.shape[1] - 1))
        cv2.line(line, (x, 0), (x, _STRIP), _PLAIN, 2)
        yield seconds, np.concatenate([picture, line])


def _shrunk(frame: UInt8, ratio: float) -> UInt8:
    if ratio == 1.0:
        return np.ascontiguousarray(frame).copy()
    return np.asarray(cv2.resize(frame, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA), np.uint8)


def _colour(event: Event) -> Colour:
    return MICRO if event.kind == "micro" else MACRO


def _face(
    picture: UInt8,
    matrix: Float,
    ratio: float,
    name: str,
    motion: Float,
    now: Event | None,
    told: Event | None,
) -> None:
    """One face: its outline, a bar for each part, and the event that is on or has just been."""
    inverse = cv2.invertAffineTransform(matrix) * ratio
    corners = np.array([[0.14, 0.1, 1], [0.86, 0.1, 1], [0.86, 0.98, 1], [0.14, 0.98, 1]]) * [SIDE, SIDE, 1]
    outline = (corners @ inverse.T).round().astype(np.int32)
    colour = _colour(now) if now else _PLAIN
    cv2.polylines(picture, [outline], True, colour, 2 if now else 1, cv2.LINE_AA)
    side = float(np.hypot(*(outline[1] - outline[0])))
    size, left, top = max(0.4, min(0.8, side / 300)), int(outline[:, 0].min()), int(outline[:, 1].min())
    label = name if told is None else f"{name}  {told.event}: {_said(told)}"
    _write(picture, label, (left, max(14, top - 6)), size, _colour(told) if told else _PLAIN)
    long = max(12, round(0.18 * side))
    for row, value in enumerate(motion):
        x, y = int(outline[:, 0].max()) + 6, top + round(0.5 * side) + row * 7
        cv2.rectangle(picture, (x, y), (x + long, y + 4), _DARK, -1)
        full = round(long * min(1.0, float(value) / 10.0))
        cv2.rectangle(picture, (x, y), (x + full, y + 4), _colour(now) if now else (120, 200, 120), -1)


def _said(event: Event) -> str:
    words = [event.kind, "+".join(event.parts)]
    if event.emotion:
        words.append(event.emotion if event.confidence is None else f"{event.emotion} {event.confidence:.0%}")
    return " ".join(words)


def _write(picture: UInt8, text: str, at: tuple[int, int], size: float, colour: Colour) -> None:
    for shade, wide in ((_DARK, 3), (colour, 1)):
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, shade, wide, cv2.LINE_AA)


def _time_line(found: Recognition, width: int) -> UInt8:
    """(26, W, 3): the whole video from left to right; events are coloured, frames without a face dark."""
    strip = np.full((_STRIP, width, 3), _DARK, np.uint8)
    scale = (width - 1) / max(found.seconds, 1e-6)
    for track in found.tracks:
        strip[10:16, round(track.seconds[0] * scale) : round(track.seconds[-1] * scale) + 1] = (70, 78, 88)
    for event in found.events:
        start, stop = round(event.onset * scale), round(event.offset * scale)
        strip[4:22, start : max(stop, start + 2)] = _colour(event)
    return strip
