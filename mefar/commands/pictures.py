"""Pictures of any kind as arrays, and the face in them.

A picture is a path, a PIL image, a numpy array (H, W), (H, W, C) or (C, H, W), or a torch tensor of these
shapes; C is 1 (gray), 3 (RGB) or 4 (RGB and an alpha that is not looked at); uint8, or float in [0, 1].
Several are a list of pictures, or an array with one dimension more, (N, H, W, C) or (N, C, H, W).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from datamodules.crops import read_image
from datamodules.faces.align import Face, FaceAligner, FaceMode
from datamodules.faces.geometry import compose
from datamodules.faces.head_motion import stabilise
from mefar.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Array = NDArray[Any]
UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

SMALLEST_FACE = 48
"""Pixels of a face's width below which its actions are not to be seen."""
# Rendered heads pass up to a yaw of about 30 degrees; real people who talk to somebody were at 0.15 and 0.81.
_NOSE_OFF = 0.3  # how far the nose may lie from the middle between the eyes, in distances of the eyes
_NARROW = 0.5  # least distance of the eyes, in distances of eyes and mouth
_ELSEWHERE = 0.1  # widths of the face by which it may move between two frames that are cut alike


@dataclass(frozen=True)
class AlignedFace:
    """A face in a picture, and how to cut it out.

    Attributes:
        picture: (H, W, 3) uint8 RGB, the whole one.
        points: (5, 2) pixels (x, y): the eye on the left of the picture, the right eye, nose, corners of the
            mouth; None for a picture that is a face crop already.
        width: of the face, in pixels.
        faces: how many faces the picture shows.
    """

    picture: UInt8
    points: Float | None
    width: float
    faces: int = 1

    def matrix(self, size: int) -> Float:
        """(2, 3) similarity, pixels of the picture -> pixels of the crop of side `size`."""
        aligner = FaceAligner(size, "align" if self.points is not None else "precropped")
        if self.points is not None:
            return aligner.from_points(self.points)
        found = aligner.estimate(self.picture)
        assert found is not None  # of what is a crop already there always is one
        return found

    def crop(self, size: int = 256) -> UInt8:
        """(size, size, 3) uint8 RGB, eyes and mouth where every model of mefar expects them."""
        return FaceAligner(size).crop(self.picture, self.matrix(size))


Picture: TypeAlias = "str | Path | Image | Array | Tensor | AlignedFace"
"""One picture; see the head of this file."""
Pictures: TypeAlias = "Picture | Sequence[Picture]"
"""One picture, or many: a list of them, or an array with one dimension more."""


def align(picture: Picture, face: int = 1, faces: FaceMode = "align") -> AlignedFace:
    """Find the face in a picture.

    Args:
        picture: see the head of mefar/commands/pictures.py.
        face: which one where there are several: 1 the largest, 2 the next.
        faces: `precropped` takes the whole picture for a face crop.

    Raises:
        UserError: no face, fewer than asked for, one that is too small or shown from the side.

    >>> found = align(example("onset"))
    >>> found.faces, found.crop(64).shape
    (1, (64, 64, 3))
    """
    if isinstance(picture, AlignedFace):
        return picture
    (array,) = arrays(picture, "picture", 1)
    name, pixels = _name(picture), as_uint8(array)
    if faces == "precropped":
        return AlignedFace(pixels, None, float(max(pixels.shape[:2])))
    found = sorted(_detector().detect(pixels), key=lambda each: -each.width)
    if len(found) < max(face, 1) or face < 1:
        asked = "no face is found" if not found else f"face {face} is asked for, it shows {len(found)}"
        raise UserError(f"{name}: {asked}; give an upright face seen from the front")
    if len(found) > 1 and face == 1:
        logging.getLogger(__name__).warning(
            "%s: %d faces; the largest is taken, face=2 takes the next", name, len(found)
        )
    chosen = found[face - 1]
    _refuse_unreadable(name, chosen)
    return AlignedFace(pixels, chosen.points, chosen.width, len(found))


def pair(
    onset: Picture, apex: Picture, size: int, face: int = 1, faces: FaceMode = "align"
) -> tuple[UInt8, UInt8]:
    """Onset and apex as crops (size, size, 3) uint8, by one transform, less the head's motion between them.

    Two pictures of different sizes, or in which the face is elsewhere, are aligned each by itself; `face` and
    `faces` say of the onset what they say to `align`.
    """
    first = align(onset, face, faces)
    if isinstance(apex, AlignedFace):
        return first.crop(size), apex.crop(size)
    second = as_uint8(arrays(apex, "apex", 1)[0])
    matrix, points = first.matrix(size), first.points
    if points is not None:
        near = min(_detector().detect(second), key=lambda each: _apart(each, points), default=None)
        if near is None:
            raise UserError(f"{_name(apex)}: no face is found; give an upright face seen from the front")
        if second.shape != first.picture.shape or _apart(near, points) > _ELSEWHERE * near.width:
            matrix = FaceAligner(size).from_points(near.points)
    aligner, reference = FaceAligner(size), first.crop(size)
    moved = stabilise(reference, aligner.crop(second, matrix), "any" if points is None else "aligned")
    return reference, aligner.crop(second, compose(moved, matrix))


def arrays(given: Pictures, name: str, count: int | None = None) -> list[Array]:
    """Pictures as (H, W, 3) arrays, uint8 or float32 in [0, 1], `count` of them if that is said.

    `name` tells in messages what they are.

    Raises:
        UserError: not pictures, unreadable, or of other values than said.
    """
    made = _listed(given, name)
    if count is not None and len(made) != count:
        raise UserError(f"{name}: {len(made)} pictures, expected {count}")
    return made


def as_uint8(array: Array) -> UInt8:
    """(H, W, 3) uint8 of what `arrays` gave."""
    return array if array.dtype == np.uint8 else np.rint(array * 255).astype(np.uint8)


def example(name: str) -> Path:
    """A small picture that comes with mefar, of a rendered face: `onset`, `apex` of one, `other` of another.

    Raises:
        UserError: another name.
    """
    path = Path(__file__).parents[1] / "assets" / f"example_{name}.png"
    if not path.is_file():
        raise UserError(f"{name}: no such example; there are onset, apex and other")
    return path


@cache
def _detector() -> FaceAligner:
    return FaceAligner(64)


def _name(given: Picture) -> str:
    return str(given) if isinstance(given, str | Path) else "picture"


def _listed(given: Any, name: str) -> list[Array]:
    if isinstance(given, AlignedFace):
        return [given.picture]
    if isinstance(given, str | Path):
        return [read_image(Path(given))]
    if isinstance(given, list | tuple):
        return [array for each in given for array in _listed(each, name)]
    if hasattr(given, "detach"):  # a tensor, on any device
        given = given.detach().cpu().numpy()
    elif hasattr(given, "convert"):  # a PIL image, of any mode
        given = np.asarray(given.convert("RGB"))
    if not isinstance(given, np.ndarray):
        raise UserError(
            f"{name}: a {type(given).__name__}; give a path, a PIL image, a numpy array or a tensor"
        )
    if given.ndim == 4:
        return [_checked(each, name) for each in given]
    return [_checked(given, name)]


def _checked(array: Array, name: str) -> Array:
    """One picture's array as (H, W, 3) uint8 or float32."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or min(array.shape[:2]) < 16:
        raise UserError(
            f"{name}: an array {array.shape}; give (H, W), (H, W, C) or (C, H, W), C 1, 3 or 4, from 16 "
            "pixels on"
        )
    array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{name}: {array.dtype} values; give uint8, or float in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise UserError(f"{name}: holds {low:g} to {high:g}, expected [0, 1]; divide by the largest value")
    return np.ascontiguousarray(array.clip(0, 1), np.float32)


def _refuse_unreadable(name: str, face: Face) -> None:
    if face.width < SMALLEST_FACE:
        raise UserError(
            f"{name}: the face is {face.width:.0f} pixels wide; its actions show from {SMALLEST_FACE} on, "
            "give a larger picture"
        )
    left, right, nose = face.points[:3]
    across, eyes = right - left, (left + right) / 2
    off = abs(float((nose - eyes) @ across)) / float(across @ across)
    wide = float(np.hypot(*across)) / float(np.hypot(*(face.points[3:].mean(0) - eyes)))
    if off > _NOSE_OFF or wide < _NARROW:
        raise UserError(f"{name}: the face is turned to the side; give one seen from the front")


def _apart(face: Face, points: Float) -> float:
    """Mean distance of a face's points from those of another, in pixels."""
    return float(np.hypot(*(face.points - points).T).mean())
