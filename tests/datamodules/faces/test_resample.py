from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.faces.resample import resample


def picture(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return 128 + 60 * np.sin(x / 60 + 0.3) * np.cos(y / 50)


def about(scale: float, degrees: float, centre: tuple[float, float], size: int) -> NDArray[np.float64]:
    """Similarity that brings a point of the frame to the middle of the crop."""
    angle = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([linear, ((size - 1) / 2 - linear @ np.array(centre))[:, None]], 1)


@pytest.mark.parametrize("scale", [0.08, 0.13, 0.26, 0.499, 0.501, 0.9, 1.7])
@pytest.mark.parametrize("flip", [False, True])
def test_every_pixel_comes_from_where_the_transform_says(scale: float, flip: bool) -> None:
    rows, columns = np.mgrid[0:700, 0:900].astype(float)
    frame = np.repeat(np.rint(picture(columns, rows)).astype(np.uint8)[..., None], 3, 2)
    size = 48
    matrix = about(scale, 7.0, (460.3, 340.8), size)
    if flip:
        matrix = np.array([[-1.0, 0.0, size - 1.0], [0.0, 1.0, 0.0]]) @ np.vstack([matrix, [0, 0, 1]])
    crop = resample(frame, matrix, size)[..., 0].astype(float)
    y, x = np.mgrid[0:size, 0:size].reshape(2, -1)
    source = cv2.invertAffineTransform(matrix) @ np.stack([x, y, np.ones(size * size)])
    inside = (source[0] > 20) & (source[0] < 880) & (source[1] > 20) & (source[1] < 680)
    error = (crop.ravel() - picture(*source))[inside]
    assert inside.sum() > 1000
    assert abs(error.mean()) < 0.2
    assert error.std() < 0.7  # rounding is 0.3; the smoothing flattens the waves a little at the smallest


def test_noise_falls_with_the_scale_and_without_steps() -> None:
    noise = np.random.default_rng(0).normal(128, 20, (1000, 1000, 3)).clip(0, 255).astype(np.uint8)

    def left(scale: float) -> float:
        return float(resample(noise, about(scale, 0.0, (500.3, 500.4), 48), 48).std())

    scales = np.array([0.06, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
    found = np.array([left(s) for s in scales])
    assert (np.diff(found) > 0).all()
    assert left(0.1) < 0.1 * 20
    for scale in (1 / 16, 1 / 12, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 1.0):
        assert left(scale * 1.001) == pytest.approx(left(scale * 0.999), rel=0.06)


@pytest.mark.parametrize("scale", [0.06, 0.1, 0.2])
def test_the_smoothing_is_half_a_pixel_of_the_crop(scale: float) -> None:
    noise = np.random.default_rng(1).normal(128, 40, (1000, 1000, 3)).clip(0, 255).astype(np.uint8)
    left = resample(noise, about(scale, 0.0, (500.3, 500.4), 48), 48).astype(float).std()
    width = 0.5 * np.sqrt(1 / scale**2 - 1)  # in pixels of the frame
    expected = np.hypot(noise.std() / (2 * np.sqrt(np.pi) * width), np.sqrt(2 / 12))
    assert left == pytest.approx(expected, rel=0.05)


def test_outside_the_frame_edges_are_repeated() -> None:
    frame = np.full((40, 40, 3), 90, np.uint8)
    for scale in (0.1, 0.4, 2.0):
        assert (resample(frame, about(scale, 0.0, (0.0, 60.0), 32), 32) == 90).all()
