from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from replicas import (
    Row,
    complete_casme2_rows,
    complete_composite,
    dropped,
    notes,
    write_casme2,
    write_casme3,
    write_samm,
    write_smic,
)

from datamodules.clips import Study
from datamodules.protocols import load
from mefar.errors import UserError


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete_composite(tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="module")
def composite(complete: Path) -> Study:
    return load("composite", complete)


def test_the_composite_has_442_clips_of_68_subjects(composite: Study) -> None:
    assert composite.class_names == ("negative", "positive", "surprise")
    assert composite.counts() == {
        "all": {"clips": 442, "subjects": 68, "classes": {"negative": 250, "positive": 109, "surprise": 83}},
        "casme2": {"clips": 145, "subjects": 24, "classes": {"negative": 88, "positive": 32, "surprise": 25}},
        "samm": {"clips": 133, "subjects": 28, "classes": {"negative": 92, "positive": 26, "surprise": 15}},
        "smic": {"clips": 164, "subjects": 16, "classes": {"negative": 70, "positive": 51, "surprise": 43}},
    }


def test_the_composite_is_sorted_accounted_for_and_remarks_no_difference(composite: Study) -> None:
    keys = [clip.key for clip in composite.clips]
    assert keys == sorted(keys)
    assert len(set(keys)) == 442
    assert dropped(composite.findings) == ()
    excluded = dict(composite.excluded)
    assert len(excluded) == 255 - 145 + 159 - 133
    assert not set(excluded) & set(keys)
    assert "MEGC2019" in excluded["casme2/sub04/EP12_01f"]
    assert "MEGC2019" in excluded["casme2/sub05/EP09_05f"]
    assert {finding.kind for finding in composite.findings} == {"source", "erratum"}


def test_the_2019_coding_gives_the_same_composite(tmp_path: Path, composite: Study) -> None:
    study = load("composite", complete_composite(tmp_path, coding="2019"))
    assert [(c.key, c.label) for c in study.clips] == [(c.key, c.label) for c in composite.clips]
    listed = "the coding file lists 255 clips, the published one 255: surprise 28 of 25, sadness 4 of 7"
    assert ("casme2", listed) in notes(study.findings)
    five = load("casme2", tmp_path)
    assert five.counts()["all"]["classes"]["surprise"] == 28
    assert ("casme2", "249 clips, 246 in the protocol: surprise 28 of 25") in notes(five.findings)


@pytest.mark.parametrize(
    ("dataset", "classes", "counts", "subjects"),
    [
        (
            "casme2",
            None,
            {"happiness": 32, "disgust": 63, "repression": 27, "surprise": 25, "others": 99},
            26,
        ),
        ("casme2", 5, {"happiness": 32, "disgust": 63, "repression": 27, "surprise": 25, "others": 99}, 26),
        ("casme2", 3, {"negative": 88, "positive": 32, "surprise": 25}, 24),
        ("samm", None, {"happiness": 26, "contempt": 12, "anger": 57, "surprise": 15, "others": 26}, None),
        ("samm", 3, {"negative": 92, "positive": 26, "surprise": 15}, 28),
        ("smic", None, {"negative": 70, "positive": 51, "surprise": 43}, 16),
    ],
)
def test_single_databases(
    complete: Path, dataset: str, classes: int | None, counts: dict[str, int], subjects: int | None
) -> None:
    study = load(dataset, complete, classes)
    found = study.counts()["all"]
    assert study.class_names == tuple(counts)
    assert found["classes"] == counts
    assert found["clips"] == sum(counts.values())
    assert subjects in (None, found["subjects"])
    assert {clip.database for clip in study.clips} == {dataset}


def test_a_database_is_found_from_its_folder_and_from_its_parent(complete: Path) -> None:
    from_parent = load("samm", complete)
    assert load("samm", complete / "SAMM") == from_parent


@pytest.mark.parametrize(
    ("casme2", "samm", "smic"),
    [
        ("casme2", "samm", "smic"),
        ("CASMEII", "SAMM", "SMIC_all_cropped"),
        ("CASME_II (200fps)", "Samm_v2", "SMIC-HS"),
    ],
)
def test_spellings_of_the_folders(tmp_path: Path, casme2: str, samm: str, smic: str) -> None:
    write_casme2(tmp_path / casme2, [Row(1, "EP02_01")])
    write_samm(tmp_path / samm, [Row(6, "006_1_2", emotion="Happiness")])
    write_smic(tmp_path / smic, [(6, "surprise", 1)])
    (tmp_path / "casme3").mkdir()
    study = load("composite", tmp_path)
    assert [(c.key, c.label) for c in study.clips] == [
        ("casme2/sub01/EP02_01", 0),
        ("samm/006/006_1_2", 1),
        ("smic/s6/s6_sur_01", 2),
    ]
    lacking = "1 clips, 133 in the protocol: negative 0 of 92, positive 1 of 26, surprise 0 of 15, "
    assert ("samm", lacking + "subjects 1 of 28") in notes(study.findings)


def test_emotions_in_any_case_and_strange_ones(tmp_path: Path) -> None:
    rows = [
        Row(1, "EP02_01", emotion="Happiness"),
        Row(1, "EP02_02", emotion="OTHERS"),
        Row(1, "EP02_03", emotion="happines"),
        Row(1, "EP02_04", emotion=None),
        Row(1, "EP02_05", emotion="Fear"),
    ]
    study = load("casme2", write_casme2(tmp_path / "casme2", rows))
    assert [c.label for c in study.clips] == [0, 4]
    assert study.excluded == (("casme2/sub01/EP02_05", "emotion 'fear' is not in the protocol"),)
    where = "CASME2-coding-20140508.xlsx, row"
    assert dict(dropped(study.findings)) == {
        "casme2/sub01/EP02_03": f"emotion 'happines' is none of the protocol's ({where} 4); correct the cell",
        "casme2/sub01/EP02_04": f"no emotion annotated ({where} 5); correct the cell",
    }


def test_clips_without_frames_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = complete_casme2_rows()
    rows[30] = replace(rows[30], frames=None)
    study = load("casme2", write_casme2(tmp_path / "casme2", rows))
    ((key, reason),) = dropped(study.findings)
    assert key == f"casme2/sub{rows[30].subject:02d}/{rows[30].filename}"
    assert "no folder" in reason
    assert study.counts()["all"]["clips"] == 245


@pytest.mark.parametrize(("wanted", "emotion"), [(True, "disgust"), (False, "fear")])
@pytest.mark.parametrize("more", [True, False])
def test_a_coding_file_with_more_or_fewer_rows_is_remarked(
    tmp_path: Path, more: bool, wanted: bool, emotion: str
) -> None:
    rows = complete_casme2_rows()
    there = next(i for i, row in enumerate(rows) if row.emotion == emotion)
    if more:
        rows.append(replace(rows[there], filename="EP99_01"))
    else:
        del rows[there]
    study = load("casme2", write_casme2(tmp_path, rows))
    count, change = {"disgust": 63, "fear": 2}[emotion], 1 if more else -1
    listed = f"the coding file lists {255 + change} clips, the published one 255: "
    assert ("casme2", f"{listed}{emotion} {count + change} of {count}") in notes(study.findings)
    short = ("casme2", f"{246 + change} clips, 246 in the protocol: {emotion} {count + change} of {count}")
    assert (short in notes(study.findings)) == wanted


@pytest.mark.parametrize("classes", [3, 4, 7, None])
def test_casme3_classes(tmp_path: Path, classes: int | None) -> None:
    emotions = ["disgust", "surprise", "others", "Others", "fear", "anger", "sad", "happy"]
    rows = [Row("spNO.1", chr(97 + i), emotion=emotion) for i, emotion in enumerate(emotions)]
    study = load("casme3", write_casme3(tmp_path, rows), classes)
    counts = study.counts()["all"]["classes"]
    assert (
        counts
        == {
            3: {"negative": 4, "positive": 1, "surprise": 1},
            4: {"negative": 4, "positive": 1, "surprise": 1, "others": 2},
            7: {
                "happiness": 1,
                "disgust": 1,
                "fear": 1,
                "anger": 1,
                "sadness": 1,
                "surprise": 1,
                "others": 2,
            },
        }[classes or 4]
    )


@pytest.mark.parametrize(
    ("dataset", "classes", "expected"),
    [
        (
            "casmeii",
            None,
            "dataset 'casmeii': unknown; use one of casme2, casme3, casme3_c, composite, dfme, mmew, samm, "
            "smic, or a file that describes one",
        ),
        ("composite", 5, "dataset 'composite': 5 classes are not supported; use 3"),
        ("casme2", 7, "dataset 'casme2': 7 classes are not supported; use 3 or 5"),
        ("smic", 2, "dataset 'smic': 2 classes are not supported; use 3"),
    ],
)
def test_unknown_names_and_classes(tmp_path: Path, dataset: str, classes: int | None, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load(dataset, tmp_path, classes)
    assert str(caught.value) == expected


def test_wrong_folders(tmp_path: Path, complete: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load("samm", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file"):
        load("composite", tmp_path / "file")
    (tmp_path / "samm").mkdir()
    with pytest.raises(UserError, match=r"no folder for casme2; folders: samm; name one of them casme2"):
        load("composite", tmp_path)
    with pytest.raises(UserError, match=r"CASME2-coding-20140508.xlsx of casme2"):
        load("samm", complete / "CASME II")
    with pytest.raises(UserError, match="no SMIC-HS clips"):
        load("smic", complete / "SAMM")


def test_a_database_without_an_emotion_of_the_protocol(tmp_path: Path) -> None:
    write_casme2(tmp_path, [Row(1, "EP02_01", emotion="fear")])
    with pytest.raises(UserError, match="none of 1 clips has an emotion of the protocol; they have fear"):
        load("casme2", tmp_path)
    write_casme2(tmp_path, [Row(1, "EP02_01", emotion="joy")])
    with pytest.raises(UserError, match=r"emotion for 1, such as casme2.*'joy' is none of .*row 2"):
        load("casme2", tmp_path)
