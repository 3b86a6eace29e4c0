"""Render the parametric head: identity, actions, pose and camera in, picture out.

One frame of 160 x 160 pixels takes 3 ms on one core. Normals are recomputed from the deformed vertices of
every frame, so creases (nasolabial fold, frown) appear by shading alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from datamodules.demo.head import head
from datamodules.demo.identity import Identity
from datamodules.demo.kernels import rasterize, shade, vertex_normals

F32 = npt.NDArray[np.float32]

PIVOT: Final = np.array([0.0, 6.55, 0.35], np.float32)  # where the skull turns on the neck
ORIGIN: Final = np.array([0.0, 7.15, 1.0], np.float32)  # what the camera looks at
DISTANCE = 9.0  # camera to ORIGIN, dm
SAMPLES = 2  # per pixel along each axis


@dataclass(frozen=True)
class Pose:
    """Rigid head pose: degrees and pixels.

    Attributes:
        yaw: positive turns the face to the subject's left (right of the picture).
        pitch: positive looks down.
        roll: positive tilts clockwise in the picture.
        shift: (right, down) in pixels.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Light:
    """Light of a scene; colours are linear RGB.

    Attributes:
        azimuth, elevation: direction of the key light in degrees (0, 0 = from the camera; positive = from the
            right of the picture, from above).
        key, fill, sky: strengths; about 1 in all gives a well exposed face.
        colour: (3,) colour of the key light.
    """

    azimuth: float = 25.0
    elevation: float = 35.0
    key: float = 0.75
    fill: float = 0.2
    sky: float = 0.35
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def array(self) -> F32:
        """Return the (6, 3) array that ``kernels.shade`` reads."""
        azimuth, elevation = np.deg2rad([self.azimuth, self.elevation])
        level = np.cos(elevation)
        towards = [np.sin(azimuth) * level, np.sin(elevation), np.cos(azimuth) * level]
        away = [-np.sign(self.azimuth + 1e-6) * 0.75, 0.05, 0.66]
        colour = np.asarray(self.colour)
        wrap = [0.35, 0.22, 0.16]  # red light travels farthest under skin
        rows = [towards, colour * self.key, away, np.full(3, self.fill), np.full(3, self.sky), wrap]
        return np.asarray(rows, np.float32)


@dataclass(frozen=True)
class Camera:
    """Where the head lands in the picture.

    Attributes:
        width, height: pixels.
        scale: pixels per decimetre at the face.
        centre: (column, row) of the point between eyes and mouth, as a share of width and height.
    """

    width: int = 160
    height: int = 160
    scale: float = 50.0
    centre: tuple[float, float] = (0.5, 0.52)


class Renderer:
    """Reusable buffers for one picture size.

    Args:
        camera: picture size and framing.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        rows, columns = camera.height * SAMPLES, camera.width * SAMPLES
        self._depth = np.zeros((rows, columns), np.float32)
        self._owner = np.full((rows, columns), -1, np.int32)
        self._bary = np.zeros((rows, columns, 2), np.float32)

    def deform(self, identity: Identity, actions: F32) -> F32:
        """Return the (N, 3) vertices in dm of an identity showing actions (52,), without pose."""
        vertices = identity.shape.copy()
        for k in np.flatnonzero(actions):
            vertices += actions[k] * head().actions[k]
        return vertices

    def place(self, vertices: F32, pose: Pose) -> F32:
        """Turn the head on its neck and move it to camera space: (N, 3) dm, camera at 0 looking along -z."""
        # The neck's lower end stays with the shoulders.
        follow = np.clip((head().vertices[:, 1:2] - 5.8) / 0.55, 0.0, 1.0)
        return self.turn(vertices, pose, follow * follow * (3.0 - 2.0 * follow))

    def turn(self, vertices: F32, pose: Pose, follow: F32 | float = 1.0) -> F32:
        """The same of any points (N, 3) dm; ``follow``: how far each goes along, (N, 1) in [0, 1]."""
        yaw, pitch, roll = np.deg2rad([pose.yaw, pose.pitch, -pose.roll])
        (cy, cx, cz), (sy, sx, sz) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
        about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        rotation = (about_z @ about_y @ about_x).astype(np.float32)
        turned = (vertices - PIVOT) @ rotation.T + PIVOT
        placed = vertices + follow * (turned - vertices) - ORIGIN
        placed[:, 2] -= DISTANCE
        placed[:, 0] += pose.shift[0] / self.camera.scale
        placed[:, 1] -= pose.shift[1] / self.camera.scale
        return np.ascontiguousarray(placed, np.float32)

    def project(self, placed: F32) -> F32:
        """Project camera space (N, 3) to (N, 2) pixel columns and rows (pixel centres at integers)."""
        camera = self.camera
        focal = camera.scale * DISTANCE
        column = camera.centre[0] * camera.width - 0.5 + focal * placed[:, 0] / -placed[:, 2]
        row = camera.centre[1] * camera.height - 0.5 - focal * placed[:, 1] / -placed[:, 2]
        return np.stack([column, row], axis=1).astype(np.float32)

    def linear(self, identity: Identity, actions: F32, pose: Pose, light: Light, background: F32) -> F32:
        """Render one frame in linear light.

        Args:
            identity: who.
            actions: (52,) weights in the order of ``HeadModel.action_names``.
            pose: head pose.
            light: the scene's light.
            background: (H, W, 3) linear picture behind the head.

        Returns:
            (H, W, 3) float32, about [0, 1], not clipped.
        """
        model = head()
        placed = self.place(self.deform(identity, actions), pose)
        normals = vertex_normals(placed, model.triangles)
        screen = np.empty((len(placed), 3), np.float32)
        # Sample s of pixel p along an axis lies at p + (s + 0.5) / SAMPLES - 0.5.
        screen[:, :2] = (self.project(placed) + 0.5) * SAMPLES - 0.5
        screen[:, 2] = -1.0 / placed[:, 2]
        self._depth.fill(0.0)
        self._owner.fill(-1)
        rasterize(screen, model.triangles, self._depth, self._owner, self._bary)
        out = np.empty((self.camera.height, self.camera.width, 3), np.float32)
        shade(
            self._owner,
            self._bary,
            model.triangles,
            normals,
            placed,
            model.atlas,
            identity.tint,
            identity.gloss,
            identity.paint,
            light.array(),
            background,
            SAMPLES,
            out,
        )
        return out
