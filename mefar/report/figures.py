"""Charts and pictures of finished runs: the same drawing stands in a page and, as PDF and PNG, in a paper.

matplotlib takes a second to import: it is imported by the first chart that is drawn. A chart is a Figure,
sized in inches as it is printed; `svg` makes it a part of a page, in the page's font and colours, and
`save` makes it files. The same numbers give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from mefar.files import replacing

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, TRACK, BLUE, RED = "#1d2733", "#6b7682", "#e3e8ee", "#1f5f99", "#b2342a"
THEME = {INK: "ink", FAINT: "faint", TRACK: "track", BLUE: "bar", RED: "red"}
"""Colour in a file -> the page's own, which follows the reader's choice of light or dark."""

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a class name is a $
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "mefar",
    "pdf.fonttype": 42,  # TrueType: what publishers accept, and text that can be searched
}
COLUMN = 2.8
"""Inches of the axes of a chart that fits into a column of a paper, names beside them included."""

LETTER = 0.062
"""Inches that a letter of a name is wide, about."""

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
P = ParamSpec("P")
T = TypeVar("T")


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in our style, whatever the user's own settings of matplotlib are, and leave those alone."""

    @functools.wraps(draw)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import style

        with style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return within


@_styled
def svg(figure: Figure, about: str) -> Markup:
    """A chart as a part of a page; what `_hover` named is told when the reader points at it.

    `about` says what it shows, for who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'<g id="hover ([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r' id="\w+_\d+"', "", text)  # would be there once for every chart of the page
    for colour, name in THEME.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text.replace("<svg ", Markup('<svg role="img" aria-label="{}" ').format(about), 1))


@_styled
def save(charts: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write charts for a paper by their names: each a PDF with its fonts, and a PNG of 300 dots per inch."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, chart in charts.items():
        for ending, changing in (("pdf", "CreationDate"), ("png", "Software")):
            path = folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}.{ending}"
            with replacing(path) as temporary:
                chart.savefig(temporary, format=ending, dpi=300, metadata={changing: None})
            paths.append(path)
    return paths


@_styled
def confusion(matrix: Sequence[Sequence[float]], classes: Sequence[str], rows: str = "annotated") -> Figure:
    """Counts (C, C), rows annotated, columns predicted; colour is the share of the row."""
    size, longest = len(classes), LETTER * max(len(name) for name in classes)
    width = max(0.48, longest + 0.02)
    axes = _axes(size * width, size * 0.42, left=longest + 0.24, top=0.4)
    for row, counts in enumerate(matrix):
        total = sum(counts)
        for column, count in enumerate(counts):
            share = count / total if total else 0.0
            _cell(axes, column, row, BLUE, 0.06 + 0.94 * share)
            colour = "#ffffff" if share > 0.5 else INK
            axes.text(column + 0.5, row + 0.4, f"{count:g}", size=9.5, color=colour, **_CENTRE)
            told = f"{share:.0%}" if total else "none"
            axes.text(column + 0.5, row + 0.76, told, size=7, color=colour, **_CENTRE)
    _names(axes, classes, classes)
    axes.set_xlabel("predicted", labelpad=4)
    axes.set_ylabel(rows, labelpad=4)
    return _figure(axes)


@_styled
def attention(
    weights: Sequence[Sequence[float] | None],
    classes: Sequence[str],
    factor: float = 4.0,
    width: float = 3.84,
) -> Figure:
    """Pooling weights per class and token, coloured by how far they are from the uniform share.

    Args:
        weights: C rows of L weights that sum to 1; None for a class without clips.
        classes: C names.
        factor: so many times the uniform share, or that part of it, is full colour; above 1.
        width: of all cells, in inches, at most.
    """
    tokens = max(len(row) for row in weights if row is not None)
    side = min(0.24, width / tokens)
    longest = LETTER * max(len(name) for name in classes)
    axes = _axes(tokens * side, len(classes) * 0.24, left=longest + 0.12, top=0.24)
    for row, (name, shares) in enumerate(zip(classes, weights, strict=True)):
        if shares is None:
            axes.text(0.3, row + 0.5, "no clips", color=FAINT, va="center")
        for token, share in enumerate(shares or ()):
            # A quarter of the uniform share is as far from it as four times.
            ratio = math.log(max(share * tokens, 1e-6), factor)
            cell = _cell(axes, token, row, RED if ratio > 0 else BLUE, min(1.0, abs(ratio)))
            cell.set(edgecolor=TRACK, linewidth=0.5)
            _hover(cell, f"{name}, token {token}: {share:.1%} (uniform {1 / tokens:.1%})")
    _names(axes, range(tokens), classes, every=1 if side >= 0.17 else 4)
    return _figure(axes)


@_styled
def code_usage(usage: Sequence[int], width: float = 6.0) -> Figure:
    """How often each code was chosen, with the uniform share as a dashed line; at most `width` inches."""
    K, total = len(usage), max(sum(usage), 1)
    axes = _axes(min(width, max(2.4, 0.18 * K)), 1.2, left=0.5, bottom=0.38)
    axes.margins(x=0.01)
    bars = axes.bar(range(K), usage, width=0.86, color=BLUE, alpha=0.85)
    for code, (bar, count) in enumerate(zip(bars, usage, strict=True)):
        _hover(bar, f"code {code}: {count} ({count / total:.1%})")
    axes.axhline(total / max(K, 1), color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.locator_params(axis="x", nbins=16, integer=True)
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.set_xlabel("code")
    return _figure(axes)


@_styled
def subjects(scores: Sequence[tuple[str, float, float]], width: float = 6.2) -> Figure:
    """A bar per subject, as high as it has clips, filled as far as they were right; at most `width` inches.

    Scores are (name, right, clips) in the order of drawing.
    """
    most = max(clips for _, _, clips in scores)
    step = min(0.16, width / len(scores))
    named = step >= 0.09
    low = 0.1 + (LETTER * max(len(name) for name, _, _ in scores) if named else 0.1)
    axes = _axes(max(0.8, step * len(scores)), 1.0, left=0.42, bottom=low)
    for place, (name, right, clips) in enumerate(scores):
        for height, colour in ((clips, TRACK), (right, BLUE)):
            (bar,) = axes.bar(place, height, width=0.84, color=colour)
            _hover(bar, f"{name}: {right:g} of {clips:g}")
    axes.set_xlim(-0.6, len(scores) - 0.4)
    axes.set_ylim(0, most * 1.02)
    axes.set_xticks(range(len(scores)) if named else [], [name for name, _, _ in scores] if named else [])
    axes.tick_params(axis="x", rotation=90, length=0, pad=2, labelsize=min(7.5, 62 * step))
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.set_ylabel("clips")
    return _figure(axes)


@_styled
def last_and_oracle(points: Sequence[tuple[str, float, float]]) -> Figure:
    """What choosing the epoch on the test subject is worth: per method a line from last to oracle.

    Points are (method, UF1 of the last epoch, UF1 of the oracle), drawn from above.
    """
    left = LETTER * max(len(name) for name, _, _ in points) + 0.12
    axes = _axes(COLUMN, 0.22 * len(points) + 0.1, left=left, right=0.3, bottom=0.38, top=0.3)
    for place, (name, last, oracle) in enumerate(points):
        axes.plot([last, oracle], [place, place], color=TRACK, linewidth=3, zorder=1)
        for value, colour, what in ((oracle, RED, "oracle (leaks)"), (last, BLUE, "last")):
            (dot,) = axes.plot(
                [value], [place], "o", color=colour, markersize=4.5, label=what if not place else None
            )
            _hover(dot, f"{name}, {what}: {value:.3f}")
    axes.set_yticks(range(len(points)), [name for name, _, _ in points])
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("UF1")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=7.5, borderpad=0)
    return _figure(axes)


@_styled
def curve(
    points: Sequence[tuple[int, float]],
    name: str = "",
    level: float | None = None,
    breaks: Iterable[int] = (),
) -> Figure:
    """A curve over training steps; many points become means of neighbours, large ranges a log axis.

    Args:
        points: (step, value) by step, values finite.
        name: of the value, for its axis; none where the page tells it.
        level: a value to mark with a dashed line.
        breaks: steps to mark with a vertical line.
    """
    shown = _thinned(points, 120)
    steps, values = zip(*shown, strict=True)
    axes = _axes(2.55, 1.05, left=0.66 if name else 0.5, right=0.2, bottom=0.38, top=0.08)
    for step in breaks:
        axes.axvline(step, color=TRACK, linewidth=1)
    if level is not None:
        axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.plot(steps, values, color=BLUE, linewidth=1.2)
    if len(shown) <= 60:
        for step, value in shown:
            (dot,) = axes.plot([step], [value], "o", color=BLUE, markersize=2.6)
            _hover(dot, f"step {step:,}: {short(value)}")
    low, high = min(values), max(values)
    if low > 0 and level is None and high > 30 * low:
        axes.set_yscale("log")
        axes.locator_params(axis="y", numticks=4)
    else:
        axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    return _figure(axes)


@_styled
def time_line(
    seconds: Floats,
    rows: Mapping[str, Floats],
    spans: Sequence[tuple[float, float, bool, str]],
    level: float,
) -> Figure:
    """Curves over time, one above the other, with spans shaded behind all of them.

    Args:
        seconds: (T,) ascending.
        rows: name -> (T,) values from 0; NaN is a gap.
        spans: (from, to, whether it is red, name).
        level: a value to mark with a dashed line.
    """
    from matplotlib.figure import Figure

    names, width, tall, left, top, bottom = list(rows), 9.0, 0.42, 0.62, 0.2, 0.38
    size = (left + width + 0.1, top + len(names) * (tall + 0.06) + bottom)
    figure = Figure(size)
    for place, name in enumerate(names):
        low = bottom + (len(names) - 1 - place) * (tall + 0.06)
        axes = figure.add_axes((left / size[0], low / size[1], width / size[0], tall / size[1]))
        for start, stop, red, _ in spans:
            middle, wide = (start + stop) / 2, max(stop - start, float(np.ptp(seconds)) / 400)
            colour = RED if red else BLUE
            axes.axvspan(middle - wide / 2, middle + wide / 2, color=colour, alpha=0.25, linewidth=0)
        axes.axhline(level, color=FAINT, linewidth=0.6, linestyle=(0, (3, 3)))
        axes.plot(*_highest(seconds, rows[name], 900), color=INK, linewidth=0.8)
        axes.set_ylim(0, 3 * level)
        axes.set_xlim(float(seconds.min()), float(seconds.max()))
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        if place < len(names) - 1:
            axes.set_xticks([])
        if place == 0:
            for start, stop, red, told in spans[:80]:
                axes.text((start + stop) / 2, 3.1 * level, told, color=RED if red else BLUE, ha="center")
    axes.set_xlabel("seconds")
    return figure


def _highest(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """The largest value of each of `most` stretches, so that what is short stays visible."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    high = [np.nan if np.isnan(y[part]).all() else np.nanmax(y[part]) for part in parts]
    return np.array([x[part].mean() for part in parts]), np.array(high)


@_styled
def sheet(rows: Sequence[tuple[str, Sequence[Picture]]], titles: Sequence[str]) -> Figure:
    """Rows of pictures (H, W, 3) uint8 under column titles, each row named on its left."""
    from matplotlib.figure import Figure

    left, top, gap, side = 0.1 + LETTER * max(len(name) for name, _ in rows), 0.22, 0.05, 0.95
    tall = [side * pictures[0].shape[0] / pictures[0].shape[1] for _, pictures in rows]
    size = (left + len(titles) * (side + gap), top + sum(tall) + gap * len(rows))
    figure = Figure(size)
    y = size[1] - top
    for (name, pictures), height in zip(rows, tall, strict=True):
        y -= height
        for column, picture in enumerate(pictures):
            place = (left + column * (side + gap), y, side, height)
            axes = figure.add_axes(tuple(part / size[i % 2] for i, part in enumerate(place)))
            axes.imshow(picture, interpolation="lanczos", aspect="auto")
            axes.axis("off")
        figure.text((left - 0.06) / size[0], (y + height / 2) / size[1], name, ha="right", va="center")
        y -= gap
    for column, title in enumerate(titles):
        x = left + column * (side + gap) + side / 2
        figure.text(x / size[0], 1 - top / 2 / size[1], title, **_CENTRE)
    return figure


_CENTRE: dict[str, Any] = {"ha": "center", "va": "center"}


def _axes(
    width: float,
    height: float,
    left: float = 0.04,
    right: float = 0.04,
    bottom: float = 0.04,
    top: float = 0.04,
) -> Axes:
    """Axes of a size in inches, and a figure around them with margins in inches."""
    from matplotlib.figure import Figure

    size = (left + width + right, bottom + height + top)
    return Figure(size).add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _cell(axes: Axes, column: int, row: int, colour: str, strength: float) -> Artist:
    from matplotlib.patches import Rectangle

    cell = Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, facecolor=(colour, strength), clip_on=False)
    return axes.add_patch(cell)


def _names(axes: Axes, columns: Iterable[object], rows: Sequence[str], every: int = 1) -> None:
    """Names of the cells' columns above them and of their rows beside them, and nothing else around."""
    names = [str(name) for name in columns]
    axes.set(xlim=(0, len(names)), ylim=(len(rows), 0))
    axes.set_xticks([place + 0.5 for place in range(0, len(names), every)], names[::every])
    axes.set_yticks([place + 0.5 for place in range(len(rows))], rows)
    axes.tick_params(length=0, labelcolor=INK, pad=3)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)


def _hover(artist: Artist, told: str) -> None:
    artist.set_gid(f"hover {told}")


def short(value: float) -> str:
    """A number in at most 4 digits that count: 12.35, 0.0123, 3.2e-05."""
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e4 else f"{value:.3g}"


def _thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Means of neighbours where there are more than `most` points."""
    size = -(-len(points) // most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def signed_map(before: Picture, after: Picture, gain: float) -> Picture:
    """What became darker (blue) and lighter (red) from one picture to another, on white.

    All are (H, W, 3) uint8; a gain of 1 shows a full change of 255 gray levels as full colour.
    """
    change = (after.astype(np.float32) - before.astype(np.float32)).mean(axis=2, keepdims=True) / 255.0
    red, blue = (
        np.frombuffer(bytes.fromhex(colour[1:]), np.uint8).astype(np.float32) for colour in (RED, BLUE)
    )
    strength = np.clip(np.abs(change) * gain, 0.0, 1.0)
    mixed: Picture = (255.0 + strength * (np.where(change > 0, red, blue) - 255.0)).round().astype(np.uint8)
    return mixed


def gain_for(before: Picture, after: Picture) -> float:
    """Amplification that shows the strongest changes of a pair in full colour, at most 20."""
    change = np.abs(after.astype(np.float32) - before.astype(np.float32)).mean(axis=2) / 255.0
    strongest = float(np.quantile(change, 0.995))
    return float(np.clip(0.9 / max(strongest, 1e-3), 1.0, 20.0))


def with_changes(onset: NDArray[np.generic], *others: NDArray[np.generic]) -> tuple[list[Picture], float]:
    """Onset, others, and what changed from the onset to each of them; the amplification of all changes.

    Pictures are (H, W, 3) uint8; the first of the others, the apex, sets the amplification.
    """
    first, *later = (np.asarray(picture, dtype=np.uint8) for picture in (onset, *others))
    gain = gain_for(first, later[0])
    return [first, *later, *(signed_map(first, picture, gain) for picture in later)], gain


def png_uri(picture: Picture, width: int) -> str:
    """A picture (H, W, 3) uint8 as a `data:` address, enlarged or shrunk to `width` pixels."""
    image = Image.fromarray(picture)
    image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
