"""Holds a database folder against what a protocol needs from it, and changes nothing there.

Coding file, frames and errata are found and read by the loaders' own code, so what is reported here is
what a run would meet; then the checks that a load does not make: gaps between onset and offset, images that
do not decode, clips that have another clip's images, counts against the published ones.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from datamodules.clips import Clip
from datamodules.crops import Progress, read_image
from datamodules.databases.annotations import PUBLISHED, Annotations
from datamodules.databases.folders import Faults, FrameKind
from datamodules.faces.apex import Apex, ApexRule, choose_apex, middle
from datamodules.protocols import DATABASES, Rule, find_members
from mefar.errors import UserError

Level = Literal["lost", "warning", "note"]

_SOON = 1.0  # seconds without a word about progress

# What the loaders say -> (what it is about, how bad for a clip of the protocol).
_REMARKS: tuple[tuple[str, str, Level], ...] = (
    (r"apex \d+ is outside", "onset, apex, offset", "warning"),
    (r"offset not annotated: ", "onset, apex, offset", "warning"),
    (r"row \d+ repeats row", "duplicate clip", "warning"),
    (r"action units not read", "action units", "warning"),
    (r"", "remark", "note"),
)
# Told elsewhere: as counts, gaps, missing apexes and corrections.
_TOLD = re.compile(r"coding file |frames from |apex not annotated|no file for the offset|erratum")
_FAULTS = (
    (r"two folders for one clip|contradicts row|is the folder of row", "duplicate clip"),
    (r"are both frame", "duplicate frames"),
    (r"without frames|no folder|no frames|only one frame|has no file", "missing frames"),
    (r"is not after onset|not annotated", "onset, apex, offset"),
    (r"but lies under", "misplaced clip"),
)
_ERRATUM = re.compile(r"erratum(?: not applied, (.*?))?: (\w+) (.*?) -> (.*?) \((.*)\)")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        level: `lost`: a run would lose a clip, or stop; `warning`: a run would work with less or other data;
            `note`: outside the protocol, for information.
        kind: what it is about, such as "missing frames".
        database: casme2, samm, smic, casme3, dfme or mmew.
        clip: the clip's key; "" where it is about the database.
        detail: one line.
        missing: for gaps, first and last number of each run of missing frames.
    """

    level: Level
    kind: str
    database: str
    clip: str
    detail: str
    missing: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Correction:
    """One row of errata.csv that met this copy; `refused` says why it was not applied, "" if it was."""

    clip: str
    field: str
    old: str
    new: str
    source: str
    refused: str = ""


@dataclass(frozen=True)
class Count:
    """How many there are, and how many there should be; None = no published number."""

    found: int
    expected: int | None


@dataclass(frozen=True)
class Part:
    """One database of the protocol.

    Attributes:
        folder: where the search began.
        coding_file: the coding file read; "" where the database has none.
        frames: the folder of the copy of the frames that is used.
        clips: usable clips of the protocol.
        subjects: subjects of these clips.
        classes: clips per class of the protocol.
        coding: clips per emotion that the coding file lists, whatever the protocol takes of them.
        apex: how many clips get their apex by which rule.
    """

    folder: str
    coding_file: str = ""
    frames: str = ""
    clips: Count = Count(0, None)
    subjects: Count = Count(0, None)
    classes: Mapping[str, Count] = field(default_factory=dict)
    coding: Mapping[str, Count] = field(default_factory=dict)
    apex: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        dataset: the protocol.
        parts: database -> what it holds.
        findings: the worst first.
        errata: corrections that met this copy.
        images: how many images were decoded.
    """

    dataset: str
    parts: Mapping[str, Part]
    findings: tuple[Finding, ...]
    errata: tuple[Correction, ...]
    images: int

    @property
    def lost(self) -> bool:
        """Whether a run would lose something."""
        return any(finding.level == "lost" for finding in self.findings)

    @property
    def complete(self) -> bool:
        """Whether everything is as it should be; notes do not count."""
        return all(finding.level == "note" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The report in JSON's own types."""
        return {"complete": self.complete, "lost": self.lost, **asdict(self)}


def examine(
    dataset: str,
    data: Path,
    classes: int | None = None,
    errata: bool = True,
    prefer: FrameKind = "raw",
    apex: ApexRule = "annotated",
    all_frames: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Check a database folder, or the three of the composite. Nothing is written.

    Args:
        dataset: composite, casme2, samm, smic, casme3, dfme or mmew.
        data: as for protocols.load, and so are classes, errata and prefer.
        classes: of the protocol.
        errata: correct the annotations that errata.csv knows to be wrong.
        prefer: raw or cropped frames where both are there.
        apex: the rule that runs will use; the images it needs are decoded.
        all_frames: decode every frame of every clip of the protocol.
        workers: threads that decode; 0 = one per core.
        progress: told (done, total, images per second).

    Raises:
        UserError: wrong dataset, classes or folder, or no database of the protocol can be read at all.
    """
    parts: dict[str, Part] = {}
    findings: list[Finding] = []
    corrections: list[Correction] = []
    clips: list[Clip] = []
    chosen: dict[str, Apex] = {}
    refused: list[UserError] = []
    members = find_members(dataset, data, classes)
    for name, (root, rule) in members.items():
        faults: Faults = []
        try:
            read = DATABASES[name](root, errata, prefer, faults)
        except UserError as error:
            refused.append(error)
            parts[name] = _part(name, root, rule, Annotations((), (), ()), [], {})
            findings.append(Finding("lost", "unusable database", name, "", str(error)))
            continue
        kept = [clip for clip in map(rule.label, read.clips) if isinstance(clip, Clip)]
        peaks = {clip.key: choose_apex(clip, apex, middle) for clip in kept}
        parts[name] = _part(name, root, rule, read, kept, Counter(peak.rule for peak in peaks.values()))
        findings += _from_loader(name, rule, read, faults)
        findings += _counted(name, parts[name])
        findings += _listed(name, parts[name], {key.split("/")[1] for key in read.emotions})
        for clip in kept:
            findings += _gaps(clip)
            findings += _without_apex(clip, peaks[clip.key], apex)
        corrections += _corrections(read)
        clips += kept
        chosen |= peaks
    if len(refused) == len(members):
        raise refused[0]
    findings += _same_images(clips, chosen)
    unreadable, images = _unreadable(clips, chosen, all_frames, workers, progress)
    order = ("lost", "warning", "note")
    findings = sorted([*findings, *unreadable], key=lambda f: (order.index(f.level), f.kind, f.clip))
    return Report(dataset, parts, tuple(findings), tuple(corrections), images)


def _part(
    name: str, root: Path, rule: Rule, read: Annotations, kept: Sequence[Clip], rules: Mapping[str, int]
) -> Part:
    found = Counter(rule.names[clip.label] for clip in kept)
    listed, published = Counter(read.emotions.values()), PUBLISHED.get(name, (0, {}))[1]
    places = dict(text.split(" from ", 1) for _, text in read.notes if text.startswith("frames from "))
    tables = [text.removeprefix("coding file ") for _, text in read.notes if text.startswith("coding file ")]
    return Part(
        str(root),
        tables[0] if tables else "",
        places.get("frames", ""),
        Count(len(kept), sum(rule.expected.values()) or None),
        Count(len({clip.subject for clip in kept}), rule.subjects),
        {title: Count(found[title], rule.expected.get(title)) for title in rule.names},
        {
            emotion: Count(listed[emotion], published.get(emotion, 0))
            for emotion in [*published, *sorted(set(listed) - set(published))]
            if published
        },
        dict(sorted(rules.items())),
    )


def _from_loader(name: str, rule: Rule, read: Annotations, faults: Faults) -> Iterable[Finding]:
    """Faults, dropped clips and remarks; less bad where the protocol does not want the clip."""

    def rank(key: str, level: Level) -> Level:
        wanted = key not in rule.left_out and read.emotions.get(key) in rule.emotions
        return level if wanted else "note"

    def about(text: str) -> str:
        return next((kind for pattern, kind in _FAULTS if re.search(pattern, text)), "dropped clip")

    for key, text in faults:  # these stop a load, whatever the protocol
        yield Finding("lost", about(text), name, key, text)
    known = {key for key, _ in faults}
    for key, text in read.dropped:
        if key not in known:
            yield Finding(rank(key, "lost"), about(text), name, key, text)
    for key, text in read.notes:
        if not _TOLD.match(text):
            kind, level = next((k, v) for pattern, k, v in _REMARKS if re.match(pattern, text))
            yield Finding(rank(key, level), kind, name, key, text)


def _counted(name: str, part: Part) -> Iterable[Finding]:
    """Usable clips and subjects against the protocol: fewer of a kind are a loss, more are not."""
    counts = {**part.classes, "subjects": part.subjects}
    differing = {
        title: (count.found, count.expected)
        for title, count in counts.items()
        if count.expected is not None and count.found != count.expected
    }
    if differing:
        less = any(found < expected for found, expected in differing.values())
        shown = [f"{title} {found} of {expected}" for title, (found, expected) in differing.items()]
        detail = f"{part.clips.found} clips, {part.clips.expected} in the protocol: {', '.join(shown)}"
        yield Finding("lost" if less else "warning", "protocol counts", name, "", detail)


def _listed(name: str, part: Part, subjects: set[str]) -> Iterable[Finding]:
    """What the coding file lists against the published one; a loss only where the protocol has no counts."""
    if name not in PUBLISHED:
        return
    expected_subjects, emotions = PUBLISHED[name]
    rows, published = sum(count.found for count in part.coding.values()), sum(emotions.values())
    differing = [
        f"{emotion} {count.found} of {count.expected}"
        for emotion, count in part.coding.items()
        if count.found != count.expected
    ]
    if len(subjects) != expected_subjects:
        differing.append(f"subjects {len(subjects)} of {expected_subjects}")
    if differing:
        level: Level = "lost" if rows < published and part.clips.expected is None else "warning"
        detail = f"{rows} clips, {published} in the published file: {', '.join(differing)}"
        yield Finding(level, "coding file", name, "", detail)


def _gaps(clip: Clip) -> Iterable[Finding]:
    """Numbers between onset and offset that have no file."""
    numbers = [*clip.between(), clip.offset + 1]
    runs = tuple((before + 1, after - 1) for before, after in pairwise(numbers) if after > before + 1)
    if runs:
        missing = sum(last - first + 1 for first, last in runs)
        shown = [f"{first}-{last}" if last > first else f"{first}" for first, last in runs[:12]]
        detail = f"{missing} of the {clip.offset - clip.onset + 1} frames of [{clip.onset}, {clip.offset}]: "
        detail += ", ".join(shown) + (", ..." if len(runs) > 12 else "")
        if runs[-1][1] == clip.offset:
            detail += "; no file for the offset"
        yield Finding("warning", "missing frames", clip.database, clip.key, detail, runs)


def _without_apex(clip: Clip, chosen: Apex, rule: ApexRule) -> Iterable[Finding]:
    """An apex that runs must choose themselves, in a database that has them annotated."""
    if clip.database != "smic" and chosen.rule != rule:
        why = "not annotated" if clip.apex is None else f"{clip.apex} is the onset"
        detail = f"apex {why}; {chosen.rule} frame {chosen.number} is used"
        yield Finding("warning", "apex missing", clip.database, clip.key, detail)


def _corrections(read: Annotations) -> Iterable[Correction]:
    for key, text in read.notes:
        if found := _ERRATUM.fullmatch(text):
            refused, name, old, new, source = found.groups()
            yield Correction(key, name, old, new, source, refused or "")


def _same_images(clips: Sequence[Clip], chosen: Mapping[str, Apex]) -> Iterable[Finding]:
    """Clips whose onset and apex images are another clip's, byte for byte."""
    sizes: dict[tuple[int, ...], list[Clip]] = defaultdict(list)
    for clip in clips:
        sizes[tuple(file.stat().st_size for file in _pair(clip, chosen))].append(clip)
    for group in sizes.values():
        first: dict[tuple[bytes, ...], Clip] = {}
        for clip in group if len(group) > 1 else ():
            try:
                content = tuple(hashlib.sha256(file.read_bytes()).digest() for file in _pair(clip, chosen))
            except OSError:
                continue  # reported as unreadable
            other = first.setdefault(content, clip)
            if other is not clip:
                detail = f"onset and apex images are those of {other.key}; copy its own again"
                yield Finding("lost", "duplicate clip", clip.database, clip.key, detail)


def _pair(clip: Clip, chosen: Mapping[str, Apex]) -> tuple[Path, Path]:
    return clip.frames[clip.onset], clip.frames[chosen[clip.key].number]


def _unreadable(
    clips: Sequence[Clip],
    chosen: Mapping[str, Apex],
    all_frames: bool,
    workers: int,
    progress: Progress | None,
) -> tuple[list[Finding], int]:
    """Decode what runs need, or everything; findings and the number of images."""
    jobs: list[tuple[Clip, int, bool]] = []
    for clip in clips:
        peak = chosen[clip.key]
        needed = set(clip.between()) if peak.rule == "spotted" else {clip.onset, peak.number}
        jobs += [(clip, n, n in needed) for n in (clip.frames if all_frames else sorted(needed))]
    findings: list[Finding] = []
    start = time.monotonic()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        problems = pool.map(_decode, [clip.frames[number] for clip, number, _ in jobs])
        for done, ((clip, _, needed_too), problem) in enumerate(zip(jobs, problems, strict=True), 1):
            if problem:
                level: Level = "lost" if needed_too else "warning"
                findings.append(Finding(level, "unreadable image", clip.database, clip.key, problem))
            past = time.monotonic() - start
            if progress is not None and past > _SOON and (done % 100 == 0 or done == len(jobs)):
                progress(done, len(jobs), done / past)
    return findings, len(jobs)


def _decode(file: Path) -> str:
    try:
        read_image(file)
    except UserError as error:
        return str(error)
    return ""
