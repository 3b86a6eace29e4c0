"""Holds a database folder against what a protocol needs from it, and changes nothing there.

Coding file, frames and errata are found and read by the loaders' own code, so what is reported here is
what a run would meet; then the checks that a load does not make: gaps between onset and offset, images that
do not decode, clips that have another clip's images, counts against the published ones.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.clips import Clip
from datamodules.crops import Progress, read_image
from datamodules.databases import catalogue
from datamodules.databases.description import Annotations
from datamodules.databases.errata import Correction
from datamodules.databases.folders import FrameKind
from datamodules.databases.video_frames import source
from datamodules.faces.apex import Apex, ApexRule, choose_apex, middle
from datamodules.findings import Finding, Level
from datamodules.look_alikes import from_afar, look_alikes
from datamodules.protocols import Member, Part, find_members, load_long_videos, read_member
from datamodules.views import draw_view
from mefar.errors import UserError

_SOON = 1.0  # seconds without a word about progress
_LEVELS: tuple[Level, ...] = ("lost", "warning", "note")


@dataclass(frozen=True)
class Count:
    """How many there are, and how many there should be; None = no published number."""

    found: int
    expected: int | None


@dataclass(frozen=True)
class Holding:
    """What a copy of one database holds.

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
    parts: Mapping[str, Holding]
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
    views: int = 8,
    workers: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Check a database folder, or the three of the composite. Nothing is written.

    Of long videos the movements are counted as clips and held against their frames; no image is decoded.

    Args:
        dataset: as for protocols.load, and so are data, classes, errata and prefer.
        data: folder of the database, or of several.
        classes: of the protocol.
        errata: correct the annotations that errata.csv knows to be wrong.
        prefer: raw or cropped frames where both are there.
        apex: the rule that runs will use; the images it needs are decoded.
        all_frames: decode every frame of every clip of the protocol.
        views: of the runs; they show frames around the apex too, which are decoded as well.
        workers: threads that decode; 0 = one per core.
        progress: told (done, total, images per second).

    Raises:
        UserError: wrong dataset, classes or folder, or no database of the protocol can be read at all.
    """
    holdings: dict[str, Holding] = {}
    findings: list[Finding] = []
    corrections: list[Correction] = []
    clips: list[Clip] = []
    chosen: dict[str, Apex] = {}
    refused: list[UserError] = []
    if dataset in catalogue.long_videos():
        return _examine_long(dataset, data, prefer)
    members = find_members(dataset, data, classes)
    for name, member in members.items():
        try:
            part = read_member(member, errata, prefer, gather=True)
        except UserError as error:
            refused.append(error)
            part = Part(Annotations(), (), (), (Finding("lost", "unusable database", name, str(error)),))
        peaks = {clip.key: choose_apex(clip, apex, middle) for clip in part.clips}
        holdings[name] = _holding(member, part, Counter(peak.rule for peak in peaks.values()))
        findings += [finding for finding in part.findings if not _told(finding)]
        for clip in part.clips:
            findings += _gaps(clip)
            if member.database.columns.apex:
                findings += _without_apex(clip, peaks[clip.key], apex)
        corrections += part.read.corrections
        clips += part.clips
        chosen |= peaks
    if len(refused) == len(members):
        raise refused[0]
    same = list(_same_files(clips, chosen))
    shown, images = _look(clips, chosen, all_frames, views, {f.clip for f in same}, workers, progress)
    name = next(iter(members)) if len(members) == 1 else dataset
    ordered = _worst_first([*findings, *same, *shown])
    return Report(name, holdings, ordered, tuple(corrections), images)


def _examine_long(dataset: str, data: Path, prefer: FrameKind) -> Report:
    """A database of long videos."""
    published = catalogue.long_videos()[dataset].published
    study = load_long_videos(dataset, data, prefer)
    counts, movements = study.counts(), [one for video in study.videos for one in video.movements]
    holding = Holding(
        str(data),
        str(study.coding_file),
        str(study.videos[0].source.parent),
        Count(len(movements), sum(published.get(kind, 0) for kind in ("micro", "macro")) or None),
        Count(counts["subjects"], published.get("subjects")),
        {kind: Count(counts[kind], published.get(kind)) for kind in ("micro", "macro")},
        apex=dict(Counter("missing" if one.apex is None else "annotated" for one in movements)),
    )
    return Report(dataset, {dataset: holding}, _worst_first(study.findings), (), 0)


def _worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (_LEVELS.index(f.level), f.kind, f.clip)))


def _told(finding: Finding) -> bool:
    """Whether the report says it elsewhere: as files, corrections, gaps and missing apexes."""
    if finding.level != "note":
        return False
    return finding.kind in ("source", "erratum", "apex missing") or bool(finding.missing)


def _holding(member: Member, part: Part, rules: Mapping[str, int]) -> Holding:
    rule, read, published = member.rule, part.read, member.database.published
    found = Counter(rule.names[clip.label] for clip in part.clips)
    listed = Counter(one.emotion for one in read.annotated.values())
    emotions = published.emotions if published and member.database.coding_file else {}
    return Holding(
        str(member.root),
        str(read.coding_file or ""),
        str(read.frames or ""),
        Count(len(part.clips), sum(rule.expected.values()) or None),
        Count(len({clip.subject for clip in part.clips}), rule.subjects),
        {name: Count(found[name], rule.expected.get(name)) for name in rule.names},
        {
            emotion: Count(listed[emotion], emotions.get(emotion, 0))
            for emotion in [*emotions, *sorted(set(listed) - set(emotions))]
            if emotions
        },
        dict(sorted(rules.items())),
    )


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
        yield Finding("warning", "missing frames", clip.database, detail, clip.key, missing=runs)


def _without_apex(clip: Clip, chosen: Apex, rule: ApexRule) -> Iterable[Finding]:
    """An apex that runs must choose themselves, in a database that has them annotated."""
    if chosen.rule != rule:
        why = "not annotated" if clip.apex is None else f"{clip.apex} is the onset"
        detail = f"apex {why}; {chosen.rule} frame {chosen.number} is used"
        yield Finding("warning", "apex missing", clip.database, detail, clip.key)


def _same_files(clips: Sequence[Clip], chosen: Mapping[str, Apex]) -> Iterable[Finding]:
    """Clips whose onset and apex images are another clip's, byte for byte."""
    sizes: dict[tuple[int, ...], list[Clip]] = defaultdict(list)
    for clip in clips:
        if any(source(file) != file for file in _pair(clip, chosen)):
            continue  # a picture of a video has no bytes of its own
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
                yield Finding("lost", "duplicate clip", clip.database, detail, clip.key)


def _pair(clip: Clip, chosen: Mapping[str, Apex]) -> tuple[Path, Path]:
    return clip.frames[clip.onset], clip.frames[chosen[clip.key].number]


def _needed(clip: Clip, peak: Apex, views: int) -> set[int]:
    """Numbers of the frames that a run reads: those of its views are the apex's neighbours."""
    if peak.rule == "spotted":
        return set(clip.between())
    later = [number for number in clip.between() if number > clip.onset]
    return {clip.onset} | {draw_view(0, clip.key, v).jittered(peak.number, later) for v in range(views)}


@dataclass(frozen=True)
class _Picture:
    """One image, looked at: its size, what it shows from afar, or why it cannot be read."""

    size: tuple[int, int] = (0, 0)
    look: NDArray[np.float32] | None = None
    problem: str = ""


def _look(
    clips: Sequence[Clip],
    chosen: Mapping[str, Apex],
    all_frames: bool,
    views: int,
    copies: set[str],
    workers: int,
    progress: Progress | None,
) -> tuple[list[Finding], int]:
    """Decode what runs need, or everything; findings and the number of images."""
    jobs: list[tuple[Clip, int, bool]] = []
    for clip in clips:
        needed = _needed(clip, chosen[clip.key], views)
        jobs += [(clip, n, n in needed) for n in (clip.frames if all_frames else sorted(needed))]
    findings: list[Finding] = []
    seen: dict[str, dict[int, _Picture]] = defaultdict(dict)
    start = time.monotonic()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        pictures = pool.map(_picture, [clip.frames[number] for clip, number, _ in jobs])
        for done, ((clip, number, needed_too), picture) in enumerate(zip(jobs, pictures, strict=True), 1):
            if picture.problem:
                level: Level = "lost" if needed_too else "warning"
                file = str(clip.frames[number])
                findings.append(
                    Finding(level, "unreadable image", clip.database, picture.problem, clip.key, file)
                )
            elif number in (clip.onset, chosen[clip.key].number):
                seen[clip.key][number] = picture
            else:  # what it shows is not asked for
                seen[clip.key][number] = _Picture(picture.size)
            past = time.monotonic() - start
            if progress is not None and past > _SOON and (done % 100 == 0 or done == len(jobs)):
                progress(done, len(jobs), done / past)
    for clip in clips:
        findings += _sizes(clip, seen[clip.key])
    findings += _same_people(clips, chosen, seen, copies)
    return findings, len(jobs)


def _picture(file: Path) -> _Picture:
    try:
        image = read_image(file)
    except UserError as error:
        return _Picture(problem=str(error))
    return _Picture((image.shape[1], image.shape[0]), from_afar(image))


def _sizes(clip: Clip, seen: Mapping[int, _Picture]) -> Iterable[Finding]:
    """Frames of several sizes: a face that is found in one of them is elsewhere in the others."""
    sizes = Counter(picture.size for picture in seen.values())
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        number = next(number for number, picture in seen.items() if picture.size != usual)
        width, height = seen[number].size
        detail = (
            f"frame {number} has {width}x{height} pixels, others {usual[0]}x{usual[1]} "
            f"({clip.frames[number]}); copy all frames from one source"
        )
        yield Finding("lost", "frame sizes", clip.database, detail, clip.key, str(clip.frames[number]))


def _same_people(
    clips: Sequence[Clip],
    chosen: Mapping[str, Apex],
    seen: Mapping[str, Mapping[int, _Picture]],
    copies: set[str],
) -> Iterable[Finding]:
    """Clips of two subjects that show the same pictures, encoded anew."""
    kept, pictures = [], []
    for clip in clips:
        pair = [seen[clip.key].get(number) for number in (clip.onset, chosen[clip.key].number)]
        looks = [one.look for one in pair if one is not None and one.look is not None]
        if clip.key not in copies and len(looks) == 2:
            kept.append(clip)
            pictures.append(np.stack(looks))
    if not kept:
        return
    for first, second in look_alikes([clip.subject_key for clip in kept], np.stack(pictures)):
        clip, other = kept[second], kept[first]
        detail = f"onset and apex show what {other.key} shows, another subject: a leak over folds; remove one"
        yield Finding("warning", "same pictures", clip.database, detail, clip.key)
