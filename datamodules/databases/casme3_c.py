"""CAS(ME)^3, part C: micro-expressions under a mock crime, 30 frames per second.

Coding file `CAS(ME)3_part_C_ME.xlsx`, sheet `mockCrimeME`, 165 rows (the paper says 160 clips): sub (1),
count, onset, offset, au (`R4,5`, `14,L24,`), emotion (negative, positive, surprise, others). No apex: the
authors advise the middle or a spotted one. A recording holds several clips: a clip's name is its count and
its onset, `2_355`. Frames `part_C/01/a/color/355.jpg`.
"""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.databases.coding_file import Row
from datamodules.databases.description import (
    NEGATIVE_POSITIVE_SURPRISE,
    ClipFolders,
    Columns,
    Database,
    Rule,
    SubjectId,
    same,
)
from datamodules.databases.folders import Place

SUBJECT = SubjectId(r"(?:sub|s|sp\s*no\.?)?[_\s]*0*(\d+)", "{:d}", "a number such as 1")


def clip_name(row: Row) -> str:
    """Count and onset."""
    onset = row.frame("onset")
    return f"{row.text('count')}_{'' if onset is None else onset}"


def _recognise(parts: Sequence[str]) -> tuple[Place, int] | None:
    """The colour frames of the one recording below a subject's folder."""
    if parts[-1].casefold() == "color":
        for depth in range(len(parts) - 2, -1, -1):
            if subject := SUBJECT.read(parts[depth]):
                return (subject,), depth
    return None


DATABASE = Database(
    name="casme3_c",
    title="CAS(ME)^3, part C",
    access="CASME group, Institute of Psychology, Chinese Academy of Sciences (casme.psych.ac.cn)",
    fps=30.0,
    folder=r"partc|cas(\(me\)|me)\^?(3|iii)",
    coding_file="CAS(ME)3_part_C_ME.xlsx",
    coding_patterns=(r"part_c.*me", r"mockcrime"),
    sheet="mockCrimeME",
    columns=Columns("sub", "count", "onset", "", "offset", "emotion", "au"),
    subject=SUBJECT,
    clip=clip_name,
    folders=ClipFolders(_recognise, lambda subject, clip: [(subject,)], "{subject}/a/color", shared=True),
    protocols={
        4: Rule((*NEGATIVE_POSITIVE_SURPRISE, "others"), same(*NEGATIVE_POSITIVE_SURPRISE, "others")),
        3: Rule(NEGATIVE_POSITIVE_SURPRISE, same(*NEGATIVE_POSITIVE_SURPRISE), left_out=("others",)),
    },
)
