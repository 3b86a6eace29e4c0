"""What a database is: the description that its file in this folder fills in.

`casme2.py` and its neighbours each hold one `Database`: how its coding file and folders are called, what its
emotions mean in which protocol, and what the complete data holds. reading.py turns it into clips. A database
of your own is the same thing in a file anywhere (`--dataset path/to/my_database.py`), or in a package with an
entry point in the group `mefar.databases`; for one that is kept like CASME II this is all of it:

    from datamodules.databases.description import Columns, Database, Rule

    DATABASE = Database(
        name="mine",
        title="Our own recordings",
        access="ask us",
        fps=120.0,
        coding_file="mine.csv",
        columns=Columns(onset="OnsetFrame", apex="ApexFrame", offset="OffsetFrame"),
        protocols={2: Rule(("negative", "positive"), {"sad": "negative", "happy": "positive"})},
    )

with frames in `SUBJECT/FILENAME/*NUMBER.jpg`, at any depth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamodules.clips import Clip
from datamodules.databases.coding_file import Row
from datamodules.databases.errata import Correction
from datamodules.databases.folders import FrameKind, Place, Recogniser
from datamodules.findings import Finding

NEGATIVE_POSITIVE_SURPRISE = ("negative", "positive", "surprise")
VALENCE = {
    **dict.fromkeys(("anger", "contempt", "disgust", "fear", "sadness", "sad"), "negative"),
    **dict.fromkeys(("happiness", "happy"), "positive"),
    "surprise": "surprise",
}
"""Emotion, in two spellings -> class of these three."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a coding file; case, spaces and underscores do not matter.

    Attributes:
        subject: of the subject's id.
        clip: of the clip's name.
        onset: of the first frame's number.
        apex: of the strongest frame's; "" = there is none.
        offset: of the last frame's.
        emotion: of the emotion.
        aus: of the action units; "" = there is none.
        fps: of the frames per second, where they differ by clip; "" = there is none.
    """

    subject: str = "Subject"
    clip: str = "Filename"
    onset: str = "Onset"
    apex: str = "Apex"
    offset: str = "Offset"
    emotion: str = "Emotion"
    aus: str = ""
    fps: str = ""

    @property
    def needed(self) -> tuple[str, ...]:
        """Those without which the file cannot be read."""
        named = (self.subject, self.clip, self.onset, self.apex, self.offset, self.emotion)
        return tuple(name for name in named if name)


@dataclass(frozen=True)
class SubjectId:
    """How subjects are called, in the coding file and in folders.

    Attributes:
        pattern: regular expression of every spelling; its one group is what tells subjects apart.
        form: how the id is written, of the group: as a number where it has a format such as `sub{:02d}`.
        example: for the error message.
    """

    pattern: str = r"(.+)"
    form: str = "{}"
    example: str = "a name"

    def read(self, text: str) -> str | None:
        """The id, "sub01" from 1 or "Sub1"; None where the text is none."""
        found = re.fullmatch(self.pattern, text, re.IGNORECASE)
        if found is None:
            return None
        return self.form.format(int(found[1]) if "{:" in self.form else found[1])


def _subject_and_clip(subject: str, clip: str) -> Sequence[Place]:
    return [(subject.casefold(), clip.casefold())]


@dataclass(frozen=True)
class ClipFolders:
    """How the folders of frames are called.

    Attributes:
        recognise: tells a clip's folder, see folders.Recogniser; None = a folder with the clip's name, at
            any depth below one with the subject's.
        places: (subject, clip) -> what `recognise` says of the folders that may hold it, by preference.
        expected: such a folder as a reader would write it.
        below: folder inside it that holds the frames, where there is one.
        videos: a video file that is called like the folder of a clip's frames holds them.
        shared: a folder is a whole video; only the frames from onset to offset are the clip's.
    """

    recognise: Recogniser | None = None
    places: Callable[[str, str], Sequence[Place]] = _subject_and_clip
    expected: str = "{subject}/{clip}"
    below: str = ""
    videos: bool = False
    shared: bool = False


def named_by_clip(subject_folder: str = "", expected: str = "{subject}/{clip}") -> ClipFolders:
    """Folders that their own name tells: it occurs once in the database.

    Args:
        subject_folder: regular expression of a subject's folder above it, if there is one; what lies above
            that names the copy.
        expected: such a folder as a reader would write it.
    """

    def recognise(parts: Sequence[str]) -> tuple[Place, int]:
        above = [
            d for d, part in enumerate(parts[:-1]) if subject_folder and re.fullmatch(subject_folder, part)
        ]
        return (parts[-1].casefold(),), above[-1] if above else len(parts) - 1

    return ClipFolders(recognise, lambda subject, clip: [(clip.casefold(),)], expected)


@dataclass(frozen=True)
class Rule:
    """Labels of a database under a protocol.

    Attributes:
        names: class names in label order.
        emotions: annotated emotion, lower case -> class name.
        left_out: emotions that the protocol has no class for. An emotion that is in neither is a fault of
            the coding file.
        clips_left_out: "sub04/EP12_01f" -> reason.
        expected: clips per class in the complete database, where known.
        subjects: subjects in the complete protocol, where known.
    """

    names: tuple[str, ...]
    emotions: Mapping[str, str]
    left_out: Sequence[str] = ()
    clips_left_out: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    subjects: int | None = None

    def label(self, clip: Clip) -> Clip | None:
        """The clip with its label, None where the protocol does not have it."""
        if self.exclusion(clip.key, clip.emotion) or clip.emotion not in self.emotions:
            return None
        return replace(clip, label=self.names.index(self.emotions[clip.emotion]))

    def exclusion(self, key: str, emotion: str) -> str:
        """Why the protocol leaves a clip out by rule; "" where it does not."""
        if said := self.clips_left_out.get(key.split("/", 1)[1]):
            return said
        return f"emotion {emotion!r} is not in the protocol" if emotion in self.left_out else ""


def same(*names: str) -> dict[str, str]:
    """Emotions that are classes of their own."""
    return {name: name for name in names}


@dataclass(frozen=True)
class Published:
    """What the complete coding file lists.

    Attributes:
        subjects: how many.
        emotions: emotion, lower case -> clips.
    """

    subjects: int
    emotions: Mapping[str, int]

    @property
    def clips(self) -> int:
        """All of them."""
        return sum(self.emotions.values())


@dataclass(frozen=True)
class Annotated:
    """What the coding file says of one clip, usable or not: its emotion, and its row (0 = no file)."""

    emotion: str
    row: int = 0


@dataclass(frozen=True)
class Annotations:
    """What one copy of a database yields.

    Attributes:
        clips: usable clips of all emotions, sorted by key.
        findings: what cannot be used and why, and all else.
        annotated: key -> what the coding file says, for every clip, usable or not.
        corrections: errata that met this copy.
        coding_file: the coding file read; None where the database has none.
        frames: the folder of the copy of the frames that is used.
    """

    clips: tuple[Clip, ...] = ()
    findings: tuple[Finding, ...] = ()
    annotated: Mapping[str, Annotated] = field(default_factory=dict)
    corrections: tuple[Correction, ...] = ()
    coding_file: Path | None = None
    frames: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What every database has, of clips or of long videos.

    Attributes:
        name: lower case, as in `--dataset`; begins the keys of what is in it.
        title: as papers call it.
        access: where to apply for it.
        fps: frames per second, where the coding file does not tell them by clip.
        folder: regular expression of its folder's name without spaces, `_`, `-`, in lower case.
        coding_file: the coding file's published name; "" = there is none.
        coding_patterns: regular expressions of the names it occurs under, the preferred first.
    """

    name: str
    title: str
    access: str
    fps: float
    folder: str = ""
    coding_file: str = ""
    coding_patterns: Sequence[str] = ()

    @property
    def folder_pattern(self) -> str:
        """Of its folder's name, by default the database's."""
        return self.folder or re.sub("_", "", self.name)

    @property
    def file_patterns(self) -> Sequence[str]:
        """Of its coding file's name, by default the published one."""
        return self.coding_patterns or (f"^{re.escape(self.coding_file)}$",)


@dataclass(frozen=True, kw_only=True)
class Database(Source):
    """A database of micro-expression clips.

    Attributes (beside those of a `Source`):
        protocols: number of classes -> labels; the first is the database's own.
        sheet: sheet of the workbook.
        columns: names of the columns.
        subject: how subjects are called.
        subject_begins_clip: file names begin with the subject's number; the two are held against each other.
        clip: a row -> the clip's name, each spelling of one name alike; None = as it stands.
        video: a clip's name -> what errata.csv calls its video; None = the same.
        folders: how the folders of frames are called.
        published: what the complete coding file lists, where known.
        errata: csv file of corrections; None = the shipped one, under the database's name.
        reader: for a database without a coding file: folder, frame kind -> annotations.
        checks: (folder, place -> frames' folder, annotated) -> findings of its own.
    """

    protocols: Mapping[int, Rule]
    sheet: str | None = None
    columns: Columns = Columns()
    subject: SubjectId = SubjectId()
    subject_begins_clip: bool = False
    clip: Callable[[Row], str] | None = None
    video: Callable[[str], str] | None = None
    folders: ClipFolders = ClipFolders()
    published: Published | None = None
    errata: Path | None = None
    reader: Callable[[Path, FrameKind], Annotations] | None = None
    checks: Callable[[Path, Mapping[str, Path], Mapping[str, Annotated]], Sequence[Finding]] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"name {self.name!r}: use lower-case letters, digits and _")
        for classes, rule in self.protocols.items():
            strange = sorted(set(rule.emotions.values()) - set(rule.names))
            if classes != len(rule.names) or strange:
                raise ValueError(
                    f"protocol of {classes} classes: names {', '.join(rule.names)}"
                    + (f", but emotions become {', '.join(strange)}" if strange else "")
                )
        if not self.protocols:
            raise ValueError("protocols: give at least one")
        if not self.coding_file and self.reader is None:
            raise ValueError("coding_file: give its name")

    @property
    def classes(self) -> int:
        """The number of classes of its own protocol."""
        return next(iter(self.protocols))
