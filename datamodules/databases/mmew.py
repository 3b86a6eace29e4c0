"""MMEW, the micro-expressions: 90 frames per second.

Coding file `MMEW_Micro_Exp.xlsx`: Subject, Filename (S13-07-001: subject, emotion, sample), OnsetFrame,
ApexFrame, OffsetFrame, Action Units, Estimated Emotion, remarks. Frames
`Micro_Expression/<emotion>/S13-07-001/1.jpg`, with or without a folder per subject in between; the
macro-expressions beside them are other data and are passed over. Written from what public code reads, never
held against a copy of the database, so lenient: subjects as S13, 13 or sub13, and a clip that lies under
another emotion than its row's is read and remarked, since names of folders vary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.databases.coding_file import Row
from datamodules.databases.description import (
    NEGATIVE_POSITIVE_SURPRISE,
    VALENCE,
    Annotated,
    ClipFolders,
    Columns,
    Database,
    Rule,
    SubjectId,
    same,
)
from datamodules.databases.folders import Place
from datamodules.findings import Finding

SIX = ("happiness", "surprise", "anger", "disgust", "fear", "sadness")
_OTHERS = {"others": "others", "other": "others"}
_FOLDERS = {*SIX, *_OTHERS, "happy", "sad", "contempt"}


def clip_name(row: Row) -> str:
    """S13-07-001, in upper case."""
    return row.text("Filename").upper()


def _recognise(parts: Sequence[str]) -> tuple[Place, int] | None:
    if any(part.casefold().startswith("macro") for part in parts):
        return None
    above = [d for d, part in enumerate(parts[:-1]) if part.casefold() in _FOLDERS]
    return (parts[-1].casefold(),), above[-1] if above else len(parts) - 1


def _misplaced(
    root: Path, folders: Mapping[str, Path], annotated: Mapping[str, Annotated]
) -> Sequence[Finding]:
    """Clips that lie under another emotion than their row's."""
    known = {one.emotion for one in annotated.values()} - {""}
    findings = []
    for key, folder in folders.items():
        emotion, row = annotated[key].emotion, annotated[key].row
        told = {part.casefold() for part in folder.relative_to(root).parts} & known
        if told - {emotion}:
            detail = f"coded {emotion}, but lies under {', '.join(sorted(told))}: {folder}"
            findings.append(Finding("note", "misplaced clip", "mmew", detail, key, str(folder), row))
    return findings


DATABASE = Database(
    name="mmew",
    title="MMEW",
    access="its authors, Shandong University",
    fps=90.0,
    coding_file="MMEW_Micro_Exp.xlsx",
    coding_patterns=(r"mmew.*micro", r"mmew(?!.*macro)"),
    columns=Columns(
        onset="OnsetFrame",
        apex="ApexFrame",
        offset="OffsetFrame",
        emotion="Estimated Emotion",
        aus="Action Units",
    ),
    subject=SubjectId(r"(?:sub|s)?0*(\d+)", "S{:02d}", "such as S13"),
    subject_begins_clip=True,
    clip=clip_name,
    folders=ClipFolders(_recognise, lambda subject, clip: [(clip.casefold(),)], "{clip}"),
    checks=_misplaced,
    protocols={
        7: Rule((*SIX, "others"), {**same(*SIX), "happy": "happiness", "sad": "sadness", **_OTHERS}),
        4: Rule(
            ("happiness", "surprise", "disgust", "others"),
            {**same("happiness", "surprise", "disgust"), "happy": "happiness", **_OTHERS},
            left_out=("anger", "fear", "sadness", "sad"),
        ),
        3: Rule(NEGATIVE_POSITIVE_SURPRISE, VALENCE, left_out=tuple(_OTHERS)),
    },
)
