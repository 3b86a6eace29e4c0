"""What is found in one video: events, and the tables and files that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from mefar.errors import UserError
from mefar.files import csv_text
from mefar.recognition.intervals import Kind
from mefar.recognition.motion import PARTS, REGIONS, SIDE, Float
from mefar.recognition.spotting import LONGEST_MICRO, curves, spot
from mefar.recognition.tracking import Track

EVENT_COLUMNS = (
    "event", "person", "kind", "onset_s", "apex_s", "offset_s", "onset_frame", "apex_frame", "offset_frame",
    "strength", "certainty", "parts", "emotion", "confidence", "action_units", "description", "tokens",
    "token_strength",
)  # fmt: skip
"""Columns of events.csv, in order; p_CLASS for every class of the model comes after them.

event: number from 1; person: number of the face; kind: micro (up to half a second) or macro; *_s: seconds;
*_frame: counted from 0; strength: motion at the apex in thousandths of the crop's side, which is three times
the distance of the eyes; certainty: how many times the usual motion of that part of the face; parts: what
moved, the strongest first; emotion: class of the model, "nothing" where its tokens say that nothing happened,
empty without a classifier; confidence: its probability; action_units: read from the tokens, with their
probability; description: the sentence nearest to the event; tokens: the codes, in order; token_strength: how
much of that action there is, 1 as much as talking faces typically show, empty where the codes say both.
"""

FRAME_COLUMNS = (
    "frame", "seconds", "person", "x", "y", "width", "quality", *(f"motion_{part}" for part in PARTS),
    "blink", "talking", "event",
)  # fmt: skip
"""Columns of frames.csv, a row per frame and face.

x, y, width: centre and width of the face in pixels; quality: likeness with the reference, 1 = the same;
motion_*: how many times its usual motion this part moved, at the length of expression that fits best; blink,
talking: 0 or 1; event: the number of the event that is on, empty for none.
"""


@dataclass(frozen=True)
class Event:
    """One expression of one face; attributes as EVENT_COLUMNS, empty where no model was asked."""

    event: int
    person: int
    kind: Kind
    onset: float
    apex: float
    offset: float
    onset_frame: int
    apex_frame: int
    offset_frame: int
    strength: float
    certainty: float
    parts: tuple[str, ...]
    emotion: str = ""
    confidence: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    action_units: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    tokens: tuple[int, ...] = ()
    token_strength: float | None = None

    def row(self) -> dict[str, Any]:
        """One line of events.csv."""
        times = {f"{name}_s": round(getattr(self, name), 4) for name in ("onset", "apex", "offset")}
        told = {
            "event": self.event, "person": self.person, "kind": self.kind, **times,
            "onset_frame": self.onset_frame, "apex_frame": self.apex_frame, "offset_frame": self.offset_frame,
            "strength": round(self.strength, 3), "certainty": round(self.certainty, 2),
            "parts": "+".join(self.parts), "emotion": self.emotion,
            "confidence": "" if self.confidence is None else round(self.confidence, 4),
            "action_units": " ".join(f"{unit}:{p:.2f}" for unit, p in self.action_units.items()),
            "description": self.description, "tokens": " ".join(map(str, self.tokens)),
            "token_strength": "" if self.token_strength is None else round(self.token_strength, 4),
        }  # fmt: skip
        return told | {f"p_{name}": round(p, 4) for name, p in self.probabilities.items()}


@dataclass(frozen=True)
class Recognition:
    """Everything that was found in one video; iterate over it for its events.

    Attributes:
        video: its path, as given.
        seconds, frames, fps: how long, how many, the mean rate.
        size: (width, height) in pixels.
        model: what read the events: a checkpoint, or "" for none.
        events: in order of time.
        tracks: the faces.
        cuts: seconds at which the picture was cut.
        notes: what a user should know, a line each.
    """

    video: str
    seconds: float
    frames: int
    fps: float
    size: tuple[int, int]
    model: str
    events: tuple[Event, ...]
    tracks: tuple[Track, ...]
    cuts: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def to_frame(self) -> Any:
        """The events as a pandas data frame, columns as events.csv.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd  # optional: nothing else of mefar needs it

        return pd.DataFrame([event.row() for event in self.events], columns=self.event_columns())

    def event_columns(self) -> list[str]:
        """EVENT_COLUMNS and one column for each class of the model."""
        classes = dict.fromkeys(name for event in self.events for name in event.probabilities)
        return [*EVENT_COLUMNS, *(f"p_{name}" for name in classes)]

    def events_csv(self) -> str:
        """Text of events.csv."""
        return csv_text(self.event_columns(), [event.row() for event in self.events])

    def frames_csv(self) -> str:
        """Text of frames.csv."""
        rows = [row for track in self.tracks for row in self._frames_of(track)]
        rows.sort(key=lambda row: (row["frame"], row["person"]))
        return csv_text(FRAME_COLUMNS, rows)

    def events_json(self) -> str:
        """Text of events.json: the video, its people, its events with every number."""
        people = [
            {
                "person": track.person,
                "from_s": round(track.seconds[0], 4),
                "to_s": round(track.seconds[-1], 4),
            }
            for track in self.tracks
        ]
        told = {
            "video": self.video, "seconds": round(self.seconds, 4), "frames": self.frames,
            "fps": round(self.fps, 4), "width": self.size[0], "height": self.size[1], "model": self.model,
            "notes": list(self.notes), "cuts_s": [round(cut, 4) for cut in self.cuts], "people": people,
            "events": [
                event.row()
                | {"parts": list(event.parts), "tokens": list(event.tokens),
                   "probabilities": dict(event.probabilities), "action_units": dict(event.action_units)}
                for event in self.events
            ],
        }  # fmt: skip
        return json.dumps(told, indent=1) + "\n"

    def _frames_of(self, track: Track) -> Iterator[dict[str, Any]]:
        moved, shut, talking = curves(track.traces())
        mine = [event for event in self.events if event.person == track.person]
        for k, frame in enumerate(track.frames):
            x, y, width = place(track.matrices[k])
            on = next((e.event for e in mine if e.onset_frame <= frame <= e.offset_frame), "")
            motion = {f"motion_{part}": round(float(moved[k, i]), 2) for i, part in enumerate(PARTS)}
            yield {
                "frame": frame, "seconds": round(track.seconds[k], 4), "person": track.person,
                "x": round(x, 1), "y": round(y, 1), "width": round(width, 1),
                "quality": round(track.motions[k].quality, 3), **motion,
                "blink": int(shut[k]), "talking": int(talking[k]), "event": on,
            }  # fmt: skip


def spotted(track: Track, threshold: float) -> Iterator[Event]:
    """The events of one track, numbered later."""
    seconds = np.array(track.seconds)
    for one in spot(track.traces(), threshold):
        first, top, final = (
            track.frames[int(np.abs(seconds - moment).argmin())]
            for moment in (one.onset, one.apex, one.offset)
        )
        yield Event(
            0, track.person, one.kind, one.onset, one.apex, one.offset, first, top, final, one.strength,
            one.certainty, one.parts,
        )  # fmt: skip


def known(tracks: Sequence[Track], onset: float, apex: float) -> list[Event]:
    """The event that the user knows of, on every face that is there from onset to apex."""
    if not 0 <= onset < apex:
        raise UserError(f"--onset {onset} --apex {apex}: give seconds, the onset before the apex")
    found = []
    for track in tracks:
        seconds = np.array(track.seconds)
        if not (seconds[0] - 0.05 <= onset and apex <= seconds[-1] + 0.05):
            continue
        first, top = (int(np.abs(seconds - moment).argmin()) for moment in (onset, apex))
        change = track.motions[top].regions - track.motions[first].regions
        sizes = {
            part: float(np.sqrt(np.mean(change[[list(REGIONS).index(name) for name in names]] ** 2)))
            for part, names in PARTS.items()
        }
        parts = sorted((p for p in sizes if sizes[p] >= 0.5 * max(sizes.values())), key=lambda p: -sizes[p])
        kind: Kind = "micro" if 2 * (apex - onset) <= LONGEST_MICRO else "macro"
        above = float(curves(track.traces())[0][top].max())
        found.append(
            Event(
                0, track.person, kind, float(seconds[first]), float(seconds[top]), float(seconds[top]),
                track.frames[first], track.frames[top], track.frames[top], max(sizes.values()), above,
                tuple(parts),
            )
        )  # fmt: skip
    return found


def track_of(tracks: Sequence[Track], event: Event) -> Track:
    """The track that an event is on."""
    return next(
        track for track in tracks
        if track.person == event.person and track.frames[0] <= event.onset_frame <= track.frames[-1]
    )  # fmt: skip


def place(matrix: Float) -> tuple[float, float, float]:
    """Where a crop's face is in the frame: x and y of its centre and its width, in pixels."""
    inverse = cv2.invertAffineTransform(matrix)
    x, y = inverse @ [0.5 * SIDE, 0.53 * SIDE, 1.0]
    return float(x), float(y), 0.64 * SIDE * float(np.hypot(*inverse[:, 0]))
