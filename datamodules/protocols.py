"""Protocols: which clips count, and what their labels are.

| name | classes | complete data |
|---|---|---|
| composite | negative, positive, surprise | 442 clips, 68 subjects: the CDE task of MEGC2019 |
| casme2 | happiness, disgust, repression, surprise, others | 246 clips (2014 coding); with 3 classes 145 |
| samm | happiness, contempt, anger, surprise, others | 136 clips; with 3 classes 133 |
| smic | negative, positive, surprise | 164 clips, 16 subjects |
| casme3 | negative, positive, surprise, others; or 3 or 7 classes | 860 rows, 94 subjects |
| dfme | happiness, surprise, anger, disgust, fear, sadness, contempt; or 3 classes | not checked |
| mmew | happiness, surprise, anger, disgust, fear, sadness, others; or 3 or 4 classes | not checked |

dfme and mmew have the emotions of their coding files; the 3 classes are formed as for the other databases,
the 4 of mmew are those that are not rare: happiness, surprise, disgust, others. dfme leaves others out.

Subject ids collide across databases: a subject is (database, subject), `Clip.subject_key`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datamodules.clips import Clip, Study
from datamodules.databases.annotations import PUBLISHED, Annotations, casme2, casme3, dfme, mmew, samm, smic
from datamodules.databases.folders import Faults, FrameKind, existing_folder, find_database
from mefar.errors import UserError

DatasetName = Literal["composite", "casme2", "samm", "smic", "casme3", "dfme", "mmew"]
THREE = ("negative", "positive", "surprise")
DATABASES: dict[str, Callable[[Path, bool, FrameKind, Faults | None], Annotations]] = {
    "casme2": casme2,
    "samm": samm,
    "smic": smic,
    "casme3": casme3,
    "dfme": dfme,
    "mmew": mmew,
}
COMPOSITE = ("casme2", "samm", "smic")

# Clips that MEGC2019's composite does not have. The last three are sadness in the 2014 coding, on which it
# was defined, and surprise in the 2019 one; without this rule another coding file would make 445 clips.
_NOT_IN_COMPOSITE = {
    "casme2/sub04/EP12_01f": "not in the composite of MEGC2019 (no annotated apex)",
    "casme2/sub05/EP09_05f": "not in the composite of MEGC2019 (apex is the onset)",
    "casme2/sub24/EP07_01": "not in the composite of MEGC2019 (sadness in the 2014 coding)",
    "casme2/sub24/EP07_04f": "not in the composite of MEGC2019 (sadness in the 2014 coding)",
    "casme2/sub24/EP10_03": "not in the composite of MEGC2019 (sadness in the 2014 coding)",
}


@dataclass(frozen=True)
class Rule:
    """Labels of one database under one protocol.

    Attributes:
        names: class names in label order.
        emotions: annotated emotion -> class name; emotions that are not here are left out by rule.
        left_out: key -> reason.
        expected: clips per class in the complete database, where known.
        subjects: subjects in the complete protocol, where known.
    """

    names: tuple[str, ...]
    emotions: Mapping[str, str]
    left_out: Mapping[str, str]
    expected: Mapping[str, int]
    subjects: int | None = None

    def label(self, clip: Clip) -> Clip | tuple[str, str]:
        """The clip with its label, or (key, why the protocol leaves it out)."""
        if clip.key in self.left_out:
            return clip.key, self.left_out[clip.key]
        if clip.emotion not in self.emotions:
            return clip.key, f"emotion {clip.emotion!r} is not in the protocol"
        return replace(clip, label=self.names.index(self.emotions[clip.emotion]))


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_OTHERS = {"others": "others", "other": "others"}
_NEGATIVE_3 = {"disgust": "negative", "anger": "negative", "fear": "negative", "sad": "negative"}

_SIX = ("happiness", "surprise", "anger", "disgust", "fear", "sadness")
# dfme and mmew were not seen: both spellings that occur elsewhere.
_SPELLED_6 = {**_same(*_SIX), "happy": "happiness", "sad": "sadness"}
_SPELLED_3 = {
    **dict.fromkeys(("anger", "contempt", "disgust", "fear", "sadness", "sad"), "negative"),
    **dict.fromkeys(("happiness", "happy"), "positive"),
    "surprise": "surprise",
}

_RULES: dict[tuple[str, int], Rule] = {
    ("casme2", 3): Rule(
        THREE,
        {"happiness": "positive", "disgust": "negative", "repression": "negative", "surprise": "surprise"},
        _NOT_IN_COMPOSITE,
        {"negative": 88, "positive": 32, "surprise": 25},
        24,
    ),
    ("samm", 3): Rule(
        THREE,
        {
            "happiness": "positive",
            **dict.fromkeys(("anger", "contempt", "disgust", "fear", "sadness"), "negative"),
            "surprise": "surprise",
        },
        {},
        {"negative": 92, "positive": 26, "surprise": 15},
        28,
    ),
    ("smic", 3): Rule(THREE, _same(*THREE), {}, {"negative": 70, "positive": 51, "surprise": 43}, 16),
    ("casme2", 5): Rule(
        ("happiness", "disgust", "repression", "surprise", "others"),
        {**_same("happiness", "disgust", "repression", "surprise"), **_OTHERS},
        {},
        {"happiness": 32, "disgust": 63, "repression": 27, "surprise": 25, "others": 99},
    ),
    ("samm", 5): Rule(
        ("happiness", "contempt", "anger", "surprise", "others"),
        {**_same("happiness", "contempt", "anger", "surprise"), **_OTHERS},
        {},
        {"happiness": 26, "contempt": 12, "anger": 57, "surprise": 15, "others": 26},
    ),
    ("casme3", 3): Rule(THREE, {**_NEGATIVE_3, "happy": "positive", "surprise": "surprise"}, {}, {}),
    ("casme3", 4): Rule(
        (*THREE, "others"), {**_NEGATIVE_3, "happy": "positive", "surprise": "surprise", **_OTHERS}, {}, {}
    ),
    ("casme3", 7): Rule(
        ("happiness", "disgust", "fear", "anger", "sadness", "surprise", "others"),
        {**_same("disgust", "fear", "anger", "surprise"), **_OTHERS, "happy": "happiness", "sad": "sadness"},
        {},
        {},
    ),
    ("dfme", 3): Rule(THREE, _SPELLED_3, {}, {}),
    ("dfme", 7): Rule((*_SIX, "contempt"), {**_SPELLED_6, **_same("contempt")}, {}, {}),
    ("mmew", 3): Rule(THREE, _SPELLED_3, {}, {}),
    ("mmew", 4): Rule(
        ("happiness", "surprise", "disgust", "others"),
        {**_same("happiness", "surprise", "disgust"), "happy": "happiness", **_OTHERS},
        {},
        {},
    ),
    ("mmew", 7): Rule((*_SIX, "others"), {**_SPELLED_6, **_OTHERS}, {}, {}),
}
_DEFAULT_CLASSES = {"composite": 3, "casme2": 5, "samm": 5, "smic": 3, "casme3": 4, "dfme": 7, "mmew": 7}


def load(
    dataset: str, data: Path, classes: int | None = None, errata: bool = True, prefer: FrameKind = "raw"
) -> Study:
    """Read the clips of a protocol from disk.

    Args:
        dataset: composite, casme2, samm, smic, casme3, dfme or mmew.
        data: for composite, the folder with one folder per database, however they are spelled; else the
            database's folder or its parent.
        classes: how many classes; None = the protocol's own number. casme2 and samm take 3 or 5, casme3
            and mmew 3, 4 or 7, dfme 3 or 7, composite and smic 3.
        errata: correct the annotations that errata.csv knows to be wrong.
        prefer: `raw` or `cropped` frames where a database lies there as both.

    Returns:
        Clips sorted by key with labels; every other annotated clip is in dropped or excluded.

    Raises:
        UserError: unknown dataset, unsupported classes, or data that is not as it must be.
    """
    databases = find_members(dataset, data, classes)
    clips: list[Clip] = []
    dropped: list[tuple[str, str]] = []
    excluded: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    for name, (root, rule) in databases.items():
        read = DATABASES[name](root, errata, prefer, None)
        chosen = [rule.label(clip) for clip in read.clips]
        kept = [clip for clip in chosen if isinstance(clip, Clip)]
        if not kept:
            raise UserError(
                f"{root}: none of {len(chosen)} clips has an emotion of protocol {dataset!r}; "
                "check the emotion column of the coding file"
            )
        clips += kept
        excluded += [clip for clip in chosen if not isinstance(clip, Clip)]
        dropped += read.dropped
        differing = [*_unlike_published(name, read), *_differences(kept, rule)]
        notes += [*read.notes, *((name, text) for text in differing)]
    names = next(iter(databases.values()))[1].names
    return Study(
        dataset,
        names,
        tuple(sorted(clips, key=lambda clip: clip.key)),
        tuple(sorted(dropped)),
        tuple(sorted(excluded)),
        tuple(notes),
    )


def find_members(dataset: str, data: Path, classes: int | None = None) -> dict[str, tuple[Path, Rule]]:
    """The databases of a protocol: name -> (folder, rule). Arguments and errors as for `load`."""
    if dataset not in _DEFAULT_CLASSES:
        raise UserError(f"dataset {dataset!r}: unknown; use one of {', '.join(sorted(_DEFAULT_CLASSES))}")
    members = COMPOSITE if dataset == "composite" else (dataset,)
    number = _DEFAULT_CLASSES[dataset] if classes is None else classes
    possible = sorted({c for name, c in _RULES if name in members} if dataset != "composite" else {3})
    if number not in possible:
        listed = " or ".join(map(str, possible))
        raise UserError(f"dataset {dataset!r}: {number} classes are not supported; use {listed}")
    existing_folder(data)
    return {
        name: (find_database(data, name, required=len(members) > 1), _RULES[name, number]) for name in members
    }


def _unlike_published(name: str, read: Annotations) -> list[str]:
    """Where the coding file at hand lists other clips than the published one."""
    subjects, emotions = PUBLISHED.get(name, (0, {}))
    listed = Counter(read.emotions.values())
    texts = [
        f"{emotion} {listed[emotion]} (published {emotions.get(emotion, 0)})"
        for emotion in [*emotions, *sorted(set(listed) - set(emotions))]
        if emotions and listed[emotion] != emotions.get(emotion, 0)
    ]
    people = len({key.split("/")[1] for key in read.emotions})
    if emotions and people != subjects:
        texts.append(f"subjects {people} (published {subjects})")
    rows = f"{len(read.emotions)} clips, {sum(emotions.values())} in the published one"
    return [f"coding file lists {rows}: {', '.join(texts)}"] if texts else []


def _differences(clips: list[Clip], rule: Rule) -> list[str]:
    """Where the copy at hand is not the complete database."""
    found = Counter(rule.names[clip.label] for clip in clips)
    texts = [
        f"{name}: {found[name]} clips, {count} in the complete database"
        for name, count in rule.expected.items()
        if found[name] != count
    ]
    subjects = len({clip.subject for clip in clips})
    if rule.subjects not in (None, subjects):
        texts.append(f"{subjects} subjects, {rule.subjects} in the complete database")
    return texts
