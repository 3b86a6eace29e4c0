"""The parametric head the demo corpora are rendered from, and its FACS vocabulary.

The geometry is ``assets/head_cc0.npz`` (provenance beside it). Its texture coordinates have no seams in the
vertex list, so skin is painted on a cylinder around the head instead: column = angle about the vertical axis,
row = height, both of the *neutral* head, so paint moves with the skin.

Lengths are decimetres; x points to the subject's left (the right of the picture), y up, z towards the camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from datamodules.clips import Side
from datamodules.demo.kernels import occlusion, vertex_normals

F32 = npt.NDArray[np.float32]

ASSET: Final = Path(__file__).with_name("assets") / "head_cc0.npz"
SKIN, EYE, TEETH, TONGUE = range(4)

# The paint atlas: skin rows above, then a strip with the iris and a white patch for teeth and tongue.
ATLAS_WIDTH, SKIN_ROWS, STRIP_ROWS = 512, 400, 64
ATLAS_ROWS: Final = SKIN_ROWS + STRIP_ROWS
AXIS_Z = 0.55  # where the cylinder's axis stands, dm
MAX_ANGLE = 2.2  # the angle at the left and right border of the skin, rad
TOP, BOTTOM = 8.75, 5.65  # heights (dm) of the first and the last skin row
EYE_CENTRE: Final = (0.3078, 7.2842, 1.2370)
EYE_RADIUS = 0.1382

# Action unit -> (action stem, gain, has a left and a right half). Gains for 25 to 27 are degrees of one jaw.
FACS: Final[Mapping[int, tuple[tuple[str, float, bool], ...]]] = {
    1: (("browInnerUp", 1.0, False),),
    2: (("browOuterUp", 1.0, True),),
    4: (("browDown", 1.0, True),),
    5: (("eyeWide", 1.0, True),),
    6: (("cheekSquint", 1.0, True),),
    7: (("eyeSquint", 1.0, True),),
    9: (("noseSneer", 1.0, True),),
    10: (("mouthUpperUp", 1.0, True),),
    12: (("mouthSmile", 1.0, True),),
    14: (("mouthDimple", 1.0, True),),
    15: (("mouthFrown", 1.0, True),),
    16: (("mouthLowerDown", 1.0, True),),
    17: (("mouthShrugLower", 1.0, False),),
    18: (("mouthPucker", 1.0, False),),
    20: (("mouthStretch", 1.0, True),),
    22: (("mouthFunnel", 1.0, False),),
    24: (("mouthPress", 1.0, True),),
    25: (("jawOpen", 0.15, False),),
    26: (("jawOpen", 0.35, False),),
    27: (("jawOpen", 0.9, False),),
    28: (("mouthRollLower", 1.0, False), ("mouthRollUpper", 0.6, False)),
    45: (("eyeBlink", 1.0, True),),
}


def actions_of(unit: int, side: Side = "") -> dict[str, float]:
    """Name the actions of one action unit at full intensity.

    Args:
        unit: FACS number, a key of ``FACS``.
        side: ``"L"`` or ``"R"`` keeps the subject's left or right half; units without halves ignore it.

    Returns:
        Action name -> weight in [0, 1].

    Raises:
        KeyError: the head cannot do this action unit.
    """
    weights: dict[str, float] = {}
    for stem, gain, sided in FACS[unit]:
        if not sided:
            weights[stem] = gain
            continue
        for half, letter in (("Left", "L"), ("Right", "R")):
            if side in ("", letter):
                weights[stem + half] = gain
    return weights


@dataclass(frozen=True)
class HeadModel:
    """Arrays of the head, float32, ready to be blended.

    Attributes:
        vertices: (N, 3) neutral positions in dm.
        triangles: (M, 3) int32, counter-clockwise seen from outside.
        vertex_material: (N,) int8, one of SKIN, EYE, TEETH, TONGUE.
        action_names, actions: the 52 actions, (52, N, 3) offsets in dm at weight 1.
        identity_names, identities: shape targets, (290, N, 3).
        macro_names, macros: (12, N, 3); weights sum to 1.
        atlas: (N, 2) column and row of each vertex in the paint atlas, in texels.
        occlusion: (N,) share of the sky each vertex sees, in [0, 1].
        normals: (N, 3) unit normals of the neutral head.
    """

    vertices: F32
    triangles: npt.NDArray[np.int32]
    vertex_material: npt.NDArray[np.int8]
    action_names: tuple[str, ...]
    actions: F32
    identity_names: tuple[str, ...]
    identities: F32
    macro_names: tuple[str, ...]
    macros: F32
    atlas: F32
    occlusion: F32
    normals: F32


def _names(array: npt.NDArray[np.str_]) -> tuple[str, ...]:
    return tuple(str(name) for name in array)


def cylinder(points: F32) -> F32:
    """Project neutral positions (N, 3) onto the paint cylinder: (N, 2) column and row in texels."""
    angle = np.arctan2(points[:, 0], points[:, 2] - AXIS_Z)
    column = (angle / MAX_ANGLE + 1.0) * 0.5 * (ATLAS_WIDTH - 1)
    row = (TOP - points[:, 1]) / (TOP - BOTTOM) * (SKIN_ROWS - 1)
    return np.stack([column, row], axis=1).astype(np.float32)


def _atlas(vertices: F32, material: npt.NDArray[np.int8]) -> F32:
    where = cylinder(vertices)
    eye = material == EYE
    centre_x = np.where(vertices[eye, 0] > 0, EYE_CENTRE[0], -EYE_CENTRE[0])
    half = (STRIP_ROWS - 1) / 2
    where[eye, 0] = half * (1.0 + (vertices[eye, 0] - centre_x) / EYE_RADIUS)
    where[eye, 1] = SKIN_ROWS + half * (1.0 - (vertices[eye, 1] - EYE_CENTRE[1]) / EYE_RADIUS)
    plain = (material == TEETH) | (material == TONGUE)
    where[plain] = (STRIP_ROWS + 32.0, SKIN_ROWS + STRIP_ROWS / 2)
    where[:, 0] = np.clip(where[:, 0], 0, ATLAS_WIDTH - 1.001)
    where[:, 1] = np.clip(where[:, 1], 0, ATLAS_ROWS - 1.001)
    return where


@lru_cache(maxsize=1)
def head() -> HeadModel:
    """Load the head once per process (about 0.4 s, most of it the occlusion)."""
    with np.load(ASSET) as file:
        data = {name: file[name] for name in file.files}
    vertices = data["vertices"].astype(np.float32)
    triangles = np.ascontiguousarray(data["triangles"].astype(np.int32))
    material = np.zeros(len(vertices), np.int8)
    for number, corners in zip(data["material"], triangles, strict=True):
        material[corners] = number
    normals = vertex_normals(vertices, triangles)
    return HeadModel(
        vertices=vertices,
        triangles=triangles,
        vertex_material=material,
        action_names=_names(data["action_names"]),
        actions=data["action_offsets"].astype(np.float32),
        identity_names=_names(data["identity_names"]),
        identities=data["identity_offsets"].astype(np.float32),
        macro_names=_names(data["macro_names"]),
        macros=data["macro_offsets"].astype(np.float32),
        atlas=_atlas(vertices, material),
        occlusion=occlusion(vertices, triangles, normals),
        normals=normals,
    )
