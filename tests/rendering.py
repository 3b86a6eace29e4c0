"""Rendered faces for tests, with the true places of eyes and mouth."""

from functools import cache

import numpy as np

from datamodules.demo.head import head
from datamodules.demo.identity import Identity
from datamodules.demo.render import Camera, Light, Pose, Renderer


@cache
def identity(seed: int) -> Identity:
    return Identity.random(np.random.default_rng(seed))


def weights(actions: dict[str, float]) -> np.ndarray:
    """Action name -> weight as (52,) weights in the head's order."""
    names = head().action_names
    row = np.zeros(len(names), np.float32)
    row[[names.index(name) for name in actions]] = list(actions.values())
    return row


def render(
    renderer: Renderer,
    person: Identity,
    actions: dict[str, float] | None = None,
    pose: Pose | None = None,
    light: Light | None = None,
) -> np.ndarray:
    """One clean frame (no sensor) before a gray wall, (H, W, 3) uint8 sRGB."""
    wall = np.full((renderer.camera.height, renderer.camera.width, 3), 0.25, np.float32)
    light, pose = light or Light(), pose or Pose()
    linear = renderer.linear(person, weights(actions or {}), pose, light, wall)
    return (np.clip(linear, 0.0, 1.0) ** (1 / 2.2) * 255.0 + 0.5).astype(np.uint8)


def face(
    seed: int = 0,
    actions: dict[str, float] | None = None,
    pose: Pose | None = None,
    pixels: int = 160,
    share: float = 0.38,
    noise: float = 3.0,
    centre: tuple[float, float] = (0.5, 0.52),
) -> np.ndarray:
    """One (pixels, pixels, 3) uint8 frame; `share`: pixels per decimetre over the picture's side."""
    camera = Camera(pixels, pixels, pixels * share, centre)
    light = Light(key=1.0, fill=0.3, sky=0.6)
    clean = render(Renderer(camera), identity(seed), actions, pose, light).astype(float)
    grain = np.random.default_rng(seed + 1).normal(0, noise, clean.shape)
    return np.clip(clean + grain, 0, 255).round().astype(np.uint8)
