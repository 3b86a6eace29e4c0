"""DFME and MMEW: loaders and protocols, on replicas after the format that public code reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from readers import dfme, mmew, samm
from replicas import Row, notes, write_dfme, write_frames, write_mmew, write_samm

from datamodules.clips import Clip
from datamodules.databases.description import Annotations
from datamodules.protocols import load
from mefar.errors import UserError

DFME = Row("sub0003", "sub0003_01", 10, 12, 14, "4+R7", "Disgust")
MMEW = Row("S13", "S13-07-001", 1, 4, 9, "4+7", "disgust", frames=range(1, 12))


def one(read: Annotations) -> Clip:
    (clip,) = read.clips
    return clip


@pytest.mark.parametrize("subject", ["sub0003", 3, "S3", 3.0, "sub_3"])
def test_dfme_reads_a_clip(tmp_path: Path, subject: object) -> None:
    clip = one(dfme(write_dfme(tmp_path, [replace(DFME, subject=subject)])))
    assert (clip.key, clip.emotion, clip.fps) == ("dfme/sub0003/sub0003_01", "disgust", 500.0)
    assert (clip.onset, clip.apex, clip.offset) == (10, 12, 14)
    assert clip.frames[12] == tmp_path / "DFME_train" / "sub0003_01" / "00012.png"
    assert [str(au) for au in clip.aus] == ["4", "R7"]


@pytest.mark.parametrize("place", [".", "x/train_data/train_data", "DFME_Crop/sub0003"])
def test_dfme_folders_are_found_at_any_depth(tmp_path: Path, place: str) -> None:
    assert list(one(dfme(write_dfme(tmp_path, [DFME], place=place))).frames) == [10, 12, 14]


@pytest.mark.parametrize("fps", [None, "", "/"])
def test_dfme_without_a_rate_is_remarked(tmp_path: Path, fps: object) -> None:
    read = dfme(write_dfme(tmp_path, [DFME], fps))
    assert one(read).fps == 200.0
    assert ("dfme/sub0003/sub0003_01", "frames per second not annotated: 200 assumed") in notes(read.findings)


@pytest.mark.parametrize("fps", ["fast", 0, -200, 10**6])
def test_a_rate_that_is_none_is_named(tmp_path: Path, fps: object) -> None:
    with pytest.raises(UserError, match=r"training_full_with_AU.xlsx, row 2, column 'Fps'"):
        dfme(write_dfme(tmp_path, [DFME], fps))


def test_dfme_reads_the_training_file_among_several(tmp_path: Path) -> None:
    write_dfme(tmp_path, [DFME])
    (tmp_path / "training_full_with_AU.xlsx").rename(tmp_path / "test_A_full_with_AU.xlsx")
    write_dfme(tmp_path, [replace(DFME, emotion="Fear")])
    assert one(dfme(tmp_path)).emotion == "fear"


@pytest.mark.parametrize("by_subject", [False, True])
@pytest.mark.parametrize("subject", ["S13", 13, "13", "sub13"])
def test_mmew_reads_the_micro_expression(tmp_path: Path, subject: object, by_subject: bool) -> None:
    clip = one(mmew(write_mmew(tmp_path, [replace(MMEW, subject=subject)], by_subject)))
    assert (clip.key, clip.emotion, clip.fps) == ("mmew/S13/S13-07-001", "disgust", 90.0)
    assert (clip.onset, clip.apex, clip.offset, len(clip.frames)) == (1, 4, 9, 11)
    assert clip.frames[4].name == "4.jpg"
    assert "Micro_Expression" in clip.frames[4].parts


def test_mmew_under_another_emotion_is_remarked(tmp_path: Path) -> None:
    rows = [MMEW, Row("S01", "S01-02-001", emotion="fear")]
    write_mmew(tmp_path, rows)
    micro = tmp_path / "Micro_Expression"
    (micro / "disgust" / "S13-07-001").rename(micro / "fear" / "S13-07-001")
    read = mmew(tmp_path)
    assert [clip.emotion for clip in read.clips] == ["fear", "disgust"]
    (finding,) = [f for f in read.findings if f.kind == "misplaced clip"]
    assert finding.clip == "mmew/S13/S13-07-001" and "but lies under fear" in finding.detail


def test_two_rows_never_share_a_folder(tmp_path: Path) -> None:
    write_dfme(tmp_path, [replace(DFME, filename="clip7"), replace(DFME, subject=4, filename="clip7")])
    with pytest.raises(UserError, match=r"row 3, column 'Filename': .* is the folder of row 2 too"):
        dfme(tmp_path)


def test_a_file_name_of_another_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"row 2, column 'Subject': 'sub0004', but the file name is 'sub0003_01'"
    ):
        dfme(write_dfme(tmp_path / "dfme", [replace(DFME, subject="sub0004")]))
    with pytest.raises(UserError, match=r"row 2, column 'Subject': '14', but the file name is 'S13-07-001'"):
        mmew(write_mmew(tmp_path / "mmew", [replace(MMEW, subject=14)]))
    with pytest.raises(UserError, match=r"row 2, column 'Subject': '7', but the file name is '006_1_2'"):
        samm(write_samm(tmp_path / "samm", [Row(7, "006_1_2")], preamble=0))


@pytest.mark.parametrize(
    ("database", "classes", "names", "labels"),
    [
        (
            "dfme",
            None,
            ("happiness", "surprise", "anger", "disgust", "fear", "sadness", "contempt"),
            range(7),
        ),
        ("dfme", 3, ("negative", "positive", "surprise"), (1, 2, 0, 0, 0, 0, 0)),
        ("mmew", None, ("happiness", "surprise", "anger", "disgust", "fear", "sadness", "others"), range(7)),
        ("mmew", 4, ("happiness", "surprise", "disgust", "others"), (0, 1, 2, 3)),
        ("mmew", 3, ("negative", "positive", "surprise"), (1, 2, 0, 0, 0, 0)),
    ],
)
def test_classes(
    tmp_path: Path, database: str, classes: int | None, names: tuple[str, ...], labels: tuple[int, ...]
) -> None:
    emotions = ("happiness", "Surprise", "anger", "disgust", "fear", "sadness")
    emotions += ("contempt", "others") if database == "dfme" else ("others",)
    rows = [Row(i + 1, f"S{i + 1:02d}-{i}-001", emotion=emotion) for i, emotion in enumerate(emotions)]
    root = tmp_path / database.upper()
    study = load(database, (write_dfme if database == "dfme" else write_mmew)(root, rows) / "..", classes)
    assert study.class_names == names
    assert [clip.label for clip in study.clips] == list(labels)
    assert len(study.clips) + len(study.excluded) == len(rows)
    assert not [note for note in notes(study.findings) if "protocol" in note[1]]


def test_neither_takes_the_other_for_itself(tmp_path: Path) -> None:
    write_mmew(tmp_path, [MMEW])
    with pytest.raises(UserError, match=r"MMEW_Micro_Exp.xlsx of mmew"):
        dfme(tmp_path)
    with pytest.raises(UserError, match=r"training_full_with_AU.xlsx of dfme"):
        mmew(write_dfme(tmp_path / "other", [DFME]))


def test_macro_expressions_alone_are_no_clips(tmp_path: Path) -> None:
    write_mmew(tmp_path, [replace(MMEW, frames=None)])
    write_frames(tmp_path / "Macro_Expression" / "disgust" / "S13-07-001", range(1, 12), "{}.jpg")
    with pytest.raises(UserError, match="frames for 0 of the 1 clips"):
        mmew(tmp_path)
