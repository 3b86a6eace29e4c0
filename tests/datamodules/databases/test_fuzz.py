"""Whatever lies in a folder: it is read right, or refused in one line that names file and row."""

from __future__ import annotations

import csv
import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from readers import casme2, casme3, dfme, mmew, samm
from replicas import dropped, write_frames, write_table

from datamodules.clips import Clip
from datamodules.crops import read_image
from datamodules.databases.description import Annotations
from datamodules.databases.folders import list_frames
from mefar.errors import UserError

FEW = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = range(8, 22)
EMOTIONS = ("fear", "disgust", "surprise", "happiness", "sadness", "anger")


@dataclass(frozen=True)
class Format:
    """A database as this test writes it: two clips each of three subjects, all with frames 8 to 21."""

    load: Callable[..., Annotations]
    file: str
    columns: list[str]
    subject: str
    clip: str
    place: str

    def names(self, n: int, i: int) -> tuple[str, str]:
        return self.subject.format(n=n), self.clip.format(n=n, i=i)


FRAMES = ["Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame"]
SPACED = ["Subject", "Filename", "Onset Frame", "Apex Frame", "Offset Frame"]
SHORT = ["Subject", "Filename", "Onset", "Apex", "Offset"]
FELT = ["Estimated Emotion", "Action Units"]
FORMATS = {
    "casme2": Format(
        casme2, "CASME2-coding-20140508", FRAMES + FELT,
        "sub{n:02d}", "EP02_{i:02d}", "CASME2_RAW_selected/{subject}/{clip}/img{{}}.jpg",
    ),
    "samm": Format(
        samm, "SAMM_Micro_FACS_Codes_v2", SPACED + FELT,
        "{n:03d}", "{n:03d}_1_{i}", "{subject}/{clip}/{subject}_{{:05d}}.jpg",
    ),
    "casme3": Format(
        casme3, "cas(me)3_part_A_ME_label_JpgIndex_v2", [*SHORT, "emotion", "AU"],
        "spNO.{n}", "b", "part_A/{subject}/{clip}/color/{{}}.jpg",
    ),
    "dfme": Format(
        dfme, "training_full_with_AU", [*FRAMES, "Emotion", "AU", "Fps"],
        "sub{n:04d}", "sub{n:04d}_{i:02d}", "DFME_train/{clip}/{{:05d}}.png",
    ),
    "mmew": Format(
        mmew, "MMEW_Micro_Exp", FRAMES + FELT,
        "S{n:02d}", "S{n:02d}-07-{i:03d}", "Micro_Expression/fear/{clip}/{{}}.jpg",
    ),
}  # fmt: skip

STRANGE = ["/", "", " ", "NaN", "#REF!", "12", "12.0", " 14 ", "1e3", "early", "x\ny", "12 or 14", "sub01"]
cells = st.one_of(
    st.none(),
    st.integers(-3, 30),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.dates(datetime.date(1901, 1, 1), datetime.date(2100, 1, 1)),
    st.sampled_from([*STRANGE, "EP02_01"]),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8),
)

Found = TypeVar("Found")


def attempt(read: Callable[[], Found]) -> tuple[Found | None, str]:
    """What is read, or the one line that says why it is not."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Format]]:
    """Folder of a database with frames and no coding file yet; written once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> tuple[Path, Format]:
        form = FORMATS[name]
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / name
            for n in (1, 2, 3):
                for i in (1, 2):
                    subject, clip = form.names(n, i)
                    place, pattern = form.place.format(subject=subject, clip=clip).rsplit("/", 1)
                    write_frames(made[name] / place, NUMBERS, pattern)
        return made[name], form

    return folder


@st.composite
def tables(draw: st.DrawFn, form: Format) -> list[list[Any]]:
    """A good table with a few things done to it."""
    kinds = ["cell", "cell", "cell", "column", "rename", "twice", "blank", "repeat", "swap"]
    rows: list[list[Any]] = [list(form.columns)]
    for n in (1, 2, 3):
        for i in (1, 2):
            subject, clip = form.names(n, i)
            # Every row has numbers of its own: a clip with another's data would show.
            numbers = [5 + 2 * n + i, 10 + n + i, 14 + 2 * n + i]
            row = [subject, clip, *numbers, EMOTIONS[2 * n + i - 3], "4+R7", 200]
            rows.append(row[: len(rows[0])])
    for _ in range(draw(st.integers(0, 4))):
        change = draw(st.sampled_from(kinds))
        row, column = draw(st.integers(1, len(rows) - 1)), draw(st.integers(0, len(rows[0]) - 1))
        if change == "cell":
            rows[row][column] = draw(cells)
        elif change == "column" and len(rows[0]) > 1:
            rows = [[cell for k, cell in enumerate(r) if k != column] for r in rows]
        elif change == "rename":
            rows[0][column] = draw(cells)
        elif change == "twice":
            at = draw(st.integers(0, len(rows[0])))
            rows = [[*r[:at], r[column] if draw(st.booleans()) else draw(cells), *r[at:]] for r in rows]
            rows[0][at] = rows[0][column + (at <= column)]
        elif change == "blank":
            rows.insert(row, [None] * len(rows[0]))
        elif change == "repeat":
            rows.insert(row, list(rows[row]))
        else:
            other = draw(st.integers(1, len(rows) - 1))
            rows[row], rows[other] = rows[other], rows[row]
    return rows


def tells(row: list[Any], headers: list[str], clip: Clip) -> bool:
    """Whether a row says what the clip says; of two columns with one name either may."""

    def cell(column: str) -> list[str]:
        return [
            " ".join(str(c).split()).removesuffix(".0")
            for c, h in zip(row, headers, strict=True)
            if h.strip() == column
        ]

    def number(text: str) -> float | None:
        return float(text) if re.fullmatch(r"\d+(\.0*)?", text) else None

    columns = FORMATS[clip.database].columns
    frames = zip(columns[2:4], (clip.onset, clip.apex), strict=True)
    person = int(re.findall(r"\d+", clip.subject)[0])
    video = clip.clip.split("_")[0] if clip.database == "casme3" else clip.clip
    return (
        any(int(n) == person for text in cell(columns[0]) for n in re.findall(r"\d+", text)[:1])
        and video in cell(columns[1])
        and all(value is None or value in map(number, cell(column)) for column, value in frames)
        and (clip.emotion not in EMOTIONS or clip.emotion in cell(columns[5]))
    )


@FEW
@given(data=st.data())
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_coding_file_is_read_right_or_refused(
    frames: Callable[[str], tuple[Path, Format]], name: str, suffix: str, data: st.DataObject
) -> None:
    root, form = frames(name)
    table = data.draw(tables(form))
    for old in [*root.glob("*.csv"), *root.glob("*.xlsx")]:
        old.unlink()
    file = root / f"{form.file}{suffix}"
    if suffix == ".csv":
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([["" if c is None else c for c in row] for row in table])
    else:
        write_table(file, table)
    read, complaint = attempt(lambda: form.load(root, False))
    if read is None:
        event("refused")
        assert "\n" not in complaint
        assert str(file) in complaint or (str(root) in complaint and "row" in complaint)
        return
    event("read" if read.clips else "no clip")
    for clip in read.clips:
        video = clip.clip.split("_")[0] if name == "casme3" else clip.clip
        place = form.place.format(subject=clip.subject, clip=video)
        assert {path.parent for path in clip.frames.values()} == {root / place.rsplit("/", 1)[0]}
        assert clip.onset < clip.offset
        assert clip.onset in clip.frames
        assert clip.apex is None or (clip.onset <= clip.apex <= clip.offset and clip.apex in clip.frames)
        assert any(tells(row, list(map(str, table[0])), clip) for row in table[1:])
    keys = {clip.key for clip in read.clips} | {key for key, _ in dropped(read.findings)}
    assert keys == set(read.annotated)


@FEW
@given(
    names=st.lists(
        st.tuples(
            st.text("img_ -.()0123456789ａ٣³é", max_size=12),
            st.sampled_from(["", ".jpg", ".JPG", ".png", ".bmp", ".tiff", ".txt", "7.jpg", " (1).jpg"]),
        ).map("".join),
        max_size=8,
    )
)
def test_frames_have_the_number_in_their_name(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("frames")
    for name in names:
        if name.strip(".") and name.strip():
            (folder / name).touch()
    found = list_frames(folder)
    if found.twice:
        assert "\n" not in found.twice and not found.files
        assert re.search(r"(.+) and (.+) are both frame (\d+); remove one", found.twice)
        return
    frames = found.files
    assert list(frames) == sorted(frames)
    assert len({re.sub(r"\d+(?=\D*$)", "", path.stem) for path in frames.values()}) <= 1
    for number, path in frames.items():
        assert path.exists()
        assert int(re.findall(r"\d+", path.stem)[-1]) == number
        assert path.suffix.lower() in (".jpg", ".png", ".bmp", ".tiff")


_count = count()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".jpg", ".png", ".bmp", ".tif"]),
    seed=st.integers(0, 3),
    gray=st.booleans(),
    kept=st.one_of(st.floats(0, 1), st.floats(0.98, 1)),
)
def test_a_truncated_image_is_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, seed: int, gray: bool, kept: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(3, 40)), int(rng.integers(3, 40)), *((3,) * (not gray)))
    file = tmp_path_factory.getbasetemp() / f"img{next(_count)}{suffix}"
    data = cv2.imencode(suffix, rng.integers(0, 255, shape, dtype=np.uint8))[1].tobytes()
    file.write_bytes(data)
    whole = read_image(file)
    file.write_bytes(data[: int(kept * len(data))])
    read, complaint = attempt(lambda: read_image(file))
    if read is None:
        assert "\n" not in complaint
        assert str(file) in complaint
    else:
        assert np.array_equal(read, whole)
    file.unlink()
