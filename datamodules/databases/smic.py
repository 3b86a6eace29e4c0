"""SMIC-HS: 16 subjects, 164 clips, 100 frames per second.

No coding file, no apex, no action units. Frames `SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01/
reg_image181234.bmp` or `HS/s01/micro/...`: the clip's folder spans onset (its first frame) to offset (its
last); numbers are camera counters. Subjects occur as s1 and s01, clips as s1_ne_01 and s01_ne_01; both are
read as s1. The VIS and NIR recordings, the longer clips of SMIC-HS-E and the non-micro clips are other data
and are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from datamodules.clips import Clip
from datamodules.databases.description import (
    NEGATIVE_POSITIVE_SURPRISE,
    Annotated,
    Annotations,
    Columns,
    Database,
    Published,
    Rule,
    same,
)
from datamodules.databases.folders import FrameKind, Place, find_clip_folders
from datamodules.databases.reading import frames_of
from datamodules.findings import Finding
from mefar.errors import UserError

EMOTIONS = {"ne": "negative", "po": "positive", "sur": "surprise"}
_CLIP = re.compile(r"s0*(\d+)_(ne|po|su|sur)_0*(\d+)", re.IGNORECASE)
_OTHER = re.compile(r"vis|nir|non.?micro|.*long.*|.*hs.e(_.*)?", re.IGNORECASE)


def clip_id(name: str) -> tuple[str, str, str] | None:
    """Subject, clip and emotion of s1_ne_01 or S01_ne_1, each spelling alike; None where it is no clip."""
    found = _CLIP.fullmatch(name)
    if found is None:
        return None
    subject, token = f"s{int(found[1])}", {"su": "sur"}.get(found[2].lower(), found[2].lower())
    return subject, f"{subject}_{token}_{int(found[3]):02d}", EMOTIONS[token]


def _recognise(parts: Sequence[str]) -> tuple[Place, int] | None:
    known = clip_id(parts[-1])
    if known is None or any(_OTHER.fullmatch(part) for part in parts):
        return None
    above = [d for d, part in enumerate(parts[:-1]) if re.fullmatch(r"s\d+", part, re.IGNORECASE)]
    return known, above[-1] if above else len(parts) - 1


def _read(root: Path, prefer: FrameKind) -> Annotations:
    folders, copy, findings = find_clip_folders("smic", root, _recognise, None, prefer)
    if not folders:
        raise UserError(
            f"{root}: no SMIC-HS clips; expected folders such as HS/s1/micro/negative/s1_ne_01 below it"
        )
    clips: list[Clip] = []
    annotated: dict[str, Annotated] = {}
    for (subject, clip, emotion), folder in folders.items():
        key = f"smic/{subject}/{clip}"
        annotated[key] = Annotated(emotion)
        told = {part.casefold() for part in folder.relative_to(root).parts} & set(EMOTIONS.values())
        frames = frames_of("smic", key, folder, findings)
        numbers = list(frames)
        if told - {emotion}:
            detail = f"named {emotion}, but lies under {', '.join(sorted(told))}: {folder}"
            findings.append(Finding("lost", "misplaced clip", "smic", detail, key, str(folder)))
        elif len(numbers) == 1:
            detail = f"only one frame in {folder}"
            findings.append(Finding("lost", "missing frames", "smic", detail, key, str(folder)))
        elif numbers:
            clips.append(
                Clip("smic", subject, clip, emotion, numbers[0], None, numbers[-1], 100.0, (), frames)
            )
    ordered = tuple(sorted(clips, key=lambda c: c.key))
    return Annotations(ordered, tuple(findings), annotated, frames=root / copy)


DATABASE = Database(
    name="smic",
    title="SMIC-HS",
    access="CMVS, University of Oulu (SMIC, high-speed part)",
    fps=100.0,
    columns=Columns(apex=""),
    reader=_read,
    published=Published(16, {"negative": 70, "positive": 51, "surprise": 43}),
    protocols={
        3: Rule(
            NEGATIVE_POSITIVE_SURPRISE,
            same(*NEGATIVE_POSITIVE_SURPRISE),
            expected={"negative": 70, "positive": 51, "surprise": 43},
            subjects=16,
        )
    },
)
