"""A face is moved in its whole picture: at full resolution, without a seam, and nothing beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mefar.generation.pasting import paste
from mefar.tokens import Movement

SIZE = 48
SCALE, TURN = 1 / 5, 0.3
MATRIX = np.array(
    [[SCALE * np.cos(TURN), -SCALE * np.sin(TURN), 4.0], [SCALE * np.sin(TURN), SCALE * np.cos(TURN), -20.0]]
)


def picture(gray: bool = False) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    return np.repeat(noise[..., :1], 3, axis=2) if gray else noise


def movement(x: float = 0.0, y: float = 0.0, red: float = 0.0) -> Movement:
    flow = torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, SIZE, SIZE)
    residual = torch.tensor([red, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    return Movement(flow, residual)


def crop_coordinates(shape: tuple[int, ...], matrix: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.stack([x, y], -1) @ matrix[:, :2].T + matrix[:, 2]


def test_beside_the_crop_nothing_changes_and_inside_nearly_everything() -> None:
    before = picture()
    after = paste(before, MATRIX, movement(2, 1, 0.1))
    at = crop_coordinates(before.shape, MATRIX)
    outside = ((at < 0) | (at > SIZE - 1)).any(-1)
    changed = (before != after).any(-1)
    assert outside.any() and not changed[outside].any()
    inside = ((at > 4) & (at < SIZE - 5)).all(-1)
    assert changed[inside].mean() > 0.99


def test_no_movement_gives_the_same_bytes() -> None:
    before = picture()
    assert np.array_equal(paste(before, MATRIX, movement(2, 1, 0.1).scaled(0)), before)


@pytest.mark.parametrize("turned", [False, True])
def test_the_warp_has_the_resolution_of_the_picture(turned: bool) -> None:
    """White noise is moved by whole pixels without a digit lost; a crop pasted back would be mud."""
    linear = np.array([[0, -0.2], [0.2, 0]]) if turned else np.array([[0.2, 0], [0, 0.2]])
    middle = np.array([150.0, 200.0])
    matrix = np.concatenate([linear, ((SIZE - 1) / 2 - linear @ middle)[:, None]], 1)
    before = picture()
    after = paste(before, matrix, movement(x=2.0))  # 10 px of the picture: to the right, or up where turned
    x, y = (0, -10) if turned else (10, 0)
    wanted = before[170 + y : 230 + y, 120 + x : 180 + x]
    assert np.abs(after[170:230, 120:180].astype(int) - wanted).max() <= 1


def test_the_movement_fades_smoothly_towards_the_edge() -> None:
    """A ramp stays a ramp: no step where the moved face meets what is around it."""
    ramp = (
        np.repeat(np.tile(np.linspace(0, 255, 300), (400, 1))[..., None], 3, axis=2).round().astype(np.uint8)
    )
    steps = np.abs(np.diff(paste(ramp, MATRIX, movement(x=3.0)).astype(int), axis=1))
    assert steps.max() <= 5  # 1 where nothing moves


def test_a_gray_picture_stays_gray() -> None:
    after = paste(picture(gray=True), MATRIX, movement(1, 0, 0.3))
    assert (after == after[..., :1]).all()
    assert not np.array_equal(after, picture(gray=True))
