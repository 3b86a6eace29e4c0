"""`mefar recognise VIDEO|FOLDER`: where faces in anybody's video move, for how long, and what they do."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.databases.folders import list_frames
from datamodules.faces.align import FaceAligner
from datamodules.footage import Footage, ahead, films_in, footage, write_video
from mefar.commands import USER_ERROR, run_function
from mefar.errors import UserError
from mefar.files import claim_folder, code_fingerprint, csv_text, fingerprint, lock, write_text
from mefar.progress import shown
from mefar.recognition.drawing import annotate
from mefar.recognition.events import Recognition, known, spotted, track_of
from mefar.recognition.motion import SIDE, Float, UInt8, resized
from mefar.recognition.tracking import Followed, Follower
from mefar.report.recognition_page import write_recognition_report

if TYPE_CHECKING:
    from mefar.commands.model import Model

Progress = Callable[[int, int, float], None]

SLOW = 15.0  # frames a second under which a micro-expression is one frame, or none


@dataclass(frozen=True)
class How:
    """Everything besides the video that decides what is found."""

    model: str
    weights: str
    onset: float | None
    apex: float | None
    threshold: float
    fps: float | None


def recognise(
    path: str | Path,
    *,
    model: str = "demo",
    onset: float | None = None,
    apex: float | None = None,
    threshold: float = 4.5,
    fps: float | None = None,
) -> Recognition:
    """Find and read the expressions in one video; nothing is written.

    Args:
        path: video file, or folder of numbered images.
        model: what reads events: "demo" or "demo128", which come with mefar; a folder that `mefar export`
            wrote; a tokenizer's checkpoint (tokens alone); or "none".
        onset: seconds of a known onset; then nothing is spotted.
        apex: seconds of its apex.
        threshold: how many times larger than usual a motion must be.
        fps: frames per second of a folder of images.

    Returns:
        Iterate over it for events; `.to_frame()` for a pandas data frame.

    Raises:
        UserError: the video or the model cannot be read.
    """
    how, reader, notes = _model(model, onset, apex, threshold, fps)
    film = footage(Path(path), fps)
    return _read(film, how, reader, follow(film, None), notes)[0]


def recognise_command(
    video: Path,
    *,
    model: str = "demo",
    out: Path | None = None,
    onset: float | None = None,
    apex: float | None = None,
    every_pair: bool = False,
    gap: float = 0.3,
    annotated: bool = True,
    threshold: float = 4.5,
    fps: float | None = None,
) -> int:
    """Find the expressions in a video, or in every video of a folder, and say what they are.

    Every face is followed; where its parts move against the head, more than is usual for this face in this
    video, an event is spotted: onset, apex and offset in seconds, whatever the frame rate. Blinks and talking
    are told apart as far as possible. A tokenizer reads each event. Writes events.csv, frames.csv,
    events.json, annotated.mp4 and report.html; of several videos also one events.csv and challenge.csv.
    Faces stay on this machine.

    Args:
        video: video file, folder of videos, or folder of numbered images.
        model: what reads events: demo, which comes with mefar; a folder that `mefar export` wrote; a
            tokenizer's checkpoint (tokens alone); or none.
        out: folder to write; left out, runs/recognise/NAME. A killed run goes on, a finished one is kept.
        onset: seconds of a known onset; then nothing is spotted.
        apex: seconds of its apex.
        every_pair: also write pairs.csv, the tokens of every frame against the one `gap` seconds later.
        gap: see there.
        annotated: write the annotated video.
        threshold: how many times larger than usual a motion must be; lower finds more, and more that is not.
        fps: frames per second of a folder of images, which does not say.
    """
    if not video.exists():
        raise UserError(f"{video}: no such file or folder")
    if (onset is None) != (apex is None):
        raise UserError("give --onset and --apex together, in seconds")
    if not gap > 0:
        raise UserError(f"--gap is {gap}; give seconds above 0")
    how, reader, notes = _model(model, onset, apex, threshold, fps)
    if every_pair and reader is None:
        raise UserError("--every-pair needs a tokenizer; give another --model than none")
    films = films_in(video) if video.is_dir() else [video]
    several = films != [video]
    place = out or Path("runs/recognise") / video.resolve().with_suffix("").name
    failed: list[str] = []
    for film in films:
        folder = place / _name(film, video, films) if several else place
        try:
            _recognise_into(
                folder, footage(film, fps), how, reader, notes, annotated, gap if every_pair else None
            )
        except UserError as error:
            if not several:
                raise
            failed.append(str(error))
            print(f"{film}: left out: {error}")
    if several:
        _one_table(place, [place / _name(film, video, films) for film in films])
        _for_a_challenge(place, {str(_name(film, video, films)): film for film in films})
        print(
            f"{place / 'events.csv'}: the events of {len(films) - len(failed)} videos; {len(failed)} left out"
        )
    return USER_ERROR if failed else 0


def _name(film: Path, folder: Path, films: Sequence[Path]) -> Path:
    """Where the results of one video of a folder go; the suffix stays where two differ by nothing else."""
    inner = film.relative_to(folder)
    plain = inner.with_suffix("") if film.is_file() else inner
    twins = sum(other.with_suffix("") == film.with_suffix("") for other in films)
    return inner if twins > 1 else plain if str(plain) != "." else Path("images")


def _model(
    model: str, onset: float | None, apex: float | None, threshold: float, fps: float | None
) -> tuple[How, Model | None, list[str]]:
    """The settings, what reads events, and what to say about it."""
    if not threshold > 0:
        raise UserError(f"threshold is {threshold}; give a number above 0, 4.5 is usual")
    if model == "none":
        return How("", "", onset, apex, threshold, fps), None, []
    from mefar.commands.model import load  # brings torch
    from mefar.readers import weights_of
    from mefar.tokenizer.plain import ships

    rendered = "classes, action units and descriptions are read by what rendered faces taught"
    made = load(model)
    how = How(model, weights_of(made), onset, apex, threshold, fps)
    return how, made, [rendered] if ships(model) else []


def _recognise_into(
    folder: Path,
    film: Footage,
    how: How,
    reader: Model | None,
    notes: list[str],
    annotated: bool,
    gap: float | None,
) -> None:
    """Everything about one video, into one folder; what is there already is kept."""
    settings = asdict(how) | {
        "video": film.path.name,
        "content": fingerprint(*(film.images or [film.path])),
        "code": code_fingerprint("mefar.recognition", "mefar.commands.recognise"),
    }
    with lock(folder / ".lock"):
        claim_folder(folder, "recognise", settings)
        if not (folder / "tracks.npz").is_file():
            with shown(f"following faces in {film.path.name}", "frames") as progress:
                follow(film, progress).save(folder / "tracks.npz")
        found, crops = _read(film, how, reader, Followed.load(folder / "tracks.npz"), notes)
        write_text(folder / "events.csv", found.events_csv())
        write_text(folder / "frames.csv", found.frames_csv())
        write_text(folder / "events.json", found.events_json())
        write_recognition_report(folder, found, crops, how.threshold)
        if gap is not None and reader is not None and not (folder / "pairs.csv").is_file():
            write_text(folder / "pairs.csv", _pairs(film, found, reader.tokenizer, gap))
        if annotated and not (folder / "annotated.mp4").is_file():
            with shown(f"drawing {film.path.name}", "frames") as progress:
                frames = _told(islice(ahead(film.play()), found.frames), found.frames, progress)
                write_video(folder / "annotated.mp4", annotate(found, frames))
    people = len({track.person for track in found.tracks})
    kinds = [event.kind for event in found.events]
    counted = f"{kinds.count('micro')} micro, {kinds.count('macro')} macro"
    print(f"{folder}: {counted} in {found.seconds:.1f} s, {people} face{'s' * (people != 1)}")
    for note in found.notes:
        print(f"  {note}")


def follow(film: Footage, progress: Progress | None) -> Followed:
    """Follow all faces of a video."""
    follower, notes, last, start = Follower(FaceAligner(SIDE)), list(film.notes), 0.0, time.monotonic()
    count = 0
    try:
        for last, frame in ahead(film.play()):
            follower.add(last, frame)
            count += 1
            if progress is not None and count % 10 == 0:
                progress(count, max(count, film.frames), count / (time.monotonic() - start))
    except UserError as error:
        if count < 8:
            raise
        notes.append(f"the video ends early: {error}")
    tracks = follower.tracks()
    rate = (count - 1) / last if last > 0 else film.fps
    if not tracks:
        notes.append("no face was found")
    if rate < SLOW:
        notes.append(
            f"at {rate:.3g} frames a second nothing shorter than {2 / rate:.2g} s can be seen: "
            "micro-expressions are missed"
        )
    return Followed(tuple(tracks), tuple(follower.cuts), count, last, tuple(notes))


def _read(
    film: Footage, how: How, reader: Model | None, followed: Followed, notes: Sequence[str]
) -> tuple[Recognition, dict[int, tuple[UInt8, UInt8]]]:
    """Spot events, or take the one that is known, and read them; and each one's onset and apex crop."""
    notes, tracks = [*notes, *followed.notes], followed.tracks
    if how.onset is not None and how.apex is not None:
        events = known(tracks, how.onset, how.apex)
        if not events:
            notes.append(f"no face is followed from {how.onset} s to {how.apex} s")
    else:
        events = [event for track in tracks for event in spotted(track, how.threshold)]
    events.sort(key=lambda event: (event.onset, event.person))
    events = [replace(event, event=number) for number, event in enumerate(events, 1)]
    side = SIDE if reader is None else reader.image_size
    crops: dict[int, tuple[UInt8, UInt8]] = {}
    small: list[tuple[UInt8, UInt8]] = []
    for event in events:
        pair = film.at([event.onset_frame, event.apex_frame])
        track = track_of(tracks, event)
        places = [track.matrix_at(number) for number in (event.onset_frame, event.apex_frame)]
        crops[event.event] = _cut(pair, places, SIDE)
        small.append(_cut(pair, places, side))
    if reader is not None and events:
        from mefar.recognition.reading import read

        onsets, apexes = zip(*small, strict=True)
        events = read(reader.tokenizer, reader.readers, events, onsets, apexes)
    found = Recognition(
        str(film.path), followed.seconds, followed.frames, film.fps, film.size, how.model, tuple(events),
        tracks, followed.cuts, tuple(notes),
    )  # fmt: skip
    return found, crops


def _cut(pair: Sequence[UInt8], places: Sequence[Float], side: int) -> tuple[UInt8, UInt8]:
    aligner = FaceAligner(side)
    onset, apex = (
        aligner.crop(frame, resized(place, side)) for frame, place in zip(pair, places, strict=True)
    )
    return onset, apex


def _pairs(film: Footage, found: Recognition, tokenizer: Any, gap: float) -> str:
    """Text of pairs.csv: frame, seconds, person, later frame, tokens, for every frame and face."""
    from mefar.recognition.reading import tokens_of

    side, aligner = int(tokenizer.image_size), FaceAligner(int(tokenizer.image_size))
    waiting: dict[int, list[tuple[int, float, UInt8]]] = {k: [] for k in range(len(found.tracks))}
    rows: list[list[Any]] = []
    batch: list[tuple[list[Any], UInt8, UInt8]] = []

    def tokenise() -> None:
        if not batch:
            return
        codes = tokens_of(tokenizer, [pair[1] for pair in batch], [pair[2] for pair in batch]).indices
        rows.extend(
            [*pair[0], " ".join(map(str, row))] for pair, row in zip(batch, codes.tolist(), strict=True)
        )
        batch.clear()

    with shown(f"reading every pair of {film.path.name}", "frames") as progress:
        frames = islice(ahead(film.play()), found.frames)
        for number, (seconds, frame) in enumerate(_told(frames, found.frames, progress)):
            for k, track in enumerate(found.tracks):
                if not track.frames[0] <= number <= track.frames[-1]:
                    continue
                crop = aligner.crop(frame, resized(track.matrix_at(number), side))
                while waiting[k] and seconds - waiting[k][0][1] >= gap - 1e-6:
                    before, then, onset = waiting[k].pop(0)
                    batch.append(([before, round(then, 4), track.person, number], onset, crop))
                waiting[k].append((number, seconds, crop))
            if len(batch) >= 64:
                tokenise()
    tokenise()
    return csv_text(["frame", "seconds", "person", "later_frame", "tokens"], rows)


def _told(
    frames: Iterator[tuple[float, UInt8]], total: int, progress: Progress
) -> Iterator[tuple[float, UInt8]]:
    start = time.monotonic()
    for done, item in enumerate(frames, 1):
        yield item
        if done % 10 == 0 or done == total:
            progress(done, total, done / (time.monotonic() - start))


def _one_table(place: Path, folders: Sequence[Path]) -> None:
    """One events.csv over all videos of a folder, the video's name before each row."""
    columns, rows = ["video"], []
    for folder in folders:
        with suppress(FileNotFoundError), (folder / "events.csv").open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns += [name for name in reader.fieldnames or () if name not in columns]
            rows += [{"video": str(folder.relative_to(place)), **row} for row in reader]
    write_text(place / "events.csv", csv_text(columns, rows))


def _for_a_challenge(place: Path, films: Mapping[str, Path]) -> None:
    """challenge.csv, as the grand challenges ask for it of videos whose truth they keep to themselves.

    vid: the video's name; pred_onset, pred_offset: frames, by the numbers of their files where frames are
    files, else from 0; type: me or mae.
    """
    rows = []
    with (place / "events.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            film = films[row["video"]]
            onset, offset = (int(row[f"{moment}_frame"]) for moment in ("onset", "offset"))
            if film.is_dir():
                numbers = list(list_frames(film).files)
                onset, offset = numbers[onset], numbers[offset]
            kind = {"micro": "me", "macro": "mae"}[row["kind"]]
            rows.append({"vid": film.stem, "pred_onset": onset, "pred_offset": offset, "type": kind})
    write_text(place / "challenge.csv", csv_text(("vid", "pred_onset", "pred_offset", "type"), rows))


def main(argv: Sequence[str]) -> int:
    """Run `mefar recognise`."""
    return run_function(recognise_command, argv, "mefar recognise")
