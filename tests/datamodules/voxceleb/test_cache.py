"""Every stored crop is the frame it says; killed builds resume; bad files are listed, never replaced."""

import csv
import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from filming import barcode, film, number_in, sound_only
from hypothesis import given, settings
from hypothesis import strategies as st
from places import REAL, ROOT
from rendering import face
from waiting import gone, wait_for

from datamodules.demo.render import Pose
from datamodules.faces.align import EYES_AT, MOUTH_AT, FaceAligner, FaceDetector
from datamodules.voxceleb import shards
from datamodules.voxceleb.shards import build, read_index
from datamodules.voxceleb.utterances import find_utterances
from datamodules.voxceleb.windows import WINDOW_SECONDS, choose, window_count
from mefar import files
from mefar.__main__ import main
from mefar.errors import UserError

FAST = {"preset": "ultrafast", "threads": "1", "bf": "2", "g": "30"}
SIZE = 96


def tree(root, speakers=3, utterances=2, frames=40):
    """A VoxCeleb2 tree of barcodes."""
    for speaker in range(speakers):
        for utterance in range(utterances):
            path = root / "dev" / "mp4" / f"id{speaker:05d}" / f"video{utterance}" / "00001.mp4"
            film(path, (barcode(i) for i in range(frames)), options=FAST)
    return root


def made(voxceleb, out, **changes):
    # Not stabilised: the barcodes move, and would be held still.
    usual = {"size": SIZE, "faces": "precropped", "workers": 0, "stabilise": False}
    return build(voxceleb, out, **{**usual, **changes})


def contents(out):
    """Bytes of everything that matters in a cache."""
    names = [path.name for path in out.iterdir() if path.name != "index.npz"]
    document, (windows, times) = read_index(out)
    return {name: (out / name).read_bytes() for name in names}, windows.tolist(), times.tolist(), document


@pytest.fixture(scope="module")
def voxceleb(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("voxceleb"))


@pytest.fixture(scope="module")
def finished(voxceleb, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "whole"
    made(voxceleb, out)
    return out


def test_speakers_in_all_layouts(tmp_path):
    for name in (
        "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4",
        "test/mp4/id00017/id00012abcd/00002.mp4",  # a video's name may look like a speaker's
        "id10001#zELwAz2W6hM#000003#000150.mp4",
        "plain/face.MOV",
        "plain/other.avi",
        "train/Actor_01/a.mpg",
        "test/Actor_01/b.gif",
        "alone.m2ts",
        ".hidden.mp4",
        "notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert {u.path: u.speaker for u in find_utterances(tmp_path)} == {
        "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4": "id00012",
        "test/mp4/id00017/id00012abcd/00002.mp4": "id00017",
        "id10001#zELwAz2W6hM#000003#000150.mp4": "id10001",
        "plain/face.MOV": "plain",
        "plain/other.avi": "plain",
        "train/Actor_01/a.mpg": "Actor_01",
        "test/Actor_01/b.gif": "Actor_01",
        "alone.m2ts": "alone.m2ts",
    }


def test_folders_that_all_files_share_name_nobody(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        for folder in ("all/clips/Anna", "all/clips/Bob/day1", "alone/here"):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert {u.speaker for u in find_utterances(tmp_path / "all")} == {"Anna", "Bob"}
    assert {u.speaker for u in find_utterances(tmp_path / "alone")} == {"here"}, (
        "rather one person than a leak"
    )
    assert {u.speaker for u in find_utterances(tmp_path / "alone" / "here")} == {"a.mp4", "b.mp4"}


def chosen(known, frames, places):
    """The frame numbers of all windows; one place for all, or one for each."""
    count = window_count(known, frames)
    return [choose(known, frames, i, places[i % len(places)]) for i in range(count)]


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.floats(0.005, 0.4), min_size=0, max_size=400),
    frames=st.integers(2, 130),
    places=st.lists(st.floats(0.0, 1.0), min_size=5, max_size=5),
)
def test_windows_are_short_ordered_and_apart(steps, frames, places):
    known = np.concatenate([[0.0], np.cumsum(steps)])
    windows = chosen(known, frames, places)
    flat = [row for window in windows for row in window]
    assert flat == sorted(set(flat))
    assert 1 <= len(flat) <= frames
    assert 0 <= flat[0] <= flat[-1] < len(known)
    longest = max(steps, default=0.0)
    assert all(
        known[window[-1]] - known[window[0]] <= WINDOW_SECONDS + longest + 1e-9
        for window in windows
        if window
    )


def test_a_usual_utterance_gives_one_window_with_partners_at_every_gap():
    (rows,) = chosen(np.arange(200) / 25, 25, [0.3])
    steps = np.diff(np.array(rows) / 25)
    assert len(rows) == 25
    np.testing.assert_allclose(steps, 0.08)
    assert len(chosen(np.arange(200) / 25, 75, [0.3])) == 3
    assert len(chosen(np.arange(36) / 25, 25, [0.3])[0]) == 25, "short files are kept more densely"


def test_every_crop_is_the_frame_that_its_time_says(finished):
    document, (windows, times) = read_index(finished)
    assert document["summary"]["windows"] == len(windows) == 6
    assert document["summary"]["frames"] == len(times) == windows[:, 2].sum()
    assert sorted(document["speakers"]) == ["id00000", "id00001", "id00002"]
    start = 0
    for (shard, row, count, speaker), path in zip(windows.tolist(), document["paths"], strict=True):
        assert document["speakers"][speaker] in path
        crops = np.load(finished / f"shard-{shard:05d}.npy")[row : row + count]
        numbers = [number_in(crop[6 + 16 : -6, 6:-6]) for crop in crops]  # margin 6; 64 rows fitted into 96
        np.testing.assert_allclose(np.array(numbers) / 25, times[start : start + count], atol=1e-6)
        start += count


def test_progress_counts_to_the_end_and_a_second_call_is_silent(voxceleb, tmp_path):
    calls = []
    first = made(voxceleb, tmp_path, progress=lambda *call: calls.append(call))
    assert calls[-1][:2] == (6, 6)
    assert all(rate > 0 for *_, rate in calls)
    assert [done for done, *_ in calls] == sorted(done for done, *_ in calls)
    calls.clear()
    assert made(voxceleb, tmp_path, progress=lambda *call: calls.append(call)) == first
    assert not calls


def test_an_interrupted_build_goes_on_where_it_was(voxceleb, finished, tmp_path):
    def stop(done, total, rate):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(voxceleb, tmp_path, progress=stop)
    with pytest.raises(UserError, match="not finished"):
        read_index(tmp_path)
    first = (tmp_path / "shard-00000.npy").stat().st_mtime_ns
    made(voxceleb, tmp_path)
    assert (tmp_path / "shard-00000.npy").stat().st_mtime_ns == first
    assert contents(tmp_path) == contents(finished)


def test_a_killed_build_resumes_and_leaves_no_worker(voxceleb, finished, tmp_path):
    settings = f"{SIZE}, faces='precropped', stabilise=False, workers=2"
    code = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; from datamodules.voxceleb.shards import build\n"
        "if __name__ == '__main__':\n"
        f"    build(Path(sys.argv[1]), Path(sys.argv[2]), {settings})\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    out = tmp_path / "out"
    arguments = [str(script), str(voxceleb), str(out), str(ROOT)]
    child = subprocess.Popen([sys.executable, *arguments], start_new_session=True)
    while child.poll() is None and not list(out.glob("shard-*.json")):
        time.sleep(0.005)
    child.kill()  # nothing where it has ended
    child.wait()
    (out / f"shard-00001.npy.{files._HOST}-{child.pid}-0a1b2c.tmp").write_bytes(b"half")
    assert made(voxceleb, out).windows == 6
    assert not list(out.glob("*.tmp"))
    assert {k: v for k, v in contents(out)[0].items() if k.endswith(".npy")} == {
        k: v for k, v in contents(finished)[0].items() if k.endswith(".npy")
    }
    wait_for(lambda: gone(child.pid))  # workers watch their parent


def test_workers_make_the_same_cache(voxceleb, finished, tmp_path):
    made(voxceleb, tmp_path, workers=2)
    assert contents(tmp_path) == contents(finished)


def test_other_settings_and_other_files_are_refused(voxceleb, finished, tmp_path):
    before = contents(finished)
    changes = (
        ({"size": 64}, "size is 96 there, 64 now"),
        ({"stabilise": True}, "stabilise"),
        ({"seed": 3}, "seed"),
    )
    for change, word in changes:
        with pytest.raises(UserError, match=word):
            made(voxceleb, finished, **change)
    assert contents(finished) == before
    more = tree(tmp_path / "more", speakers=1)
    made(more, tmp_path / "out")
    film(more / "dev/mp4/id00000/video0/00001.mp4", [barcode(77)], options=FAST)
    with pytest.raises(UserError, match="the videos changed"):
        made(more, tmp_path / "out")


def test_bad_files_are_listed_and_nothing_takes_their_place(tmp_path):
    root = tree(tmp_path / "in", speakers=1, utterances=1)
    (root / "a_text.mp4").write_text("no video")
    (root / "b_empty.mp4").touch()
    sound_only(root / "c_sound.mp4")
    whole = film(tmp_path / "whole.mp4", (barcode(i) for i in range(40)), options=FAST)
    (root / "d_cut.mp4").write_bytes(whole.read_bytes()[:-4000])
    result = made(root, tmp_path / "out")
    with (tmp_path / "out" / "quarantine.csv").open() as table:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(table)}
    assert set(rows) == {"a_text.mp4", "b_empty.mp4", "c_sound.mp4", "d_cut.mp4"}
    assert "picture stream" in rows["c_sound.mp4"]
    assert all(reason and str(tmp_path) not in reason for reason in rows.values())
    assert (result.utterances, result.quarantined) == (1, 4)
    assert read_index(tmp_path / "out")[0]["paths"] == ["dev/mp4/id00000/video0/00001.mp4"]


def test_faces_are_aligned_once_and_held_still(tmp_path):
    """A head that drifts 9 pixels and tilts: eyes and mouth stay in place over the window."""
    frames = [face(2, pose=Pose(roll=0.2 * i, shift=(0.4 * i, 0))) for i in range(24)]
    film(tmp_path / "in" / "id00001" / "v" / "1.mp4", frames, options={**FAST, "crf": "12"})
    nobody = [np.random.default_rng(i).integers(60, 90, (160, 160, 3), dtype=np.uint8) for i in range(24)]
    film(tmp_path / "in" / "id00002" / "v" / "1.mp4", nobody, options=FAST)
    film(tmp_path / "in" / "id00003" / "v" / "1.mp4", [*frames[:12], *nobody[:12]], options=FAST)
    spread = {}
    for steady in (True, False):
        out = tmp_path / str(steady)
        made(tmp_path / "in", out, faces="align", stabilise=steady)
        assert read_index(out)[0]["paths"] == ["id00001/v/1.mp4"]
        reasons = (out / "quarantine.csv").read_text()
        assert reasons.count(shards.NO_FACE) == 2
        crops = np.load(out / "shard-00000.npy")
        points = np.stack([FaceDetector().detect(crop)[0].points for crop in crops[::6]])
        spread[steady] = np.ptp(points.mean(1), axis=0).max()
        middle = points[len(points) // 2] - 6  # the margin
        np.testing.assert_allclose(middle[:2].mean(0) / SIZE, EYES_AT, atol=0.06)
        np.testing.assert_allclose(middle[3:].mean(0) / SIZE, MOUTH_AT, atol=0.06)
    assert spread[True] < 1.0
    assert spread[False] > 4.0


def test_a_full_disk_is_foreseen_or_ends_cleanly(voxceleb, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr(shards.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match="GB free"):
            made(voxceleb, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]

    def full(file, array):
        file.write(b"half a sha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shards.np, "save", full)
        with pytest.raises(UserError, match="No space left") as caught:
            made(voxceleb, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "plan.json"]
    assert made(voxceleb, tmp_path / "out").windows == 6


def test_mistakes_are_named(finished, tmp_path):
    for folder, word in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "holds no video")):
        with pytest.raises(UserError, match=word):
            made(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="not finished"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"plan": ')
    with pytest.raises(UserError, match="damaged"):
        read_index(tmp_path)


def test_the_command_builds_and_says_what(voxceleb, tmp_path, capsys):
    (voxceleb / "bad.mp4").write_text("no video")
    try:
        argv = [
            str(voxceleb),
            str(tmp_path / "out"),
            "--size",
            "32",
            "--faces",
            "precropped",
            "--stabilise=false",
            "--workers",
            "0",
        ]
        assert main(["cache", *argv]) == 0
    finally:
        (voxceleb / "bad.mp4").unlink()
    said = capsys.readouterr().out
    assert "7 videos as raw, 25 crops each: about" in said
    assert "150 crops in 6 windows of 6 videos, 3 speakers" in said
    (line,) = [line for line in said.splitlines() if "quarantine.csv" in line]
    assert "1 of 7 videos gave nothing" in line
    assert "bad.mp4: not a readable video" in line


@pytest.mark.skipif(not REAL.is_dir(), reason="no real_video folder beside the project")
def test_real_video(tmp_path):
    (tmp_path / "in").mkdir()
    for path in REAL.glob("*.m*"):
        (tmp_path / "in" / path.name).symlink_to(path.absolute())
    result = build(tmp_path / "in", tmp_path / "out", 64, 50, workers=0)
    assert (result.utterances, result.quarantined) == (3, 1)
    assert read_quarantine(tmp_path / "out") == ["no_face.mp4"]
    crops = np.load(tmp_path / "out" / "shard-00000.npy")
    aligner = FaceAligner(72)
    assert np.mean([aligner.estimate(crop) is not None for crop in crops[::10]]) > 0.8


def read_quarantine(out):
    with (out / "quarantine.csv").open() as table:
        return [row["path"] for row in csv.DictReader(table)]
