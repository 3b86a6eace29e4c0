"""Small drawings for reports: SVG for numbers, PNG for faces. Numpy and Pillow, nothing else.

Every function returns text or an array; nothing is written here.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK = "#1d2733"
FAINT = "#8a94a0"
BLUE = (31, 95, 153)
RED = (178, 52, 42)

Picture = NDArray[np.uint8]


def confusion_svg(matrix: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    """A confusion matrix: rows annotated, columns predicted; colour is the share of the row.

    Args:
        matrix: (C, C) counts.
        classes: C names.
    """
    size, longest = len(classes), max(len(name) for name in classes)
    width, height, left, top = max(46, 4 + 6 * longest), 42, 14 + 6 * longest, 40
    parts = [
        f'<svg class="confusion" role="img" width="{left + size * width + 2}" '
        f'height="{top + size * height + 2}" xmlns="http://www.w3.org/2000/svg">',
        _text(left + size * width / 2, 12, "predicted", "middle", FAINT, 11),
    ]
    for column, name in enumerate(classes):
        parts.append(_text(left + (column + 0.5) * width, top - 8, name, "middle", INK, 11))
    for row, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        parts.append(_text(left - 8, top + (row + 0.5) * height + 4, name, "end", INK, 11))
        total = sum(counts)
        for column, count in enumerate(counts):
            share = count / total if total else 0.0
            x, y = left + column * width, top + row * height
            mark = f"annotated {name}, predicted {classes[column]}: {count:g} of {total:g}"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{width - 2}" height="{height - 2}" rx="3" '
                f'fill="{_blend(BLUE, 0.05 + 0.95 * share)}"><title>{escape(mark)}</title></rect>'
            )
            colour = "#ffffff" if share > 0.5 else INK
            middle = x + width / 2 - 1
            parts.append(_text(middle, y + 18, f"{count:g}", "middle", colour, 13))
            parts.append(_text(middle, y + 32, f"{share:.0%}" if total else "none", "middle", colour, 10))
    return "".join([*parts, "</svg>"])


def usage_svg(usage: Sequence[int]) -> str:
    """How often each code was chosen, with the uniform share as a dashed line.

    Args:
        usage: (K,) counts.
    """
    height, floor = 120, 18
    step = max(4, min(24, 720 // max(1, len(usage))))
    width = step * len(usage)
    most = max(max(usage, default=0), 1)
    parts = [
        f'<svg class="usage" role="img" width="{width}" height="{height + floor}" '
        f'xmlns="http://www.w3.org/2000/svg">'
    ]
    total = max(sum(usage), 1)
    for code, count in enumerate(usage):
        tall = count / most * (height - 6)
        parts.append(
            f'<rect x="{code * step + 1}" y="{height - tall:.1f}" width="{step - 2}" height="{tall:.1f}" '
            f'fill="{_blend(BLUE, 0.8)}"><title>code {code}: {count} ({count / total:.1%})</title></rect>'
        )
        if code % 4 == 0:
            parts.append(_text((code + 0.5) * step, height + 13, str(code), "middle", FAINT, 10))
    level = height - sum(usage) / max(1, len(usage)) / most * (height - 6)
    parts.append(
        f'<line x1="0" x2="{width}" y1="{level:.1f}" y2="{level:.1f}" stroke="{INK}" stroke-dasharray="3 4" '
        f'stroke-width="1"><title>uniform share</title></line>'
        f'<line x1="0" x2="{width}" y1="{height}" y2="{height}" stroke="{FAINT}"/>'
    )
    return "".join([*parts, "</svg>"])


def attention_svg(
    weights: Sequence[Sequence[float] | None], classes: Sequence[str], factor: float = 4.0
) -> str:
    """Pooling weights per class and token, coloured by how far they are from the uniform share.

    Args:
        weights: C rows of L weights that sum to 1; None for a class without clips.
        classes: C names.
        factor: so many times the uniform share, or that part of it, is full colour; above 1.
    """
    tokens = max(len(row) for row in weights if row is not None)
    width, height = max(8, min(24, 384 // tokens)), 24
    left, top = 14 + 6 * max(len(name) for name in classes), 18
    parts = [
        f'<svg class="attention" role="img" width="{left + tokens * width + 2}" '
        f'height="{top + len(classes) * height + 2}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for token in range(0, tokens, 1 if width >= 18 else 4):
        parts.append(_text(left + (token + 0.5) * width, 12, str(token), "middle", FAINT, 10))
    for row, (name, shares) in enumerate(zip(classes, weights, strict=True)):
        y = top + row * height
        parts.append(_text(left - 8, y + height / 2 + 4, name, "end", INK, 11))
        if shares is None:
            parts.append(_text(left + 4, y + height / 2 + 4, "no clips", "start", FAINT, 11))
            continue
        for token, share in enumerate(shares):
            # A quarter of the uniform share is as far from it as four times.
            ratio = math.log(max(share * tokens, 1e-6), factor)
            colour = _blend(RED if ratio > 0 else BLUE, min(1.0, abs(ratio)))
            mark = f"{name}, token {token}: {share:.1%} (uniform {1 / tokens:.1%})"
            parts.append(
                f'<rect x="{left + token * width}" y="{y}" width="{width - 1}" height="{height - 1}" '
                f'fill="{colour}" stroke="#e3e8ee"><title>{escape(mark)}</title></rect>'
            )
    return "".join([*parts, "</svg>"])


def line_svg(
    points: Sequence[tuple[int, float]], level: float | None = None, breaks: Sequence[int] = ()
) -> str:
    """A curve over training steps; many points become means of neighbours, large ranges a log axis.

    Args:
        points: (step, value) by step, values finite.
        level: a value to mark with a dashed line; it widens the axis.
        breaks: steps to mark with a vertical line.
    """
    width, height, left, floor = 306, 110, 58, 16
    shown = _thinned(points, 120)
    values = [value for _, value in shown]
    low, high = min(values), max(values)
    log = low > 0 and level is None and high > 30 * low
    if level is not None:
        low, high = min(low, level), max(high, level)

    def place(value: float) -> float:
        if high == low:
            return height / 2
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return height - 4 - share * (height - 12)

    first, last = points[0][0], points[-1][0]
    unit = (width - left - 6) / max(1, last - first)
    dots = [(left + (step - first) * unit, place(value)) for step, value in shown]
    parts = [
        f'<svg class="line" role="img" width="{width}" height="{height + floor}" '
        f'xmlns="http://www.w3.org/2000/svg">'
        f'<line x1="{left}" x2="{width}" y1="{height}" y2="{height}" stroke="{FAINT}"/>'
    ]
    for step in breaks:
        if first < step <= last:
            x = left + (step - first) * unit
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="#dde3ea"/>')
    if level is not None:
        y = place(level)
        parts.append(
            f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" stroke-dasharray="3 4">'
            f"<title>{short(level)}</title></line>"
        )
    colour = _blend(BLUE, 0.9)
    if len(dots) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    # Few values are dots of their own; of many, each has an invisible strip that tells its number.
    strip = max(2.0, (width - left) / len(dots))
    for (x, y), (step, value) in zip(dots, shown, strict=True):
        mark = f"<title>step {step:,}: {short(value)}</title>"
        if len(dots) <= 40:
            parts.append(
                f'<rect x="{x - 2.5:.1f}" y="{y - 2.5:.1f}" width="5" height="5" rx="2.5" fill="{colour}"/>'
            )
        parts.append(
            f'<rect x="{x - strip / 2:.1f}" y="0" width="{strip:.1f}" height="{height}" '
            f'fill-opacity="0">{mark}</rect>'
        )
    ends = (high, low) if high > low else (high,)
    for value in ends:
        parts.append(_text(left - 6, place(value) + 4, short(value), "end", FAINT, 10))
    parts.append(_text(left, height + 13, f"{first:,}", "start", FAINT, 10))
    parts.append(_text(width - 4, height + 13, f"{last:,}", "end", FAINT, 10))
    if log:
        parts.append(_text((left + width) / 2, height + 13, "log scale", "middle", FAINT, 10))
    return "".join([*parts, "</svg>"])


def short(value: float) -> str:
    """A number in at most 4 digits that count: 12.35, 0.0123, 3.2e-05."""
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e4 else f"{value:.3g}"


def _thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Means of neighbours where there are more than `most` points."""
    size = -(-len(points) // most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def subjects_svg(scores: Sequence[tuple[str, int, int]]) -> str:
    """One bar per subject: the share of its clips that was right; its width is how many clips it has.

    Args:
        scores: (name, right, clips) in the order of drawing; clips > 0.
    """
    height, floor, gap = 64, 16, 2
    clips = sum(count for _, _, count in scores)
    unit = min(14.0, (720 - gap * len(scores)) / max(1, clips))
    width = unit * clips + gap * len(scores)
    parts = [
        f'<svg class="subjects" role="img" width="{width:.0f}" height="{height + floor}" '
        f'xmlns="http://www.w3.org/2000/svg">'
    ]
    x = 0.0
    for name, right, count in scores:
        wide, tall = unit * count, right / count * (height - 2)
        mark = f"<title>{escape(name)}: {right} of {count}</title>"
        parts.append(
            f'<rect x="{x:.1f}" y="1" width="{wide:.1f}" height="{height - 2}" fill="#e9edf2">{mark}</rect>'
            f'<rect x="{x:.1f}" y="{height - 1 - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
            f'fill="{_blend(BLUE, 0.8)}">{mark}</rect>'
        )
        if wide > 8 * len(name):
            parts.append(_text(x + wide / 2, height + 12, name, "middle", FAINT, 10))
        x += wide + gap
    return "".join([*parts, "</svg>"])


def signed_map(before: Picture, after: Picture, gain: float) -> Picture:
    """What became darker (blue) and lighter (red) from one picture to another, on white.

    Args:
        before: (H, W, 3) uint8.
        after: (H, W, 3) uint8.
        gain: amplification; 1 shows a full change of 255 gray levels as full colour.

    Returns:
        (H, W, 3) uint8.
    """
    change = (after.astype(np.float32) - before.astype(np.float32)).mean(axis=2) / 255.0
    strength = np.clip(np.abs(change) * gain, 0.0, 1.0)[..., None]
    colour = np.where(change[..., None] > 0, np.array(RED, np.float32), np.array(BLUE, np.float32))
    mixed: Picture = (255.0 + strength * (colour - 255.0)).round().astype(np.uint8)
    return mixed


def gain_for(before: Picture, after: Picture) -> float:
    """Amplification that shows the strongest changes of a pair in full colour, at most 20.

    Args:
        before: (H, W, 3) uint8.
        after: (H, W, 3) uint8.
    """
    change = np.abs(after.astype(np.float32) - before.astype(np.float32)).mean(axis=2) / 255.0
    strongest = float(np.quantile(change, 0.995))
    return float(np.clip(0.9 / max(strongest, 1e-3), 1.0, 20.0))


def row_of(pictures: Mapping[str, NDArray[np.generic]], database: str) -> tuple[list[Picture], float] | None:
    """The five pictures of one database, and the amplification of the last two.

    Args:
        pictures: content of pictures.npz.
        database: database id.

    Returns:
        Onset, apex, reconstruction, apex - onset, reconstruction - onset; None if any is not there.
    """
    names = [f"{database}_{part}" for part in ("onset", "apex", "reconstruction")]
    if not all(name in pictures for name in names):
        return None
    return with_changes(*(pictures[name] for name in names))


def with_changes(onset: NDArray[np.generic], *others: NDArray[np.generic]) -> tuple[list[Picture], float]:
    """Pictures of one face followed by what changed since the first of them, all amplified alike.

    Args:
        onset: (H, W, 3) uint8.
        others: the same; the first of them, the apex, sets the amplification.

    Returns:
        Onset, others, other - onset of each; the amplification.
    """
    first, *later = (np.asarray(picture, dtype=np.uint8) for picture in (onset, *others))
    gain = gain_for(first, later[0])
    return [first, *later, *(signed_map(first, picture, gain) for picture in later)], gain


def png_uri(picture: Picture, width: int) -> str:
    """A picture as a `data:` address, enlarged or shrunk to `width` pixels.

    Args:
        picture: (H, W, 3) uint8.
        width: pixels.
    """
    image = _scaled(picture, width)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]], titles: Sequence[str], width: int = 176
) -> Image.Image:
    """Rows of pictures under column titles, each row named on its left.

    Args:
        rows: (name, pictures), as many pictures as titles.
        titles: names of the columns.
        width: pixels of one picture.
    """
    gap, left, top = 8, 96, 34
    images = [(name, [_scaled(picture, width) for picture in pictures]) for name, pictures in rows]
    tall = [max(image.height for image in row) for _, row in images]
    canvas = Image.new(
        "RGB", (left + len(titles) * (width + gap), top + sum(tall) + gap * len(tall)), (255, 255, 255)
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    for column, title in enumerate(titles):
        draw.text((left + column * (width + gap) + width / 2, top / 2), title, INK, font, anchor="mm")
    y = top
    for (name, row), height in zip(images, tall, strict=True):
        draw.text((left - 10, y + height / 2), name, INK, font, anchor="rm")
        for column, image in enumerate(row):
            canvas.paste(image, (left + column * (width + gap), y))
        y += height + gap
    return canvas


def _scaled(picture: Picture, width: int) -> Image.Image:
    image = Image.fromarray(picture)
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _text(x: float, y: float, words: str, anchor: str, colour: str, size: int) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
        f'font-size="{size}">{escape(words)}</text>'
    )


def _blend(colour: tuple[int, int, int], strength: float) -> str:
    mixed = [round(255 + strength * (part - 255)) for part in colour]
    return "#" + "".join(f"{part:02x}" for part in mixed)
