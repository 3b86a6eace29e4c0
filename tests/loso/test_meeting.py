"""Ranks that wait for each other, and what the others do when one dies, hangs or fails."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from launching import children, end, free_port, slurm, start, wait_for
from test_loso import CPU, TRAINING, run, trained

from mefar.errors import UserError
from mefar.loso import folds, meeting
from mefar.loso.folds import Fold
from mefar.loso.meeting import Meeting, occupy

EIGHT = replace(TRAINING, epochs=8)
GO_ON = "finished folds are kept, the same command goes on"


# Signs


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[Meeting]]]:
    """Ranks of one attempt, all in this process."""
    monkeypatch.setattr(meeting, "BEAT", 0.02)
    monkeypatch.setattr(meeting, "PATIENCE", 0.3)
    made: list[Meeting] = []

    def open_all(world: int) -> list[Meeting]:
        made.extend(Meeting(tmp_path, "now", rank, world) for rank in range(world))
        for each in made:
            each.open()
        return made

    yield open_all
    for each in made:
        each._over.set()


def vanish(rank: Meeting) -> None:
    """As if its process had been killed."""
    rank._over.set()
    rank._thread.join()


@pytest.mark.parametrize("last", [0, 1, 2])
def test_rank_0_concludes_when_the_last_is_done(
    ranks: Callable[[int], list[Meeting]], tmp_path: Path, last: int
) -> None:
    happened: list[str] = []

    def finish(each: Meeting) -> None:
        if each.rank == last:
            time.sleep(0.5)  # longer than a dead rank is waited for
        happened.append("done")
        each.finish(lambda: happened.append("concluded"))
        happened.append("left")

    threads = [threading.Thread(target=finish, args=(each,)) for each in ranks(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert happened == ["done"] * 3 + ["concluded"] + ["left"] * 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dead", [0, 2])
def test_a_silent_rank_ends_those_that_wait_and_those_that_work(
    ranks: Callable[[int], list[Meeting]], dead: int
) -> None:
    three = ranks(3)
    vanish(three[dead])
    began = time.monotonic()
    with pytest.raises(UserError, match=f"rank {dead} gave no sign of life for 0 s; {GO_ON}"):
        three[2 - dead].finish(lambda: pytest.fail("concluded without a rank"))
    assert time.monotonic() - began < 2
    wait_for(lambda: three[1].trouble, 2)
    with pytest.raises(UserError, match=f"rank {dead} gave no sign"):
        three[1].check()


def test_what_ended_a_rank_reaches_all_with_its_number(ranks: Callable[[int], list[Meeting]]) -> None:
    three = ranks(3)
    three[2].fail(UserError("model a: training diverged"))
    with pytest.raises(UserError, match=f"^rank 2: model a: training diverged; {GO_ON}"):
        three[0].finish(lambda: None)
    # Rank 0 ends because of rank 2; rank 1 must hear of rank 2, from whomever.
    three[0].fail(UserError("rank 2: model a: training diverged"))
    wait_for(lambda: three[1].trouble, 2)
    assert str(three[1].trouble).startswith("rank 2: model a")


def test_signs_of_an_earlier_attempt_are_not_believed(
    ranks: Callable[[int], list[Meeting]], tmp_path: Path
) -> None:
    first, second = ranks(2)
    vanish(second)
    stop = threading.Event()

    def haunt() -> None:
        for count in range(1000):
            sign = {"attempt": "before", "count": count, "state": "done", "message": ""}
            (tmp_path / "rank1.alive").write_text(json.dumps(sign))
            if stop.wait(0.01):
                return

    ghost = threading.Thread(target=haunt)
    ghost.start()
    try:
        with pytest.raises(UserError, match="rank 1 gave no sign of life"):
            first.finish(lambda: pytest.fail("believed a sign of another attempt"))
    finally:
        stop.set()
        ghost.join()


def test_a_rank_that_was_stopped_does_not_take_its_sleep_for_the_others(
    ranks: Callable[[int], list[Meeting]],
) -> None:
    first, second = ranks(2)
    wait_for(lambda: first._seen)
    vanish(second)
    first._looked -= 3600
    first._look([1])
    first.check()
    wait_for(lambda: first.trouble, 2)


def test_a_torn_sign_is_read_again(ranks: Callable[[int], list[Meeting]], tmp_path: Path) -> None:
    first, second = ranks(2)
    vanish(second)
    (tmp_path / "rank1.alive").write_text('{"attempt": "now", "sta')
    first._look([1])
    (tmp_path / "rank1.alive").write_text("[1]")
    first._look([1])
    first.check()


def test_an_order_to_end_is_one_line(ranks: Callable[[int], list[Meeting]], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    alone = Meeting(tmp_path, "now", 0, 1)
    alone.open()
    alone.catch_orders()
    alone.catch_orders()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(UserError, match=rf"told to end \(SIGTERM\); {GO_ON}"):
        alone.check()
    alone.fail(UserError("x"))
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.iterdir())
    # Launchers give this order to all when one rank has died: then that is the news.
    first, second = ranks(2)
    vanish(second)
    first.patience = 60
    first.catch_orders()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(UserError, match=f"rank 1 died; {GO_ON}"):
        first.finish(lambda: None)
    first.fail(UserError("x"))
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_rank_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    Meeting(tmp_path, "now", 0, 1, os.getppid()).check()
    with pytest.raises(UserError, match=f"rank 0: the process that started it died; {GO_ON}"):
        Meeting(tmp_path, "now", 0, 1, os.getpid()).check()


def test_an_attempt_waits_for_the_end_of_another(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    file.write_text("{}")
    first, beside = occupy(file, first=True), occupy(file, first=False)
    with pytest.raises(UserError, match="another process works on this run; end it first"):
        occupy(file, first=True, seconds=0)
    first.close()
    threading.Timer(0.3, beside.close).start()
    began = time.monotonic()
    occupy(file, first=True, seconds=10).close()
    assert time.monotonic() - began > 0.2
    assert file.read_text() == "{}"


# Runs


def at_group(number: int, what: Callable[[], None], monkeypatch: pytest.MonkeyPatch, rank: int = 1) -> None:
    """Let something happen when a rank trains its n-th group, counted from 0."""
    real, begun = folds.train_group, Counter[str]()

    def train(data: object, group: Sequence[Fold], *rest: object) -> object:
        here = os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))
        begun[here] += 1
        if here == str(rank) and begun[here] == number + 1:
            what()
        return real(data, group, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(folds, "train_group", train)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def diverge() -> None:
    raise UserError("model x: training diverged in epoch 1")


TWO = replace(CPU, devices=2, workers=1, group=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """predictions.csv of an undisturbed run by one process."""
    out = tmp_path_factory.mktemp("whole")
    run(out, replace(CPU, group=1), training=EIGHT)
    return (out / "predictions.csv").read_bytes()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (kill, rf"^rank 1 died \(SIGKILL; memory may have run out\); {GO_ON}"),
        (diverge, "^model x: training diverged in epoch 1$"),
    ],
)
def test_forked_ranks_end_with_one_of_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: bytes,
    what: Callable[[], None],
    message: str,
) -> None:
    monkeypatch.setattr(meeting, "BEAT", 0.1)
    earlier = children()
    with monkeypatch.context() as patched:
        at_group(1, what, patched)
        began = time.monotonic()
        with pytest.raises(UserError, match=message):
            run(tmp_path, TWO, training=EIGHT)
        assert time.monotonic() - began < 30
    assert children() <= earlier
    assert not (tmp_path / "summary.json").exists()
    assert len(trained(tmp_path)) < 6
    run(tmp_path, TWO, training=EIGHT)
    assert set(trained(tmp_path).values()) == {1}
    assert len(trained(tmp_path)) == 6
    assert (tmp_path / "predictions.csv").read_bytes() == whole
    assert not list(tmp_path.glob("*alive*"))


@pytest.mark.parametrize(
    ("what", "dead", "group", "message"),
    [
        (kill, 0, 1, "rank {} gave no sign of life for 2 s"),  # the process group's store dies with it
        (kill, 1, 2, "rank {} gave no sign of life for 2 s"),  # its last one: rank 0 may be waiting
        (stop, 1, 1, "rank {} gave no sign of life for 2 s"),  # its connections stay open
        (diverge, 1, 0, "rank {}: model x: training diverged in epoch 1"),
    ],
)
def test_ranks_that_nobody_watches_end_with_one_of_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: bytes,
    what: Callable[[], None],
    dead: int,
    group: int,
    message: str,
) -> None:
    """As under SLURM: no launcher tells them."""
    port, work = free_port(), lambda: run(tmp_path / "run", TWO, training=EIGHT)
    with monkeypatch.context() as patched:
        at_group(group, what, patched, rank=dead)
        started = [start(work, slurm(rank, 2, port), tmp_path / str(rank)) for rank in range(2)]
        assert end(started[1 - dead]) == 2
        if what is stop:
            os.kill(started[dead], signal.SIGKILL)
        assert end(started[dead]) == (2 if what is diverge else -signal.SIGKILL)
    lines = [line for line in (tmp_path / str(1 - dead)).read_text().splitlines() if "mefar" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"mefar loso: error: {message.format(dead)}; {GO_ON}")
    port = free_port()
    started = [start(work, slurm(rank, 2, port), tmp_path / str(rank)) for rank in range(2)]
    assert [end(process) for process in started] == [0, 0]
    assert set(trained(tmp_path / "run").values()) == {1}
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == whole


def test_a_rank_that_dies_before_the_start_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meeting, "open", lambda self: kill() if self.rank else None)
    port, work = free_port(), lambda: run(tmp_path / "run", TWO, training=EIGHT)
    started = [start(work, slurm(rank, 2, port), tmp_path / str(rank)) for rank in range(2)]
    assert [end(process) for process in started] == [2, -signal.SIGKILL]
    lines = (tmp_path / "0").read_text().splitlines()
    assert lines[-1].startswith("mefar loso: error: another rank was lost (RuntimeError: ")
    assert lines[-1].endswith("; finished folds are kept, the same command goes on from there")


def test_ranks_that_lost_who_started_them_end_before_the_run_goes_on(tmp_path: Path, whole: bytes) -> None:
    """Ignoring Ctrl-C, as what a shell starts in the background does, which is how the system tells them."""
    out, ignored = tmp_path / "run", lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    work = lambda: (ignored(), run(out, TWO, training=EIGHT))  # noqa: E731
    process = start(work, {}, tmp_path / "log")
    wait_for(lambda: trained(out))
    os.kill(process, signal.SIGKILL)
    assert end(process) == -signal.SIGKILL
    run(out, replace(CPU, group=1), training=EIGHT)
    assert set(trained(out).values()) == {1}
    assert (out / "predictions.csv").read_bytes() == whole
