"""The spotting rule on rendered long videos whose truth is known: F1 at IoU .5, errors, false alarms.

    python experiments/benchmarks/spotting.py [--seeds 3] [--folder runs/spotting]

For every condition (frame rate, strength of the micro-expressions, what happens) as many videos as seeds, of
people and events that the rule was not set on (it was set on seeds below 100). The whole way is measured:
decoding, finding and following the face, spotting. Rendering takes most of the time; videos are kept.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.demo.long_videos import Content, make_long_video
from datamodules.demo.motion import StrengthName
from datamodules.faces.align import FaceAligner
from datamodules.footage import footage
from mefar.recognition.intervals import KINDS, Interval
from mefar.recognition.motion import SIDE
from mefar.recognition.scores import SpottingScore, match
from mefar.recognition.spotting import Spotted, spot
from mefar.recognition.tracking import Followed, Follower


@dataclass(frozen=True)
class Condition:
    name: str
    fps: int
    seconds: float
    content: Content
    strength: StrengthName


CONDITIONS = (
    Condition("30 fps, demo strength", 30, 60, "expressions", "demo"),
    Condition("30 fps, micro strength", 30, 60, "expressions", "micro"),
    Condition("30 fps, calm", 30, 60, "calm", "demo"),
    Condition("30 fps, talking throughout", 30, 30, "talking", "demo"),
    Condition("200 fps, demo strength", 200, 20, "expressions", "demo"),
    Condition("200 fps, micro strength", 200, 20, "expressions", "micro"),
    Condition("200 fps, calm", 200, 20, "calm", "demo"),
)


def followed(path: Path) -> Followed:
    """What the face does, kept beside the video."""
    kept = path.with_suffix(".tracks.npz")
    if not kept.is_file():
        follower, seconds = Follower(FaceAligner(SIDE)), 0.0
        film = footage(path)
        for seconds, frame in film.play():
            follower.add(seconds, frame)
        Followed(tuple(follower.tracks()), tuple(follower.cuts), film.frames, seconds).save(kept)
    return Followed.load(kept)


def truth(path: Path) -> list[dict[str, str]]:
    with path.with_suffix(".truth.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["onset"]]


def in_frames(name: str, fps: float, events: list[Spotted]) -> list[Interval]:
    return [Interval(name, e.kind, round(e.onset * fps), round(e.offset * fps)) for e in events]


def measure(condition: Condition, number: int, seeds: int, folder: Path, threshold: float) -> None:
    score, errors, false, calm = SpottingScore(), [], 0, 0.0
    for seed in range(100 * (number + 1), 100 * (number + 1) + seeds):
        path = folder / f"{condition.name.replace(', ', '_').replace(' ', '-')}_{seed}.mp4"
        if not path.is_file():
            make_long_video(
                path, seed, condition.seconds, condition.fps, condition.content, condition.strength
            )
        found = [event for track in followed(path).tracks for event in spot(track.traces(), threshold)]
        rows = truth(path)
        true = [Interval(path.stem, row["kind"], int(row["onset"]), int(row["offset"])) for row in rows]  # type: ignore[arg-type]
        spotted = in_frames(path.stem, condition.fps, found)
        score.update(true, spotted)
        if condition.content == "calm":
            false, calm = false + len(found), calm + condition.seconds / 60
        for kind in KINDS:
            mine, theirs = ([i for i, one in enumerate(rows) if one.kind == kind] for rows in (true, spotted))
            for t, f in match([true[i] for i in mine], [spotted[i] for i in theirs]):
                row, event = rows[mine[t]], found[theirs[f]]
                errors.append([getattr(event, n) - float(row[f"{n}_s"]) for n in ("onset", "apex", "offset")])
    told = score.compute()
    line = f"| {condition.name} | {seeds} x {condition.seconds:g} s |"
    for group in ("micro", "macro"):
        row = told[group]
        line += f" {row['tp']:.0f}/{row['fp']:.0f}/{row['fn']:.0f} |"
        line += f" {row['precision']:.2f} {row['recall']:.2f} **{row['f1']:.2f}** |"
    off = np.median(np.abs(errors), 0) * 1e3 if errors else []
    line += " " + " / ".join(f"{value:.0f}" for value in off) + " |"
    line += f" {false / calm:.1f} |" if calm else " |"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="videos per condition")
    parser.add_argument("--folder", type=Path, default=Path("runs/spotting"), help="where videos are kept")
    parser.add_argument("--threshold", type=float, default=4.5)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of conditions, from 0")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    print("| condition | videos | micro TP/FP/FN | micro P R F1 | macro TP/FP/FN | macro P R F1 | "
          "onset / apex / offset, ms (median) | false a minute |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for number, condition in enumerate(CONDITIONS):
        if asked.only is None or number in asked.only:
            measure(condition, number, asked.seeds, asked.folder, asked.threshold)


if __name__ == "__main__":
    main()
