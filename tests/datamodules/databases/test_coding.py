"""What is wrong with a copy ends in one line with file, row and what to do."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from readers import casme2, smic
from replicas import CASME2_COLUMNS, Row, write_casme2, write_frames, write_samm, write_smic, write_table

from mefar.errors import UserError


def message(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "column", ["Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion"]
)
def test_a_missing_column_is_named_with_those_found(tmp_path: Path, column: str) -> None:
    columns = [c for c in CASME2_COLUMNS if c != column]
    text = message(casme2, write_casme2(tmp_path, [Row(1, "EP02_01")], columns=columns))
    assert f"no column {column!r}" in text
    assert "columns found: Subject" in text
    assert "CASME2-coding-20140508.xlsx, row 1" in text


def test_a_file_without_header_or_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "CASME2-coding-20140508.xlsx", [["a", "b"], [1, 2]])
    assert "no row whose first cell is 'Subject'" in message(casme2, tmp_path)
    write_table(tmp_path / "CASME2-coding-20140508.xlsx", [CASME2_COLUMNS, [None] * 9])
    assert "no clips below the header" in message(casme2, tmp_path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row("x", "EP02_01"), "row 2, column 'Subject': 'x' is no subject id"),
        (Row(1, "EP02_01", onset="early"), "row 2, column 'OnsetFrame': 'early' is not a frame number"),
        (Row(1, "EP02_01", apex=-3), "row 2, column 'ApexFrame': '-3' is not a frame number"),
        (Row(1, "EP02_01", offset=12.5), "row 2, column 'OffsetFrame': '12.5' is not a frame number"),
        (Row(1, ""), "row 2, column 'Filename': is blank"),
        (Row(None, "EP02_01"), "row 2, column 'Subject': is blank"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, row: Row, expected: str) -> None:
    text = message(casme2, write_casme2(tmp_path, [row], layout=""))
    assert expected in text
    assert "CASME2-coding-20140508.xlsx" in text


def test_a_stated_size_smaller_than_the_table_is_not_believed(tmp_path: Path) -> None:
    file = write_casme2(tmp_path, [Row(i, "EP02_01") for i in (1, 2, 3)]) / "CASME2-coding-20140508.xlsx"
    with zipfile.ZipFile(file) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    parts[sheet] = re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1:B2"', parts[sheet])
    assert b"A1:B2" in parts[sheet]
    with zipfile.ZipFile(file, "w") as book:
        for name, content in parts.items():
            book.writestr(name, content)
    assert len(casme2(tmp_path).clips) == 3


def test_of_two_columns_with_one_name_the_filled_one_counts(tmp_path: Path) -> None:
    header = ["Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion"]
    file = tmp_path / "CASME2-coding-20140508.xlsx"
    write_frames(tmp_path / "sub01" / "EP02_01", (10, 12, 14), "img{}.jpg")
    good = [1, "EP02_01", 10, None, 14, "fear"]
    write_table(file, [[*header, "ApexFrame", "notes", "notes"], [*good, 12, "a", "b"]])
    (clip,) = casme2(tmp_path).clips
    assert clip.apex == 12
    units = ["Action Units", "Action Units", "Estimated Emotion"]
    write_table(file, [[*header, *units], [*good, "4", "7", None]])
    (clip,) = casme2(tmp_path).clips
    assert (clip.emotion, [str(au) for au in clip.aus]) == ("fear", ["4"])
    write_table(file, [[*header, "Offset Frame"], [*good, 15]])
    text = message(casme2, tmp_path)
    assert "CASME2-coding-20140508.xlsx, row 2, column 'OffsetFrame': another column of that name" in text


def test_rows_that_repeat_or_contradict(tmp_path: Path) -> None:
    row = Row(1, "EP02_01")
    assert len(casme2(write_casme2(tmp_path, [row, row])).clips) == 1
    write_casme2(tmp_path, [row, replace(row, onset=11)])
    assert "row 3, column 'Filename': casme2/sub01/EP02_01 contradicts row 2" in message(casme2, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a workbook", b"PK\x03\x04 cut off"])
def test_a_broken_workbook_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "CASME2-coding-20140508.xlsx").write_bytes(content)
    assert "CASME2-coding-20140508.xlsx: not a readable .xlsx file" in message(casme2, tmp_path)


def test_no_coding_file_or_another_databases(tmp_path: Path) -> None:
    assert "no coding file (CASME2-coding-20140508.xlsx)" in message(casme2, tmp_path)
    write_samm(tmp_path, [Row(6, "006_1_2")])
    assert "SAMM_Micro_FACS_Codes_v2.xlsx of samm" in message(casme2, tmp_path)


def test_an_empty_clip_folder_is_an_error(tmp_path: Path) -> None:
    write_casme2(tmp_path, [Row(1, "EP02_01"), Row(2, "EP02_01", frames=())])
    text = message(casme2, tmp_path)
    assert "a clip without frames (casme2/sub02/EP02_01)" in text
    assert str(tmp_path / "CASME2_RAW_selected" / "sub02" / "EP02_01") in text
    write_smic(tmp_path, [(1, "negative", 1)])
    for image in tmp_path.rglob("*.bmp"):
        image.unlink()
    assert "a clip without frames (smic/s1/s1_ne_01)" in message(smic, tmp_path)


def test_frames_for_less_than_half_of_the_clips_is_an_error(tmp_path: Path) -> None:
    rows = [Row(i, "EP02_01", frames=(10, 12, 14) if i < 3 else None) for i in range(1, 6)]
    text = message(casme2, write_casme2(tmp_path, rows))
    assert "frames for 2 of the 5 clips" in text
    assert "sub03/EP02_01 (row 4)" in text
    assert "no SMIC-HS clips" in message(smic, tmp_path)


def test_two_files_for_one_frame_or_two_folders_for_one_clip(tmp_path: Path) -> None:
    write_casme2(tmp_path, [Row(1, "EP02_01")])
    place = tmp_path / "CASME2_RAW_selected" / "sub01" / "EP02_01"
    write_frames(place, [12], "img{:05d}.jpg")
    assert "img00012.jpg and img12.jpg are both frame 12" in message(casme2, tmp_path)
    (place / "img00012.jpg").unlink()
    write_frames(tmp_path / "CASME2_RAW_selected" / "sub1" / "EP02_01", [10], "img{}.jpg")
    assert "two folders for one clip" in message(casme2, tmp_path)
