"""Every face of a video, followed from frame to frame, in memory that does not grow with the picture.

A detector looks at two frames a second; between its looks each face is followed by its own motion
(`motion.FaceMotion`), which is quicker and a hundred times steadier. A face that is lost, a cut, a face that
comes back: a new stretch begins, and nothing is compared across it. A face that comes back where it was last
seen within a second is taken for the same person; who is who after two faces have crossed, or after a cut,
is not claimed: they get new numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from mefar.files import replacing
from mefar.recognition.motion import SIDE, FaceMotion, Float, Motion, UInt8
from mefar.recognition.spotting import Traces

LOOK_SECONDS = 0.5
_LOST = 0.55  # quality under which it is not the same face any more
_UNSEEN = 1.6  # seconds without the detector's word after which a track has drifted off
_SHORTEST = 0.5  # seconds that a face must be seen for to count
_ABSENT = 1.0  # seconds that a person may be away and keep the number
_DRIFT = 0.07  # shares of the crop by which a crop may sit wrong before it is set right
_CUT = 32.0  # gray levels that a whole small picture changes by
_CENTRE = np.array([0.5, 0.53, 1.0]) * [SIDE, SIDE, 1.0]


class Faces(Protocol):
    """Finds faces and cuts them out: `datamodules.faces.align.FaceAligner(SIDE)`."""

    def detect(self, frame: UInt8) -> Sequence[Any]:
        """Faces of an (H, W, 3) frame, each with `points` (5, 2) in pixels and `width`."""

    def from_points(self, points: Float) -> Float:
        """(5, 2) points -> (2, 3) transform, frame pixels -> crop pixels."""

    def crop(self, frame: UInt8, matrix: Float) -> UInt8:
        """(SIDE, SIDE, 3) uint8."""


@dataclass
class Track:
    """One face over an unbroken stretch of frames.

    Attributes:
        person: number, from 1, in order of appearance.
        frames, seconds: of each frame in which it was seen.
        motions: what its parts did there.
        matrices: (2, 3) each, frame pixels -> crop pixels.
    """

    person: int
    frames: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    motions: list[Motion] = field(default_factory=list)
    matrices: list[Float] = field(default_factory=list)

    def traces(self) -> Traces:
        """As the spotter wants it."""
        return Traces(
            np.array(self.seconds),
            np.array([m.regions for m in self.motions]),
            np.array([m.head for m in self.motions]),
            np.array([m.eyes for m in self.motions]),
            np.array([m.quality for m in self.motions]),
        )

    def matrix_at(self, frame: int) -> Float:
        """The transform of a frame in which the face was seen."""
        return self.matrices[frame - self.frames[0]]


@dataclass
class _Live:
    track: Track
    motion: FaceMotion
    confirmed: float

    def centre(self) -> Float:
        """Of the face, in pixels of the frame."""
        inverse = cv2.invertAffineTransform(self.motion.matrix)
        return np.asarray(inverse @ _CENTRE, np.float64)

    def width(self) -> float:
        """Of the face, in pixels of the frame."""
        return 0.6 * SIDE / float(np.sqrt(abs(np.linalg.det(self.motion.matrix[:, :2]))))


@dataclass(frozen=True)
class Followed:
    """All faces of one video.

    Attributes:
        tracks: in order of time.
        cuts: seconds at which the picture was cut.
        frames: how many were looked at.
        seconds: time of the last.
        notes: what a user should know, a line each.
    """

    tracks: tuple[Track, ...]
    cuts: tuple[float, ...]
    frames: int
    seconds: float
    notes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write everything into one file, whole or not at all."""
        about = {"cuts": self.cuts, "frames": self.frames, "seconds": self.seconds, "notes": self.notes,
                 "people": [track.person for track in self.tracks]}  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {"about": np.array(json.dumps(about))}
        for number, track in enumerate(self.tracks):
            traces = track.traces()
            arrays |= {
                f"{number}_frames": np.array(track.frames), f"{number}_seconds": traces.seconds,
                f"{number}_regions": traces.regions, f"{number}_head": traces.head,
                f"{number}_eyes": traces.eyes, f"{number}_matrices": np.array(track.matrices),
                f"{number}_quality": traces.quality,
            }  # fmt: skip
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path) -> Followed:
        """Read what `save` wrote."""
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            tracks = []
            for number, person in enumerate(about["people"]):
                names = ("frames", "seconds", "regions", "head", "eyes", "quality", "matrices")
                frames, seconds, regions, head, eyes, quality, places = (file[f"{number}_{n}"] for n in names)
                motions = [Motion(*row) for row in zip(regions, head, eyes, quality.tolist(), strict=True)]
                tracks.append(Track(person, frames.tolist(), seconds.tolist(), motions, list(places)))
        cuts, notes = tuple(about["cuts"]), tuple(about["notes"])
        return Followed(tuple(tracks), cuts, about["frames"], about["seconds"], notes)


class Follower:
    """Follows all faces of a video that is given to it frame by frame."""

    def __init__(self, faces: Faces) -> None:
        self.faces = faces
        self.cuts: list[float] = []
        self._live: list[_Live] = []
        self._done: list[Track] = []
        self._people = 0
        self._number = -1
        self._looked = -np.inf
        self._thumb: NDArray[np.float32] | None = None
        self._size: tuple[int, ...] = ()

    def add(self, seconds: float, frame: UInt8) -> None:
        """Take the next (H, W, 3) uint8 frame, shown at `seconds`."""
        self._number += 1
        if self._cut(frame):
            self.cuts.append(seconds)
            self._end(self._live)
            self._looked = -np.inf
        lost = [live for live in self._live if not self._follow(live, seconds, frame)]
        if lost:
            self._end(lost)
        if lost or seconds - self._looked >= LOOK_SECONDS:
            self._look(seconds, frame)

    def tracks(self) -> list[Track]:
        """End everything and give all tracks, in order of time."""
        self._end(list(self._live))
        kept = [t for t in self._done if t.seconds[-1] - t.seconds[0] >= _SHORTEST]
        order = {person: n for n, person in enumerate(dict.fromkeys(t.person for t in kept), 1)}
        for track in kept:
            track.person = order[track.person]
        return sorted(kept, key=lambda track: (track.seconds[0], track.person))

    def _cut(self, frame: UInt8) -> bool:
        small = cv2.resize(frame, (24, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._thumb = self._thumb, small
        size, self._size = self._size, frame.shape
        if before is None:
            return False
        return frame.shape != size or float(np.abs(small - before).mean()) > _CUT

    def _follow(self, live: _Live, seconds: float, frame: UInt8) -> bool:
        used = live.motion.matrix
        found = live.motion.measure(self.faces.crop(frame, used))
        height, width = frame.shape[:2]
        x, y = live.centre()
        if found.quality < _LOST or not (0 <= x < width and 0 <= y < height):
            return False
        if seconds - live.confirmed > _UNSEEN:
            return False
        self._write(live, seconds, found)
        if live.motion.stale(seconds):
            live.motion.rekey(live.motion.matrix, self.faces.crop(frame, live.motion.matrix), seconds)
        return True

    def _write(self, live: _Live, seconds: float, found: Motion) -> None:
        live.track.frames.append(self._number)
        live.track.seconds.append(seconds)
        live.track.motions.append(found)
        live.track.matrices.append(live.motion.matrix)

    def _look(self, seconds: float, frame: UInt8) -> None:
        self._looked = seconds
        open_ = list(self._live)
        for face in self.faces.detect(frame):
            middle = 0.5 * (face.points[:2].mean(0) + face.points[3:].mean(0))
            near = [live for live in open_ if np.hypot(*(live.centre() - middle)) < 0.4 * live.width()]
            if near:
                live = near[0]
                open_.remove(live)
                live.confirmed = seconds
                self._set_right(live, face, seconds, frame)
            elif not any(np.hypot(*(live.centre() - middle)) < 0.7 * live.width() for live in self._live):
                self._begin(face, middle, seconds, frame)

    def _set_right(self, live: _Live, face: Any, seconds: float, frame: UInt8) -> None:
        """Where a crop no longer has eyes and mouth at their places, begin a new reference that has."""
        wanted = self.faces.from_points(face.points)
        corners = np.array([[0.2, 0.2, 1], [0.8, 0.2, 1], [0.5, 0.8, 1]]) * [SIDE, SIDE, 1]
        back = np.vstack([cv2.invertAffineTransform(wanted), [0.0, 0.0, 1.0]])
        off = corners @ (live.motion.matrix @ back).T - corners[:, :2]
        if np.hypot(*off.T).mean() > _DRIFT * SIDE and live.track.frames[-1] == self._number:
            live.motion.rekey(wanted, self.faces.crop(frame, wanted), seconds)
            live.track.matrices[-1] = wanted

    def _begin(self, face: Any, middle: Float, seconds: float, frame: UInt8) -> None:
        matrix = self.faces.from_points(face.points)
        motion = FaceMotion(matrix, self.faces.crop(frame, matrix), seconds)
        live = _Live(Track(self._who(middle, face.width, seconds)), motion, seconds)
        self._write(live, seconds, motion.rest())
        self._live.append(live)

    def _who(self, middle: Float, width: float, seconds: float) -> int:
        """The one person who was last seen here a moment ago, or somebody new."""
        since = self.cuts[-1] if self.cuts else -np.inf
        taken = {live.track.person for live in self._live}
        here = {
            track.person
            for track in self._done
            if seconds - track.seconds[-1] <= _ABSENT
            and track.seconds[-1] >= since
            and track.person not in taken
            and np.hypot(*(cv2.invertAffineTransform(track.matrices[-1]) @ _CENTRE - middle)) < width
        }
        if len(here) == 1:
            return here.pop()
        self._people += 1
        return self._people

    def _end(self, lives: Iterable[_Live]) -> None:
        for live in list(lives):
            self._live.remove(live)
            self._done.append(live.track)
