"""`mefar transfer`: what one face did, on other faces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from datamodules.faces.align import FaceMode
from datamodules.faces.resample import resample
from datamodules.footage import write_video
from datamodules.loose_clips import picture_at
from mefar.commands.acting import Source, given, of_database
from mefar.commands.pictures import Float, UInt8, align
from mefar.errors import UserError
from mefar.files import claim_folder, fingerprint, lock, replacing
from mefar.generation import token_file
from mefar.generation.dictionary import showing
from mefar.generation.editing import kept, steerable
from mefar.generation.transfer import Target, carry, clip
from mefar.readers import weights_of
from mefar.tokenizer.plain import load
from mefar.tokens import SteerableTokenizer

Named = TypeVar("Named", Source, Target)

NONE: list[Any] = []
CELL = 192
"""Pixels of a face in a grid."""


def transfer(
    *,
    target: list[Path],
    out: Path,
    source: list[Path] = NONE,
    tokenizer: Path = Path("demo"),
    strength: float = 1.0,
    top: int | None = None,
    run: Path | None = None,
    units: list[int] = NONE,
    frames: int | None = None,
    fps: float = 25.0,
    gif: bool = False,
    grid: bool = False,
    face: int = 1,
    source_face: int = 1,
    onset: float | None = None,
    apex: float | None = None,
    dataset: str | None = None,
    data: Path | None = None,
    clips: list[str] = NONE,
    faces: FaceMode = "align",
    cache_dir: Path = Path("runs/cache"),
) -> None:
    """Carry the action of every source to the face in every target, in the target's whole picture.

    Writes OUT/TARGET.SOURCE.png as large as the target, where only the face is moved, and each source's
    tokens as SOURCE.json, which hold no face and are a source themselves. Faces stay on this machine.

    Args:
        target: pictures of faces at rest; of a video its first frame.
        out: folder to write.
        source: clips (a video, or a folder of numbered images, that begins at rest), pairs of pictures
            ONSET APEX, or token files (.json) of this tokenizer.
        tokenizer: checkpoint; demo is the one that comes with mefar.
        strength: 0 nothing, 1 as recorded, which comes nearest to the true frame, 2 twice as much. A decoder
            that is not sure is timid: with demo, mouths and brows of rendered faces move about as far as they
            should at 1.4, those of real faces half to two thirds as far at 2, lids less.
        top: keep so many tokens, those that the heads of --run weighed most, and no action at the others:
            for a clip of that run as the head weighed it that never saw it, else on average.
        run: folder of a finished `mefar loso` with this tokenizer.
        units: keep the tokens that surely add to one of these action units, by the read-out of `mefar
            explore`, and no action at the others.
        frames: write a clip of so many frames from rest to the action and back, .mp4, instead of a picture.
        fps: frames per second of that clip.
        gif: write the clip as .gif.
        grid: also write grid.png and grid.pdf, sources by targets.
        face: which of several faces in a target: 1 the largest, 2 the next.
        source_face: the same of sources.
        onset: seconds in a source video at which its onset is; left out, its first frame.
        apex: seconds of its apex; left out, the frame that moved most.
        dataset: protocol whose clips act: composite or a database's name (`mefar databases`); left out, that
            of --run where --data is given.
        data: its folder.
        clips: those of its clips that act, by their keys or their ends, such as sub01/EP19_06f; megc for the
            nine of the challenge's generation task; left out, all.
        faces: `align` finds the face; `precropped` takes pictures that are face crops already.
        cache_dir: folder for the read-out.
    """
    if dataset is None and data is not None and run is not None:
        from mefar.loso.results import read_run

        dataset = str(read_run(run).summary["protocol"])
    if not (math.isfinite(strength) and strength >= 0):
        raise UserError(f"--strength is {strength}; give 0 (nothing), 1 (as recorded) or more")
    if top is not None and (run is None or top < 1):
        raise UserError("--top takes a number from 1 on, and --run RUN with it")
    if frames is not None and frames < 3:
        raise UserError(f"--frames is {frames}; give at least 3: rest, action, rest")
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"--fps is {fps}; give a number above 0")
    if (dataset is None) != (data is None) or (dataset is None and not source):
        raise UserError("give --source, or --dataset and --data, or --run and --data")
    model = steerable(load(tokenizer))
    made_by = weights_of(model)
    sources = list(given(source, model, made_by, source_face, faces, (onset, apex)))
    if dataset is not None and data is not None:
        sources += of_database(dataset, data, clips, model, faces)
    targets = _named([_target(path, face, faces, model.image_size) for path in target])
    sources = _named(_picked(sources, model, made_by, top, run, units, cache_dir))
    settings = {
        "tokenizer": made_by, "strength": strength, "frames": frames, "fps": fps, "gif": gif, "grid": grid,
        "sources": {one.name: [one.tokens.indices.tolist(), _strength(one)] for one in sources},
        "targets": {one.name: fingerprint(one.picture, one.matrix) for one in targets},
    }  # fmt: skip
    with lock(out / ".lock"):
        claim_folder(out, "transfer", settings)
        for one in sources:
            token_file.write(out / f"{one.name}.json", one.tokens, made_by)
            for each in targets:
                path = out / f"{each.name}.{one.name}"
                print(_write(path, model, each, one, strength, frames, fps, gif))
        if grid:
            print(*_grid(out, model, sources, targets, strength), sep="\n")


def _target(path: Path, face: int, faces: FaceMode, size: int) -> Target:
    found = align(picture_at(path), face, faces)
    return Target(path.stem, found.picture, found.matrix(size), found.crop(size))


def _named(several: list[Named]) -> list[Named]:
    """The same, where names come twice with a number."""
    names = [one.name for one in several]
    return [
        replace(one, name=f"{one.name}-{place + 1}") if names.count(one.name) > 1 else one
        for place, one in enumerate(several)
    ]


def _strength(one: Source) -> list[float] | None:
    return None if one.tokens.strength is None else one.tokens.strength.tolist()


def _picked(
    sources: list[Source],
    model: SteerableTokenizer,
    made_by: str,
    top: int | None,
    run: Path | None,
    units: list[int],
    cache_dir: Path,
) -> list[Source]:
    """Sources with the tokens that --top and --units ask for, the others at rest."""
    if top is not None and run is not None:
        from mefar.generation import picking
        from mefar.loso.token_table import identity_of

        weights = picking.attention_of(run, identity_of(model))
        places = [picking.strongest(weights.get(one.key, weights[picking.ALL]), top) for one in sources]
        sources = [_kept(one, model, own) for one, own in zip(sources, places, strict=True)]
    if units:
        from mefar.commands.explore import read_out  # brings the renderer

        words = read_out(model, made_by, cache_dir)
        if missing := sorted(set(units) - set(words.units)):
            raise UserError(
                f"--units {missing[0]}: is not read; choose from {', '.join(map(str, words.units))}"
            )
        rows = [words.units.index(unit) for unit in units]
        places = [showing(*words.of(one.tokens.indices[0]), rows) for one in sources]
        sources = [_kept(one, model, own) for one, own in zip(sources, places, strict=True)]
    return sources


def _kept(one: Source, model: SteerableTokenizer, places: list[int]) -> Source:
    print(f"{one.name}: tokens kept at positions {', '.join(map(str, places)) or 'none: nothing will move'}")
    return replace(one, tokens=kept(model, one.tokens, places))


def _write(
    path: Path,
    model: SteerableTokenizer,
    target: Target,
    source: Source,
    strength: float,
    frames: int | None,
    fps: float,
    gif: bool,
) -> Path:
    """Write the picture or the clip of one face, whole or not at all; `path` without its ending."""
    if frames is None:
        made = path.with_name(f"{path.name}.png")
        _save(made, [carry(model, target, source.tokens, strength)])
        return made
    pictures = clip(model, target, source.tokens, strength, frames)
    made = path.with_name(f"{path.name}.{'gif' if gif else 'mp4'}")
    if gif:
        _save(made, list(pictures), duration=round(1000 / fps), loop=0)
    else:
        write_video(made, ((number / fps, picture) for number, picture in enumerate(pictures)), crf=16)
    return made


def _save(path: Path, pictures: Sequence[UInt8], **how: Any) -> None:
    first, *others = [Image.fromarray(picture) for picture in pictures]
    more = {"save_all": True, "append_images": others} if others else {}
    with replacing(path) as temporary:
        first.save(temporary, path.suffix[1:].upper(), **more, **how)


def _grid(
    out: Path, model: SteerableTokenizer, sources: list[Source], targets: list[Target], strength: float
) -> list[Path]:
    """Sources by targets as one picture: first what acted, then every target; above, the targets at rest."""
    from mefar.report import figures

    blank = np.full((CELL, CELL, 3), 255, np.uint8)
    ratio = CELL / model.image_size

    def cell(picture: UInt8, matrix: Float) -> UInt8:
        onto = matrix * ratio
        onto[:, 2] += (ratio - 1) / 2
        return resample(picture, onto, CELL)

    rows = [("", [blank, blank, *(cell(each.picture, each.matrix) for each in targets)])]
    for one in sources:
        acted = [blank, blank]
        if one.pair is not None:
            acted = [cell(crop, np.eye(2, 3)) for crop in one.pair]
        made = [cell(carry(model, each, one.tokens, strength), each.matrix) for each in targets]
        rows.append((one.name, [*acted, *made]))
    sheet = figures.sheet(rows, ["onset", "apex", *(each.name for each in targets)])
    return figures.save({"grid": sheet}, out)
