"""What kills or hangs a worker is found and left out; everything else is done once."""

import csv
import os
import resource
import signal
import time
from functools import partial

import pytest
from filming import barcode, film

from datamodules.voxceleb import shards
from datamodules.voxceleb.parallel import work
from datamodules.voxceleb.shards import build, left_out, read_index
from mefar import progress
from mefar.errors import UserError
from mefar.files import lock

FAST = {"preset": "ultrafast", "threads": "1"}


def job(folder, bad, number, left_out, opening):
    """Files `0`, `1`, `2`; `bad`: what to do at which (job, file)."""
    lines = []
    for step in ("0", "1", "2"):
        if step in left_out:
            lines.append(f"{step} {left_out[step]}")
            continue
        opening(step)
        act = bad.get((number, step))
        if act == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif act == "leave":
            os._exit(7)
        elif act == "hang":
            time.sleep(60)
        elif act == "once" and not (folder / "seen").exists():
            (folder / "seen").touch()
            os._exit(1)
        elif act == "raise":
            raise UserError(f"step {step} went wrong")
        lines.append(step)
    opening("")
    if bad.get((number, "end")):
        os._exit(3)
    (folder / str(number)).write_text("\n".join(lines))


def done(folder, bad, count=4, workers=2):
    jobs = {number: partial(job, folder, bad, number) for number in range(count)}
    numbers = list(work(jobs, workers, patience=2.0))  # a busy machine stands still for a while
    assert sorted(numbers) == list(range(count)), "each job once"
    return {number: (folder / str(number)).read_text().splitlines() for number in numbers}


def test_a_step_that_kills_or_hangs_is_left_out(tmp_path):
    bad = {(1, "1"): "die", (2, "0"): "hang", (2, "2"): "leave", (3, "1"): "once"}
    got = done(tmp_path, bad)
    assert got[0] == got[3] == ["0", "1", "2"], "a death that does not come again is forgiven"
    assert got[1] == ["0", "1 kills its reader (SIGSEGV)", "2"]
    assert got[2] == ["0 hangs its reader for more than 2 s", "1", "2 kills its reader (exit code 7)"]


def test_an_error_is_raised_here_and_a_death_between_steps_is_no_files_fault(tmp_path):
    with pytest.raises(UserError, match="step 1 went wrong") as caught:
        done(tmp_path, {(0, "1"): "raise"}, 1, 1)
    assert "in job" in str(caught.value.__cause__), "the worker's traceback"
    with pytest.raises(UserError, match="exit code 3"):
        done(tmp_path, {(0, "end"): "leave"}, 1, 1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        path = root / f"id{number:05d}" / "v" / "1.mp4"
        film(path, (barcode(i) for i in range(40)), options=FAST)
    return root


def made(root, out, workers=1):
    return build(root, out, 96, faces="precropped", workers=workers, stabilise=False)


_make_shard = shards._make_shard


def _with_a_crashing_decoder(*arguments):
    """Runs in the worker."""
    reading = shards.read_windows

    def read(path, name, *more):
        if name.startswith("id00002"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return reading(path, name, *more)

    shards.read_windows = read
    try:
        _make_shard(*arguments)
    finally:
        shards.read_windows = reading


def test_a_file_that_crashes_the_decoder_is_quarantined(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_make_shard", _with_a_crashing_decoder)
    result = made(videos, tmp_path / "out", workers=2)
    assert (result.utterances, result.quarantined) == (5, 1)
    with (tmp_path / "out" / "quarantine.csv").open() as rows:
        assert list(csv.DictReader(rows)) == [
            {"path": "id00002/v/1.mp4", "reason": "kills its reader (SIGSEGV)"}
        ]
    assert "id00002" not in " ".join(read_index(tmp_path / "out")[0]["paths"])
    line = left_out(tmp_path / "out")
    assert line is not None
    assert "1 of 6 videos" in line
    assert str(tmp_path / "out" / "quarantine.csv") in line
    assert line.endswith("id00002/v/1.mp4: kills its reader (SIGSEGV)")


def test_a_disk_that_fills_in_a_worker_ends_cleanly(videos, tmp_path):
    """A limit on the size of files stands for the full disk: the write in the worker fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(UserError, match="cannot write the cache") as caught:
            made(videos, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "plan.json"]
    assert made(videos, tmp_path, workers=0).windows == 6
    assert left_out(tmp_path) is None


def test_a_second_builder_waits_for_the_first(videos, tmp_path):
    """As two machines with one disk do: the second finds everything there."""
    (tmp_path / "out").mkdir()
    asking, answering = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with lock(tmp_path / "out" / ".lock"):
                os.write(answering, b"!")
                time.sleep(0.5)
                (tmp_path / "ended").touch()
        finally:
            os._exit(0)
    os.read(asking, 1)
    assert made(videos, tmp_path / "out", workers=0).windows == 6
    assert (tmp_path / "ended").exists()
    os.waitpid(child, 0)


def test_progress_tells_rate_and_time_left_in_a_log_too(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress.shown("reading videos") as told:
        assert capsys.readouterr() == ("", ""), "nothing to do, nothing to say"
        told(256, 1_092_009, 14.5)
    assert "reading videos: 256 of 1092009 files, 14.5/s, 20:54:53 left" in capsys.readouterr().err
    assert progress.time_left(1, 2, 0.0) == "?"
