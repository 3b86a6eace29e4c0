"""CAS(ME)^3, part A: 94 subjects, 860 clips, 30 frames per second.

Coding file `cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx`, sheet `label`: Subject (spNO.1), Filename (letter of
the video), Onset, Apex, Offset, AU, Objective class, emotion. A video holds several clips: a clip's name is
its letter and its annotated onset, `a_355`. Frames `part_A/spNO.1/a/color/355.jpg`, `spNO.1/a/355.jpg`,
or the clip release `Part_A_ME_clip/frame/spNO.1_a_355/355.jpg`. Some rows have an onset, apex or offset that
cannot be; errata.csv has the known corrections.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from datamodules.databases.coding_file import Row
from datamodules.databases.description import (
    NEGATIVE_POSITIVE_SURPRISE,
    ClipFolders,
    Columns,
    Database,
    Published,
    Rule,
    SubjectId,
    same,
)
from datamodules.databases.folders import Place

SUBJECT = SubjectId(r"sp\s*no\.?\s*0*(\d+)", "spNO.{:d}", "such as spNO.1")


def clip_name(row: Row) -> str:
    """Letter and onset: 397 rows share subject and letter."""
    onset = row.frame("Onset")
    return f"{row.text('Filename').casefold()}_{'' if onset is None else onset}"


def video(clip: str) -> str:
    """The letter of a clip's video."""
    return clip.split("_")[0]


def _places(subject: str, clip: str) -> Sequence[Place]:
    return [(subject.casefold(), clip), (subject.casefold(), video(clip))]


def _recognise(parts: Sequence[str]) -> tuple[Place, int] | None:
    if found := re.fullmatch(r"(.+)_([a-z]_\d+)", parts[-1], re.IGNORECASE):
        subject = SUBJECT.read(found[1])
        return ((subject.casefold(), found[2].casefold()), len(parts) - 1) if subject else None
    if len(parts) > 1 and (subject := SUBJECT.read(parts[-2])):
        return (subject.casefold(), parts[-1].casefold()), len(parts) - 2
    return None


_NEGATIVE = dict.fromkeys(("disgust", "anger", "fear", "sad"), "negative")
_OTHERS = {"others": "others", "other": "others"}

DATABASE = Database(
    name="casme3",
    title="CAS(ME)^3, part A",
    access="CASME group, Institute of Psychology, Chinese Academy of Sciences (casme.psych.ac.cn)",
    fps=30.0,
    folder=r"cas(\(me\)|me)\^?(3|iii)(?!c$|long)",
    coding_file="cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx",
    coding_patterns=(
        r"part_a(?!_mae).*label.*v2",
        r"part_a(?!_mae).*label",
        r"cas(\(me\)|me)\^?(3|iii).*label",
    ),
    sheet="label",
    columns=Columns(emotion="emotion", aus="AU"),
    subject=SUBJECT,
    clip=clip_name,
    video=video,
    folders=ClipFolders(_recognise, _places, "{subject}/{clip[0]}/color", below="color", shared=True),
    published=Published(
        94,
        {
            "disgust": 250,
            "surprise": 187,
            "others": 161,
            "fear": 86,
            "anger": 64,
            "sad": 57,
            "happy": 55,
        },
    ),
    protocols={
        4: Rule(
            (*NEGATIVE_POSITIVE_SURPRISE, "others"),
            {**_NEGATIVE, "happy": "positive", "surprise": "surprise", **_OTHERS},
        ),
        3: Rule(
            NEGATIVE_POSITIVE_SURPRISE,
            {**_NEGATIVE, "happy": "positive", "surprise": "surprise"},
            left_out=tuple(_OTHERS),
        ),
        7: Rule(
            ("happiness", "disgust", "fear", "anger", "sadness", "surprise", "others"),
            {
                **same("disgust", "fear", "anger", "surprise"),
                "happy": "happiness",
                "sad": "sadness",
                **_OTHERS,
            },
        ),
    },
)
