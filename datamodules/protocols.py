"""Protocols: which databases, which of their clips, and what their labels are.

A database is a protocol of its own; `composite` is the CDE task of MEGC2019, three databases with three
classes, 442 clips of 68 subjects. What emotions become in which database stands in its file in `databases/`;
`mefar databases` lists all. Subject ids collide across databases: a subject is (database, subject),
`Clip.subject_key`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.clips import Clip, Study
from datamodules.databases import catalogue
from datamodules.databases.description import Annotations, Database, Rule
from datamodules.databases.folders import FrameKind, existing_folder, find_root
from datamodules.databases.long_videos import LongStudy
from datamodules.databases.long_videos import read as read_long_videos
from datamodules.databases.reading import read
from datamodules.findings import Finding, Level, differences
from mefar.errors import UserError

COMPOSITES = {"composite": (("casme2", "samm", "smic"), 3)}
"""Protocol over several databases -> their names, and the number of classes that each is read with."""


@dataclass(frozen=True)
class Member:
    """A database's place in a protocol.

    Attributes:
        database: what it is.
        root: its folder.
        data: the folder that the user named.
        rule: its labels under the protocol.
    """

    database: Database
    root: Path
    data: Path
    rule: Rule


@dataclass(frozen=True)
class Part:
    """What a member yields.

    Attributes:
        read: all clips of the copy.
        clips: those of the protocol, with labels.
        excluded: (key, reason) of those that it leaves out.
        findings: what the loader found, by what it means for the protocol, and how the counts differ.
    """

    read: Annotations
    clips: tuple[Clip, ...]
    excluded: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]


def find_databases(dataset: str) -> tuple[str, dict[str, Database]]:
    """The name of a protocol and its databases.

    Args:
        dataset: `composite`, a database's name, or the path of a file that describes one.

    Raises:
        UserError: there is none of that name, or the file does not describe one.
    """
    if catalogue.is_file(dataset):
        one = catalogue.from_file(Path(dataset))
        return one.name, {one.name: one}
    known = catalogue.shipped()
    if dataset not in known and dataset not in COMPOSITES:
        known = catalogue.known()  # a package that is broken bars the way to its own database only
    if dataset in COMPOSITES:
        return dataset, {name: known[name] for name in COMPOSITES[dataset][0]}
    if dataset in catalogue.long_videos():
        raise UserError(f"dataset {dataset!r}: holds long videos, for spotting; use another")
    if dataset not in known:
        listed = ", ".join(sorted([*known, *COMPOSITES]))
        raise UserError(f"dataset {dataset!r}: unknown; use one of {listed}, or a file that describes one")
    return dataset, {dataset: known[dataset]}


def find_members(dataset: str, data: Path, classes: int | None = None) -> dict[str, Member]:
    """The databases of a protocol: name -> member. Arguments and errors as for `load`."""
    name, databases = find_databases(dataset)
    several = name in COMPOSITES
    possible = {COMPOSITES[name][1]} if several else set(next(iter(databases.values())).protocols)
    default = COMPOSITES[name][1] if several else next(iter(databases.values())).classes
    number = default if classes is None else classes
    if number not in possible:
        listed = " or ".join(map(str, sorted(possible)))
        raise UserError(f"dataset {name!r}: {number} classes are not supported; use {listed}")
    existing_folder(data)
    return {
        one.name: Member(
            one, find_root(data, one.name, one.folder_pattern, required=several), data, one.protocols[number]
        )
        for one in databases.values()
    }


def read_member(member: Member, errata: bool = True, prefer: FrameKind = "raw", gather: bool = False) -> Part:
    """Read one database and label its clips.

    Args:
        member: from `find_members`.
        errata: correct the annotations that are known to be wrong.
        prefer: raw or cropped frames where both are there.
        gather: list what would stop a load among the findings.

    Raises:
        UserError: as for reading.read.
    """
    database, rule = member.database, member.rule
    others = {
        name: one.file_patterns
        for name, one in catalogue.shipped().items()
        if one.coding_file and name != database.name
    }
    read_all = read(database, member.root, errata, prefer, gather, member.data, others)
    labelled = {clip.key: rule.label(clip) for clip in read_all.clips}
    clips = tuple(clip for clip in labelled.values() if clip is not None)
    excluded: dict[str, str] = {}
    findings: list[Finding] = []
    file = read_all.coding_file or member.root
    for key, one in read_all.annotated.items():
        if why := rule.exclusion(key, one.emotion):
            excluded[key] = why
        elif one.emotion not in rule.emotions:
            what = (
                f"emotion {one.emotion!r} is none of the protocol's"
                if one.emotion
                else "no emotion annotated"
            )
            detail = f"{what} ({file.name}, row {one.row}); correct the cell"
            findings.append(Finding("lost", "emotion", database.name, detail, key, str(file), one.row))
    for finding in read_all.findings:
        # Of a clip that the protocol does not want nothing is lost, unless the load stops.
        wanted = finding.stops or finding.clip not in excluded
        findings.append(finding if wanted else replace(finding, level="note"))
    findings += _against_published(database, read_all, member)
    findings += _against_protocol(database, clips, rule)
    return Part(read_all, clips, tuple(sorted(excluded.items())), tuple(findings))


def load(
    dataset: str,
    data: Path | str,
    classes: int | None = None,
    errata: bool = True,
    prefer: FrameKind = "raw",
) -> Study:
    """Read the clips of a protocol from disk.

    Args:
        dataset: `composite`, the name of a database (`mefar databases` lists them), or the path of a file
            that describes one.
        data: for composite, the folder with one folder per database, however they are spelled; else the
            database's folder or its parent.
        classes: how many classes; None = the protocol's own number.
        errata: correct the annotations that errata.csv knows to be wrong.
        prefer: `raw` or `cropped` frames where a database lies there as both.

    Returns:
        Clips sorted by key with labels; every other annotated clip is in dropped or excluded.

    Raises:
        UserError: unknown dataset, unsupported classes, or data that is not as it must be.
    """
    data = Path(data)
    members = find_members(dataset, data, classes)
    parts = {name: read_member(member, errata, prefer) for name, member in members.items()}
    for name, part in parts.items():
        if not part.clips:
            raise UserError(_nothing(members[name], part))
    findings = [
        finding
        for name, part in parts.items()
        for finding in (*_sources(members[name].database, part.read), *part.findings)
    ]
    return Study(
        dataset if dataset in COMPOSITES else next(iter(members)),
        next(iter(members.values())).rule.names,
        tuple(sorted((clip for part in parts.values() for clip in part.clips), key=lambda clip: clip.key)),
        tuple(sorted(pair for part in parts.values() for pair in part.excluded)),
        tuple(findings),
    )


def load_long_videos(dataset: str, data: Path, prefer: FrameKind = "raw") -> LongStudy:
    """Read the long videos of a database and the movements in them.

    Args:
        dataset: name of a database of long videos: casme_sq, samm_lv, ... (`mefar databases` lists them).
        data: its folder or the parent of that.
        prefer: `raw` or `cropped` frames where it lies there as both.

    Raises:
        UserError: unknown dataset, or data that is not as it must be.
    """
    known = catalogue.long_videos()
    if dataset not in known:
        raise UserError(f"dataset {dataset!r}: no database of long videos; use one of {', '.join(known)}")
    return read_long_videos(known[dataset], data, prefer)


def _sources(database: Database, read_all: Annotations) -> Iterable[Finding]:
    """Which files the clips are from."""
    for what, path in (("coding file", read_all.coding_file), ("frames from", read_all.frames)):
        if path is not None:
            yield Finding("note", "source", database.name, f"{what} {path}", file=str(path))


def _nothing(member: Member, part: Part) -> str:
    """Why no clip is left: the reason that most clips have."""
    lost = [finding for finding in part.findings if finding.level == "lost" and finding.clip]
    total = len(part.read.annotated)
    if not lost:
        listed = ", ".join(sorted({one.emotion for one in part.read.annotated.values()}))
        return f"{member.root}: none of {total} clips has an emotion of the protocol; they have {listed}"
    kind, count = Counter(finding.kind for finding in lost).most_common(1)[0]
    first = next(finding for finding in lost if finding.kind == kind)
    example = f"{kind} for {count}, such as {first.clip}: {first.detail}"
    return f"{member.root}: none of {total} clips can be used; {example}"


def _against_published(database: Database, read_all: Annotations, member: Member) -> Iterable[Finding]:
    """Where the coding file lists other clips than the published one."""
    if database.published is None or not database.coding_file:
        return
    expected = database.published.emotions
    listed = Counter(one.emotion for one in read_all.annotated.values())
    emotions = [*expected, *sorted(set(listed) - set(expected))]
    counts = [(emotion or "blank", listed[emotion], expected.get(emotion, 0)) for emotion in emotions]
    subjects = len({key.split("/")[1] for key in read_all.annotated})
    differing, _ = differences([*counts, ("subjects", subjects, database.published.subjects)])
    if differing:
        rows = len(read_all.annotated)
        # A loss only where the protocol has no counts of its own, which tell more.
        level: Level = "lost" if rows < database.published.clips and not member.rule.expected else "warning"
        lists = f"the coding file lists {rows} clips, the published one {database.published.clips}"
        detail = f"{lists}: {differing}"
        yield Finding(level, "coding file", database.name, detail, file=str(read_all.coding_file or ""))


def _against_protocol(database: Database, clips: Iterable[Clip], rule: Rule) -> Iterable[Finding]:
    """Usable clips and subjects against the complete protocol: fewer of a kind are a loss, more are not."""
    clips = list(clips)
    found = Counter(rule.names[clip.label] for clip in clips)
    counts = [(name, found[name], expected) for name, expected in rule.expected.items()]
    if rule.subjects is not None:
        counts.append(("subjects", len({clip.subject for clip in clips}), rule.subjects))
    differing, fewer = differences(counts)
    if differing:
        detail = f"{len(clips)} clips, {sum(rule.expected.values())} in the protocol: {differing}"
        yield Finding("lost" if fewer else "warning", "protocol counts", database.name, detail)
