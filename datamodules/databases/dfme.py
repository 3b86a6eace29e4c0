"""DFME: high-speed recordings at 200, 300 or 500 frames per second, told per clip.

Coding file `training_full_with_AU.xlsx` (not those of the test sets): Subject, Filename (sub0003_01),
OnsetFrame, ApexFrame, OffsetFrame, Emotion, EmotionId, Fps, AU. Frames `DFME_train/sub0003_01/00012.png`.
Written from what public code reads, never held against a copy of the database, so lenient: subjects as
sub0003, S3 or 3; clip folders at any depth; a clip without Fps counts as 200, which matters for the spotted
apex only and is remarked.
"""

from __future__ import annotations

from datamodules.databases.coding_file import Row
from datamodules.databases.description import (
    NEGATIVE_POSITIVE_SURPRISE,
    VALENCE,
    Columns,
    Database,
    Rule,
    SubjectId,
    named_by_clip,
    same,
)


def clip_name(row: Row) -> str:
    """sub0003_01, in lower case."""
    return row.text("Filename").casefold()


_SIX = ("happiness", "surprise", "anger", "disgust", "fear", "sadness")
_OTHERS = ("others", "other")

DATABASE = Database(
    name="dfme",
    title="DFME",
    access="its authors, University of Science and Technology of China",
    fps=200.0,
    coding_file="training_full_with_AU.xlsx",
    coding_patterns=(r"train.*full.*au", r"dfme.*train", r"dfme"),
    columns=Columns(
        onset="OnsetFrame", apex="ApexFrame", offset="OffsetFrame", emotion="Emotion", aus="AU", fps="Fps"
    ),
    subject=SubjectId(r"(?:sub|s)?[_\s]*0*(\d+)", "sub{:04d}", "such as sub0003"),
    subject_begins_clip=True,
    clip=clip_name,
    folders=named_by_clip(expected="{clip}"),
    protocols={
        7: Rule(
            (*_SIX, "contempt"),
            {**same(*_SIX, "contempt"), "happy": "happiness", "sad": "sadness"},
            left_out=_OTHERS,
        ),
        3: Rule(NEGATIVE_POSITIVE_SURPRISE, VALENCE, left_out=_OTHERS),
    },
)
