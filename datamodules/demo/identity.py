"""Who is rendered: shape, skin, brows, lips, eyes and hair of one person, all from a random generator.

Macro weights sum to 1; targets have standard deviation 0.10 to 0.15, beyond which faces turn grotesque.
Colours are linear albedos. Everything painted is a function of the neutral head's position, so it moves with
the skin.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.demo.head import (
    ATLAS_ROWS,
    ATLAS_WIDTH,
    AXIS_Z,
    BOTTOM,
    EYE,
    EYE_CENTRE,
    EYE_RADIUS,
    SKIN,
    SKIN_ROWS,
    STRIP_ROWS,
    TEETH,
    TONGUE,
    TOP,
    cylinder,
    head,
)
from datamodules.demo.kernels import rasterize

F32 = npt.NDArray[np.float32]

# Linear albedo of light and dark skin, and of hair from blond to black, from common sRGB swatches.
LIGHT_SKIN: Final = np.log(np.array([0.80, 0.52, 0.40]))
DARK_SKIN: Final = np.log(np.array([0.115, 0.050, 0.030]))
BLACK, DARK_BROWN, BROWN = (0.015, 0.012, 0.011), (0.03, 0.018, 0.012), (0.075, 0.035, 0.018)
HAIR: Final = np.array([BLACK, DARK_BROWN, BROWN, (0.16, 0.085, 0.04), (0.30, 0.28, 0.26)])
IRIS: Final = np.array([[0.035, 0.016, 0.008], [0.09, 0.045, 0.018], [0.12, 0.13, 0.05], [0.10, 0.19, 0.28]])


@dataclass(frozen=True)
class Identity:
    """One person.

    Attributes:
        shape: (N, 3) vertices at rest, dm.
        paint: (ATLAS_ROWS, ATLAS_WIDTH, 3) linear albedo.
        tint: (N, 3) factor on the paint: occlusion, lashes, gums.
        gloss: (N, 2) strength and exponent of highlights.
        macro: (12,) weights, sum 1.
        targets: (290,) weights.
    """

    shape: F32
    paint: F32
    tint: F32
    gloss: F32
    macro: F32
    targets: F32

    @staticmethod
    def random(rng: np.random.Generator) -> Identity:
        """Draw a person."""
        model = head()
        macro = rng.dirichlet(np.full(len(model.macro_names), 0.35)).astype(np.float32)
        targets = _targets(rng)
        shape = (
            model.vertices + np.tensordot(macro, model.macros, 1) + np.tensordot(targets, model.identities, 1)
        )
        male = float(sum(w for w, name in zip(macro, model.macro_names, strict=True) if "-male" in name))
        african = float(sum(w for w, name in zip(macro, model.macro_names, strict=True) if "african" in name))
        old = float(sum(w for w, name in zip(macro, model.macro_names, strict=True) if "old" in name))
        skin_tone = float(np.clip(rng.beta(1.2, 2.2) + 0.55 * african, 0.0, 1.0))
        shade = rng.choice(4, p=[0.4, 0.3, 0.2, 0.1] if skin_tone < 0.45 else [0.8, 0.2, 0.0, 0.0])
        hair = HAIR[shade] * rng.uniform(0.7, 1.3)
        if old > 0.6 and rng.random() < 0.6:
            hair = 0.4 * hair + 0.6 * HAIR[4] * rng.uniform(0.6, 1.1)
        bald = male > 0.5 and rng.random() < 0.15
        line = rng.uniform(-0.10, 0.12) + (0.12 * old if male > 0.5 else 0.0)
        cover = (
            np.zeros(len(shape), np.float32)
            if bald
            else _hair_cover(model.vertices, line, 0.3) * (1 - _ears())
        )
        volume = rng.uniform(0.04, 0.12) + (0.08 * (1.0 - male))
        lumps = 1.0 + 0.25 * np.sin(model.vertices @ rng.normal(0, 5.0, 3) + rng.uniform(0, 6.3))
        shape = shape + (cover * volume * lumps)[:, None] * model.normals
        # The macros differ in body height: put everybody's eyes where the neutral head has them.
        eyes = model.vertex_material == EYE
        shape = shape + (model.vertices[eyes].mean(axis=0) - shape[eyes].mean(axis=0))
        paint = _paint(rng, skin_tone, hair, None if bald else line, male, old)
        tint, gloss = _surface(rng, cover)
        return Identity(shape.astype(np.float32), paint, tint, gloss, macro, targets)


def _targets(rng: np.random.Generator) -> F32:
    """Draw target weights; left and right eyes, ears and cheeks agree but for a small asymmetry."""
    names = head().identity_names
    spread = rng.uniform(0.10, 0.15)
    drawn: dict[str, float] = {}
    for name in names:
        stem = name.replace("/l-", "/").replace("/r-", "/")
        if stem not in drawn:
            drawn[stem] = abs(float(rng.normal(0.0, spread)))
    weights = np.zeros(len(names), np.float32)
    for k, name in enumerate(names):
        stem = name.replace("/l-", "/").replace("/r-", "/")
        limit = 0.3 if name.startswith(("neck/", "head/head-trans")) else 1.0
        weights[k] = drawn[stem] * limit * (1.0 + 0.15 * float(rng.normal()))
    return weights


def _smooth(low: float, high: float, value: npt.NDArray[np.floating]) -> F32:
    """Step from 0 at ``low`` to 1 at ``high``, smooth at both ends."""
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return np.asarray(share * share * (3.0 - 2.0 * share), np.float32)


def _hair_cover(points: F32, line: float, full: float = 0.07) -> F32:
    """Share of hair at neutral positions (N, 3): 0 on the face, 1 from ``full`` dm above the hairline."""
    angle = np.abs(np.arctan2(points[:, 0], points[:, 2] - AXIS_Z))
    knots = np.array([0.0, 0.45, 0.75, 0.95, 1.2, 1.45, 1.6, 1.75, 2.0, 3.2])
    heights = np.array([8.02, 8.0, 7.88, 7.66, 7.36, 7.12, 7.3, 7.0, 6.6, 6.4]) + line * 0.8
    edge = np.interp(angle, knots, heights)
    return _smooth(-0.05, full, (points[:, 1] - edge).astype(np.float32))


def _ears() -> F32:
    """How much each vertex (N,) belongs to an ear, in [0, 1]."""
    model = head()
    moved = np.zeros(len(model.vertices), np.float32)
    for name in ("ears/l-ear-wing-incr", "ears/r-ear-wing-incr"):  # they move the ear and nothing around it
        distance = np.linalg.norm(model.identities[model.identity_names.index(name)], axis=1)
        moved = np.maximum(moved, distance / distance.max())
    return _smooth(0.04, 0.15, moved)


@lru_cache(maxsize=1)
def texel_points() -> F32:
    """Position and ear share (SKIN_ROWS, ATLAS_WIDTH, 4) of the outermost skin; NaN where none is."""
    model = head()
    attributes = np.column_stack([model.vertices, _ears()])
    where = cylinder(model.vertices)
    skin = model.vertex_material[model.triangles].max(axis=1) == SKIN
    spread = np.ptp(where[model.triangles, 0], axis=1)
    triangles = np.ascontiguousarray(model.triangles[skin & (spread < ATLAS_WIDTH / 4)])
    radius = np.hypot(model.vertices[:, 0], model.vertices[:, 2] - AXIS_Z) + 1.0
    screen = np.column_stack([where, radius]).astype(np.float32)
    depth = np.zeros((SKIN_ROWS, ATLAS_WIDTH), np.float32)
    owner = np.full((SKIN_ROWS, ATLAS_WIDTH), -1, np.int32)
    bary = np.zeros((SKIN_ROWS, ATLAS_WIDTH, 2), np.float32)
    rasterize(screen, triangles, depth, owner, bary)
    corners = attributes[triangles[np.maximum(owner, 0)]]
    b, c = bary[..., :1], bary[..., 1:]
    points = corners[..., 0, :] * (1 - b - c) + corners[..., 1, :] * b + corners[..., 2, :] * c
    points[owner < 0] = np.nan
    # Around the crown triangles are too wide for a cylinder; all that matters there is height.
    height = np.linspace(TOP, BOTTOM, SKIN_ROWS)[:, None]
    crown = (owner < 0) & (height > 8.2)
    points[crown] = (0.0, 0.0, AXIS_Z, 0.0)
    points[crown, 1] = np.broadcast_to(height, crown.shape)[crown]
    return np.asarray(points, np.float32)


@lru_cache(maxsize=1)
def _lip_texels() -> F32:
    """Share of lip colour (SKIN_ROWS, ATLAS_WIDTH) at every texel."""
    x, y = texel_points()[..., 0], texel_points()[..., 1]
    z = texel_points()[..., 2]
    across = np.clip(np.abs(x) / 0.27, 0.0, 1.0)
    top = 6.745 - 0.10 * across**1.6 - 0.018 * np.exp(-((x / 0.03) ** 2))
    bottom = 6.50 + 0.135 * across**2.2
    inside = _smooth(-0.012, 0.012, top - y) * _smooth(-0.012, 0.012, y - bottom)
    inside = inside * _smooth(0.0, 0.02, 0.275 - np.abs(x)) * (z > 1.2)
    return np.asarray(np.nan_to_num(inside), np.float32)


def _noise(rng: np.random.Generator, cell: float) -> F32:
    """Smooth noise on the skin, about unit variance, one independent value every ``cell`` texels."""
    grid = rng.standard_normal((int(SKIN_ROWS / cell) + 3, int(ATLAS_WIDTH / cell) + 3), np.float32)
    return np.asarray(cv2.resize(grid, (ATLAS_WIDTH, SKIN_ROWS), interpolation=cv2.INTER_CUBIC), np.float32)


def _brow(rng: np.random.Generator, x: F32, y: F32) -> F32:
    """Density of brow hair at each texel, in [0, 1]."""
    lift, arch, thick = rng.normal(0, 0.02), rng.uniform(0.02, 0.09), rng.uniform(0.032, 0.062)
    start, end = rng.uniform(0.09, 0.14), rng.uniform(0.50, 0.58)
    along = (np.abs(x) - start) / (end - start)
    middle = 7.47 + lift + arch * (1.0 - ((along - 0.62) / 0.62) ** 2) - 0.06 * np.clip(along - 0.6, 0, 1)
    width = thick * (1.0 - 0.72 * np.clip(along, 0, 1) ** 1.5)
    ends = _smooth(-0.06, 0.08, along) * _smooth(-0.02, 0.12, 1.02 - along)
    body = np.exp(-(((y - middle) / width) ** 2) * 1.6) * ends
    strands = 1.0 + 0.35 * _noise(rng, 2.0) + 0.2 * _noise(rng, 5.0)
    return np.asarray(np.clip(np.nan_to_num(body) * strands, 0.0, 1.0), np.float32)


def _paint(
    rng: np.random.Generator,
    skin_tone: float,
    hair: npt.NDArray[np.float64],
    line: float | None,
    male: float,
    old: float,
) -> F32:
    points = texel_points()
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    base = (
        (1 - skin_tone) * LIGHT_SKIN + skin_tone * DARK_SKIN + rng.normal(0, 0.05) + rng.normal(0, 0.035, 3)
    )
    log = np.broadcast_to(base.astype(np.float32), (SKIN_ROWS, ATLAS_WIDTH, 3)).copy()

    # mottling in three octaves, pores, freckles: what optical motion is read from
    strength = rng.uniform(0.7, 1.4)
    mottle = 0.03 * _noise(rng, 40) + 0.03 * _noise(rng, 15) + 0.05 * _noise(rng, 6) + 0.05 * _noise(rng, 2.5)
    log += strength * mottle[..., None] * np.array([0.7, 1.0, 1.1], np.float32)
    log += (0.035 * _noise(rng, 25))[..., None] * np.array([1.0, -0.4, -0.4], np.float32)
    if rng.random() < 0.35:
        spots = np.clip(_noise(rng, 4) - rng.uniform(1.1, 1.9), 0, 1) * np.clip(_noise(rng, 50) + 0.5, 0, 1)
        log -= spots[..., None] * np.array([0.25, 0.5, 0.6], np.float32)
    for _ in range(int(rng.poisson(1.5))):  # moles
        mx, my = rng.uniform(-0.6, 0.6), rng.uniform(6.3, 7.9)
        mole = np.exp(-(((x - mx) ** 2 + (y - my) ** 2) / rng.uniform(0.008, 0.02) ** 2))
        log -= np.nan_to_num(mole)[..., None] * np.array([0.8, 1.1, 1.2], np.float32)

    # blood under cheeks and nose, dark eye sockets
    flush = np.exp(-(((np.abs(x) - 0.5) / 0.22) ** 2) - ((y - 6.85) / 0.22) ** 2) + 0.8 * np.exp(
        -((x / 0.16) ** 2) - ((y - 6.95) / 0.15) ** 2
    )
    log += (
        rng.uniform(0.3, 1.0) * np.nan_to_num(flush)[..., None] * np.array([0.02, -0.14, -0.12], np.float32)
    )
    socket = np.exp(-(((np.abs(x) - 0.3) / 0.2) ** 2) - ((y - 7.26) / 0.13) ** 2)
    log -= rng.uniform(0.1, 0.4) * np.nan_to_num(socket)[..., None] * np.array([0.8, 1.0, 0.9], np.float32)

    lips = _lip_texels()[..., None] * rng.uniform(0.55, 1.0)
    lip_shift = np.array([-0.12, -0.62, -0.50]) + rng.normal(0, 0.08, 3) + (0.15 if male > 0.5 else -0.1)
    log += lips * (lip_shift * (1.0 - 0.45 * skin_tone)).astype(np.float32)
    albedo = np.exp(log)

    dark = hair.astype(np.float32)
    if male > 0.5:
        zone = _smooth(0.0, 0.25, 6.72 - y + 0.35 * np.clip(np.abs(x) - 0.35, 0, 1))
        zone = zone * (1 - _lip_texels())
        moustache = np.exp(-(((y - 6.80) / 0.05) ** 2)) * (np.abs(x) < 0.28)
        zone = np.maximum(zone, moustache) * _smooth(5.9, 6.15, y) * _smooth(0.1, 0.5, z)
        beard = np.nan_to_num(zone) * rng.choice([0.0, 0.12, 0.3, 0.75], p=[0.35, 0.35, 0.2, 0.1])
        beard = np.clip(beard * (1.0 + 0.5 * _noise(rng, 2.0)), 0, 0.9)[..., None]
        albedo = albedo * (1 - beard) + dark * 1.3 * beard
    brow = (_brow(rng, x, y) * rng.uniform(0.6, 0.95))[..., None]
    albedo = albedo * (1 - brow) + dark * 0.9 * brow
    if line is not None:
        ragged = points[..., :3].reshape(-1, 3) + 0.02 * _noise(rng, 3.0).reshape(-1, 1)
        cover = _hair_cover(ragged, line).reshape(SKIN_ROWS, ATLAS_WIDTH) * (1 - points[..., 3])
        cover = np.nan_to_num(cover)
        combed = cv2.resize(_noise(rng, 3.0)[:40], (ATLAS_WIDTH, SKIN_ROWS))  # long from root to tip
        strands = np.exp(0.2 * _noise(rng, 2.0) + 0.2 * combed)
        cover = cover[..., None]
        albedo = albedo * (1 - cover) + dark * strands[..., None] * cover

    paint = np.ones((ATLAS_ROWS, ATLAS_WIDTH, 3), np.float32)
    paint[:SKIN_ROWS] = np.clip(np.nan_to_num(albedo, nan=0.3), 0.004, 0.95)
    paint[SKIN_ROWS:, :STRIP_ROWS] = _eye(rng, skin_tone)
    return paint


def _eye(rng: np.random.Generator, skin_tone: float) -> F32:
    """Paint one eyeball seen from the front, (STRIP_ROWS, STRIP_ROWS, 3)."""
    half = (STRIP_ROWS - 1) / 2
    column, row = np.meshgrid(np.arange(STRIP_ROWS), np.arange(STRIP_ROWS))
    distance = np.hypot(column - half, row - half) / half * EYE_RADIUS
    white = np.array([0.50, 0.45, 0.42]) * rng.uniform(0.75, 1.0)
    mix = rng.dirichlet([0.5, 0.5, 0.4, 0.4]) if skin_tone < 0.4 else rng.dirichlet([2.0, 0.6, 0.02, 0.02])
    iris = mix @ IRIS
    ball = np.broadcast_to(white, (STRIP_ROWS, STRIP_ROWS, 3)).copy()
    radius, pupil = rng.uniform(0.056, 0.062), rng.uniform(0.02, 0.03)
    inside = _smooth(-0.006, 0.006, (radius - distance).astype(np.float32))[..., None]
    ring = 1.0 - 0.5 * _smooth(0.7, 1.0, (distance / radius).astype(np.float32))
    streaks = 1.0 + 0.25 * rng.standard_normal((STRIP_ROWS, STRIP_ROWS))
    ball = ball * (1 - inside) + (iris * (ring * streaks)[..., None]) * inside
    black = _smooth(-0.005, 0.005, (pupil - distance).astype(np.float32))[..., None]
    ball = ball * (1 - black) + 0.006 * black
    lid = 0.35 + 0.65 * _smooth(0.22, 0.55, (row / (2 * half)).astype(np.float32))  # the upper lid's shadow
    return np.asarray(ball * lid[..., None], np.float32)


def _surface(rng: np.random.Generator, cover: F32) -> tuple[F32, F32]:
    """Return tint (N, 3) and gloss (N, 2)."""
    model = head()
    sky = np.clip(model.occlusion, 0.0, 1.0)
    tint = np.repeat((0.12 + 0.88 * _smooth(-0.05, 0.75, sky))[:, None], 3, axis=1).astype(np.float32)
    skin = model.vertex_material == SKIN
    # occluded skin is lit through skin: it reddens before it darkens
    tint[skin] **= np.array([0.8, 1.0, 1.05], np.float32)
    centre = np.where(model.vertices[:, :1] > 0, 1, -1) * np.array([[EYE_CENTRE[0], 0, 0]])
    centre = centre + np.array([[0.0, EYE_CENTRE[1], EYE_CENTRE[2]]])
    gap = np.linalg.norm(model.vertices - centre, axis=1) - EYE_RADIUS
    margin = skin & (gap < 0.046) & (model.vertices[:, 2] > 1.28)
    upper = model.vertices[:, 1] > EYE_CENTRE[1] + 0.01
    lash = rng.uniform(0.6, 0.95)
    tint[margin & upper] *= 1.0 - lash
    tint[margin & ~upper] *= 1.0 - 0.35 * lash
    tint[model.vertex_material == TEETH] *= np.array([0.72, 0.66, 0.55], np.float32)
    tint[model.vertex_material == TONGUE] *= np.array([0.45, 0.14, 0.13], np.float32)
    eye = model.vertex_material == EYE
    tint[eye] = np.maximum(tint[eye], 0.3)
    gloss = np.tile(np.array([rng.uniform(0.06, 0.16), 14.0], np.float32), (len(tint), 1))
    gloss[cover > 0.5] = (0.015, 8.0)
    gloss[eye] = (0.9, 1500.0)
    gloss[model.vertex_material == TEETH] = (0.25, 40.0)
    gloss[model.vertex_material == TONGUE] = (0.1, 20.0)
    gloss[margin] = (0.02, 8.0)
    return tint, gloss
