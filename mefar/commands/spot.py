"""`mefar spot DATASET DATA`: the spotting protocol of the challenges, under leave-one-subject-out."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table

from datamodules.databases.long_videos import LongVideo
from datamodules.footage import Footage, footage
from datamodules.protocols import load_long_videos
from mefar.commands import run_function
from mefar.commands.recognise import claim_folder, follow
from mefar.errors import UserError
from mefar.files import code_fingerprint, fingerprint, lock, write_text
from mefar.progress import shown
from mefar.recognition.intervals import Interval, write_intervals
from mefar.recognition.protocol import THRESHOLDS, Candidate, leave_one_out, over, per_subject, pooled
from mefar.recognition.scores import GROUPS
from mefar.recognition.spotting import spot as spot_events
from mefar.recognition.tracking import Followed

DEFAULT = 4.5
ORACLE = "oracle (leaks; only to compare with published tables)"


def spot(*, dataset: str, data: Path, out: Path | None = None) -> None:
    """Spot micro- and macro-expressions in every long video of a database, and score them.

    The rule of `mefar recognise`; for each subject its threshold is chosen on all others. Writes truth.csv,
    found.csv (at the chosen thresholds; `mefar score-spotting truth.csv found.csv` gives the same scores),
    default.csv (at the threshold fixed in advance), folds.csv, summary.json and report.html. What was
    measured in a video is kept in tracks/: a killed run goes on.

    Args:
        dataset: database of long videos: casme_sq, samm_lv, casme3_long, smic_e.
        data: its folder.
        out: folder to write; left out, runs/spot-DATASET.
    """
    study = load_long_videos(dataset, data)
    place = out or Path("runs") / f"spot-{dataset}"
    settings = {
        "dataset": dataset,
        "videos": fingerprint([[v.key, str(v.source), len(v.frames)] for v in study.videos]),
        "truth": fingerprint([asdict(one) for video in study.videos for one in video.movements]),
        "code": code_fingerprint("mefar.recognition"),
    }
    with lock(place / ".lock"):
        claim_folder(place, "spot", settings)
        truths = {video.key: _truth(video) for video in study.videos}
        subjects = {video.key: video.subject_key for video in study.videos}
        candidates: dict[str, list[Candidate]] = {}
        problems: list[list[str]] = []
        with shown("spotting", "videos") as progress:
            start = time.monotonic()
            for done, video in enumerate(study.videos, 1):
                try:
                    candidates[video.key] = _candidates(video, place / "tracks")
                except UserError as error:
                    problems.append([video.key, str(error)])  # its truths stay, and are missed
                progress(done, len(study.videos), done / (time.monotonic() - start))
        folds = leave_one_out(truths, candidates, subjects, DEFAULT)
        chosen = {fold.subject: fold.threshold for fold in folds}
        oracle = {fold.subject: fold.oracle for fold in folds}
        ways = {
            "chosen on the other subjects": {video: chosen[who] for video, who in subjects.items()},
            "fixed in advance": dict.fromkeys(subjects, DEFAULT),
            "oracle (leaks; only to compare with published tables)": {
                v: oracle[w] for v, w in subjects.items()
            },
        }
        scores = {name: pooled(truths, candidates, thresholds) for name, thresholds in ways.items()}
        first, fixed, _ = ways.values()
        write_intervals(place / "truth.csv", [t for rows in truths.values() for t in rows], subjects)
        for name, thresholds in (("found.csv", first), ("default.csv", fixed)):
            found = [one for v, rows in candidates.items() for one in over(rows, thresholds[v])]
            write_intervals(place / name, found, subjects)
        counts = per_subject(truths, candidates, subjects, first)
        write_text(place / "folds.csv", _folds(folds, counts))
        summary = {
            **settings, "counts": study.counts(), "thresholds": list(THRESHOLDS), "default": DEFAULT,
            "scores": scores, "problems": problems,
            "findings": [f"{f.clip or f.database}: {f.detail}" for f in study.findings],
        }  # fmt: skip
        write_text(place / "summary.json", json.dumps(summary, indent=1) + "\n")
        _page(place, dataset, summary, folds, counts)
    _print(dataset, study.counts(), scores)
    for key, problem in problems:
        print(f"{key}: not spotted, all its expressions are missed: {problem}")
    print(f"{place / 'report.html'}: the report page")


def _truth(video: LongVideo) -> list[Interval]:
    return [Interval(video.key, one.kind, one.onset, one.offset, one.emotion) for one in video.movements]


def _film(video: LongVideo) -> tuple[Footage, list[int]]:
    """The pictures of a video, and the database's number of each."""
    if not video.frames:
        film = footage(video.source)
        return film, list(range(1, film.frames + 1))
    numbers = list(video.frames)
    paths = tuple(video.frames.values())
    first = cv2.imread(str(paths[0]))
    size = (0, 0) if first is None else (first.shape[1], first.shape[0])
    seconds = tuple((number - numbers[0]) / video.fps for number in numbers)
    return Footage(video.source, len(paths), video.fps, size, (), paths, seconds), numbers


def _candidates(video: LongVideo, folder: Path) -> list[Candidate]:
    """Everything that any threshold would find in a video."""
    kept = folder / f"{video.key.replace('/', '_')}.npz"
    film, numbers = _film(video)
    if not kept.is_file():
        folder.mkdir(exist_ok=True)
        follow(film, None).save(kept)
    found = []
    for track in Followed.load(kept).tracks:
        for event in spot_events(track.traces(), THRESHOLDS[0]):
            onset, offset = (numbers[0] + round(moment * video.fps) for moment in (event.onset, event.offset))
            found.append(Candidate(Interval(video.key, event.kind, onset, offset), event.certainty))
    return found


def _folds(folds: Sequence[Any], counts: Mapping[str, Mapping[str, tuple[int, int, int]]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [f"{kind}_{name}" for kind in ("micro", "macro") for name in ("tp", "fp", "fn")]
    writer.writerow(["subject", "threshold", "others_f1", "oracle_threshold", *names])
    for fold in folds:
        row = [fold.subject, fold.threshold, f"{fold.others_f1:.4f}", fold.oracle]
        writer.writerow([*row, *counts[fold.subject]["micro"], *counts[fold.subject]["macro"]])
    return buffer.getvalue()


def _page(
    place: Path, dataset: str, summary: Mapping[str, Any], folds: Sequence[Any], counts: Mapping[str, Any]
) -> None:
    from mefar.report.recognition_page import write_spotting_report

    write_spotting_report(place / "report.html", dataset, summary, folds, counts)


def _print(dataset: str, counts: Mapping[str, int], scores: Mapping[str, Any]) -> None:
    told = ", ".join(f"{value} {name}" for name, value in counts.items())
    table = Table(title=f"{dataset}: {told}", title_justify="left")
    for name in ("threshold", "", "TP", "FP", "FN", "precision", "recall", "F1"):
        table.add_column(name, justify="left" if name in ("threshold", "") else "right")
    for way, groups in scores.items():
        for number, group in enumerate(GROUPS):
            row = groups[group]
            cells = [f"{row[name]:.0f}" for name in ("tp", "fp", "fn")]
            cells += [f"{row[name]:.4f}" for name in ("precision", "recall", "f1")]
            table.add_row(way if number == 0 else "", group, *cells)
    Console().print(table)


def main(argv: Sequence[str]) -> int:
    """Run `mefar spot`."""
    return run_function(spot, argv, "mefar spot")
