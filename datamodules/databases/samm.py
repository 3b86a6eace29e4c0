"""SAMM: 29 subjects, 159 clips, 200 frames per second, gray.

Coding file `SAMM_Micro_FACS_Codes_v2.xlsx`, sheet MICRO_ONLY, header in row 14 of the published file and in
row 1 of stripped copies: Subject (006, often read as 6), Filename (006_1_2), Onset Frame, Apex Frame, Offset
Frame, Action Units, Estimated Emotion in title case. Frames `006/006_1_2/006_05562.jpg`.
"""

from __future__ import annotations

from datamodules.databases.description import (
    NEGATIVE_POSITIVE_SURPRISE,
    Columns,
    Database,
    Published,
    Rule,
    SubjectId,
    named_by_clip,
    same,
)

DATABASE = Database(
    name="samm",
    title="SAMM",
    access="Manchester Metropolitan University (helward.mmu.ac.uk/STAFF/M.Yap/dataset.php)",
    fps=200.0,
    folder=r"samm(?!l)",
    coding_file="SAMM_Micro_FACS_Codes_v2.xlsx",
    coding_patterns=(r"samm.*micro.*facs", r"samm.*micro", r"samm(?!.*long)"),
    sheet="MICRO_ONLY",
    columns=Columns(
        onset="Onset Frame",
        apex="Apex Frame",
        offset="Offset Frame",
        emotion="Estimated Emotion",
        aus="Action Units",
    ),
    subject=SubjectId(r"0*(\d+)", "{:03d}", "a number such as 006"),
    subject_begins_clip=True,
    folders=named_by_clip(r"\d+"),
    published=Published(
        29,
        {
            "anger": 57,
            "happiness": 26,
            "other": 26,
            "surprise": 15,
            "contempt": 12,
            "disgust": 9,
            "fear": 8,
            "sadness": 6,
        },
    ),
    protocols={
        5: Rule(
            ("happiness", "contempt", "anger", "surprise", "others"),
            {**same("happiness", "contempt", "anger", "surprise", "others"), "other": "others"},
            left_out=("disgust", "fear", "sadness"),
            expected={"happiness": 26, "contempt": 12, "anger": 57, "surprise": 15, "others": 26},
        ),
        3: Rule(
            NEGATIVE_POSITIVE_SURPRISE,
            {
                "happiness": "positive",
                **dict.fromkeys(("anger", "contempt", "disgust", "fear", "sadness"), "negative"),
                "surprise": "surprise",
            },
            left_out=("other", "others"),
            expected={"negative": 92, "positive": 26, "surprise": 15},
            subjects=28,
        ),
    },
)
