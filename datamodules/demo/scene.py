"""What surrounds the demo faces: wall, clothes, light, lens and sensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.demo.encoding import CRF
from datamodules.demo.identity import Identity
from datamodules.demo.motion import Performance
from datamodules.demo.realism import WORST_CRF, Extra, Glasses, folded
from datamodules.demo.render import ORIGIN, Camera, Light, Pose, Renderer

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sensor:
    """Lens and sensor of a camera.

    Attributes:
        exposure: factor on the light.
        cast: (3,) colour cast, factors on linear RGB.
        contrast: about 1; slope around middle gray after encoding.
        blur: standard deviation in pixels.
        noise: standard deviation in gray levels of 255, drawn anew in every frame.
        gray: one channel repeated.
        processed: noise grows with the root of the light, and is smooth.
    """

    exposure: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    gray: bool = False
    processed: bool = False

    def expose(self, linear: F32, gain: float, rng: np.random.Generator) -> U8:
        """Turn linear light (H, W, 3) into the picture (H, W, 3) that the camera writes."""
        light = linear * (np.asarray(self.cast, np.float32) * np.float32(self.exposure * gain))
        picture = np.power(np.clip(light, 0.0, 1.0), np.float32(1 / 2.2)) * np.float32(255.0)
        picture = (picture - np.float32(118.0)) * np.float32(self.contrast) + np.float32(118.0)
        if self.gray:
            picture = picture @ np.array([[0.299], [0.587], [0.114]], np.float32)
        if self.blur > 0:
            blurred = np.asarray(cv2.GaussianBlur(picture, (0, 0), self.blur), np.float32)
            picture = blurred.reshape(picture.shape)  # OpenCV drops a single channel
        if self.noise > 0:
            grain = rng.standard_normal(picture.shape, np.float32)
            if self.processed:
                grain = np.asarray(cv2.GaussianBlur(grain, (0, 0), 0.7), np.float32).reshape(picture.shape)
                grain *= np.sqrt(np.clip(picture, 8.0, 255.0) / np.float32(118.0)) / grain.std()
            picture = picture + np.float32(self.noise) * grain
        return np.repeat(np.clip(np.rint(picture), 0, 255).astype(np.uint8), 3 if self.gray else 1, axis=2)


@dataclass(frozen=True)
class Scene:
    """A place to film in.

    Attributes:
        camera, light, sensor: see there.
        wall: (H, W, 3) linear picture of what is behind.
        cloth: (3,) linear albedo of the clothes.
        shutter: how long a frame is exposed, in shares of the time between two frames.
        wrinkles: depth of the lines that actions press into the skin, in log albedo; 0: none.
        glasses: what is worn, if anything.
    """

    camera: Camera
    light: Light
    sensor: Sensor
    wall: F32
    cloth: tuple[float, float, float] = (0.1, 0.1, 0.12)
    shutter: float = 0.0
    wrinkles: float = 0.0
    glasses: Glasses | None = None

    def film(self, identity: Identity, performance: Performance, rng: np.random.Generator) -> Iterator[U8]:
        """Film a performance: one (H, W, 3) uint8 sRGB picture per frame, rendered when it is asked for."""
        renderer = Renderer(self.camera)
        moments = np.linspace(0.0, self.shutter, 3 if self.shutter else 1)
        for t, gain in enumerate(performance.gain):
            exposed = [self._light(renderer, identity, *performance.at(t + moment)) for moment in moments]
            yield self.sensor.expose(np.mean(exposed, axis=0), float(gain), rng)

    def _light(self, renderer: Renderer, identity: Identity, actions: F32, pose: Pose) -> F32:
        """The light (H, W, 3) of one moment."""
        if self.wrinkles:
            identity = folded(identity, actions, self.wrinkles)
        linear = renderer.linear(identity, actions, pose, self.light, self.wall)
        if self.glasses is not None:
            self.glasses.wear(linear, renderer, pose, self.light)
        self._dress(linear, pose)
        return linear

    def _dress(self, linear: F32, pose: Pose) -> None:
        """Put shoulders and a round collar over the lower end of the neck, in place."""
        camera = self.camera
        x = (np.arange(camera.width) + 0.5 - camera.centre[0] * camera.width - pose.shift[0]) / camera.scale
        across = np.abs(x)
        collar = 6.14 - 0.2 * np.sqrt(np.clip(1.0 - (across / 0.75) ** 2, 0.0, 1.0))
        shoulder = 6.14 - 0.22 * np.clip(across - 0.75, 0, None) - 0.12 * np.clip(across - 0.75, 0, None) ** 2
        edge = np.where(across < 0.75, collar, shoulder)
        row = camera.centre[1] * camera.height - 0.5 + pose.shift[1] + (ORIGIN[1] - edge) * camera.scale
        first = max(int(row.min()) - 1, 0)
        if first >= camera.height:
            return
        rows = np.arange(first, camera.height)[:, None]
        alpha = np.clip(rows - row + 0.5, 0.0, 1.0)[..., None].astype(np.float32)
        seam = np.clip(1.0 - (rows - row) / (0.1 * camera.scale), 0.0, 1.0)  # the collar's rim
        shade = (0.75 + 0.25 * seam - 0.15 * (across / 2.0))[..., None]
        cloth = np.asarray(self.cloth) * shade * (self.light.key * 0.6 + self.light.sky)
        linear[first:] = linear[first:] * (1 - alpha) + cloth.astype(np.float32) * alpha


def plain_wall(camera: Camera, colour: tuple[float, float, float], fall_off: float) -> F32:
    """A laboratory wall: one linear colour, darker by ``fall_off`` from left to right."""
    ramp = np.linspace(1.0, 1.0 - fall_off, camera.width, dtype=np.float32)[None, :, None]
    row = ramp * np.asarray(colour, np.float32)
    return np.ascontiguousarray(np.broadcast_to(row, (camera.height, camera.width, 3)))


def out_of_focus(rng: np.random.Generator, camera: Camera) -> F32:
    """A room or a street behind the speaker: blurred patches of light, linear."""
    cells = int(rng.integers(3, 9))
    log = rng.normal(0.0, rng.uniform(0.1, 0.8), (cells, cells, 1)) + rng.normal(0.0, 0.1, (cells, cells, 3))
    colour = np.log(rng.uniform(0.03, 0.6)) + rng.normal(0.0, 0.12, 3)
    small = np.exp(log + colour).astype(np.float32)
    grown = cv2.resize(small, (camera.width, camera.height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(np.clip(grown, 0.003, 1.0), np.float32)


def street_scene(rng: np.random.Generator, pixels: int) -> Scene:
    """A random interview: light, background, camera. What `realism` adds to it: ``as_real``."""
    camera = Camera(pixels, pixels, pixels * rng.uniform(0.34, 0.41), (0.5, rng.uniform(0.48, 0.53)))
    light = Light(
        azimuth=float(rng.normal(0, 35)),
        elevation=float(rng.uniform(5, 55)),
        key=float(rng.uniform(0.5, 0.95)),
        fill=float(rng.uniform(0.05, 0.3)),
        sky=float(rng.uniform(0.2, 0.5)),
        colour=tuple(1.0 + rng.normal(0, 0.06, 3)),
    )
    sensor = Sensor(
        exposure=float(np.exp(rng.normal(0.25, 0.2))),
        cast=tuple(np.exp(rng.normal(0, 0.06, 3))),
        contrast=float(rng.uniform(0.85, 1.15)),
        blur=float(rng.uniform(0.3, 0.8)),
        noise=float(rng.uniform(1.0, 4.0)),
    )
    cloth = tuple(np.exp(rng.uniform(-4.0, -0.7) + rng.normal(0, 0.3, 3)))
    return Scene(camera, light, sensor, out_of_focus(rng, camera), cloth)


def as_real(scene: Scene, realism: Sequence[Extra], rng: np.random.Generator) -> tuple[Scene, int]:
    """An interview with what real ones have besides, and the quality it is encoded in (x264's crf).

    Every extra is drawn whether it is wanted or not, so that corpora differ by nothing else.
    """
    glasses = Glasses.random(rng) if rng.random() < 0.35 else None
    wrinkles, crf = float(rng.uniform(0.1, 0.5)), int(rng.integers(CRF, WORST_CRF + 1))
    return replace(
        scene,
        sensor=replace(scene.sensor, processed="camera" in realism),
        shutter=0.5 if "shutter" in realism else 0.0,
        wrinkles=wrinkles if "wrinkles" in realism else 0.0,
        glasses=glasses if "glasses" in realism else None,
    ), crf if "camera" in realism else CRF
