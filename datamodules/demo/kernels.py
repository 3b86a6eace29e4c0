"""Compiled inner loops of the demo renderer: normals, z-buffer, shading, occlusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

Function = TypeVar("Function", bound=Callable[..., Any])


def _jit(function: Function) -> Function:
    # Cached beside the source. No fastmath: the order of additions decides the last bit of a picture.
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # nowhere to write: compiled anew in every process
        return cast(Function, numba.njit(nogil=True)(function))


@_jit
def _normals(vertices: F32, triangles: I32, out: F32) -> None:
    out[:] = 0.0
    for m in range(triangles.shape[0]):
        a, b, c = triangles[m, 0], triangles[m, 1], triangles[m, 2]
        ux = vertices[b, 0] - vertices[a, 0]
        uy = vertices[b, 1] - vertices[a, 1]
        uz = vertices[b, 2] - vertices[a, 2]
        wx = vertices[c, 0] - vertices[a, 0]
        wy = vertices[c, 1] - vertices[a, 1]
        wz = vertices[c, 2] - vertices[a, 2]
        nx = uy * wz - uz * wy
        ny = uz * wx - ux * wz
        nz = ux * wy - uy * wx
        for k in (a, b, c):
            out[k, 0] += nx
            out[k, 1] += ny
            out[k, 2] += nz
    for n in range(out.shape[0]):
        length = math.sqrt(out[n, 0] ** 2 + out[n, 1] ** 2 + out[n, 2] ** 2) + np.float32(1e-12)
        for k in range(3):
            out[n, k] /= length


@_jit
def rasterize(screen: F32, triangles: I32, depth: F32, owner: I32, bary: F32) -> None:
    """Fill a z-buffer with front-facing triangles.

    Args:
        screen: (N, 3) column, row (pixel centres at integers) and 1 / distance: larger is nearer.
        triangles: (M, 3).
        depth: (H, W), holds the nearest 1 / distance on return; set to 0 first.
        owner: (H, W), triangle seen, untouched where none; set to -1 first.
        bary: (H, W, 2), weights of the owner's second and third corner.
    """
    height, width = depth.shape
    for m in range(triangles.shape[0]):
        a, b, c = triangles[m, 0], triangles[m, 1], triangles[m, 2]
        ax, ay = screen[a, 0], screen[a, 1]
        bx, by = screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= -1e-9:  # rows grow downwards, so counter-clockwise triangles have negative area
            continue
        first_x = max(0, math.ceil(min(ax, bx, cx)))
        last_x = min(width - 1, math.floor(max(ax, bx, cx)))
        first_y = max(0, math.ceil(min(ay, by, cy)))
        last_y = min(height - 1, math.floor(max(ay, by, cy)))
        if first_x > last_x or first_y > last_y:
            continue
        inverse = np.float32(1.0) / area
        za = screen[a, 2]
        zb = screen[b, 2] - za
        zc = screen[c, 2] - za
        step_b = (cy - ay) * inverse
        step_c = -(by - ay) * inverse
        for y in range(first_y, last_y + 1):
            wb = ((first_x - ax) * (cy - ay) - (y - ay) * (cx - ax)) * inverse
            wc = ((bx - ax) * (y - ay) - (by - ay) * (first_x - ax)) * inverse
            for x in range(first_x, last_x + 1):
                if wb >= 0.0 and wc >= 0.0 and wb + wc <= 1.0:
                    z = za + wb * zb + wc * zc
                    if z > depth[y, x]:
                        depth[y, x] = z
                        owner[y, x] = m
                        bary[y, x, 0] = wb
                        bary[y, x, 1] = wc
                wb += step_b
                wc += step_c


@_jit
def shade(
    owner: I32,
    bary: F32,
    triangles: I32,
    normals: F32,
    position: F32,
    atlas: F32,
    tint: F32,
    gloss: F32,
    paint: F32,
    light: F32,
    background: F32,
    factor: int,
    out: F32,
) -> None:
    """Light every sample of the z-buffer and average factor x factor samples per pixel.

    Args:
        owner: from ``rasterize``, (factor*H, factor*W).
        bary: from ``rasterize``, (factor*H, factor*W, 2).
        triangles: (M, 3).
        normals: (N, 3) in camera space.
        position: (N, 3) in camera space (camera at the origin looking along -z).
        atlas: (N, 2) texel column and row.
        tint: (N, 3) multiplies the paint.
        gloss: (N, 2) strength and exponent of the highlight.
        paint: (rows, columns, 3) linear albedo.
        light: (6, 3): key direction, key colour, fill direction, fill colour, sky colour, wrap.
        background: (H, W, 3) linear.
        factor: samples per pixel along each axis.
        out: (H, W, 3) linear picture.
    """
    height, width = out.shape[0], out.shape[1]
    share = np.float32(1.0 / (factor * factor))
    one = np.float32(1.0)
    for row in range(height):
        for column in range(width):
            red = green = blue = np.float32(0.0)
            for dy in range(factor):
                for dx in range(factor):
                    y = row * factor + dy
                    x = column * factor + dx
                    m = owner[y, x]
                    if m < 0:
                        red += background[row, column, 0]
                        green += background[row, column, 1]
                        blue += background[row, column, 2]
                        continue
                    a, b, c = triangles[m, 0], triangles[m, 1], triangles[m, 2]
                    wb, wc = bary[y, x, 0], bary[y, x, 1]
                    wa = one - wb - wc
                    nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
                    ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
                    nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
                    length = one / math.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))
                    nx *= length
                    ny *= length
                    nz *= length
                    # bilinear paint
                    u = wa * atlas[a, 0] + wb * atlas[b, 0] + wc * atlas[c, 0]
                    v = wa * atlas[a, 1] + wb * atlas[b, 1] + wc * atlas[c, 1]
                    iu, iv = int(u), int(v)
                    fu, fv = u - np.float32(iu), v - np.float32(iv)
                    w00 = (one - fu) * (one - fv)
                    w01 = fu * (one - fv)
                    w10 = (one - fu) * fv
                    w11 = fu * fv
                    # half vector for the highlight: the eye is at the origin
                    px = wa * position[a, 0] + wb * position[b, 0] + wc * position[c, 0]
                    py = wa * position[a, 1] + wb * position[b, 1] + wc * position[c, 1]
                    pz = wa * position[a, 2] + wb * position[b, 2] + wc * position[c, 2]
                    inverse = one / math.sqrt(px * px + py * py + pz * pz)
                    hx = light[0, 0] - px * inverse
                    hy = light[0, 1] - py * inverse
                    hz = light[0, 2] - pz * inverse
                    inverse = one / math.sqrt(hx * hx + hy * hy + hz * hz + np.float32(1e-12))
                    facing = (nx * hx + ny * hy + nz * hz) * inverse
                    strength = wa * gloss[a, 0] + wb * gloss[b, 0] + wc * gloss[c, 0]
                    highlight = np.float32(0.0)
                    if facing > 0.0 and strength > 0.0:
                        # Schlick's rational stand-in for pow(facing, exponent)
                        exponent = wa * gloss[a, 1] + wb * gloss[b, 1] + wc * gloss[c, 1]
                        highlight = strength * facing / (exponent - exponent * facing + facing)
                    key = nx * light[0, 0] + ny * light[0, 1] + nz * light[0, 2]
                    fill = max(np.float32(0.0), nx * light[2, 0] + ny * light[2, 1] + nz * light[2, 2])
                    sky = np.float32(0.65) + np.float32(0.35) * ny
                    for k in range(3):
                        wrap = light[5, k]
                        lit = max(np.float32(0.0), (key + wrap) / (one + wrap))
                        total = light[1, k] * lit + light[3, k] * fill + light[4, k] * sky
                        albedo = (
                            w00 * paint[iv, iu, k]
                            + w01 * paint[iv, iu + 1, k]
                            + w10 * paint[iv + 1, iu, k]
                            + w11 * paint[iv + 1, iu + 1, k]
                        )
                        dye = wa * tint[a, k] + wb * tint[b, k] + wc * tint[c, k]
                        value = albedo * dye * total + highlight * light[1, k] * dye
                        if k == 0:
                            red += value
                        elif k == 1:
                            green += value
                        else:
                            blue += value
            out[row, column, 0] = red * share
            out[row, column, 1] = green * share
            out[row, column, 2] = blue * share


@_jit
def _occlusion(vertices: F32, triangles: I32, normals: F32, directions: F32, size: int, bias: float) -> F32:
    count = vertices.shape[0]
    seen = np.zeros(count, np.float32)
    total = np.zeros(count, np.float32)
    screen = np.empty((count, 3), np.float32)
    depth = np.empty((size, size), np.float32)
    owner = np.empty((size, size), np.int32)
    bary = np.empty((size, size, 2), np.float32)
    centre = np.zeros(3, np.float32)
    for n in range(count):
        for k in range(3):
            centre[k] += vertices[n, k] / count
    scale = np.float32(size / 4.0)  # 4 dm across: the whole head at any angle
    for d in range(directions.shape[0]):
        fx, fy, fz = directions[d, 0], directions[d, 1], directions[d, 2]
        # a right-handed frame with the direction towards the eye
        hx, hy, hz = fz, np.float32(0.0), -fx
        length = math.sqrt(hx * hx + hz * hz)
        if length < 1e-3:
            hx, hz, length = np.float32(1.0), np.float32(0.0), 1.0
        hx, hz = hx / length, hz / length
        ux = fy * hz - fz * hy
        uy = fz * hx - fx * hz
        uz = fx * hy - fy * hx
        for n in range(count):
            x = vertices[n, 0] - centre[0]
            y = vertices[n, 1] - centre[1]
            z = vertices[n, 2] - centre[2]
            screen[n, 0] = size / 2 + scale * (x * hx + y * hy + z * hz)
            screen[n, 1] = size / 2 - scale * (x * ux + y * uy + z * uz)
            screen[n, 2] = 10.0 + x * fx + y * fy + z * fz
        depth[:] = 0.0
        owner[:] = -1
        rasterize(screen, triangles, depth, owner, bary)
        for n in range(count):
            facing = normals[n, 0] * fx + normals[n, 1] * fy + normals[n, 2] * fz
            if facing <= 0.05:
                continue
            total[n] += facing
            column = round(screen[n, 0])
            row = round(screen[n, 1])
            if 0 <= column < size and 0 <= row < size and screen[n, 2] < depth[row, column] - bias:
                continue
            seen[n] += facing
    for n in range(count):
        seen[n] = seen[n] / max(total[n], np.float32(1e-6))
    return seen


def vertex_normals(vertices: F32, triangles: I32) -> F32:
    """Return (N, 3) unit normals, each the area-weighted mean of the triangles around the vertex."""
    out = np.empty_like(vertices)
    _normals(vertices, triangles, out)
    return out


def occlusion(vertices: F32, triangles: I32, normals: F32, directions: int = 96, size: int = 320) -> F32:
    """Share of the sky that each vertex sees, cosine-weighted, in [0, 1].

    Args:
        vertices: (N, 3) head at rest, dm.
        triangles: (M, 3).
        normals: (N, 3).
        directions: number of directions, spread evenly over the sphere.
        size: side of the depth maps in pixels.

    Returns:
        (N,) float32.
    """
    step = np.arange(directions) + 0.5
    up = 1.0 - 2.0 * step / directions
    turn = np.pi * (1.0 + 5.0**0.5) * step
    flat = np.sqrt(1.0 - up * up)
    sphere = np.stack([flat * np.cos(turn), up, flat * np.sin(turn)], axis=1).astype(np.float32)
    return _occlusion(vertices, triangles, normals, sphere, size, 0.02)
