from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from readers import casme2, casme3, samm, smic
from replicas import (
    CASME2_COLUMNS,
    Row,
    dropped,
    notes,
    write_casme2,
    write_casme3,
    write_frames,
    write_samm,
    write_smic,
    write_table,
)

from datamodules.clips import Clip


def one(clips: tuple[Clip, ...]) -> Clip:
    assert len(clips) == 1
    return clips[0]


# --- CASME II


@pytest.mark.parametrize("layout", ["raw", "cropped"])
def test_casme2_reads_a_clip(tmp_path: Path, layout: str) -> None:
    row = Row(1, "EP02_01f", 46, 59, 86, "4+R12", "Happiness ", frames=(46, 59, 86, 100))
    clip = one(casme2(write_casme2(tmp_path, [row], layout)).clips)
    assert clip.key == "casme2/sub01/EP02_01f"
    assert (clip.onset, clip.apex, clip.offset, clip.fps, clip.emotion) == (46, 59, 86, 200.0, "happiness")
    assert [str(au) for au in clip.aus] == ["4", "R12"]
    assert list(clip.frames) == [46, 59, 86, 100]
    assert clip.frames[59].name == {"raw": "img59.jpg", "cropped": "reg_img59.jpg"}[layout]


@pytest.mark.parametrize(
    "columns",
    [
        [c for c in CASME2_COLUMNS if c],
        [None, *CASME2_COLUMNS, None, None],
        [*reversed(CASME2_COLUMNS[1:]), None],
    ],
)
def test_columns_are_found_by_name(tmp_path: Path, columns: list[str | None]) -> None:
    if "Subject" not in columns:
        columns = ["Subject", *columns]
    clip = one(
        casme2(
            write_casme2(tmp_path, [Row(1, "EP02_01f", 46, 59, 86, frames=(46, 59, 86))], columns=columns)
        ).clips
    )
    assert (clip.onset, clip.apex, clip.offset, clip.emotion) == (46, 59, 86, "disgust")


def test_columns_are_found_in_any_spelling(tmp_path: Path) -> None:
    write_casme2(tmp_path, [Row(1, "EP02_01f")], name="other.xlsx")
    (tmp_path / "other.xlsx").unlink()
    header = [" subject ", "FileName", "Onset_Frame", "apex frame", "Offset Frame", "ESTIMATED EMOTION"]
    write_table(
        tmp_path / "CASME2-coding-updated.xlsx",
        [header, ["sub01", "EP02_01f", "10", 12.0, " 14.0", "disgust"]],
    )
    clip = one(casme2(tmp_path).clips)
    assert (clip.onset, clip.apex, clip.offset, clip.aus) == (10, 12, 14, ())


@pytest.mark.parametrize("apex", ["/", None, "", " ", "NaN", "nan"])
def test_a_missing_apex_is_none(tmp_path: Path, apex: object) -> None:
    read = casme2(write_casme2(tmp_path, [Row(1, "EP02_01f", apex=apex)]))
    assert one(read.clips).apex is None
    assert ("casme2/sub01/EP02_01f", "apex not annotated") in notes(read.findings)


def test_the_trailing_f_is_significant(tmp_path: Path) -> None:
    rows = [Row(1, "EP02_01", 10, 12, 14), Row(1, "EP02_01f", 10, 12, 14, emotion="surprise")]
    clips = casme2(write_casme2(tmp_path, rows)).clips
    assert [(c.clip, c.emotion, c.frames[10].parent.name) for c in clips] == [
        ("EP02_01", "disgust", "EP02_01"),
        ("EP02_01f", "surprise", "EP02_01f"),
    ]
    shutil.rmtree(tmp_path / "CASME2_RAW_selected" / "sub01" / "EP02_01")
    read = casme2(tmp_path)
    assert one(read.clips).clip == "EP02_01f"
    assert one(read.clips).frames[10].parent.name == "EP02_01f"
    assert dropped(read.findings)[0][0] == "casme2/sub01/EP02_01"


@pytest.mark.parametrize("deep", ["x/y/CASME2_RAW_selected", "Cropped", ".", "CASME2-RAW/CASME2-RAW"])
def test_frames_are_found_in_nested_and_renamed_folders(tmp_path: Path, deep: str) -> None:
    write_casme2(tmp_path, [Row(3, "EP07_04")], layout="")
    write_frames(tmp_path / deep / "sub3" / "EP07_04", (10, 12, 14), "img{:04d}.jpg")
    assert list(one(casme2(tmp_path).clips).frames) == [10, 12, 14]


def test_one_copy_of_the_frames_is_used_for_all(tmp_path: Path) -> None:
    rows = [Row(1, f"EP02_{i:02d}") for i in range(4)]
    write_casme2(tmp_path, rows, "raw")
    write_casme2(tmp_path, rows, "cropped")
    folders = {c.frames[10].parts[-4] for c in casme2(tmp_path).clips}
    assert folders == {"CASME2_RAW_selected"}
    assert {c.frames[10].parts[-4] for c in casme2(tmp_path, prefer="cropped").clips} == {"Cropped"}
    shutil.rmtree(tmp_path / "CASME2_RAW_selected" / "sub01" / "EP02_01")  # the complete copy wins
    assert {c.frames[10].parts[-4] for c in casme2(tmp_path).clips} == {"Cropped"}


def test_the_2014_coding_is_taken_among_several(tmp_path: Path) -> None:
    write_casme2(tmp_path, [Row(24, "EP07_01", emotion="surprise")], name="CASME2-coding-20190701.xlsx")
    write_casme2(tmp_path, [Row(24, "EP07_01", emotion="sadness")])
    write_casme2(tmp_path, [Row(24, "EP07_01", emotion="fear")], name="~$CASME2-coding-20140508.xlsx")
    read = casme2(tmp_path)
    assert one(read.clips).emotion == "sadness"
    assert read.coding_file == tmp_path / "CASME2-coding-20140508.xlsx"


# --- SAMM


@pytest.mark.parametrize("preamble", [13, 0, 2])
@pytest.mark.parametrize("padding", [1, 5, 7])
def test_samm_reads_a_clip(tmp_path: Path, preamble: int, padding: int) -> None:
    row = Row(6, "006_1_2", 98, 100, 102, "R12A or 14", "Anger", frames=(98, 99, 100, 101, 102))
    clip = one(samm(write_samm(tmp_path, [row], preamble, padding)).clips)
    assert (clip.key, clip.subject, clip.emotion, clip.fps) == ("samm/006/006_1_2", "006", "anger", 200.0)
    assert list(clip.frames) == [98, 99, 100, 101, 102]
    assert [str(au) for au in clip.aus] == ["R12", "14"]


@pytest.mark.parametrize("subject", ["006", 6, "6", 6.0])
def test_samm_subjects_get_three_digits(tmp_path: Path, subject: object) -> None:
    write_samm(tmp_path, [Row(subject, "006_1_2", emotion="Other")])
    assert one(samm(tmp_path).clips).subject == "006"


def test_samm_folders_without_leading_zeros(tmp_path: Path) -> None:
    write_samm(tmp_path, [replace(Row(28, "028_1_2"), frames=None)])
    write_frames(tmp_path / "samm" / "28" / "028_1_2", (10, 12, 14), "028_{}.png")
    assert one(samm(tmp_path).clips).key == "samm/028/028_1_2"


# --- SMIC


def test_smic_ids_are_the_same_in_both_layouts(tmp_path: Path) -> None:
    clips = [(1, "negative", 1), (2, "positive", 1), (11, "surprise", 12)]
    read = [smic(write_smic(tmp_path / layout, clips, layout)) for layout in ("cropped", "raw")]
    for one_read in read:
        assert [c.key for c in one_read.clips] == [
            "smic/s1/s1_ne_01",
            "smic/s11/s11_sur_12",
            "smic/s2/s2_po_01",
        ]
        assert [c.emotion for c in one_read.clips] == ["negative", "surprise", "positive"]
        first = one_read.clips[0]
        assert (first.onset, first.apex, first.offset, first.fps) == (99998, None, 100000, 100.0)
        assert list(first.frames) == [99998, 99999, 100000]  # by number: 100000 comes before 99998 by name


def test_smic_passes_over_other_recordings(tmp_path: Path) -> None:
    write_smic(tmp_path, [(1, "negative", 1)])
    for other in (
        "SMIC_all_cropped/VIS/s1/micro/negative/s1_ne_01",
        "SMIC_all_cropped/NIR/s1/micro/negative/s1_ne_01",
        "SMIC_all_cropped/HS/s1/non_micro/s1_ne_07",
        "HS_long/SMIC_HS_E/s03/s03_ne_03",
    ):
        write_frames(tmp_path / other, range(1, 9), "image{:06d}.bmp")
    clip = one(smic(tmp_path).clips)
    assert "HS" in clip.frames[clip.onset].parts


def test_smic_clip_under_another_emotion_is_dropped(tmp_path: Path) -> None:
    write_smic(tmp_path, [(1, "negative", 1), (1, "positive", 1)])
    micro = tmp_path / "SMIC_all_cropped" / "HS" / "s1" / "micro"
    (micro / "surprise").mkdir()
    (micro / "positive" / "s1_po_01").rename(micro / "surprise" / "s1_po_01")
    read = smic(tmp_path)
    assert one(read.clips).clip == "s1_ne_01"
    assert "named positive, but lies under surprise" in dropped(read.findings)[0][1]


# --- CAS(ME)^3


@pytest.mark.parametrize("layout", ["video", "flat", "clips"])
def test_casme3_clips_share_a_video(tmp_path: Path, layout: str) -> None:
    rows = [
        Row("spNO.1", "a", 10, 12, 14, "4+7", "Others", frames=range(8, 17)),
        Row("spNO.1", "a", 40, 42, 44, 4, "happy", frames=range(38, 47)),
        Row("spNO.12", "b", 5, 5, 8, "?", "sad", frames=range(1, 12)),
    ]
    read = casme3(write_casme3(tmp_path, rows, layout))
    assert [c.key for c in read.clips] == ["casme3/spNO.1/a_10", "casme3/spNO.1/a_40", "casme3/spNO.12/b_5"]
    assert [list(c.frames) for c in read.clips] == [
        list(range(10, 15)),
        list(range(40, 45)),
        list(range(5, 9)),
    ]
    assert [c.emotion for c in read.clips] == ["others", "happy", "sad"]
    assert read.clips[2].apex == 5


def test_casme3_impossible_rows_are_dropped_and_the_known_ones_mended(tmp_path: Path) -> None:
    rows = [
        Row("spNO.149", "d", 112, 83, 358, emotion="fear", frames=(112, 123, 160, 358)),
        Row("spNO.216", "d", 3647, 2668, 2694, emotion="fear", frames=(2647, 2668, 2694, 3647)),
        Row("spNO.40", "e", 1812, 1820, 0, emotion="fear", frames=(1812, 1820, 1845)),
        Row("spNO.216", "e", 0, 0, 25, emotion="fear", frames=(1, 2, 25)),
        Row("spNO.214", "c", 5, 20, 3460, emotion="fear", frames=(5, 20, 34)),
        Row("spNO.9", "a", 30, 31, 30, emotion="fear", frames=(30, 31)),
    ]
    write_casme3(tmp_path, rows)
    mended = {c.key: (c.onset, c.apex, c.offset) for c in casme3(tmp_path).clips}
    assert mended == {
        "casme3/spNO.149/d_112": (112, 160, 358),
        "casme3/spNO.216/d_3647": (2647, 2668, 2694),
        "casme3/spNO.40/e_1812": (1812, 1820, 1845),
        "casme3/spNO.216/e_0": (1, 1, 25),
        "casme3/spNO.214/c_5": (5, 20, 34),
    }
    plain = casme3(tmp_path, errata=False)
    assert {c.key for c in plain.clips} == {"casme3/spNO.149/d_112", "casme3/spNO.214/c_5"}
    assert plain.clips[0].apex is None  # 83 is outside [112, 358]
    reasons = dict(dropped(plain.findings))
    assert "onset frame 0 has no file" in reasons["casme3/spNO.216/e_0"]
    assert "offset 0 is not after onset 1812" in reasons["casme3/spNO.40/e_1812"]


# --- what cannot be used is dropped with a reason


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Row(2, "EP01_01", frames=None), "no folder sub02/EP01_01 under"),
        (Row(2, "EP01_01", frames=(11, 12, 14)), "onset frame 10 has no file in"),
        (Row(2, "EP01_01", frames=(10, 13, 14)), "apex frame 12 has no file in"),
        (Row(2, "EP01_01", offset=10), "offset 10 is not after onset 10"),
        (Row(2, "EP01_01", onset="/"), "onset not annotated (CASME2-coding-20140508.xlsx, row 2)"),
        (Row(2, "EP01_01", apex=None, frames=(9, 10, 15)), "only one frame of [10, 14]"),
    ],
)
def test_a_clip_that_cannot_be_used_is_dropped(tmp_path: Path, bad: Row, reason: str) -> None:
    read = casme2(write_casme2(tmp_path, [bad, Row(1, "EP02_01"), Row(3, "EP02_01")]))
    assert [c.subject for c in read.clips] == ["sub01", "sub03"]
    ((key, why),) = dropped(read.findings)
    assert key == "casme2/sub02/EP01_01"
    assert reason in why


def test_an_apex_outside_the_clip_counts_as_missing(tmp_path: Path) -> None:
    read = casme2(write_casme2(tmp_path, [Row(1, "EP02_01", apex=99, frames=(10, 14, 99))]))
    assert one(read.clips).apex is None
    remark = "apex 99 is outside [10, 14]: treated as not annotated"
    assert ("casme2/sub01/EP02_01", remark) in notes(read.findings)


def test_a_missing_offset_is_the_last_frame_and_a_cut_clip_stays(tmp_path: Path) -> None:
    rows = [
        Row(1, "EP02_01", offset=None, frames=(10, 12, 13)),
        Row(16, "EP01_08", 73, 80, 110, frames=(73, 80, 96)),
    ]
    read = casme2(write_casme2(tmp_path, rows))
    assert [c.offset for c in read.clips] == [13, 110]
    assert ("casme2/sub16/EP01_08", "no file for the offset 110; frames end at 96") in notes(read.findings)


def test_unreadable_action_units_are_remarked_and_do_not_cost_the_clip(tmp_path: Path) -> None:
    read = casme2(write_casme2(tmp_path, [Row(1, "EP02_01", aus="4+smile")]))
    assert [str(unit) for unit in one(read.clips).aus] == ["4"]
    (finding,) = [f for f in read.findings if f.kind == "action units"]
    assert (finding.level, finding.row, finding.clip) == ("warning", 2, "casme2/sub01/EP02_01")
    assert "'smile'" in finding.detail and "'4'" not in finding.detail
