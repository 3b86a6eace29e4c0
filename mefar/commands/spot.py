"""`mefar spot DATASET DATA`: the spotting protocol of the challenges, under leave-one-subject-out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from datamodules.databases.long_videos import LongVideo
from datamodules.faces.align import FaceAligner
from datamodules.footage import Footage, footage
from datamodules.protocols import load_long_videos
from mefar.commands.recognise import follow
from mefar.errors import UserError
from mefar.files import claim_folder, code_fingerprint, csv_text, fingerprint, lock, write_text
from mefar.progress import shown
from mefar.recognition.intervals import Interval, write_intervals
from mefar.recognition.motion import Float, resized
from mefar.recognition.protocol import (
    THRESHOLDS,
    Candidate,
    call_classes,
    leave_one_out,
    over,
    per_subject,
    pooled,
)
from mefar.recognition.scores import CLASSES, GROUPS
from mefar.recognition.spotting import spot as spot_events
from mefar.recognition.tracking import Followed, Track
from mefar.report.recognition_page import write_spotting_report

DEFAULT = 4.5
ORACLE = "oracle (leaks; only to compare with published tables)"


@dataclass(frozen=True)
class _Pair:
    """Two frames of a video and where the face is in each."""

    video: str
    frames: tuple[int, int]
    places: tuple[Float, Float]


def spot(*, dataset: str, data: Path, model: str | None = None, out: Path | None = None) -> None:
    """Spot micro- and macro-expressions in every long video of a database, and score them.

    The rule of `mefar recognise`; for each subject its threshold is chosen on all others. Writes truth.csv,
    found.csv (at the chosen thresholds; `mefar score-spotting truth.csv found.csv` gives the same scores),
    default.csv (at the threshold fixed in advance), folds.csv, summary.json and report.html. What was
    measured in a video is kept in tracks/: a killed run goes on. With a model, what is spotted is also called
    negative, positive or surprise by a classifier on the tokens of the other subjects' expressions: analysis
    and STRS.

    Args:
        dataset: database of long videos: casme_sq, samm_lv, casme3_long, smic_e.
        data: its folder.
        model: checkpoint of a tokenizer, or demo for the one that mefar brings; left out, only spotting.
        out: folder to write; left out, runs/spot-DATASET.
    """
    study = load_long_videos(dataset, data)
    tokenizer: Any = None
    if model is not None:
        from mefar.readers import weights_of
        from mefar.tokenizer import load  # brings torch and Lightning

        tokenizer = load(model)
    place = out or Path("runs") / f"spot-{dataset}"
    settings = {
        "dataset": dataset,
        "model": "" if tokenizer is None else weights_of(tokenizer),
        "videos": fingerprint([[v.key, str(v.source), len(v.frames)] for v in study.videos]),
        "truth": fingerprint([asdict(one) for video in study.videos for one in video.movements]),
        "code": code_fingerprint("mefar.recognition"),
    }
    with lock(place / ".lock"):
        claim_folder(place, "spot", settings)
        truths = {video.key: _truth(video) for video in study.videos}
        subjects = {video.key: video.subject_key for video in study.videos}
        candidates: dict[str, list[Candidate]] = {}
        pairs: dict[str, list[_Pair]] = {}
        problems: list[list[str]] = []
        with shown("spotting", "videos") as progress:
            start = time.monotonic()
            for done, video in enumerate(study.videos, 1):
                try:
                    candidates[video.key], pairs[video.key] = _candidates(video, place / "tracks")
                except UserError as error:
                    problems.append([video.key, str(error)])  # its truths stay, and are missed
                progress(done, len(study.videos), done / (time.monotonic() - start))
        if tokenizer is not None:
            _call(study.videos, candidates, pairs, tokenizer, place / "tracks")
        folds = leave_one_out(truths, candidates, subjects, DEFAULT)
        chosen = {fold.subject: fold.threshold for fold in folds}
        oracle = {fold.subject: fold.oracle for fold in folds}
        ways = {
            "chosen on the other subjects": {video: chosen[who] for video, who in subjects.items()},
            "fixed in advance": dict.fromkeys(subjects, DEFAULT),
            ORACLE: {video: oracle[who] for video, who in subjects.items()},
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
        write_spotting_report(place / "report.html", dataset, summary, folds, counts)
    _print(dataset, study.counts(), scores, tokenizer is not None)
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


def _candidates(video: LongVideo, folder: Path) -> tuple[list[Candidate], list[_Pair]]:
    """Everything that any threshold would find in a video, and onset and apex of each."""
    kept = folder / f"{video.key.replace('/', '_')}.npz"
    film, numbers = _film(video)
    if not kept.is_file():
        folder.mkdir(exist_ok=True)
        follow(film, None).save(kept)
    found, pairs = [], []
    for track in Followed.load(kept).tracks:
        for event in spot_events(track.traces(), THRESHOLDS[0]):
            onset, offset = (numbers[0] + round(moment * video.fps) for moment in (event.onset, event.offset))
            found.append(Candidate(Interval(video.key, event.kind, onset, offset), event.certainty))
            pairs.append(_pair(video.key, track, event.onset, event.apex))
    return found, pairs


def _pair(key: str, track: Track, onset: float, apex: float) -> _Pair:
    seconds = np.array(track.seconds)
    first, top = (int(np.abs(seconds - moment).argmin()) for moment in (onset, apex))
    return _Pair(key, (track.frames[first], track.frames[top]), (track.matrices[first], track.matrices[top]))


def _true_pairs(video: LongVideo, folder: Path) -> list[tuple[_Pair, str]]:
    """Onset and apex of a video's true expressions that have a class; a missing apex is the middle."""
    _, numbers = _film(video)
    tracks = Followed.load(folder / f"{video.key.replace('/', '_')}.npz").tracks
    told = []
    for one in video.movements:
        apex = one.apex if one.apex is not None and one.apex > one.onset else (one.onset + one.offset) // 2
        onset, top = ((number - numbers[0]) / video.fps for number in (one.onset, apex))
        track = next((t for t in tracks if t.seconds[0] <= onset and top <= t.seconds[-1] + 0.1), None)
        if track is not None and one.emotion in CLASSES:
            told.append((_pair(video.key, track, onset, top), one.emotion))
    return told


def _call(
    videos: Sequence[LongVideo],
    candidates: dict[str, list[Candidate]],
    pairs: Mapping[str, list[_Pair]],
    tokenizer: Any,
    folder: Path,
) -> None:
    """Give every candidate a class, in place."""
    seen = [video for video in videos if video.key in candidates]
    whose = {video.key: video.subject_key for video in seen}
    films = {video.key: _film(video)[0] for video in seen}
    true = [pair for video in seen for pair in _true_pairs(video, folder)]
    spotted = [pair for video in seen for pair in pairs[video.key]]
    if not true or not spotted:
        return
    known = _read([pair for pair, _ in true], films, tokenizer)
    read = _read(spotted, films, tokenizer)
    names = iter(
        call_classes(
            known, [name for _, name in true], [whose[pair.video] for pair, _ in true],
            read, [whose[pair.video] for pair in spotted],
        )
    )  # fmt: skip
    for video in seen:
        candidates[video.key] = [
            replace(one, interval=replace(one.interval, emotion=next(names))) for one in candidates[video.key]
        ]


def _read(pairs: Sequence[_Pair], films: Mapping[str, Footage], tokenizer: Any) -> Any:
    """(N, P) what the classifier reads of pairs of frames."""
    from mefar.recognition.reading import tokens_of

    aligner = FaceAligner(int(tokenizer.image_size))
    crops = []
    for pair in pairs:
        frames = films[pair.video].at(pair.frames)
        places = [resized(place, aligner.size) for place in pair.places]
        crops.append([aligner.crop(f, place) for f, place in zip(frames, places, strict=True)])
    return tokens_of(tokenizer, [crop[0] for crop in crops], [crop[1] for crop in crops]).features.flatten(1)


def _folds(folds: Sequence[Any], counts: Mapping[str, Mapping[str, tuple[int, int, int]]]) -> str:
    names = [f"{kind}_{name}" for kind in ("micro", "macro") for name in ("tp", "fp", "fn")]
    rows = [
        [fold.subject, fold.threshold, f"{fold.others_f1:.4f}", fold.oracle,
         *counts[fold.subject]["micro"], *counts[fold.subject]["macro"]]
        for fold in folds
    ]  # fmt: skip
    return csv_text(["subject", "threshold", "others_f1", "oracle_threshold", *names], rows)


def _print(dataset: str, counts: Mapping[str, int], scores: Mapping[str, Any], classes: bool) -> None:
    told = ", ".join(f"{value} {name}" for name, value in counts.items())
    table = Table(title=f"{dataset}: {told}", title_justify="left")
    more = ("analysis F1", "STRS") if classes else ()
    for name in ("threshold", "", "TP", "FP", "FN", "precision", "recall", "F1", *more):
        table.add_column(name, justify="left" if name in ("threshold", "") else "right")
    for way, groups in scores.items():
        for number, group in enumerate(GROUPS):
            row = groups[group]
            cells = [f"{row[name]:.0f}" for name in ("tp", "fp", "fn")]
            rates = ("precision", "recall", "f1", *(("analysis_f1", "strs") if classes else ()))
            cells += [f"{row[name]:.4f}" for name in rates]
            table.add_row(way if number == 0 else "", group, *cells)
    Console().print(table)
