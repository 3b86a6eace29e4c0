"""One decoding pass over a folder of face videos -> shards of aligned crops for training.

Each utterance is decoded once, in order, by one worker process. It is cut into windows of at most two
seconds, short enough that the head stays in its crop; each window has one alignment (faces.FaceAligner) and,
when `stabilise` is on, each of its frames one residual rigid motion against the window's middle frame
(head_motion.Stabiliser), applied in the same interpolation.

On disk:
- plan.json: what is being built and a fingerprint of the files; written first. A second call with other
  settings, other files or other code refuses to mix.
- shard-00012.* with the crops, see stores.py, and shard-00012.json (its windows; its quarantined files); a
  shard is there when its .json is. Killed at any moment, a second call makes only the shards that are not
  there.
- index.json, index.npz: all windows; written last: a cache is complete when index.json is there.
- quarantine.csv (path, reason): files that gave no window. They are listed, never replaced by others.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.faces.align import FaceAligner, FaceMode
from datamodules.voxceleb.parallel import work
from datamodules.voxceleb.stores import ROW, STORES, Store, bytes_on_disk, write_shard
from datamodules.voxceleb.utterances import Utterance, find_utterances
from datamodules.voxceleb.windows import Window, read_windows
from mefar.errors import UserError
from mefar.files import code_fingerprint, csv_text, fingerprint, lock, remove_leftovers, replacing, write_text

VERSION = 4
NO_FACE = "no face found that stays in the picture"
Progress = Callable[[int, int, float], None]
StoreChoice = Literal["auto", "raw", "jpeg", "video"]

# Whose code decides what crops show.
MADE_BY = (
    "datamodules.faces",
    "datamodules.voxceleb.windows",
    "datamodules.voxceleb.stores",
    "datamodules.voxceleb.video",
)
# What `auto` takes raw crops for: they are read several times faster than the others.
RAW_UP_TO = 20e9
# Measured by experiments/benchmarks/stores.py at 256 px.
_JPEG_SHARE = 0.085  # of the raw crops' bytes
_CORE_SECONDS = 0.4  # per file of eight seconds at 224 px


@dataclass(frozen=True)
class CacheSummary:
    """What a cache holds.

    Attributes:
        utterances: files that gave at least one window.
        windows: pieces of at most two seconds, each aligned once.
        frames: crops stored.
        quarantined: files that gave none; see quarantine.csv.
        speakers: speakers with at least one window.
        bytes: size of the crops on disk.
    """

    utterances: int
    windows: int
    frames: int
    quarantined: int
    speakers: int
    bytes: int


@dataclass(frozen=True)
class _Settings:
    """Everything that decides a shard's content; what plan.json holds beside the list of files."""

    version: int
    source: str
    files: str  # hash of the list
    size: int
    margin: int
    frames_per_utterance: int
    faces: FaceMode
    stabilise: bool
    seed: int
    per_shard: int
    store: Store
    code: str


def margin_for(size: int) -> int:
    """Pixels kept around a crop of `size` on each side, for random crops in training: a sixteenth."""
    return max(1, round(size / 16))


def build(
    voxceleb: Path,
    out: Path,
    size: int,
    frames_per_utterance: int = 25,
    faces: FaceMode = "align",
    workers: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    stabilise: bool = True,
    store: StoreChoice = "auto",
    tell: Callable[[str], None] | None = None,
) -> CacheSummary:
    """Decode, align and store; resumes where a killed call stopped; returns at once when all is there.

    Args:
        voxceleb: folder of videos, see `find_utterances`.
        out: folder of the cache, made if missing.
        size: side in pixels of the crops that training will see; stored with a margin of a sixteenth around.
        frames_per_utterance: crops kept per file: 25 cover one window of two seconds at 80 ms steps, more
            give more windows, or finer steps where the file is short.
        faces: `align`, or `precropped` for files that are face crops already.
        workers: processes; 0 works in this one, where a file that crashes the decoder ends everything.
            Workers are started anew after such a file, and it is quarantined.
        seed: which windows of a long file are kept.
        progress: called with (files done, files in all, files per second).
        stabilise: remove the head's rigid motion inside each window.
        store: `raw` crops, `jpeg`, or `video`: where the crops are in the videos; `auto` takes what was begun
            in `out`, else raw up to 20 GB, else jpeg where the disk has room, else video.
        tell: takes a line that says what will be stored, how large it will be and how long it takes, before
            it begins.

    Raises:
        UserError: missing folder, no video, a cache of other settings in `out`, not enough disk.
    """
    voxceleb, out = Path(voxceleb), Path(out)
    utterances = find_utterances(voxceleb)
    if size < 16 or frames_per_utterance < 2:
        raise UserError(
            f"cache: size {size} must be 16 or more, frames per utterance {frames_per_utterance} 2 or more"
        )
    if store not in ("auto", *STORES):
        raise UserError(f"store: unknown way {store!r}; use auto, {', '.join(STORES)}")
    # Sizes and times too: other videos under the same names are another corpus.
    states = [(u.path, u.speaker, (voxceleb / u.path).stat()) for u in utterances]
    files = [(path, speaker, state.st_size, state.st_mtime_ns) for path, speaker, state in states]
    settings = _Settings(
        version=VERSION,
        source=str(voxceleb.resolve()),
        files=fingerprint(files)[:16],
        size=size,
        margin=margin_for(size),
        frames_per_utterance=frames_per_utterance,
        faces=faces,
        stabilise=stabilise,
        seed=seed,
        per_shard=int(np.clip(len(utterances) // 200, 4, 256)),
        store="raw" if store == "auto" else store,
        code=code_fingerprint(*MADE_BY)[:16],
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with lock(out / ".lock"):
            return _build(voxceleb, out, settings, store == "auto", utterances, workers, progress, tell)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{out}: cannot write the cache ({reason}); make room and call again") from error


def _build(
    voxceleb: Path,
    out: Path,
    settings: _Settings,
    choose: bool,
    utterances: list[Utterance],
    workers: int,
    progress: Progress | None,
    tell: Callable[[str], None] | None,
) -> CacheSummary:
    begun = (out / "plan.json").is_file()
    if choose:
        there = _read_json(out / "plan.json").get("store") if begun else None
        settings = replace(
            settings, store=there if there in STORES else _chosen(out, settings, len(utterances))
        )
    if begun:
        _check_settings(out, settings)
    if (out / "index.json").is_file() and _index_is_whole(out):
        return summary(out)
    chunks = [utterances[i : i + settings.per_shard] for i in range(0, len(utterances), settings.per_shard)]
    todo = [i for i in range(len(chunks)) if _read_part(out, i) is None]
    count = sum(len(chunks[i]) for i in todo)
    _check_disk(out, settings, count)
    if count and tell is not None:
        tell(_announcement(out, settings, count, max(1, workers)))
    write_text(out / "plan.json", json.dumps(asdict(settings), indent=1))
    remove_leftovers(out)
    try:
        _work(voxceleb, out, settings, chunks, todo, workers, progress)
    finally:
        remove_leftovers(out)  # what workers that were stopped had begun to write
    return _finish(out, settings, chunks)


def summary(out: Path) -> CacheSummary:
    """What a finished cache holds.

    Raises:
        UserError: `out` is no finished cache.
    """
    return CacheSummary(**_read_json(Path(out) / "index.json")["summary"])


def left_out(out: Path) -> str | None:
    """One line on the files that a finished cache quarantined; None where there are none.

    Raises:
        UserError: `out` is no finished cache.
    """
    made = summary(out)
    if not made.quarantined:
        return None
    path = Path(out) / "quarantine.csv"
    with path.open(newline="") as rows:
        first = next(csv.DictReader(rows))
    return (
        f"{made.quarantined} of {made.utterances + made.quarantined} videos gave nothing and are left out "
        f"({path}), the first: {first['path']}: {first['reason']}"
    )


def read_index(out: Path) -> tuple[dict[str, Any], tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """A finished cache's table.

    Returns:
        index.json (keys `plan`, `summary`, `shards`, `speakers`, `paths`: one file name per window), and two
        arrays: windows (N, 4) int64: shard, first row in it, frames, speaker; times (sum of frames,) float64
        seconds, the windows' frames one after another.

    Raises:
        UserError: `out` is no finished cache.
    """
    document = _read_json(Path(out) / "index.json")
    try:
        with np.load(Path(out) / "index.npz") as arrays:
            return document, (arrays["windows"], arrays["times"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{out}: index.npz is missing or damaged; build the cache again: only the index is made anew"
        ) from error


def _index_is_whole(out: Path) -> bool:
    try:
        read_index(out)
        summary(out)
    except (UserError, KeyError, TypeError):
        return False
    return True


def _read_part(out: Path, shard: int) -> dict[str, Any] | None:
    """The list of a shard's windows and quarantined files; None where it is not there, or damaged."""
    try:
        part = _read_json(out / f"shard-{shard:05d}.json")
    except UserError:
        return None
    return part if {"windows", "bad"} <= set(part) else None


def _check_settings(out: Path, settings: _Settings) -> None:
    old, new = _read_json(out / "plan.json"), asdict(settings)
    different = [key for key in new if old.get(key) != new[key]]
    if different:
        key = different[0]
        what = {
            "files": "the videos changed",
            "code": "the code that makes crops changed; as `data` it can still be trained on",
        }.get(key, f"{key} is {old.get(key)!r} there, {new[key]!r} now")
        raise UserError(f"{out}: is a cache made otherwise ({what}); choose another folder or delete it")


def _bytes(settings: _Settings, store: Store, count: int) -> float:
    """Bytes that so many files may need."""
    rows = count * settings.frames_per_utterance
    crops = float(rows * (settings.size + 2 * settings.margin) ** 2 * 3)
    share = {"raw": 1.0, "jpeg": min(1.0, _JPEG_SHARE * math.sqrt(256 / settings.size)), "video": 0.0}[store]
    return crops * share + rows * (ROW.itemsize + 24)


def _chosen(out: Path, settings: _Settings, count: int) -> Store:
    room = 0.5 * shutil.disk_usage(out).free
    if _bytes(settings, "raw", count) < min(RAW_UP_TO, room):
        return "raw"
    return "jpeg" if _bytes(settings, "jpeg", count) < room else "video"


def _announcement(out: Path, settings: _Settings, count: int, workers: int) -> str:
    hours = count * _CORE_SECONDS / 3600
    return (
        f"{out}: {count} videos as {settings.store}, {settings.frames_per_utterance} crops each: about "
        f"{_bytes(settings, settings.store, count) / 1e9:.2g} GB and {hours:.2g} core-hours, "
        f"{hours / workers:.2g} hours on {workers} cores"
    )


def _check_disk(out: Path, settings: _Settings, count: int) -> None:
    need, free = _bytes(settings, settings.store, count), shutil.disk_usage(out).free
    if need > 0.95 * free:
        others = [
            f"{store} needs {_bytes(settings, store, count) / 1e9:.2g}"
            for store in STORES[STORES.index(settings.store) + 1 :]
        ]
        raise UserError(
            f"{out}: the cache may need {need / 1e9:.2g} GB as {settings.store}, the disk has "
            f"{free / 1e9:.2g} GB free; choose another folder, fewer frames per utterance, or another store"
            + (f" ({', '.join(others)})" if others else "")
        )


def _work(
    root: Path,
    out: Path,
    settings: _Settings,
    chunks: list[list[Utterance]],
    todo: list[int],
    workers: int,
    progress: Progress | None,
) -> None:
    total, started, made = sum(map(len, chunks)), time.monotonic(), 0
    done = total - sum(len(chunks[i]) for i in todo)

    def report(shard: int) -> None:
        nonlocal made, done
        made, done = made + len(chunks[shard]), done + len(chunks[shard])
        if progress is not None:
            progress(done, total, made / max(time.monotonic() - started, 1e-6))

    if workers <= 0:
        for shard in todo:
            _make_shard(root, out, settings, chunks[shard], shard, {}, str)
            report(shard)
        return
    jobs = {shard: partial(_make_shard, root, out, settings, chunks[shard], shard) for shard in todo}
    for shard in work(jobs, workers):
        report(shard)


def _make_shard(
    root: Path,
    out: Path,
    settings: _Settings,
    chunk: list[Utterance],
    shard: int,
    left_out: Mapping[str, str],
    opening: Callable[[str], object],
) -> None:
    """Write one shard; `opening` is told of each file before it is opened, `left_out` ones are not opened."""
    side = settings.size + 2 * settings.margin
    aligner = FaceAligner(settings.size, settings.faces, settings.margin)
    how = (aligner, settings.frames_per_utterance, settings.stabilise, settings.seed)
    kept: list[Window] = []
    windows: list[dict[str, Any]] = []
    bad: list[dict[str, str]] = []
    for utterance in chunk:
        if utterance.path in left_out:
            bad.append({"path": utterance.path, "reason": left_out[utterance.path]})
            continue
        opening(utterance.path)
        try:
            found = read_windows(root / utterance.path, utterance.path, *how)
        except UserError as error:
            reason = str(error).removeprefix(f"{root / utterance.path}: ")
            bad.append({"path": utterance.path, "reason": reason})
            continue
        if not found:
            bad.append({"path": utterance.path, "reason": NO_FACE})
        for window in found:
            windows.append(
                {"speaker": utterance.speaker, "path": utterance.path, "times": window.times.tolist()}
            )
        kept += found
    opening("")
    write_shard(out, shard, settings.store, kept, side)
    write_text(out / f"shard-{shard:05d}.json", json.dumps({"windows": windows, "bad": bad}))


def _finish(out: Path, settings: _Settings, chunks: list[list[Utterance]]) -> CacheSummary:
    windows: list[tuple[int, int, int, int]] = []  # shard, first row, frames, speaker
    moments: list[float] = []
    paths: list[str] = []
    speakers: dict[str, int] = {}
    bad: list[dict[str, str]] = []
    size = 0
    for shard in range(len(chunks)):
        part, row = _read_json(out / f"shard-{shard:05d}.json"), 0
        size += bytes_on_disk(out, shard)
        bad += part["bad"]
        for window in part["windows"]:
            speaker = speakers.setdefault(window["speaker"], len(speakers))
            windows.append((shard, row, len(window["times"]), speaker))
            paths.append(window["path"])
            moments += window["times"]
            row += len(window["times"])
    result = CacheSummary(
        utterances=len(set(paths)),
        windows=len(windows),
        frames=len(moments),
        quarantined=len(bad),
        speakers=len(speakers),
        bytes=size,
    )
    with replacing(out / "index.npz") as temporary, temporary.open("wb") as file:
        table = np.array(windows, np.int64).reshape(-1, 4)
        np.savez(file, windows=table, times=np.array(moments, np.float64))
    write_text(out / "quarantine.csv", csv_text(("path", "reason"), bad))
    document = {
        "plan": asdict(settings),
        "summary": asdict(result),
        "shards": len(chunks),
        "speakers": list(speakers),
        "paths": paths,
    }
    write_text(out / "index.json", json.dumps(document))
    return result


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; the cache is not finished, call `mefar cache` again"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged; delete the cache folder and build it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged; delete the cache folder and build it again")
    return content
