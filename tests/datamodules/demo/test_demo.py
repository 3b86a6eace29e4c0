"""The demo corpora as files: layouts, coding files, determinism, resuming."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import openpyxl
import pytest
from places import ROOT
from replicas import dropped
from waiting import gone, wait_for

from datamodules.demo.coding import CASME2_COLUMNS, CODING_FILES, coding_rows
from datamodules.demo.corpora import SIZES, Corpora, clip_folder, frame_name, make_voxceleb
from datamodules.demo.motion import EMOTIONS, units
from datamodules.demo.replicas import STUDIOS, plan
from datamodules.protocols import load
from datamodules.voxceleb.video import info
from mefar.__main__ import main
from mefar.errors import UserError

TINY = SIZES["tiny"]


def tiny_plan(database):
    small = database == "casme3"
    counts = (TINY.casme3_subjects, TINY.casme3_clips) if small else (TINY.subjects, TINY.clips)
    return plan(database, 0, *counts, TINY.clip_frames)


def digests(folder: Path) -> dict[str, str]:
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix in (".mp4", ".jpg", ".bmp", ".npz")]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture
def corpora(tiny_corpora: Path) -> Path:
    return tiny_corpora


def test_the_voxceleb_tree_is_named_and_encoded_like_voxceleb2(corpora):
    videos = sorted((corpora / "voxceleb").rglob("*.mp4"))
    assert len(videos) == TINY.speakers * TINY.utterances
    for video in videos:
        where = video.relative_to(corpora).as_posix()
        assert re.fullmatch(r"voxceleb/dev/mp4/id\d{5}/[A-Za-z0-9_-]{11}/00001\.mp4", where)
    known = info(videos[0])
    assert (known.codec, known.fps, known.frames) == ("h264", 25.0, TINY.frames)
    assert (known.width, known.height) == (TINY.pixels, TINY.pixels)


def test_two_speakers_play_one_script_each_with_their_own_head(corpora, tmp_path):
    make_voxceleb(Corpora(tmp_path, 0, "tiny", twins=True), workers=1)
    with pytest.raises(UserError, match="made otherwise"):
        make_voxceleb(Corpora(corpora, 0, "tiny", twins=True))
    truths = sorted((tmp_path / "ground_truth" / "voxceleb").glob("*.npz"))
    names = [path.name.split("_", 1)[1] for path in truths]
    one, other, third = (np.load(truths[i]) for i in (0, 2, 4))
    assert names[0] == names[2] != names[4]
    # Where no weight reaches 1, the most there is.
    free = np.maximum(one["actions"], other["actions"]).max(0) < 1
    moved = [
        (truth["actions"][-1].astype(float) - truth["actions"][0])[free] for truth in (one, other, third)
    ]
    assert np.abs(moved[0]).max() > 0.02
    assert np.abs(moved[0] - moved[1]).max() < 0.01 < np.abs(moved[0] - moved[2]).max()
    assert np.abs(one["pose"] - other["pose"]).max() > 0.1


def test_casme2_files_are_not_padded_and_cover_onset_to_offset(corpora):
    for clip in tiny_plan("casme2"):
        folder = corpora / "casme2" / "CASME2_RAW_selected" / clip.subject / clip.clip
        names = {f"img{n}.jpg" for n in range(clip.onset, clip.offset + 1)}
        assert {f.name for f in folder.iterdir()} == names


def test_samm_frames_are_gray_files_of_five_digits(corpora):
    clip = tiny_plan("samm")[0]
    path = corpora / "samm" / clip.subject / clip.clip / f"{clip.subject}_{clip.onset:05d}.jpg"
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ndim == 2


def test_smic_folders_say_the_class_and_hold_bmp(corpora):
    for clip in tiny_plan("smic"):
        token = clip.clip.split("_")[1]
        emotion = {"ne": "negative", "po": "positive", "sur": "surprise"}[token]
        folder = corpora / "smic" / "HS" / clip.subject / "micro" / emotion / clip.clip
        assert len(list(folder.glob("image??????.bmp"))) == clip.frames
    assert "smic" not in CODING_FILES
    assert not list((corpora / "smic").rglob("*.xlsx"))


def test_casme3_frames_lie_where_the_coding_file_says(corpora):
    book = openpyxl.load_workbook(corpora / "casme3" / CODING_FILES["casme3"])
    rows = list(book["label"].values)
    assert rows[0] == ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
    for subject, letter, onset, apex, offset, *_ in rows[1:]:
        assert onset < apex < offset
        for number in (onset, apex, offset):
            assert (corpora / "casme3" / "part_A" / subject / letter / "color" / f"{number}.jpg").exists()


def test_coding_files_have_the_real_columns(corpora):
    casme2 = list(openpyxl.load_workbook(corpora / "casme2" / CODING_FILES["casme2"])["Sheet1"].values)
    assert casme2[0] == CASME2_COLUMNS
    assert casme2[0][2] is None
    assert casme2[0][6] is None
    assert isinstance(casme2[1][0], int)
    samm = list(openpyxl.load_workbook(corpora / "samm" / CODING_FILES["samm"])["MICRO_ONLY"].values)
    assert samm[13][0] == "Subject"
    assert len(samm[13]) == 12
    assert samm[14][0] == "006"
    assert {row[9] for row in samm[14:]} <= {e.title() for e in EMOTIONS} | {"Other"}


def test_the_real_loaders_read_the_replicas(corpora):
    study = load("composite", corpora)
    assert not dropped(study.findings) or all(
        "others" in reason or "other" in reason for _, reason in dropped(study.findings)
    )
    for database in ("casme2", "samm", "smic"):
        counts = study.counts()[database]
        assert counts["subjects"] == TINY.subjects
        assert all(counts["classes"][name] >= 3 for name in ("negative", "positive", "surprise"))
    by_key = {clip.key: clip for clip in study.clips}
    planned = next(p for p in tiny_plan("casme2") if p.emotion == "happiness")
    read = by_key[f"casme2/{planned.subject}/{planned.clip}"]
    assert (read.onset, read.apex, read.offset) == (
        planned.onset,
        planned.onset + planned.apex,
        planned.offset,
    )
    assert read.aus == tuple(sorted(planned.units))


def test_the_known_quirks_of_casme2_are_there():
    plans = plan("casme2", 0, 8, 13)
    rows = {(row[0], row[1]): row for row in coding_rows("casme2", plans)[1:]}
    assert rows[4, "EP12_01f"][4] == "/"
    assert rows[5, "EP09_05f"][3] == rows[5, "EP09_05f"][4] == 69


@pytest.mark.parametrize("database", list(STUDIOS))
def test_emotions_and_action_units_agree(database):
    for clip in plan(database, 3, 8, 13):
        assert clip.units in {units(text) for text in EMOTIONS[clip.emotion]}
        assert 0 < clip.apex < clip.frames - 1


@pytest.mark.parametrize("database", ["casme2", "samm", "smic"])
def test_classes_are_as_unequal_as_in_the_real_databases(database):
    plans = plan(database, 0, 8, 13)
    shown = [p.emotion for p in plans if p.emotion != "others"]
    negative = sum(e not in ("happiness", "surprise") for e in shown) / len(shown)
    assert 0.48 < negative < 0.64
    assert 0.17 < shown.count("happiness") / len(shown) < 0.32
    assert 0.15 < shown.count("surprise") / len(shown) < 0.30
    assert len({(p.subject, p.clip) for p in plans}) == len(plans)


def test_another_seed_is_another_plan():
    assert plan("samm", 1, 3, 4) != plan("samm", 0, 3, 4)


def test_an_interrupted_run_is_finished_and_finished_files_are_left_alone(corpora, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(corpora, root)
    videos = sorted((root / "voxceleb").rglob("*.mp4"))
    videos[3].unlink()
    (videos[3].parent / ".00001.partial.mp4").write_bytes(b"half a file")
    clip = tiny_plan("samm")[5]
    folder = clip_folder(root, "samm", clip)
    (folder / frame_name("samm", clip, clip.offset)).unlink()
    half = folder.with_name(f".{folder.name}.{clip.clip}.partial")
    half.mkdir()
    (half / frame_name("samm", clip, clip.onset)).write_bytes(b"half a file")
    before = videos[0].stat().st_mtime_ns
    assert main(["make-demo", str(root), "--size", "tiny"]) == 0
    assert videos[0].stat().st_mtime_ns == before
    assert digests(root) == digests(corpora)
    assert not half.exists()
    assert not list(root.rglob("*partial*"))


def test_a_folder_of_another_seed_is_refused(corpora, capsys):
    with pytest.raises(UserError, match=r"made otherwise \(seed"):
        make_voxceleb(Corpora(corpora, 1, "tiny"))
    assert main(["make-demo", str(corpora)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "give another --out" in error


def test_the_truth_has_its_largest_intensity_at_the_apex(corpora):
    for database in ("casme2", "smic"):
        for clip in tiny_plan(database):
            with np.load(corpora / "ground_truth" / database / f"{clip.subject}_{clip.clip}.npz") as truth:
                names = [str(unit) for unit in clip.units]
                assert list(truth["units"])[: len(names)] == names
                shown = truth["intensity"][:, : len(names)]
                assert (shown.argmax(axis=0) == clip.apex).all()
                assert (shown[0] == 0).all()
                assert ((shown.max(axis=0) >= 0.3) & (shown.max(axis=0) <= 0.7)).all()
                assert truth["pose"].shape == (clip.frames, 5)
                assert np.abs(truth["gain"] - 1).max() <= 0.0301


def test_strength_changes_the_size_of_the_action_and_nothing_else(corpora, tmp_path, capsys):
    made = [str(tmp_path), "--size", "tiny", "--strength", "micro", "--talking", "false"]
    assert main(["make-demo", *made]) == 0
    assert not (tmp_path / "voxceleb").exists()
    for clip in tiny_plan("smic"):
        name = f"ground_truth/smic/{clip.subject}_{clip.clip}.npz"
        with np.load(corpora / name) as strong, np.load(tmp_path / name) as weak:
            shown = weak["intensity"][:, : len(clip.units)].max(axis=0)
            assert ((shown >= 0.08) & (shown <= 0.22)).all()
            share = (strong["intensity"][:, : len(clip.units)].max(axis=0) - 0.3) / 0.4
            assert shown == pytest.approx(0.08 + 0.14 * share, abs=1e-6)
            assert (strong["pose"] == weak["pose"]).all()
    assert main(["make-demo", *made[:3]]) == 2
    assert "made otherwise" in capsys.readouterr().err


def test_a_killed_run_leaves_no_workers_and_is_finished_by_the_next(corpora, tmp_path):
    words = [sys.executable, "-m", "mefar", "make-demo", str(tmp_path), "--size", "tiny", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: list(tmp_path.rglob("*.jpg")) or run.poll() is not None)
    run.kill()
    run.wait()
    wait_for(lambda: gone(run.pid))
    assert main(["make-demo", str(tmp_path), "--size", "tiny"]) == 0
    assert digests(tmp_path) == digests(corpora), "the same seed, the same bytes, in whatever process"
    assert not list(tmp_path.rglob("*partial*"))
