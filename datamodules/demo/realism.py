"""What real interviews have and the demo's talking faces lack, by the names of `mefar make-demo --realism`.

- wrinkles: lines that deepen with the actions that press the skin together
- glasses: on a third of the speakers
- shutter: an exposure of half the time between two frames
- camera: noise that grows with light and is smooth, as after a camera's processing; H.264 good to poor
- turns: heads that turn two and a half times as far, and as fast
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.demo.head import EYE_CENTRE, SKIN_ROWS, head
from datamodules.demo.identity import Identity, texel_points
from datamodules.demo.render import Light, Pose, Renderer

F32 = npt.NDArray[np.float32]
Extra = Literal["wrinkles", "glasses", "shutter", "camera", "turns"]

TURNING = 2.5  # factor on head motion
WORST_CRF = 32
FINE = 4  # samples per pixel and axis of what is drawn over the face

# Lines on the right half (x > 0) of the neutral head, in dm, with the actions that fold the skin there; those
# without a side are said once for both halves.
LINES: Final[tuple[tuple[tuple[str, ...], tuple[tuple[float, float], ...]], ...]] = (
    (("browInnerUp", "browOuterUp"), ((0.00, 7.64), (0.20, 7.66), (0.44, 7.63))),
    (("browInnerUp", "browOuterUp"), ((0.00, 7.73), (0.22, 7.75), (0.46, 7.71))),
    (("browInnerUp", "browOuterUp"), ((0.00, 7.82), (0.20, 7.84), (0.38, 7.81))),
    (("browDown",), ((0.055, 7.36), (0.065, 7.46), (0.05, 7.57))),
    (("eyeSquint", "cheekSquint"), ((0.47, 7.31), (0.53, 7.33), (0.60, 7.37))),
    (("eyeSquint", "cheekSquint"), ((0.47, 7.28), (0.54, 7.27), (0.61, 7.26))),
    (("eyeSquint", "cheekSquint"), ((0.46, 7.25), (0.52, 7.22), (0.58, 7.17))),
    (("eyeSquint", "cheekSquint"), ((0.18, 7.19), (0.30, 7.15), (0.42, 7.18))),
    (("noseSneer",), ((0.05, 7.20), (0.09, 7.15), (0.12, 7.08))),
    (("noseSneer",), ((0.04, 7.14), (0.08, 7.09), (0.11, 7.02))),
    (("mouthSmile", "cheekSquint", "mouthUpperUp"), ((0.17, 6.95), (0.27, 6.80), (0.35, 6.62), (0.36, 6.52))),
    (("mouthDimple", "mouthSmile"), ((0.37, 6.68), (0.39, 6.61), (0.37, 6.54))),
    (("mouthShrugLower",), ((0.02, 6.36), (0.08, 6.35), (0.14, 6.31))),
    (("mouthFrown",), ((0.27, 6.55), (0.30, 6.48), (0.30, 6.38))),
)


@dataclass(frozen=True)
class Glasses:
    """A pair of glasses; lengths in dm.

    Attributes:
        width, height: half of a lens.
        roundness: 2 is an ellipse, more is a rectangle.
        rim: thickness of the frame.
        colour: (3,) linear albedo of the frame.
        reflection: light that the lenses add, in shares of the sky's.
    """

    width: float
    height: float
    roundness: float
    rim: float
    colour: tuple[float, float, float]
    reflection: float

    @staticmethod
    def random(rng: np.random.Generator) -> Glasses:
        """Draw a pair."""
        shade = float(np.exp(rng.uniform(-4.0, -1.0)))
        warm = rng.uniform(0.6, 1.0)
        return Glasses(
            width=float(rng.uniform(0.20, 0.26)),
            height=float(rng.uniform(0.14, 0.21)),
            roundness=float(rng.uniform(2.0, 5.0)),
            rim=float(rng.uniform(0.010, 0.035)),
            colour=(shade, shade * warm, shade * warm**2),
            reflection=float(rng.uniform(0.0, 0.12)),
        )

    def wear(self, linear: F32, renderer: Renderer, pose: Pose, light: Light) -> None:
        """Draw the glasses over a rendered face (H, W, 3), in place."""
        rims = [self._rim(side) for side in (-1.0, 1.0)]
        inner, outer = EYE_CENTRE[0] - self.width, EYE_CENTRE[0] + self.width
        bar = np.array([[-inner, 7.29, 1.47], [0.0, 7.32, 1.49], [inner, 7.29, 1.47]])
        temples = [np.array([[side * outer, 7.32, 1.42], [side * 0.72, 7.32, 0.75]]) for side in (-1.0, 1.0)]
        lines = [*((rim, True) for rim in rims), *((line, False) for line in (bar, *temples))]
        frame = self._drawn(renderer, pose, lines, filled=False)
        lenses = self._drawn(renderer, pose, [(rim, True) for rim in rims], filled=True)
        lit = np.asarray(self.colour, np.float32) * (light.key * 0.5 + light.sky)
        across = np.linspace(0.3, 1.0, linear.shape[1], dtype=np.float32)[None, :, None]
        linear *= 1.0 - 0.08 * lenses
        linear += lenses * across * self.reflection * light.sky
        linear *= 1.0 - frame
        linear += frame * lit

    def _rim(self, side: float) -> F32:
        angle = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)
        power = 2.0 / self.roundness
        x = side * EYE_CENTRE[0] + self.width * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
        y = EYE_CENTRE[1] - 0.03 + self.height * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
        z = 1.47 - 0.25 * x**2  # the frame bends around the face
        return np.stack([x, y, z], axis=1).astype(np.float32)

    def _drawn(self, renderer: Renderer, pose: Pose, lines: Sequence[tuple[F32, bool]], filled: bool) -> F32:
        """Share (H, W, 1) of every pixel that lines, or the insides of closed ones, cover."""
        camera = renderer.camera
        canvas = np.zeros((camera.height * FINE, camera.width * FINE), np.uint8)
        thickness = max(1, round(self.rim * camera.scale * FINE))
        for points, closed in lines:
            where = renderer.project(renderer.turn(np.asarray(points, np.float32), pose))
            corners = np.rint((where + 0.5) * FINE - 0.5).astype(np.int32)
            if filled:
                cv2.fillPoly(canvas, [corners], 255)
            else:
                cv2.polylines(canvas, [corners], closed, 255, thickness)
        small = cv2.resize(canvas, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.float32)[..., None] / np.float32(255.0)


@lru_cache(maxsize=1)
def _folds() -> Mapping[str, F32]:
    """For every action that folds the skin, how deep at each texel: (SKIN_ROWS, ATLAS_WIDTH), 1 in a line."""
    points = texel_points()
    x, y, front = points[..., 0], points[..., 1], points[..., 2] > 0.9
    depth: dict[str, F32] = {}
    for stems, line in LINES:
        corners = np.asarray(line)
        along = np.linspace(0.0, 1.0, 40)
        knots = np.linspace(0.0, 1.0, len(corners))
        px, py = np.interp(along, knots, corners[:, 0]), np.interp(along, knots, corners[:, 1])
        for side, half in ((1.0, "Left"), (-1.0, "Right")):
            nearest = np.full(x.shape, np.inf)
            near = front & (np.abs(y - py.mean()) < 0.4) & (side * x > -0.05)
            gaps = np.hypot(side * x[near][:, None] - px, y[near][:, None] - py)
            nearest[near] = gaps.min(axis=1)
            ends = np.where(near, 1.0, 0.0)
            ends[near] = 0.4 + 0.6 * np.sin(np.pi * along[gaps.argmin(axis=1)])
            dark = np.exp(-((nearest / 0.012) ** 2)) - 0.3 * np.exp(-(((nearest - 0.03) / 0.014) ** 2))
            mask = np.asarray(ends * dark, np.float32)
            for stem in stems:
                name = stem if stem in head().action_names else stem + half
                depth[name] = depth.get(name, np.float32(0.0)) + mask
    return depth


def folded(identity: Identity, actions: F32, depth: float) -> Identity:
    """Somebody with the wrinkles that their actions (52,) press into their skin, `depth` of log albedo."""
    names = head().action_names
    total = np.zeros((SKIN_ROWS, identity.paint.shape[1]), np.float32)
    for name, mask in _folds().items():
        weight = float(actions[names.index(name)])
        if weight > 0.01:
            total += weight * mask
    if not total.any():
        return identity
    paint = identity.paint.copy()
    paint[:SKIN_ROWS] *= np.exp(-depth * np.minimum(total, 1.5))[..., None]
    return replace(identity, paint=paint)
