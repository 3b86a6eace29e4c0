"""The page of one's own video: what moved when; each event's onset, apex and what changed between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mefar.recognition.events import Recognition
from mefar.recognition.motion import PARTS, UInt8
from mefar.recognition.spotting import curves
from mefar.report import figures
from mefar.report.page import write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_EVENTS = 60
"""Events shown with pictures: the most certain; the tables hold all."""


def write_recognition_report(
    folder: Path, found: Recognition, crops: Mapping[int, tuple[UInt8, UInt8]], threshold: float
) -> Path:
    """Write FOLDER/report.html of a recognised video, beside its tables and the annotated video.

    Crops: number of an event -> its onset and apex, (S, S, 3) uint8, aligned. Threshold: how many times
    larger than usual an event had to be.
    """
    shown = sorted(sorted(found.events, key=lambda e: -e.certainty)[:MOST_EVENTS], key=lambda e: e.event)
    people = sorted({track.person for track in found.tracks})
    return write_page(
        folder / "report.html",
        "recognition.html",
        title=f"Expressions in {Path(found.video).name}",
        found=found,
        people=people,
        charts=[
            (person, figures.svg(_chart(found, person, threshold), f"motion of face {person}"))
            for person in people
        ],
        rows=[(event, *figures.with_changes(*crops[event.event])) for event in shown if event.event in crops],
        kinds={kind: sum(event.kind == kind for event in found.events) for kind in ("micro", "macro")},
        threshold=threshold,
        clock=clock,
    )


def clock(seconds: float) -> str:
    """`1:02.35`."""
    return f"{int(seconds // 60)}:{seconds % 60:05.2f}"


def _chart(found: Recognition, person: int, threshold: float) -> Figure:
    """Motion of one face's parts over the whole video, with its events."""
    times, rows = [np.zeros(0)], [np.zeros((0, len(PARTS)))]
    for track in found.tracks:
        if track.person == person:  # a gap in the curve where the face is away
            times += [np.array(track.seconds), np.array([track.seconds[-1]])]
            rows += [curves(track.traces())[0], np.full((1, len(PARTS)), np.nan)]
    spans = [(e.onset, e.offset, e.kind == "micro", str(e.event)) for e in found.events if e.person == person]
    motion = dict(zip(PARTS, np.concatenate(rows).T, strict=True))
    return figures.time_line(np.concatenate(times), motion, spans, threshold)


def write_spotting_report(
    path: Path,
    dataset: str,
    summary: Mapping[str, Any],
    folds: Sequence[Any],
    counts: Mapping[str, Mapping[str, Sequence[int]]],
) -> Path:
    """Write the page of a spotting run.

    Summary is what summary.json holds; folds are of recognition.protocol, one per subject; counts: subject ->
    kind -> true positives, false positives, misses.
    """
    return write_page(
        path, "spotting.html", title=f"Spotting: {dataset}", summary=summary, folds=folds, counts=counts
    )
