"""Who acts in `mefar transfer`, as tokens: clips, pairs of pictures, token files, a database's clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datamodules.crops import PairSettings, render
from datamodules.databases.folders import IMAGES
from datamodules.faces.align import FaceAligner, FaceMode
from datamodules.loose_clips import loose_clip
from datamodules.protocols import load
from mefar.commands.pictures import UInt8, align, pair
from mefar.errors import UserError
from mefar.generation import token_file
from mefar.tokens import ActionTokens, SteerableTokenizer, as_images

MEGC = (
    "casme2/sub01/EP19_06f", "casme2/sub19/EP01_01f", "casme2/sub17/EP01_13",
    "samm/018/018_3_1", "samm/022/022_3_3", "samm/007/007_7_1",
    "smic/s11/s11_ne_02", "smic/s3/s3_po_05", "smic/s20/s20_sur_01",
)  # fmt: skip
"""The clips of the generation task of the Micro-Expression Grand Challenges of 2021 and 2022."""


@dataclass(frozen=True)
class Source:
    """What somebody did.

    Attributes:
        name: for files.
        tokens: B = 1.
        pair: onset and apex, (S, S, 3) uint8, aligned; none of a token file.
        key: of a database's clip.
    """

    name: str
    tokens: ActionTokens
    pair: tuple[UInt8, UInt8] | None = None
    key: str = ""


def given(
    paths: Sequence[Path],
    tokenizer: SteerableTokenizer,
    fingerprint: str,
    face: int,
    faces: FaceMode,
    times: tuple[float | None, float | None],
) -> Iterator[Source]:
    """What `--source` names: pictures are an onset and its apex, two by two.

    `face` is the one of several that is meant, 1 the largest; `times` are seconds of onset and apex of a
    video, where they are known; `fingerprint` is the tokenizer's.

    Raises:
        UserError: cannot be read, shows no face that can be, an onset without an apex, tokens of another
            tokenizer.
    """
    waiting: Path | None = None
    for path in paths:
        if path.suffix.lower() == ".json":
            yield Source(path.stem, token_file.read(path, tokenizer, fingerprint))
        elif path.suffix.lower() not in IMAGES:
            yield _filmed(path, tokenizer, face, faces, times)
        elif waiting is None:
            waiting = path
        else:
            found = pair(waiting, path, tokenizer.image_size, face, faces)
            yield _tokenized(path.stem, tokenizer, *found)
            waiting = None
    if waiting is not None:
        raise UserError(f"--source {waiting}: one picture shows no action; give its apex after it")


def _filmed(
    path: Path,
    tokenizer: SteerableTokenizer,
    face: int,
    faces: FaceMode,
    times: tuple[float | None, float | None],
) -> Source:
    clip, size = loose_clip(path, *times), tokenizer.image_size
    matrix = align(clip.frames[clip.onset], face, faces).matrix(size)
    settings = PairSettings(size, faces, "annotated" if clip.apex else "spotted")
    made = render(clip, settings, FaceAligner(size, faces), matrix)
    assert made is not None  # the face is known
    if clip.apex is None:
        print(f"{path}: onset is frame {clip.onset}, apex frame {made.chosen.number}, counted from 0")
    return _tokenized(clip.clip, tokenizer, made.onset[0], made.apex[0])


def of_database(
    dataset: str, data: Path, names: Sequence[str], tokenizer: SteerableTokenizer, faces: FaceMode
) -> Iterator[Source]:
    """Clips of a protocol, as `mefar loso` reads them.

    `names` are keys, or their ends, of the clips that are wanted, `megc` those of the challenge; without
    names all are.

    Raises:
        UserError: cannot be read, or a clip that is not there.
    """
    study = load(dataset, data, prefer="raw" if faces == "align" else "cropped")
    wanted = [name for each in names for name in (MEGC if each == "megc" else (each,))]
    lost = {found.clip: found.detail for found in reversed(study.findings) if found.level == "lost"}
    why = dict(study.excluded) | lost
    aligner = FaceAligner(tokenizer.image_size, faces)
    for name in wanted:
        if not any(_is(clip.key, name) for clip in study.clips):
            reason = next((why[key] for key in why if _is(key, name)), f"no such clip in {data}")
            raise UserError(f"--clips {name}: {reason}; leave it out, or give another --dataset")
    for clip in study.clips:
        if wanted and not any(_is(clip.key, name) for name in wanted):
            continue
        made = render(clip, PairSettings(tokenizer.image_size, faces), aligner)
        if made is None:
            print(f"{clip.key}: left out: no face found in its onset")
            continue
        name = clip.key.replace("/", "-")
        yield replace(_tokenized(name, tokenizer, made.onset[0], made.apex[0]), key=clip.key)


def _is(key: str, name: str) -> bool:
    return f"/{key}".endswith(f"/{name}")


def _tokenized(name: str, tokenizer: SteerableTokenizer, onset: UInt8, apex: UInt8) -> Source:
    both = as_images(np.stack([onset, apex]))
    tokens = tokenizer.tokenize(both[:1], both[1:])
    if tokens.strength is not None and not tokens.strength.any():
        print(f"{name}: no action is seen from onset to apex: nothing will move")
    return Source(name, tokens, (onset, apex))
