"""Rendered faces for tests, with the true places of eyes and mouth."""

from functools import cache

import numpy as np

from datamodules.demo.identity import Identity
from datamodules.demo.render import Camera, Light, Pose, Renderer


@cache
def identity(seed: int) -> Identity:
    return Identity.random(np.random.default_rng(seed))


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
    clean = Renderer(camera).render(identity(seed), actions or {}, pose, light).astype(float)
    grain = np.random.default_rng(seed + 1).normal(0, noise, clean.shape)
    return np.clip(clean + grain, 0, 255).round().astype(np.uint8)
