"""Long videos: the movements of each database's coding file, on replicas in its layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from filming import barcode, film, number_in
from replicas import Row, dropped, write_casme3, write_frames, write_samm, write_table
from spreadsheets import write_xls

from datamodules.crops import read_image
from datamodules.databases.casme_sq import SUBJECTS, VIDEOS
from datamodules.databases.long_videos import LongStudy, Movement
from datamodules.databases.video_frames import number_frames
from datamodules.findings import Finding
from datamodules.protocols import load, load_long_videos
from mefar.__main__ import main
from mefar.errors import UserError

CASME_SQ = [
    [1, "anger1_1", 557, 572, 608, "4+10+14", "negative", "macro-expression", "anger"],
    [1, "anger1_2", 700, 703, 712, 38, "others", "micro-expression", "confused"],
    [22, "happy5_1", 90, 95, 0, 12, "positive", "macro-expression", "happiness"],
]
SAMM_LV = [
    [6, "006_1_1", "x", 566.4000000000001, -1, 650, 84, "Macro", "4(B/C)+7B", None],
    [6, "006_1_2", "x", 900, 910, 940, 40, "Micro - 1/2", "L2 / A5", None],
    ["006", "006_2_1", "x", 10, 20, 30, 20, "Micro", "12", "note"],
]
CASME3_LONG = [
    ["spNO.1", "A", 355, 360, 371, "4+7", "Micro-expression", "I"],
    ["spNO.1", "a", 500, 0, 700, "12", "Macro-expression", "I"],
    ["spNO.40", "e", 1812, 1820, 0, "4", "Micro-expression", "I"],
]
SMIC_E = [
    [20, "s20_ne_01", None, 100010, 100020, None, None, None, None, None, 100000, 100100, 10, "negative"],
    [None, "s20_po_02", None, 5, 9, 20, 25, 40, 44, None, 1, 60, 5, "positive"],
]
SMIC_COLUMNS = [
    *("Subject", "Filename", None, "OnsetF", "OffsetF", "Onset2F", "Offset2F", "Onset3F", "Offset3F", None),
    *("FirstF", "LastF", "TotalMF1", "Emotion"),
]


def write_casme_sq(root: Path, rows: Sequence[Sequence[Any]] = CASME_SQ) -> Path:
    """Two videos as frames, a third without any movement."""
    book = openpyxl.Workbook()
    book.active.title = "CASFEcode_final"
    for row in rows:
        book.active.append(list(row))
    rules = book.create_sheet("naming rule1")
    for number, folder in SUBJECTS.items():
        rules.append([folder, f"s{folder}", number])
    root.mkdir(parents=True, exist_ok=True)
    book.save(root / "CAS(ME)^2code_final.xlsx")
    for folder, numbers in (
        ("s15/15_0401girlcrashing", range(550, 800)),
        ("s40/40_0508funnyerrors", range(80, 121)),
        ("s40/40_0101disgustingteeth", range(1, 5)),
    ):
        write_frames(root / "rawpic" / folder, numbers, "img{:03d}.jpg")
    return root


def write_samm_lv(root: Path) -> Path:
    key = [["Key"], ["A", "asymmetric"], [None], ["/", "or"]]
    columns = ["Subject", "Filename", "Inducement Code", "Onset", "Apex", "Offset", "Duration", "Type"]
    table = [*key, [*columns, "Action Units", "Notes"], *SAMM_LV]
    write_table(root / "SAMM_LongVideos_V3_Release.xlsx", table, "FACS_Movement_Only", "Introduction")
    for video, numbers in (("006_1", range(500, 1000)), ("006_2", range(1, 60)), ("007_1", range(1, 9))):
        write_frames(root / "SAMM_longvideos" / video, numbers, video + "_{:04d}.jpg")
    return root


def write_casme3_long(root: Path) -> Path:
    columns = ["Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Expression type", "Objective class"]
    write_xls(root / "annotation" / "CAS(ME)3_part_A_v2.xls", [columns, *CASME3_LONG])
    for place, numbers in (("spNO.1/a", range(340, 720)), ("spNO.40/e", range(1800, 1850))):
        write_frames(root / "data" / "part_A" / place / "color", numbers, "{}.jpg")
        write_frames(root / "data" / "part_A" / place / "depth", numbers[:2], "{}.png")
    return root


def write_smic_e(root: Path) -> Path:
    write_table(root / "SMIC-HS-E_annotation.xlsx", [SMIC_COLUMNS, *SMIC_E], "HS", "VIS")
    write_frames(root / "SMIC-HS-E" / "s20" / "s20_ne_01", range(100000, 100101), "image{:06d}.jpg")
    write_frames(root / "SMIC-HS-E" / "s20" / "s20_po_02", range(1, 61), "image{:06d}.jpg")
    return root


def movements(study: LongStudy) -> dict[str, list[tuple[str, int, int | None, int]]]:
    return {
        video.key: [(one.kind, one.onset, one.apex, one.offset) for one in video.movements]
        for video in study.videos
    }


WRITERS: dict[str, Callable[[Path], Path]] = {
    "casme_sq": write_casme_sq,
    "samm_lv": write_samm_lv,
    "casme3_long": write_casme3_long,
    "smic_e": write_smic_e,
}
EXPECTED: dict[str, dict[str, list[tuple[str, int, int | None, int]]]] = {
    "casme_sq": {
        "casme_sq/s15/anger1": [("macro", 557, 572, 608), ("micro", 700, 703, 712)],
        "casme_sq/s40/disgust1": [],
        "casme_sq/s40/happy5": [("macro", 90, 95, 120)],  # offset 0: until the end of the video
    },
    "samm_lv": {
        "samm_lv/006/006_1": [("macro", 566, None, 650), ("micro", 900, 910, 940)],
        "samm_lv/006/006_2": [("micro", 10, 20, 30)],
        "samm_lv/007/007_1": [],
    },
    "casme3_long": {
        "casme3_long/spNO.1/a": [("macro", 500, None, 700), ("micro", 355, 360, 371)],
        "casme3_long/spNO.40/e": [],  # here offset 0 is not annotated
    },
    "smic_e": {
        "smic_e/s20/s20_ne_01": [("micro", 100010, None, 100020)],
        "smic_e/s20/s20_po_02": [("micro", 5, None, 9), ("micro", 20, None, 25), ("micro", 40, None, 44)],
    },
}


@pytest.mark.parametrize("name", WRITERS)
def test_movements_are_read_with_their_videos(tmp_path: Path, name: str) -> None:
    study = load_long_videos(name, WRITERS[name](tmp_path / name))
    assert {key: sorted(found) for key, found in movements(study).items()} == EXPECTED[name]
    for video in study.videos:
        assert [one.onset for one in video.movements] == sorted(one.onset for one in video.movements)
        assert all({one.onset, one.offset} <= set(video.frames) for one in video.movements)
        assert {path.parent for path in video.frames.values()} == {video.source}
        assert {one.video for one in video.movements} <= {video.key}
    assert load_long_videos(name, tmp_path) == study  # found from the parent as well


def test_what_a_movement_holds(tmp_path: Path) -> None:
    study = load_long_videos("casme_sq", write_casme_sq(tmp_path))
    first, second = study.videos[0].movements
    assert (first.emotion, [str(unit) for unit in first.aus], first.row) == ("negative", ["4", "10", "14"], 1)
    assert (second.emotion, [str(unit) for unit in second.aus], second.row) == ("others", ["38"], 2)
    assert study.videos[0].fps == 30.0
    assert study.counts() == {"videos": 3, "subjects": 2, "micro": 1, "macro": 2}
    samm = load_long_videos("samm_lv", write_samm_lv(tmp_path / "samm"))
    units = [[str(unit) for unit in one.aus] for video in samm.videos for one in video.movements]
    assert units == [["4", "7"], ["L2", "5"], ["12"]]
    smic = load_long_videos("smic_e", write_smic_e(tmp_path / "smic"))
    assert [one.emotion for video in smic.videos for one in video.movements] == [
        "negative",
        *["positive"] * 3,
    ]


def test_emotions_come_from_the_coding_file_of_the_clips(tmp_path: Path) -> None:
    write_samm_lv(tmp_path / "samm_lv")
    assert one_kind(load_long_videos("samm_lv", tmp_path), "emotion").level == "note"
    rows = [Row(6, "006_1_2", emotion="Contempt"), Row(6, "006_2_1", emotion="Other"), Row(6, "006_1_1")]
    write_samm(tmp_path / "samm_lv", [replace(row, frames=None) for row in rows])
    study = load_long_videos("samm_lv", tmp_path)
    told = {(one.kind, one.onset): one.emotion for video in study.videos for one in video.movements}
    assert told == {("macro", 566): "", ("micro", 900): "negative", ("micro", 10): "others"}
    write_casme3_long(tmp_path / "casme3_long")
    rows = [Row("spNO.1", "a", 355, 360, 371, emotion="happy", frames=None)]
    write_casme3(tmp_path / "casme3_long" / "annotation", rows)
    study = load_long_videos("casme3_long", tmp_path)
    assert [one.emotion for one in study.videos[0].movements] == ["positive", ""]
    assert [clip.key for clip in load("casme3", tmp_path / "casme3_long", 3).clips] == ["casme3/spNO.1/a_355"]


def one_kind(study: LongStudy, kind: str) -> Finding:
    (found,) = [finding for finding in study.findings if finding.kind == kind]
    return found


def test_what_is_wrong_is_a_finding_with_its_row(tmp_path: Path) -> None:
    rows = [
        *CASME_SQ,
        CASME_SQ[0],
        [1, "anger1_3", 720, 719, 716, 4, "others", "micro-expression", "x"],
        [1, "anger1_4", 730, 740, 738, "4+x", "others", "micro-expression", "x"],
        [1, "anger1_5", 790, 795, 805, 4, "others", "micro-expression", "x"],
        [2, "anger2_1", 10, 12, 15, 4, "others", "micro-expression", "x"],
    ]
    study = load_long_videos("casme_sq", write_casme_sq(tmp_path, rows))
    told = {(f.level, f.kind, f.row) for f in study.findings if f.row}
    assert told == {
        ("note", "onset, apex, offset", 3),
        ("warning", "duplicate clip", 4),
        ("lost", "onset, apex, offset", 5),
        ("warning", "onset, apex, offset", 6),
        ("warning", "action units", 6),
        ("warning", "missing frames", 7),
        ("lost", "missing frames", 8),
    }
    (counts,) = [f.detail for f in study.findings if f.kind == "protocol counts"]
    assert counts == "subjects 2 of 22, micro 3 of 57, macro 2 of 300"
    kept = study.videos[0].movements[2]
    assert kept == Movement(study.videos[0].key, "micro", 730, 738, None, "others", kept.aus, 6)


def test_the_doctor_knows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "casme_sq", str(write_casme_sq(tmp_path)), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    part = told["parts"]["casme_sq"]
    assert part["clips"] == {"found": 3, "expected": 357}
    assert part["classes"] == {"micro": {"found": 1, "expected": 57}, "macro": {"found": 2, "expected": 300}}
    assert part["apex"] == {"annotated": 3}
    assert {finding["kind"] for finding in told["findings"]} == {"protocol counts", "onset, apex, offset"}
    assert main(["doctor", "casme_sq", str(tmp_path)]) == 1
    assert "casme_sq: data would be lost" in capsys.readouterr().out.splitlines()[-1]


def test_a_video_file_stands_for_its_frames(tmp_path: Path) -> None:
    write_casme_sq(tmp_path)
    (tmp_path / "rawpic").rename(tmp_path / "elsewhere")
    for place in ("s15/15_0401girlcrashing.avi", "s40/40_0508funnyerrors.avi"):
        (tmp_path / "rawvideo" / place).parent.mkdir(parents=True, exist_ok=True)
        film(tmp_path / "rawvideo" / place, [barcode(i) for i in range(123)], "mpeg4", 30)
    both = load_long_videos("casme_sq", tmp_path)
    assert [bool(video.frames) for video in both.videos] == [True] * 3  # pictures go first
    (tmp_path / "elsewhere").rename(tmp_path.parent / f"{tmp_path.name}-away")
    study = load_long_videos("casme_sq", tmp_path)
    assert [(v.key, v.source.name, len(v.movements)) for v in study.videos] == [
        ("casme_sq/s15/anger1", "15_0401girlcrashing.avi", 2),
        ("casme_sq/s40/happy5", "40_0508funnyerrors.avi", 1),
    ]
    assert study.videos[1].movements[0].offset == 123  # until the end of the video
    pictures = number_frames(study.videos[1].source)
    assert [number_in(read_image(pictures[number])) for number in (1, 90, 123)] == [0, 89, 122]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([99, *CASME_SQ[0][1:]], "row 1, column 'Subject': '99' is no subject of 1 to 22"),
        ([1, "joy1_1", *CASME_SQ[0][2:]], "row 1, column 'Filename': 'joy1' is no video"),
        ([*CASME_SQ[0][:2], "soon", *CASME_SQ[0][3:]], "column 'Onset': 'soon' is not a frame number"),
        ([*CASME_SQ[0][:7], "both", "x"], "column 'Type': 'both' is neither micro nor macro"),
    ],
)
def test_a_cell_that_is_none_is_named(tmp_path: Path, row: list[Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_long_videos("casme_sq", write_casme_sq(tmp_path, [row]))
    assert says in str(caught.value)


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'samm': no database of long videos; use one of casme3_long"):
        load_long_videos("samm", tmp_path)
    with pytest.raises(UserError, match="dataset 'samm_lv': holds long videos, for spotting"):
        load("samm_lv", tmp_path)
    assert len(SUBJECTS) == 22 and (SUBJECTS[1], SUBJECTS[12], SUBJECTS[22]) == (15, 29, 40)
    assert VIDEOS["disgust2"] == "0102"


def test_part_c_of_casme3(tmp_path: Path) -> None:
    rows = [
        [1, 1, 355, 371, "R4,5", "negative"],
        [1, 2, 400, 410, "14,L24,", "Surprise"],
        [2, 1, 20, 30, None, "others"],
        [2, 2, 25, 35, None, "positive"],
    ]
    header = ["sub", "count", "onset", "offset", "au", "emotion"]
    write_table(tmp_path / "CAS(ME)3_part_C_ME.xlsx", [header, *rows], "mockCrimeME")
    write_frames(tmp_path / "part_C" / "01" / "a" / "color", range(350, 420), "{}.jpg")
    write_frames(tmp_path / "part_C" / "02" / "a" / "color", range(15, 40), "{}.jpg")
    study = load("casme3_c", tmp_path)
    assert [(c.key, c.label, c.apex, [str(u) for u in c.aus], min(c.frames)) for c in study.clips] == [
        ("casme3_c/1/1_355", 0, None, ["R4", "5"], 355),
        ("casme3_c/1/2_400", 2, None, ["14", "L24"], 400),
        ("casme3_c/2/1_20", 3, None, [], 20),
        ("casme3_c/2/2_25", 1, None, [], 25),
    ]
    assert dropped(study.findings) == () and not [f for f in study.findings if f.kind == "apex missing"]
    assert [clip.label for clip in load("casme3_c", tmp_path, 3).clips] == [0, 2, 1]
