"""CASME II: 26 subjects, 255 clips, 200 frames per second.

Coding file `CASME2-coding-20140508.xlsx` (protocol counts are those of this version; `-20190701` and
`-updated` also occur), Sheet1: Subject (1), Filename (EP02_01f; the trailing f matters), OnsetFrame,
ApexFrame (`/` or blank where missing), OffsetFrame, Action Units (4, "4+7", "R12"), Estimated Emotion.
Frames `CASME2_RAW_selected/sub01/EP02_01f/img46.jpg` (640x480) or `Cropped/sub01/EP02_01f/reg_img46.jpg`
(about 280x340), or the release as videos, `CASME2_compressed/sub01/EP02_01f.avi`, whose pictures are counted
from 1 as the raw frames are; where pictures are there too, they go first.
"""

from __future__ import annotations

import re

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


def clip_name(row: Row) -> str:
    """EP02_01f, however it is spelled: copies have ep02_01F too."""
    name = row.text("Filename")
    found = re.fullmatch(r"ep(\d+)_(\d+)(f?)", name, re.IGNORECASE)
    return f"EP{found[1]}_{found[2]}{found[3].lower()}" if found else name


# The last three are sadness in the 2014 coding, on which the composite was defined, and surprise in the 2019
# one; without this rule another coding file would make 445 clips.
NOT_IN_COMPOSITE = {
    "sub04/EP12_01f": "not in the composite of MEGC2019 (no annotated apex)",
    "sub05/EP09_05f": "not in the composite of MEGC2019 (apex is the onset)",
    "sub24/EP07_01": "not in the composite of MEGC2019 (sadness in the 2014 coding)",
    "sub24/EP07_04f": "not in the composite of MEGC2019 (sadness in the 2014 coding)",
    "sub24/EP10_03": "not in the composite of MEGC2019 (sadness in the 2014 coding)",
}

DATABASE = Database(
    name="casme2",
    title="CASME II",
    access="CASME group, Institute of Psychology, Chinese Academy of Sciences (casme.psych.ac.cn)",
    fps=200.0,
    folder=r"casme(2|ii)(?!i)",
    coding_file="CASME2-coding-20140508.xlsx",
    coding_patterns=(
        r"casme.?(2|ii)\D*coding.*20140508",
        r"casme.?(2|ii)(?!i).*coding",
        r"casme.?(2|ii)(?!i)",
    ),
    sheet="Sheet1",
    columns=Columns(
        onset="OnsetFrame",
        apex="ApexFrame",
        offset="OffsetFrame",
        emotion="Estimated Emotion",
        aus="Action Units",
    ),
    subject=SubjectId(r"(?:sub)?0*(\d+)", "sub{:02d}", "an integer such as 1"),
    clip=clip_name,
    folders=ClipFolders(videos=True),
    published=Published(
        26,
        {
            "others": 99,
            "disgust": 63,
            "happiness": 32,
            "repression": 27,
            "surprise": 25,
            "sadness": 7,
            "fear": 2,
        },
    ),
    protocols={
        5: Rule(
            ("happiness", "disgust", "repression", "surprise", "others"),
            {**same("happiness", "disgust", "repression", "surprise", "others"), "other": "others"},
            left_out=("sadness", "fear"),
            expected={"happiness": 32, "disgust": 63, "repression": 27, "surprise": 25, "others": 99},
        ),
        3: Rule(
            NEGATIVE_POSITIVE_SURPRISE,
            {
                "happiness": "positive",
                "disgust": "negative",
                "repression": "negative",
                "surprise": "surprise",
            },
            left_out=("sadness", "fear", "others", "other"),
            clips_left_out=NOT_IN_COMPOSITE,
            expected={"negative": 88, "positive": 32, "surprise": 25},
            subjects=24,
        ),
    },
)
