"""Onset and apex of a clip as aligned crops, made once and kept on disk.

Per clip: one face transform from the onset frame for all of its frames; the apex by the chosen rule; the
head's own motion between onset and apex measured and taken out; then every view rendered from the source
frames by one interpolation. A file per clip, written to a temporary name and renamed: a run that is killed
goes on where it stopped. The file's name holds a fingerprint of everything that the content depends on, so
other settings, changed frames or changed code never meet an old file.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from datamodules.clips import Clip, Study
from datamodules.databases.video_frames import read_frame, source
from datamodules.faces.align import FaceAligner, FaceMode, Stabiliser
from datamodules.faces.apex import Apex, ApexRule, choose_apex, spot
from datamodules.faces.geometry import compose
from datamodules.faces.head_motion import Region
from datamodules.faces.resample import resample
from datamodules.look_alikes import from_afar
from datamodules.views import draw_view
from mefar.errors import UserError
from mefar.files import code_fingerprint, lock, remove_leftovers, replacing
from mefar.files import fingerprint as digest

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]
Progress = Callable[[int, int, float], None]  # done, total, clips per second

# Whose code decides what pictures show.
MADE_BY = (
    "datamodules.faces",
    "datamodules.crops",
    "datamodules.look_alikes",
    "datamodules.views",
    "datamodules.counter_random",
)
_SPOTTING_SIDE = 128
_LOG = logging.getLogger(__name__)
_JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class PairSettings:
    """What the pictures of a pair depend on besides the frames.

    Attributes:
        image_size: side of the crops in pixels.
        faces: `align`, or `precropped` for frames that are face crops already.
        apex: annotated, middle or spotted.
        stabilise: take out the head's own motion between onset and apex: a similarity transform measured
            from all stable pixels of the face. Micro-expressions move skin by a pixel, and so does a head
            that is held still; aligning each frame by its own landmarks would add more than it removes.
        views: V, pairs per clip; the first is untouched.
        seed: of the other views.
        stretch: fill the square with a precropped frame, whatever its aspect.
    """

    image_size: int = 256
    faces: FaceMode = "align"
    apex: ApexRule = "annotated"
    stabilise: bool = True
    views: int = 1
    seed: int = 0
    stretch: bool = False


@dataclass(frozen=True)
class Pair:
    """The pictures of one clip.

    Attributes:
        onset: (V, S, S, 3) uint8 RGB.
        apex: (V, S, S, 3) uint8 RGB.
        chosen: the apex of view 0 and the rule that gave it.
        looks: (2, 16, 16) gray levels, onset and apex as filmed, from afar: see look_alikes.
    """

    onset: UInt8
    apex: UInt8
    chosen: Apex
    looks: NDArray[np.float32]


def read_image(file: Path) -> UInt8:
    """Read an image -> (H, W, 3) uint8 RGB; gray becomes three equal channels.

    Of 16 bits the upper 8 are taken, or of the 12 that a scientific camera fills, the upper 8 of those.

    Raises:
        UserError: the file cannot be read, is no image, is cut off or damaged, or is too large.
    """
    if source(file) != file:
        return read_frame(file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); copy it again") from error
    if not data or _cut_off(data):
        raise UserError(f"{file}: the image is {'cut off' if data else 'empty'}; copy it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise UserError(f"{file}: has too many pixels, or is damaged; scale it down") from error
    if image is None:
        raise UserError(f"{file}: not a readable image; copy it again")
    if data.startswith(_JPEG):
        _check_jpeg(file, data)
    levels = np.asarray(image)
    if levels.dtype == np.uint16:
        levels = levels.astype(np.uint16) >> (4 if levels.max() < 1 << 12 else 8)
    elif levels.dtype != np.uint8:
        raise UserError(f"{file}: holds {levels.dtype} values; convert it to 8 or 16 bits")
    return np.asarray(cv2.cvtColor(levels.astype(np.uint8), cv2.COLOR_BGR2RGB), np.uint8)


def _check_jpeg(file: Path, data: bytes) -> None:
    """Decode once more and listen: OpenCV fills what is damaged with gray and says nothing.

    JPEG has no checksums: damage that still is valid code goes unnoticed here as everywhere.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True)
    except ValueError as error:
        raise UserError(f"{file}: the image is damaged ({error}); copy it again") from error


def _cut_off(data: bytes) -> bool:
    """Whether the end of the file is missing; the decoder would fill the rest with gray and say nothing."""
    if data.startswith(_JPEG):  # inside the scan every 0xFF is escaped, so markers are markers
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-64:]
    if data.startswith(b"BM") and len(data) >= 30:
        start, width, height = (int.from_bytes(data[i : i + 4], "little", signed=True) for i in (10, 18, 22))
        row = (width * int.from_bytes(data[28:30], "little") + 31) // 32 * 4
        compressed = int.from_bytes(data[30:34], "little") not in (0, 3)
        return not compressed and len(data) < start + row * abs(height)
    return False


def render(
    clip: Clip, settings: PairSettings, aligner: FaceAligner, matrix: Float | None = None
) -> Pair | None:
    """Make the pictures of a clip from its frames; None where the onset frame shows no face.

    Args:
        clip: to make them of.
        settings: how.
        aligner: finds the face in the onset frame.
        matrix: (2, 3) where it is, if that is known.

    Raises:
        UserError: a frame that is needed cannot be read, or has another size than the onset frame.
    """
    first = read_image(clip.frames[clip.onset])
    matrix = aligner.estimate(first) if matrix is None else matrix
    if matrix is None:
        return None
    chosen = choose_apex(clip, settings.apex, lambda c: _spotted(c, first, matrix, settings))
    later = [number for number in clip.between() if number > clip.onset]
    size = settings.image_size
    reference = resample(first, matrix, size)
    steady = Stabiliser(reference, _region(settings)) if settings.stabilise else None
    frames: dict[int, tuple[UInt8, Float]] = {}
    onsets, apexes = [], []
    for v in range(settings.views):
        view = draw_view(settings.seed, clip.key, v)
        number = view.jittered(chosen.number, later)
        if number not in frames:
            image = _read_like(clip.frames[number], first)
            moved = matrix
            if steady is not None:
                moved = compose(steady.motion(resample(image, matrix, size)), matrix)
            frames[number] = (image, moved)
        image, moved = frames[number]
        change = view.matrix(size)
        onset = resample(first, compose(change, matrix), size)
        apex = view.amplified(onset, resample(image, compose(change, moved), size))
        onsets.append(view.relit(onset))
        apexes.append(view.relit(apex))
    looks = np.stack([from_afar(first), from_afar(frames[chosen.number][0])])
    return Pair(np.stack(onsets), np.stack(apexes), chosen, looks)


def _read_like(file: Path, first: UInt8) -> UInt8:
    """A frame of the clip that `first` is of; the face is where it is in `first` only at the same size."""
    image = read_image(file)
    if image.shape != first.shape:
        (height, width), (h, w) = image.shape[:2], first.shape[:2]
        sizes = f"{width}x{height} pixels, but the onset frame has {w}x{h}"
        raise UserError(f"{file}: {sizes}; copy all frames of a clip from one source")
    return image


def _spotted(clip: Clip, first: UInt8, matrix: Float, settings: PairSettings) -> int:
    side = min(settings.image_size, _SPOTTING_SIDE)
    ratio = side / settings.image_size
    shrink = np.array([[ratio, 0.0, (ratio - 1) / 2], [0.0, ratio, (ratio - 1) / 2]])
    onto = compose(shrink, matrix)
    numbers, crops = clip.between(), []
    steady, guess = None, None
    for number in numbers:
        image = _read_like(clip.frames[number], first)
        crop = resample(image, onto, side)
        if steady is None:
            steady = Stabiliser(crop, _region(settings))
        else:
            guess = steady.motion(crop, guess)
            crop = resample(image, compose(guess, onto), side)
        crops.append(crop)
    return numbers[spot(crops, clip.fps, settings.faces == "align")]


def _region(settings: PairSettings) -> Region:
    return "aligned" if settings.faces == "align" else "any"


def clip_fingerprint(clip: Clip, settings: PairSettings | None = None) -> str:
    """sha256 of a clip's frames (path, size, time of change) and numbers.

    With settings, of all that its pictures depend on: of the settings and of the code that makes them too.
    """
    frames = []
    for number in clip.between():
        state = source(clip.frames[number]).stat()
        frames.append((number, str(clip.frames[number].absolute()), state.st_size, state.st_mtime_ns))
    what = [clip.key, clip.onset, clip.apex, clip.offset, clip.fps, frames]
    return digest([*what, asdict(settings), code_fingerprint(*MADE_BY)] if settings else what)


def fingerprint(study: Study, settings: PairSettings | None = None) -> str:
    """sha256 of a study's data: protocol, classes, clips, labels, files, and the settings if given.

    The same data read again gives the same value; a changed, added or removed clip or frame another.
    """
    clips = [(clip.label, clip.subject_key, clip_fingerprint(clip, settings)) for clip in study.clips]
    return digest([study.protocol, study.class_names, clips])


class PairStore:
    """Pairs of clips in a folder.

    Args:
        folder: where the files are kept; made when needed.
        settings: of the pictures.
    """

    def __init__(self, folder: Path, settings: PairSettings) -> None:
        self.folder, self.settings = folder, settings

    def path(self, clip: Clip) -> Path:
        """The file of a clip, there or not."""
        s = self.settings
        name = f"{clip.key.replace('/', '-')}.{s.image_size}-{s.faces}-{s.apex}"
        return self.folder / f"{name}.{clip_fingerprint(clip, s)[:16]}.npz"

    def prepare(
        self, clips: Sequence[Clip], workers: int = 0, progress: Progress | None = None
    ) -> dict[str, tuple[Path, Apex | None]]:
        """Make what is missing.

        Args:
            clips: to make pairs of.
            workers: threads; 0 = as many as there are cores, up to 8.
            progress: told (done, total, clips per second) after each new pair.

        Returns:
            key -> file and chosen apex (None where the onset frame shows no face).

        Raises:
            UserError: a frame that is needed cannot be read, or the folder cannot be written.
        """
        paths = {clip.key: self.path(clip) for clip in clips}
        found = {key: there for key, path in paths.items() if (there := _read_prepared(path)) is not None}
        if len(found) < len(clips):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self.folder}: cannot be made ({error.strerror}); set another cache_dir"
                ) from error
            with lock(self.folder / ".lock"):  # ranks and runs on one disk make a pair once
                remove_leftovers(self.folder)
                for key, path in paths.items():
                    if key not in found and (there := _read_prepared(path)) is not None:
                        found[key] = there
                missing = [clip for clip in clips if clip.key not in found]
                found |= self._make_all(missing, paths, workers, progress)
        return {key: (path, found[key].apex) for key, path in paths.items()}

    def _make_all(
        self, clips: Sequence[Clip], paths: Mapping[str, Path], workers: int, progress: Progress | None
    ) -> dict[str, _Prepared]:
        start, made = time.monotonic(), {}
        threads = max(1, min(workers or min(8, os.cpu_count() or 1), len(clips)))
        local = threading.local()  # the detector's networks are not shared between threads
        with ThreadPoolExecutor(threads) as pool:
            jobs = {pool.submit(self._make, clip, paths[clip.key], local): clip for clip in clips}
            try:
                for done, job in enumerate(as_completed(jobs), 1):
                    made[jobs[job].key] = job.result()
                    if progress is not None:
                        progress(done, len(clips), done / (time.monotonic() - start))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return made

    def load(self, path: Path) -> tuple[UInt8, UInt8]:
        """Onset and apex of a prepared clip, (V, S, S, 3) uint8 RGB each.

        Raises:
            UserError: the file was damaged after `prepare` had looked at it.
        """
        onset, apex = self._entries(path, "onset", "apex")
        return onset, apex

    def looks(self, path: Path) -> NDArray[np.float32]:
        """Onset and apex of a prepared clip from afar, (2, 16, 16) gray levels."""
        return np.asarray(self._entries(path, "looks")[0], np.float32)

    def _entries(self, path: Path, *names: str) -> list[NDArray[Any]]:
        try:
            with np.load(path) as data:
                return [data[name] for name in names]
        except _DAMAGE as error:
            raise UserError(f"{path}: damaged or gone; start again, and this clip is made anew") from error

    def _make(self, clip: Clip, path: Path, local: threading.local) -> _Prepared:
        if not hasattr(local, "aligner"):
            settings = self.settings
            local.aligner = FaceAligner(settings.image_size, settings.faces, stretch=settings.stretch)
        pair = render(clip, self.settings, local.aligner)
        arrays: dict[str, NDArray[np.generic]] = {"number": np.array(-1), "rule": np.array("")}
        if pair is not None:
            arrays = {"number": np.array(pair.chosen.number), "rule": np.array(pair.chosen.rule)}
            arrays |= {"onset": pair.onset, "apex": pair.apex, "looks": pair.looks}
        try:
            with replacing(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); free space or set cache_dir"
            ) from error
        return _Prepared(None if pair is None else pair.chosen)


@dataclass(frozen=True)
class _Prepared:
    apex: Apex | None


_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def _read_prepared(path: Path) -> _Prepared | None:
    """The chosen apex; None where there is no whole file.

    Every entry is read, so that its checksum is looked at: a damaged file is named and made anew.
    """
    try:
        with np.load(path) as data:
            content = {name: data[name] for name in data.files}
        number, rule = int(content["number"]), str(content["rule"])
        if number >= 0 and not {"onset", "apex", "looks"} <= set(content):
            return None
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except _DAMAGE as error:
        _LOG.warning("%s: damaged (%s); made anew", path, error)
        return None
    return _Prepared(Apex(number, rule) if number >= 0 else None)  # type: ignore[arg-type]
