"""Write the demo corpora: a VoxCeleb2 tree and replicas of four micro-expression databases.

Everything is rendered from a licence-free head. The files lie exactly as the real ones do, so the real
loaders read them; the truth (identity, action units, pose of every frame) goes to ``ground_truth/``, which no
loader reads. Deterministic by seed. Every utterance and clip is written under a hidden temporary name and
renamed, and what is there already is skipped, so a killed run is finished by starting it again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.demo.coding import CODING_FILES, write_coding
from datamodules.demo.encoding import write_h264
from datamodules.demo.identity import Identity
from datamodules.demo.motion import Performance, StrengthName, micro_expression, resting_face, talking
from datamodules.demo.realism import TURNING, Extra
from datamodules.demo.replicas import STUDIOS, SUBJECTS, ClipPlan, plan
from datamodules.demo.scene import Scene, as_real, street_scene
from mefar.errors import UserError
from mefar.files import claim_folder

U8 = npt.NDArray[np.uint8]
SizeName = Literal["demo", "tiny"]
Progress = Callable[[int, int, float], None]

FPS = 25
_LETTERS: Final = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))


@dataclass(frozen=True)
class Size:
    """How much to write.

    Attributes:
        speakers, utterances, frames, pixels: the VoxCeleb tree; frames per utterance, square pictures.
        subjects, clips: of the casme2, samm and smic replicas; clips per subject.
        casme3_subjects, casme3_clips: of the casme3 replica.
        shrink: factor on the replicas' picture sizes.
        clip_frames: fewest and most frames of a clip, None = as the database's camera gives.
    """

    speakers: int
    utterances: int
    frames: int
    pixels: int
    subjects: int
    clips: int
    casme3_subjects: int
    casme3_clips: int
    shrink: float = 1.0
    clip_frames: tuple[int, int] | None = None


SIZES: Final[Mapping[SizeName, Size]] = {
    "demo": Size(350, 2, 36, 160, 8, 13, 4, 8),
    "tiny": Size(6, 2, 20, 96, 3, 4, 2, 3, shrink=0.6, clip_frames=(7, 10)),
}


@dataclass(frozen=True)
class Corpora:
    """Which corpora: equal ones have the same bytes.

    Attributes:
        root: folder of all of them.
        seed: of everything.
        size: how much.
        strength: how strong the micro-expressions of the databases are; all else about their clips is the
            same, and voxceleb's people talk alike whatever it is.
        twins: two speakers of voxceleb each play one script, in videos of the same names: their faces do the
            same at the same time, under other light, before another camera, with other head motion.
        realism: what ``datamodules.demo.realism`` adds to voxceleb; speakers and scripts stay the same.
    """

    root: Path
    seed: int = 0
    size: SizeName = "demo"
    strength: StrengthName = "demo"
    twins: bool = False
    realism: Sequence[Extra] = ()

    @property
    def amount(self) -> Size:
        """How much its size is."""
        return SIZES[self.size]


@dataclass(frozen=True)
class _Task:
    """One person's files."""

    corpora: Corpora
    database: str  # or "voxceleb"
    number: int  # of the person, within the database
    clips: tuple[ClipPlan, ...] = ()


def make_voxceleb(corpora: Corpora, workers: int = 0, progress: Progress | None = None) -> None:
    """Write ``root/voxceleb/dev/mp4/idNNNNN/<video>/00001.mp4`` (H.264, yuv420p, 25 fps).

    Args:
        corpora: which.
        workers: processes; 0 = one per core, 1 = none besides this one.
        progress: called with (speakers done, speakers in all, speakers per second).

    Raises:
        UserError: root holds corpora made otherwise.
    """
    _claim(corpora)
    _work([_Task(corpora, "voxceleb", k) for k in range(corpora.amount.speakers)], workers, progress)


def make_databases(corpora: Corpora, workers: int = 0, progress: Progress | None = None) -> None:
    """Write the replicas ``root/{casme2,samm,smic,casme3}``; arguments and errors as of `make_voxceleb`."""
    _claim(corpora)
    how, tasks = corpora.amount, []
    for database in STUDIOS:
        small = database == "casme3"
        counts = (how.casme3_subjects, how.casme3_clips) if small else (how.subjects, how.clips)
        plans = plan(database, corpora.seed, *counts, how.clip_frames)
        if database in CODING_FILES:
            folder = corpora.root / database
            folder.mkdir(parents=True, exist_ok=True)
            write_coding(folder, database, plans)
        for number, subject in enumerate(dict.fromkeys(p.subject for p in plans)):
            clips = tuple(p for p in plans if p.subject == subject)
            tasks.append(_Task(corpora, database, number, clips))
    _work(tasks, workers, progress)


def clip_folder(root: Path, database: str, clip: ClipPlan) -> Path:
    """Where the real database keeps the frames of a clip."""
    if database == "casme2":
        return root / "casme2" / "CASME2_RAW_selected" / clip.subject / clip.clip
    if database == "samm":
        return root / "samm" / clip.subject / clip.clip
    if database == "smic":
        emotion = {"happiness": "positive", "surprise": "surprise"}.get(clip.emotion, "negative")
        return root / "smic" / "HS" / clip.subject / "micro" / emotion / clip.clip
    return root / "casme3" / "part_A" / clip.subject / clip.clip.split("_")[0] / "color"


def frame_name(database: str, clip: ClipPlan, number: int) -> str:
    """File name of one frame, padded as in the real database."""
    if database == "casme2":
        return f"img{number}.jpg"
    if database == "samm":
        return f"{clip.subject}_{number:05d}.jpg"
    if database == "smic":
        return f"image{number:06d}.bmp"
    return f"{number}.jpg"


def on_set(root: Path, database: str, subject: str) -> tuple[Identity, Scene]:
    """Who stands where: the face of a replica's subject and the place they were filmed in.

    Args:
        root: folder of the demo corpora.
        database: key of ``STUDIOS``.
        subject: the database's id of a subject.

    Raises:
        UserError: root holds no demo corpora, or no such subject.
    """
    try:
        made = json.loads((root / "demo.json").read_text(encoding="utf-8"))
        if made["size"] not in SIZES:
            raise KeyError(made["size"])
        task = _Task(Corpora(root, made["seed"], made["size"]), database, SUBJECTS[database].index(subject))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{root}: no demo corpora with a subject {database}/{subject} in them") from error
    identity, _, scene = _cast(task, _generator(task))
    return identity, scene


def _cast(task: _Task, rng: np.random.Generator) -> tuple[Identity, npt.NDArray[np.float64], Scene]:
    """A replica's subject: face, resting face and scene, drawn in this order."""
    identity, rest = Identity.random(rng), resting_face(rng)
    return identity, rest, STUDIOS[task.database].scene(rng, task.corpora.amount.shrink)


def _claim(corpora: Corpora) -> None:
    """Mark the folder with what it holds, or refuse one that holds something else."""
    corpora.root.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, object] = {"corpus": "mefar demo", "seed": corpora.seed, "size": corpora.size}
    if corpora.strength != "demo":  # which folders made before there was a choice do not name
        wanted["strength"] = corpora.strength
    if corpora.twins:
        wanted["twins"] = True
    if corpora.realism:
        wanted["realism"] = sorted(corpora.realism)
    claim_folder(corpora.root, "demo", wanted)


def _work(tasks: Sequence[_Task], workers: int, progress: Progress | None) -> None:
    """Film everybody who is not on disk yet."""
    missing = [task for task in tasks if not _is_done(task)]
    start, there = time.monotonic(), len(tasks) - len(missing)

    def tell(done: int) -> None:
        if progress is not None and missing:
            progress(there + done, len(tasks), done / max(time.monotonic() - start, 1e-6))

    tell(0)
    count = min(workers or os.cpu_count() or 1, len(missing))
    if count <= 1:
        for done, task in enumerate(missing, start=1):
            _film_person(task)
            tell(done)
        return
    # Not forked: the caller may run threads (torch, OpenCV).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(_film_person, task) for task in missing]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                tell(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Stop this worker when its parent is killed, so that it does not write beside a run started anew."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _generator(task: _Task, *more: int) -> np.random.Generator:
    """Random numbers of one person, or of one of their clips."""
    stream = 2 if task.database == "voxceleb" else 3 + sorted(STUDIOS).index(task.database)
    return np.random.default_rng([task.corpora.seed, stream, task.number, *more])


def _script(task: _Task, *more: int) -> np.random.Generator:
    """Random numbers that two speakers share."""
    return np.random.default_rng([task.corpora.seed, 0, task.number // 2, *more])


def _extras(task: _Task) -> np.random.Generator:
    """Random numbers of what `realism` adds to a speaker."""
    return np.random.default_rng([task.corpora.seed, 1, task.number])


def _videos(task: _Task, rng: np.random.Generator) -> list[Path]:
    rng = _script(task) if task.corpora.twins else rng
    speaker = task.corpora.root / "voxceleb" / "dev" / "mp4" / f"id{task.number + 12:05d}"
    names = ("".join(rng.choice(_LETTERS, 11)) for _ in range(task.corpora.amount.utterances))
    return [speaker / name / "00001.mp4" for name in names]


def _last_frame(task: _Task, clip: ClipPlan) -> Path:
    folder = clip_folder(task.corpora.root, task.database, clip)
    return folder / frame_name(task.database, clip, clip.offset)


def _is_done(task: _Task) -> bool:
    if task.database == "voxceleb":
        return all(video.exists() for video in _videos(task, _generator(task)))
    return all(_last_frame(task, clip).exists() for clip in task.clips)


def _film_person(task: _Task) -> None:
    cv2.setNumThreads(1)
    if task.database == "voxceleb":
        _film_speaker(task)
    else:
        _film_subject(task)


def _film_speaker(task: _Task) -> None:
    rng = _generator(task)
    videos = _videos(task, rng)
    identity, rest = Identity.random(rng), resting_face(rng)
    for k, video in enumerate(videos):
        if video.exists():
            continue
        own = _generator(task, k)
        scene = street_scene(own, task.corpora.amount.pixels)
        script = _script(task, k) if task.corpora.twins else own
        turning = TURNING if "turns" in task.corpora.realism else 1.0
        performance = talking(script, rest, task.corpora.amount.frames, FPS, scene.camera.scale, own, turning)
        scene, crf = as_real(scene, task.corpora.realism, _extras(task))
        pictures = scene.film(identity, performance, own)
        name = f"{video.parent.parent.name}_{video.parent.name}_00001"
        _write_truth(task, name, identity, performance)
        video.parent.mkdir(parents=True, exist_ok=True)
        partial = video.with_name(".00001.partial.mp4")
        write_h264(partial, pictures, FPS, crf)
        os.replace(partial, video)


def _film_subject(task: _Task) -> None:
    studio = STUDIOS[task.database]
    identity, rest, scene = _cast(task, _generator(task))
    options = [cv2.IMWRITE_JPEG_QUALITY, studio.quality] if studio.quality else []
    for k, clip in enumerate(task.clips):
        if _last_frame(task, clip).exists():  # frames are moved in order: the last one means all
            continue
        own = _generator(task, k)
        performance = micro_expression(
            own, clip.units, rest, clip.frames, clip.apex, studio.fps, scene.camera.scale,
            task.corpora.strength,
        )  # fmt: skip
        pictures = scene.film(identity, performance, own)
        _write_truth(task, f"{clip.subject}_{clip.clip}", identity, performance)
        folder = clip_folder(task.corpora.root, task.database, clip)
        partial = folder.with_name(f".{folder.name}.{clip.clip}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        folder.mkdir(parents=True, exist_ok=True)
        files = [frame_name(task.database, clip, clip.onset + t) for t in range(clip.frames)]
        for name, picture in zip(files, pictures, strict=True):
            stored = picture[..., 0] if task.database == "samm" else picture[..., ::-1]
            if not cv2.imwrite(str(partial / name), stored, options):
                raise UserError(f"{partial / name}: cannot write; is the disk full?")
        for name in files:
            os.replace(partial / name, folder / name)
        partial.rmdir()


def _write_truth(task: _Task, name: str, identity: Identity, performance: Performance) -> None:
    """Keep what was rendered: identity weights, and per frame actions, action units, pose, light gain."""
    folder = task.corpora.root / "ground_truth" / task.database
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.partial.npz"
    np.savez_compressed(
        partial,
        macro=identity.macro,
        targets=identity.targets,
        actions=performance.actions.astype(np.float16),
        units=np.array([str(unit) for unit in performance.units]),
        intensity=performance.intensity,
        pose=performance.pose,
        gain=performance.gain,
    )
    os.replace(partial, folder / f"{name}.npz")
