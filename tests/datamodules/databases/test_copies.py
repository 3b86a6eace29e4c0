"""What copies of databases are like: renamed, renumbered, saved again, half readable."""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from filming import barcode, film, number_in
from openpyxl.chart import BarChart
from readers import casme2, casme3, dfme, mmew, smic
from replicas import (
    CASME2_COLUMNS,
    CASME3_COLUMNS,
    Row,
    complete_casme2_rows,
    dropped,
    write_casme2,
    write_casme3,
    write_dfme,
    write_frames,
    write_mmew,
    write_smic,
    write_table,
)
from spreadsheets import write_xls

from datamodules.crops import clip_fingerprint, read_image
from datamodules.databases.coding_file import read_table
from datamodules.doctor import examine
from datamodules.findings import Finding
from datamodules.micro import MicroExpressionDataset
from datamodules.protocols import load
from mefar.errors import UserError

NEEDED = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion")
FILE = "CASME2-coding-20140508"


def kinds(findings: Sequence[Finding]) -> set[tuple[str, str, str]]:
    return {(f.level, f.kind, f.clip) for f in findings}


def one(findings: Sequence[Finding], kind: str) -> Finding:
    (found,) = [finding for finding in findings if finding.kind == kind]
    return found


# Frames


def test_a_stray_picture_is_a_finding_and_no_frame(tmp_path: Path) -> None:
    write_smic(tmp_path, [(1, "negative", 1)], "raw")
    folder = tmp_path / "HS" / "s01" / "micro" / "negative" / "s01_ne_01"
    shutil.copy(folder / "image099998.bmp", folder / "image099998 2.bmp")
    read = smic(tmp_path)
    assert (read.clips[0].onset, list(read.clips[0].frames)) == (99998, [99998, 99999, 100000])
    stray = one(read.findings, "stray picture")
    assert (stray.level, stray.clip) == ("warning", "smic/s1/s1_ne_01")
    assert "image099998 2.bmp" in stray.detail and "image099998.bmp" in stray.detail


def test_renumbered_frames_are_told_as_such(tmp_path: Path) -> None:
    shifted = Row(1, "EP02_01", 46, 59, 86, frames=range(1, 42))
    inside = Row(1, "EP02_02", 20, 30, 45, frames=range(1, 27))  # onset 20 has a file, but of frame 39
    whole = Row(1, "EP02_03", 1, 3, 5, frames=range(1, 6))
    longer = Row(1, "EP02_04", 5, 8, 9, frames=range(1, 12))
    write_casme2(tmp_path, [shifted, inside, whole, longer])
    read = casme2(tmp_path)
    assert [clip.clip for clip in read.clips] == ["EP02_03", "EP02_04"]
    lost = {f.clip: f.detail for f in read.findings if f.kind == "renumbered frames"}
    assert set(lost) == {"casme2/sub01/EP02_01", "casme2/sub01/EP02_02"}
    assert "numbered 1 to 41, the coding file says 46 to 86" in lost["casme2/sub01/EP02_01"]
    write_casme2(tmp_path / "all", [shifted, replace(shifted, subject=2)])
    with pytest.raises(UserError) as caught:
        load("casme2", tmp_path / "all")
    assert "none of 2 clips can be used; renumbered frames for 2, such as casme2/sub01/EP02_01" in str(
        caught.value
    )


def test_a_folder_that_cannot_be_read_and_a_link_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_casme2(tmp_path, [Row(1, "EP02_01"), Row(2, "EP02_01")])
    frames = tmp_path / "CASME2_RAW_selected"
    for place in (tmp_path, frames / "sub01"):
        (place / "loop").symlink_to("loop")
    closed = {tmp_path / "lost+found"}
    (tmp_path / "lost+found").mkdir()
    real = os.scandir

    def scandir(path: str | Path = ".") -> Any:
        if Path(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    study = load("casme2", tmp_path)
    assert len(study.clips) == 2
    finding = one(study.findings, "unreadable folder")
    assert (finding.level, finding.file) == ("warning", str(tmp_path / "lost+found"))
    with pytest.raises(UserError, match=r"loop: a link that leads nowhere"):
        load("casme2", tmp_path / "loop")
    # A clip's own folder: that copy is broken.
    closed.add(frames / "sub02" / "EP02_01")
    with pytest.raises(UserError, match=r"sub02/EP02_01: cannot be read \(Permission denied\)"):
        load("casme2", tmp_path)
    closed.add(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\); give a folder that you may"):
        load("casme2", tmp_path)


# Coding files


def test_a_coding_file_in_a_folder_beside_the_frames(tmp_path: Path) -> None:
    write_casme2(tmp_path / "annotation", [Row(1, "EP02_01")], "")
    write_frames(tmp_path / "CASME2_RAW_selected" / "sub01" / "EP02_01", (10, 12, 14), "img{}.jpg")
    assert len(load("casme2", tmp_path).clips) == 1
    with pytest.raises(UserError, match="no coding file") as caught:
        load("casme2", tmp_path / "CASME2_RAW_selected")
    assert "point to the folder that holds coding file and frames" in str(caught.value)


def test_keys_are_the_same_however_names_are_spelled(tmp_path: Path) -> None:
    rows = complete_casme2_rows()
    good = load("casme2", write_casme2(tmp_path / "good", rows), 3)
    odd = [replace(row, filename=row.filename.swapcase()) for row in rows]
    assert odd[0].filename != rows[0].filename
    other = load("casme2", write_casme2(tmp_path / "odd", odd), 3)
    assert [(c.key, c.label, c.apex) for c in other.clips] == [(c.key, c.label, c.apex) for c in good.clips]
    assert len(other.clips) == 145


def test_keys_of_other_databases_are_normalised_too(tmp_path: Path) -> None:
    (first,) = dfme(write_dfme(tmp_path / "dfme", [Row("SUB0003", "Sub0003_01", emotion="Fear")])).clips
    (second,) = mmew(write_mmew(tmp_path / "mmew", [Row("s13", "s13-07-001", emotion="Fear")])).clips
    assert (first.key, second.key) == ("dfme/sub0003/sub0003_01", "mmew/S13/S13-07-001")
    write_smic(tmp_path / "smic", [(1, "surprise", 1)])
    folder = tmp_path / "smic" / "SMIC_all_cropped" / "HS" / "s1" / "micro" / "surprise"
    (folder / "s1_sur_01").rename(folder / "S01_SUR_1")
    assert smic(tmp_path / "smic").clips[0].key == "smic/s1/s1_sur_01"


def test_numbers_of_a_csv_are_whole(tmp_path: Path) -> None:
    row = Row("spNO.1", "A", 355, 360, 371, 4, "happy", frames=range(350, 380))
    write_casme3(tmp_path, [row])
    (tmp_path / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx").unlink()
    with (tmp_path / "cas(me)3_part_A_ME_label_JpgIndex_v2.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [CASME3_COLUMNS, ["spNO.1", "A", "355.0", "360.0", "371.0", "4.0", "I", "happy"]]
        )
    (tmp_path / "part_A" / "spNO.1" / "A").rename(tmp_path / "part_A" / "spNO.1" / "a")
    (clip,) = casme3(tmp_path).clips
    assert (clip.key, clip.onset, [str(unit) for unit in clip.aus]) == ("casme3/spNO.1/a_355", 355, ["4"])


CELLS = [1.0, "EP02_01f", None, 46.0, 59.0, 86.0, None, "4+7", "happiness"]


@pytest.mark.parametrize("form", ["semicolons", "tabs", "xls", "xlsx"])
def test_a_coding_file_in_other_formats(tmp_path: Path, form: str) -> None:
    write_frames(tmp_path / "sub01" / "EP02_01f", range(46, 87), "img{}.jpg")
    table: list[list[Any]] = [[None], ["coded by two"], [*CASME2_COLUMNS], CELLS]
    if form == "xls":
        write_xls(tmp_path / f"{FILE}.xls", table)
    elif form == "xlsx":
        write_table(tmp_path / f"{FILE}.xlsx", table)
    else:
        text = io.StringIO()
        csv.writer(text, delimiter={"semicolons": ";", "tabs": "\t"}[form]).writerows(
            [["" if cell is None else cell for cell in row] for row in table]
        )
        (tmp_path / f"{FILE}.csv").write_text("\ufeff" + text.getvalue(), encoding="utf-8")
    (clip,) = load("casme2", tmp_path).clips
    assert (clip.key, clip.onset, clip.apex, clip.offset) == ("casme2/sub01/EP02_01f", 46, 59, 86)
    assert (clip.emotion, [str(unit) for unit in clip.aus]) == ("happiness", ["4", "7"])


def test_errors_in_the_cells_of_an_old_workbook_are_no_numbers(tmp_path: Path) -> None:
    write_frames(tmp_path / "sub01" / "EP02_01f", range(23, 87), "img{}.jpg")
    cells = [*CELLS[:4], Exception("#N/A"), *CELLS[5:]]  # kept as the number 42
    write_xls(tmp_path / f"{FILE}.xls", [[*CASME2_COLUMNS], cells])
    assert load("casme2", tmp_path).clips[0].apex is None
    cells[3] = Exception("#REF!")
    write_xls(tmp_path / f"{FILE}.xls", [[*CASME2_COLUMNS], cells])
    with pytest.raises(UserError, match=r"row 2, column 'OnsetFrame': '#REF!' is not a frame number"):
        load("casme2", tmp_path)


def test_a_column_of_action_units_that_is_gone_is_a_finding(tmp_path: Path) -> None:
    columns = [c for c in CASME2_COLUMNS if c != "Action Units"]
    read = casme2(write_casme2(tmp_path, [Row(1, "EP02_01")], columns=columns))
    finding = one(read.findings, "action units")
    assert (finding.level, finding.clip) == ("warning", "")
    assert "no column 'Action Units'" in finding.detail


def test_emotions_that_no_protocol_names_are_findings_with_their_row(tmp_path: Path) -> None:
    rows = [
        Row("spNO.1", "a", emotion="disgust"),
        Row("spNO.1", "b", emotion="disgst"),
        Row("spNO.1", "c", emotion=None),
        Row("spNO.1", "d", emotion="others"),
    ]
    study = load("casme3", write_casme3(tmp_path, rows), 3)
    assert [clip.clip for clip in study.clips] == ["a_10"]
    assert [key for key, _ in study.excluded] == ["casme3/spNO.1/d_10"]
    found = [(f.level, f.clip, f.row) for f in study.findings if f.kind == "emotion"]
    assert found == [("lost", "casme3/spNO.1/b_10", 3), ("lost", "casme3/spNO.1/c_10", 4)]


def test_dropped_counts_only_what_the_protocol_wants(tmp_path: Path) -> None:
    rows = [Row(1, "EP02_01"), Row(1, "EP02_02"), Row(2, "EP02_01", frames=None)]
    study = load("casme2", write_casme2(tmp_path, [*rows, Row(2, "EP02_02", emotion="fear", frames=None)]))
    assert [key for key, _ in dropped(study.findings)] == ["casme2/sub02/EP02_01"]
    assert dict(study.excluded) == {"casme2/sub02/EP02_02": "emotion 'fear' is not in the protocol"}
    assert ("note", "missing frames", "casme2/sub02/EP02_02") in kinds(study.findings)


def test_a_damaged_workbook_is_read_right_or_refused_in_one_line(tmp_path: Path) -> None:
    good = write_casme2(tmp_path / "good", [Row(i, "EP02_01") for i in (1, 2, 3)], "") / f"{FILE}.xlsx"
    rows = [dict(row.cells) for row in read_table(good, NEEDED, "Sheet1")]
    content = good.read_bytes()
    with zipfile.ZipFile(good) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    rng = random.Random(0)
    file = tmp_path / "damaged.xlsx"
    told: list[str] = []
    for attempt in range(250):
        if attempt % 2:  # bytes of the file
            damaged = bytearray(content)
            for _ in range(rng.randint(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            file.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        else:  # bytes of what is packed in it
            name = rng.choice([name for name in parts if name.endswith(".xml")])
            inner = bytearray(parts[name])
            for _ in range(rng.randint(1, 8)):
                inner[rng.randrange(len(inner))] = rng.randrange(256)
            with zipfile.ZipFile(file, "w") as book:
                for part, text in parts.items():
                    book.writestr(part, bytes(inner) if part == name else text)
        try:
            for row in read_table(file, NEEDED, "Sheet1"):
                row.frame("OnsetFrame")
        except UserError as error:
            told.append(str(error))
    assert len(told) > 50
    assert all(str(file) in line and "\n" not in line for line in told)
    assert [dict(row.cells) for row in read_table(good, NEEDED, "Sheet1")] == rows


def test_workbooks_that_hold_no_table_or_too_much(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.create_chartsheet("Chart", 0).add_chart(BarChart())
    book.save(tmp_path / "chart.xlsx")
    with pytest.raises(UserError, match="no header"):
        read_table(tmp_path / "chart.xlsx", NEEDED)
    book["Sheet"].append([*NEEDED])
    book.save(tmp_path / "chart.xlsx")
    assert read_table(tmp_path / "chart.xlsx", NEEDED) == []
    write_table(tmp_path / "large.xlsx", [NEEDED])
    with zipfile.ZipFile(tmp_path / "large.xlsx") as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(tmp_path / "large.xlsx", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in parts.items():
            packed.writestr(name, text + b" " * (60_000_000 if "sheet1" in name else 0))
    assert (tmp_path / "large.xlsx").stat().st_size < 200_000
    with pytest.raises(UserError, match=r"60 MB when unpacked, which is no coding file"):
        read_table(tmp_path / "large.xlsx", NEEDED)
    sheet = parts["xl/worksheets/sheet1.xml"].replace(b"</sheetData>", b'<row r="900000"/></sheetData>')
    with zipfile.ZipFile(tmp_path / "long.xlsx", "w") as packed:
        for name, text in parts.items():
            packed.writestr(name, sheet if "sheet1" in name else text)
    with pytest.raises(UserError, match=r"long.xlsx: more than 100000 rows"):
        read_table(tmp_path / "long.xlsx", NEEDED)
    (tmp_path / "empty.xls").touch()
    with pytest.raises(UserError, match=r"empty.xls: not a readable .xls file \(it is empty\)"):
        read_table(tmp_path / "empty.xls", NEEDED)


# Videos


def test_clips_that_are_video_files(tmp_path: Path) -> None:
    rows = [Row(1, "EP02_01f", 20, 30, 40), Row(2, "EP02_01", 46, 60, 66), Row(3, "EP02_01", 20, 30, 90)]
    write_casme2(tmp_path, rows, "")
    place = tmp_path / "CASME2_compressed"
    pictures = {1: range(60), 2: range(100, 121), 3: range(60)}  # whole, cut from onset to offset, too short
    for row in rows:
        folder = place / f"sub{row.subject:02d}"
        folder.mkdir(parents=True)
        film(folder / f"{row.filename}.avi", [barcode(i) for i in pictures[row.subject]], "mpeg4", 200)
    study = load("casme2", tmp_path)
    first, second, third = study.clips
    assert (min(first.frames), max(first.frames)) == (1, 60)
    for number in (1, 20, 41, 30, 60):
        assert number_in(read_image(first.frames[number])) == number - 1
    assert (min(second.frames), max(second.frames)) == (46, 66)
    assert [number_in(read_image(second.frames[n])) for n in (46, 60, 66)] == [100, 114, 120]
    assert any("is cut from onset to offset" in f.detail and f.clip == second.key for f in study.findings)
    assert any("no file for the offset 90; frames end at 60" in f.detail for f in study.findings)
    made = MicroExpressionDataset(study, 32, "precropped", cache_dir=tmp_path / "cache")
    assert len(made) == 3
    report = examine("casme2", tmp_path, apex="spotted")
    assert {(f.level, f.kind) for f in report.findings if f.clip} == {("warning", "missing frames")}
    before = clip_fingerprint(third)
    film(place / "sub03" / "EP02_01.avi", [barcode(i) for i in range(200, 260)], "mpeg4", 200)
    assert number_in(read_image(third.frames[30])) == 229  # what was kept of the old file is not shown
    assert clip_fingerprint(third) != before
    (place / "sub03" / "EP02_01.avi").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"sub03/EP02_01.avi"):
        load("casme2", tmp_path)
    # Pictures go first where they are there too.
    for row in rows:
        folder = tmp_path / "raw" / f"sub{row.subject:02d}" / row.filename
        write_frames(folder, [row.onset, row.apex], "img{}.jpg")
    clips = load("casme2", tmp_path).clips
    assert {path.suffix for clip in clips for path in clip.frames.values()} == {".jpg"}
