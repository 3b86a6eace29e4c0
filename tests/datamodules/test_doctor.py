"""`mefar doctor`: every fault planted in a replica is reported with its clip, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replicas import (
    Row,
    complete_casme2_rows,
    complete_samm_rows,
    complete_smic_clips,
    write_casme2,
    write_casme3,
    write_samm,
    write_smic,
)

from datamodules.clips import Clip
from datamodules.crops import PairSettings, read_image, render
from datamodules.databases.errata import Correction
from datamodules.doctor import Report, _gaps, examine
from datamodules.faces.align import FaceAligner
from datamodules.micro import MicroExpressionDataset
from datamodules.protocols import load
from mefar.__main__ import main
from mefar.errors import UserError

COUNTS = ("protocol counts", "coding file")  # small replicas never hold the published numbers


def whole(row: Row) -> Row:
    """The row with a file for every frame."""
    return replace(row, frames=range(row.onset, row.offset + 1))


def distinct(root: Path) -> Path:
    """Give every clip a face of its own, and every image bytes of its own."""
    for file in root.rglob("*"):
        if file.suffix in (".jpg", ".bmp"):
            seed = zlib.crc32(str(file.parent.relative_to(root)).encode())
            picture = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
            name = str(file.relative_to(root)).encode()
            # Decoders pass over what follows the picture.
            file.write_bytes(cv2.imencode(file.suffix, picture)[1].tobytes() + name)
    return root


def tree(root: Path) -> str:
    """A hash of all names, contents and times below a folder."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(f"{path} {path.stat().st_mtime_ns}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("complete")
    write_casme2(root / "CASME II", [whole(row) for row in complete_casme2_rows()], "cropped")
    write_samm(root / "SAMM", [whole(row) for row in complete_samm_rows()])
    write_smic(root / "SMIC-HS", complete_smic_clips())
    return distinct(root)


def found(report: Report) -> set[tuple[str, str, str]]:
    return {(f.level, f.kind, f.clip) for f in report.findings if f.kind not in COUNTS}


def detail(report: Report, clip: str) -> str:
    (one,) = [finding.detail for finding in report.findings if finding.clip == clip]
    return one


# Complete data


def test_complete_data_is_one_line_and_stays_as_it_is(
    complete: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(complete)
    assert main(["doctor", "composite", str(complete), "--all-frames"]) == 0
    assert tree(complete) == before
    (line,) = capsys.readouterr().out.splitlines()
    images = sum(len(clip.frames) for clip in load("composite", complete).clips)
    assert line == (
        "composite: complete: 442 clips, 68 subjects, apex annotated 278, middle 164, "
        f"2 errata applied, {images} images read"
    )


def test_complete_data_in_numbers(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "composite", str(complete)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["complete"] and not told["lost"] and told["findings"] == []
    assert 2 * 442 < told["images"] < 6 * 442  # onset, apex, and the apex's neighbours that views show
    expected = load("composite", complete).counts()
    for name, part in told["parts"].items():
        assert part["clips"] == {"found": expected[name]["clips"], "expected": expected[name]["clips"]}
        assert part["subjects"]["found"] == part["subjects"]["expected"] == expected[name]["subjects"]
        assert {title: count["found"] for title, count in part["classes"].items()} == expected[name][
            "classes"
        ]
        assert all(count["found"] == count["expected"] for count in part["coding"].values())
    assert told["parts"]["casme2"]["frames"].endswith("CASME II/Cropped")
    assert told["parts"]["samm"]["coding_file"].endswith("SAMM/SAMM_Micro_FACS_Codes_v2.xlsx")
    # The published coding has one clip without apex, which errata.csv knows.
    assert {(one["clip"], one["field"], one["old"], one["new"]) for one in told["errata"]} == {
        ("casme2/sub04/EP12_01f", "apex", "missing", "279"),
        ("casme2/sub05/EP09_05f", "apex", "69", "81"),
    }


def test_verbose_shows_the_table_of_complete_data(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "composite", str(complete), "--verbose"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "casme2 145/145 24/24 88/88 32/32 25/25" in lines
    assert any(line.startswith("casme2/sub05/EP09_05f apex 69 81 meb") for line in lines)
    assert lines[-1].startswith("composite: complete")


def test_a_coding_file_that_lists_less_or_more(
    tmp_path: Path, complete: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [whole(row) for row in complete_casme2_rows()]
    shutil.copytree(complete / "CASME II" / "Cropped", tmp_path / "less" / "Cropped")
    gone = [row for row in rows if row.emotion == "disgust"][-1]
    write_casme2(tmp_path / "less", [row for row in rows if row is not gone], "")
    assert main(["doctor", "casme2", str(tmp_path / "less"), "--classes", "3"]) == 1
    told = capsys.readouterr().out
    assert "144 clips, 145 in the protocol: negative 87 of 88\n" in told
    assert "the coding file lists 254 clips, the published one 255: disgust 62 of 63" in told

    more = [*rows, whole(Row(26, "EP99_01"))]
    write_casme2(tmp_path / "less", more, "")
    write_casme2(tmp_path / "new", more[-1:])
    shutil.copytree(
        tmp_path / "new" / "CASME2_RAW_selected", tmp_path / "less" / "Cropped", dirs_exist_ok=True
    )
    report = examine("casme2", tmp_path / "less", 3)
    assert {(f.level, f.kind) for f in report.findings} == {
        ("warning", "protocol counts"),
        ("warning", "coding file"),
    }
    assert not report.lost


# One planted fault each; the second clip is sound and must not be named


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def leave(folder: Path) -> None:
    del folder


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


RANGES = "onset, apex, offset"
SOUND = whole(Row(1, "A"))
PLANTED: list[tuple[Row, Callable[[Path], object], str, str, str]] = [
    (Row(1, "A", frames=(10, 12, 13, 14)), leave, "warning", "missing frames", "[10, 14]: 11"),
    (Row(1, "A", frames=(10, 11, 12)), leave, "warning", "missing frames", "13-14; no file for the offset"),
    (Row(1, "A", frames=(11, 12, 13, 14)), leave, "lost", "missing frames", "onset frame 10 has no file"),
    (Row(1, "A", frames=(10, 11, 13, 14)), leave, "lost", "missing frames", "apex frame 12 has no file"),
    (Row(1, "A", frames=None), leave, "lost", "missing frames", "no folder sub01/A"),
    (SOUND, empty, "lost", "missing frames", "a clip without frames"),
    (replace(SOUND, emotion="fear"), shutil.rmtree, "note", "missing frames", "no folder sub01/A"),
    (Row(1, "A", offset=9), leave, "lost", RANGES, "9 is not after onset 10"),
    (SOUND, lambda f: (f / "img012.jpg").touch(), "lost", "duplicate frames", "both frame 12"),
    (SOUND, lambda f: cut(f / "img10.jpg"), "lost", "unreadable image", "img10.jpg"),
    (SOUND, lambda f: (f / "img12.jpg").write_text("x"), "lost", "unreadable image", "img12.jpg"),
    (replace(SOUND, aus="what"), leave, "warning", "action units", "'what'"),
    (replace(SOUND, apex="/"), leave, "warning", "apex missing", "not annotated; middle frame 12"),
    (replace(SOUND, apex=10), leave, "warning", "apex missing", "10 is the onset; middle frame 12"),
]


@pytest.mark.parametrize(("row", "spoil", "level", "kind", "text"), PLANTED)
def test_a_planted_fault_is_reported_with_its_clip(
    tmp_path: Path, row: Row, spoil: Callable[[Path], object], level: str, kind: str, text: str
) -> None:
    distinct(write_casme2(tmp_path, [row, whole(Row(2, "B")), whole(Row(3, "C"))]))
    if row.frames is not None:
        spoil(tmp_path / "CASME2_RAW_selected" / "sub01" / "A")
    report = examine("casme2", tmp_path)
    assert found(report) == {(level, kind, "casme2/sub01/A")}
    assert text in detail(report, "casme2/sub01/A")
    if kind == "missing frames" and level == "warning":
        (gap,) = [finding.missing for finding in report.findings if finding.missing]
        assert gap == (((11, 11),) if 14 in (row.frames or ()) else ((13, 14),))


def test_an_apex_outside_the_clip_gives_its_range_and_what_is_used_instead(tmp_path: Path) -> None:
    distinct(write_casme2(tmp_path, [whole(Row(1, "A", apex=99)), whole(Row(2, "B"))]))
    report = examine("casme2", tmp_path)
    assert found(report) == {
        ("warning", "onset, apex, offset", "casme2/sub01/A"),
        ("warning", "apex missing", "casme2/sub01/A"),
    }
    assert any("apex 99 is outside [10, 14]" in finding.detail for finding in report.findings)
    assert report.parts["casme2"].apex == {"annotated": 1, "middle": 1}


def test_frames_that_no_pair_needs_are_read_on_request_only(tmp_path: Path) -> None:
    distinct(write_casme2(tmp_path, [whole(Row(1, "A")), whole(Row(2, "B"))]))
    cut(tmp_path / "CASME2_RAW_selected" / "sub02" / "B" / "img11.jpg")
    assert found(examine("casme2", tmp_path, views=1)) == set()
    every = examine("casme2", tmp_path, views=1, all_frames=True)
    assert found(every) == {("warning", "unreadable image", "casme2/sub02/B")}
    assert every.images == 10
    # A spotted apex looks at all of them.
    spotted = examine("casme2", tmp_path, apex="spotted")
    assert found(spotted) == {("lost", "unreadable image", "casme2/sub02/B")}


def test_the_frames_that_runs_show_in_their_views_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row(1, "A", onset=10, apex=20, offset=30)
    distinct(write_casme2(tmp_path, [whole(row), whole(Row(2, "B"))]))
    clip = load("casme2", tmp_path).clips[0]
    shown: set[Path] = set()

    def watched(file: Path) -> np.ndarray:
        shown.add(file)
        return read_image(file)

    monkeypatch.setattr("datamodules.crops.read_image", watched)
    render(clip, PairSettings(16, "precropped", views=8), FaceAligner(16, "precropped"))
    assert len(shown) > 3
    for number in range(15, 26):
        file = clip.frames[number]
        content = file.read_bytes()
        file.write_bytes(b"")
        assert (found(examine("casme2", tmp_path)) != set()) == (file in shown), number
        file.write_bytes(content)


def test_the_clip_that_has_anothers_images_is_named_with_it(tmp_path: Path) -> None:
    distinct(write_casme2(tmp_path, [whole(Row(s, "A")) for s in (1, 2, 3)]))
    frames = tmp_path / "CASME2_RAW_selected"
    shutil.copytree(frames / "sub01" / "A", frames / "sub03" / "A", dirs_exist_ok=True)
    # One shared image is no copy of a clip.
    shutil.copy(frames / "sub01" / "A" / "img10.jpg", frames / "sub02" / "A" / "img10.jpg")
    report = examine("casme2", tmp_path)
    assert found(report) == {("lost", "duplicate clip", "casme2/sub03/A")}
    assert "casme2/sub01/A" in detail(report, "casme2/sub03/A")


def test_pictures_of_another_subject_are_known_when_saved_again(tmp_path: Path) -> None:
    distinct(write_casme2(tmp_path, [whole(Row(s, "A")) for s in (1, 2, 3)]))
    frames = tmp_path / "CASME2_RAW_selected"
    rng = np.random.default_rng(0)
    for subject in ("sub01", "sub02", "sub03"):
        face = cv2.resize(rng.integers(0, 256, (5, 5, 3), np.uint8), (64, 80), interpolation=cv2.INTER_CUBIC)
        for number in range(10, 15):
            cv2.imwrite(str(frames / subject / "A" / f"img{number}.jpg"), face)
    for number in range(10, 15):
        picture = cv2.imread(str(frames / "sub01" / "A" / f"img{number}.jpg"))
        again = cv2.resize(picture, (51, 64), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(frames / "sub03" / "A" / f"img{number}.jpg"), again, [cv2.IMWRITE_JPEG_QUALITY, 60])
    report = examine("casme2", tmp_path)
    assert found(report) == {("warning", "same pictures", "casme2/sub03/A")}
    assert "casme2/sub01/A" in detail(report, "casme2/sub03/A")
    # A run says so too, in a line about the database.
    made = MicroExpressionDataset(load("casme2", tmp_path), 16, "precropped", cache_dir=tmp_path / "cache")
    (told,) = [f for f in made.study.findings if f.kind == "same pictures"]
    assert told.clip == "" and "1 clips show" in told.detail
    assert "casme2/sub03/A and casme2/sub01/A" in told.detail


def test_frames_of_several_sizes_are_a_loss_and_stop_a_run(tmp_path: Path) -> None:
    distinct(write_casme2(tmp_path, [whole(Row(s, "A")) for s in (1, 2)]))
    file = tmp_path / "CASME2_RAW_selected" / "sub02" / "A" / "img12.jpg"
    cv2.imwrite(str(file), np.zeros((9, 8, 3), np.uint8))
    report = examine("casme2", tmp_path)
    assert found(report) == {("lost", "frame sizes", "casme2/sub02/A")}
    assert "frame 12 has 8x9 pixels, others 8x8" in detail(report, "casme2/sub02/A")
    with pytest.raises(UserError, match=r"img12.jpg: 8x9 pixels, but the onset frame has 8x8"):
        MicroExpressionDataset(load("casme2", tmp_path), 16, "precropped", cache_dir=tmp_path / "cache")


def test_a_clip_listed_twice(tmp_path: Path) -> None:
    rows = [whole(Row(1, "A")), whole(Row(2, "B")), whole(Row(1, "A"))]
    distinct(write_casme2(tmp_path / "same", rows))
    same = examine("casme2", tmp_path / "same")
    assert found(same) == {("warning", "duplicate clip", "casme2/sub01/A")}
    assert detail(same, "casme2/sub01/A") == "row 4 repeats row 2"

    other = [*rows[:2], whole(Row(1, "A", emotion="happiness"))]
    distinct(write_casme2(tmp_path / "other", other))
    report = examine("casme2", tmp_path / "other")
    assert found(report) == {("lost", "duplicate clip", "casme2/sub01/A")}
    assert "row 4" in detail(report, "casme2/sub01/A") and "contradicts row 2" in detail(
        report, "casme2/sub01/A"
    )


def test_two_folders_for_one_clip(tmp_path: Path) -> None:
    write_casme2(tmp_path, [whole(Row(1, "A")), whole(Row(2, "B"))])
    frames = tmp_path / "CASME2_RAW_selected"
    shutil.copytree(frames / "sub01" / "A", frames / "sub1" / "A")
    distinct(tmp_path)
    report = examine("casme2", tmp_path)
    assert found(report) == {("lost", "duplicate clip", "")}
    assert "sub1/A" in report.findings[0].detail and "sub01/A" in report.findings[0].detail


def test_all_faults_are_gathered_where_a_load_stops_at_the_first(tmp_path: Path) -> None:
    rows = [whole(Row(subject, "A")) for subject in range(1, 8)]
    rows = [replace(row, frames=None) if row.subject > 3 else row for row in rows]
    distinct(write_casme2(tmp_path, rows))
    empty(tmp_path / "CASME2_RAW_selected" / "sub01" / "A")
    with pytest.raises(UserError):
        load("casme2", tmp_path)
    clips = {f"casme2/sub{subject:02d}/A" for subject in (1, 4, 5, 6, 7)}
    clips.add("")  # frames for less than half of the clips stop a load as well
    assert found(examine("casme2", tmp_path)) == {("lost", "missing frames", clip) for clip in clips}


def test_a_smic_clip_under_the_wrong_emotion(tmp_path: Path) -> None:
    distinct(write_smic(tmp_path, [(1, "negative", 1), (1, "negative", 2)], "raw"))
    micro = tmp_path / "HS" / "s01" / "micro"
    (micro / "positive").mkdir()
    (micro / "negative" / "s01_ne_02").rename(micro / "positive" / "s01_ne_02")
    report = examine("smic", tmp_path)
    assert found(report) == {("lost", "misplaced clip", "smic/s1/s1_ne_02")}
    assert report.parts["smic"].apex == {"middle": 1}  # no finding: SMIC has no apexes


def test_errata_are_listed_with_both_values_and_their_source(tmp_path: Path) -> None:
    rows = [
        whole(Row("spNO.40", "e", 1812, 1820, 1845, emotion="happy")),
        whole(Row("spNO.1", "a", 355, 360, 365, emotion="sad")),
    ]
    distinct(write_casme3(tmp_path, [replace(rows[0], offset=0), rows[1]]))
    report = examine("casme3", tmp_path)
    assert report.errata == (Correction("casme3/spNO.40/e_1812", "offset", "0", "1845", "meb"),)
    assert found(report) == set()
    bare = examine("casme3", tmp_path, errata=False)
    assert bare.errata == ()
    assert found(bare) == {("lost", "onset, apex, offset", "casme3/spNO.40/e_1812")}
    # Without counts of its own, the protocol is held against the published coding file.
    assert {(f.level, f.kind) for f in report.findings} == {("lost", "coding file")}


def test_a_refused_erratum_says_why(tmp_path: Path) -> None:
    row = Row(5, "EP03_01", onset=41, apex="", offset=60)  # errata.csv: apex 68
    distinct(write_casme2(tmp_path, [whole(row), whole(Row(2, "B"))]))
    (one,) = examine("casme2", tmp_path).errata
    assert (one.clip, one.field, one.old, one.new) == ("casme2/sub05/EP03_01", "apex", "missing", "68")
    assert one.refused == "the apex would lie outside [onset, offset]"


@given(st.sets(st.integers(1, 60), min_size=2, max_size=40), st.integers(0, 5))
def test_gaps_and_files_together_are_all_frames(numbers: set[int], further: int) -> None:
    onset, offset = min(numbers), max(numbers) + further
    frames = {number: Path(f"{number}.jpg") for number in sorted(numbers)}
    clip = Clip("samm", "006", "a", "anger", onset, None, offset, 200.0, (), frames)
    runs = [run for finding in _gaps(clip) for run in finding.missing]
    missing = [number for first, last in runs for number in range(first, last + 1)]
    assert sorted([*missing, *numbers]) == list(range(onset, offset + 1))


# The command


def test_a_database_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_casme2(tmp_path / "casme2", [replace(whole(Row(1, "A")), onset="soon"), whole(Row(2, "B"))])
    write_samm(
        tmp_path / "samm",
        [whole(Row(6, "006_1_1")), Row(6, "006_1_2", frames=None), whole(Row(7, "007_1_1"))],
    )
    write_smic(tmp_path / "smic", complete_smic_clips()[:1])
    distinct(tmp_path)
    assert main(["doctor", "composite", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    by_kind = {finding["kind"]: finding for finding in told["findings"] if finding["kind"] not in COUNTS}
    assert set(by_kind) == {"unusable database", "missing frames"}
    assert "row 2" in by_kind["unusable database"]["detail"]
    assert by_kind["missing frames"]["clip"] == "samm/006/006_1_2"


def test_the_table_names_the_clip_and_long_lists_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row(1, f"EP{i:02d}", frames=None if i < 12 else range(10, 15)) for i in range(26)]
    distinct(write_casme2(tmp_path, rows))
    assert main(["doctor", "casme2", str(tmp_path)]) == 1
    short = capsys.readouterr().out
    assert "casme2/sub01/EP09" in short and "casme2/sub01/EP10" not in short
    assert "and 2 more" in short
    assert "data would be lost" in short.splitlines()[-1]
    assert main(["doctor", "casme2", str(tmp_path), "--verbose"]) == 1
    assert "casme2/sub01/EP11" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["casme2", "{}/nowhere"], "no such folder"),
        (["casme2", "{}"], "no coding file"),
        (["composite", "{}"], "no folder for casme2"),
        (["smic", "{}"], "no SMIC-HS clips"),
        (["casme9", "{}"], "casme9"),
        (["casme2"], "data"),
        (["casme2", "{}", "--classes", "4"], "4 classes are not supported"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["doctor", "--json", *[word.format(tmp_path) for word in words]]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mefar doctor: error: ") and captured.err.count("\n") == 1
    assert says in captured.err


def test_the_data_set_may_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distinct(write_smic(tmp_path / "smic", [(1, "negative", 1)]))
    place = str(tmp_path / "smic")
    for words in (
        ["smic", place, "--json"],
        ["--json", "smic", place],
        ["--apex", "middle", "--json", "smic", place],
        ["smic", "--json", "true", place],
        ["--errata=false", "smic", "--json", place],
    ):
        assert main(["doctor", *words]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["dataset"] == "smic" and told["parts"]["smic"]["clips"] == {"found": 1, "expected": 164}
