"""Spotting scores against the definition, by brute force, and against the faults of other evaluators."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mefar.__main__ import main
from mefar.errors import UserError
from mefar.recognition.intervals import Interval, IntervalTable, read_intervals, write_intervals
from mefar.recognition.scores import CLASSES, SpottingScore, elsewhere, match, score

intervals = st.builds(
    lambda video, kind, onset, length, emotion: Interval(video, kind, onset, onset + length, emotion),
    st.sampled_from(["a/1", "a/2", "b/1"]),
    st.sampled_from(["micro", "macro"]),
    st.integers(0, 30),
    st.integers(0, 12),
    st.sampled_from([*CLASSES, "others", ""]),
)
few = st.lists(intervals, max_size=5)


def table(rows: list[Interval]) -> IntervalTable:
    videos = {row.video for row in rows}
    return IntervalTable(tuple(rows), frozenset(videos), {v: v.split("/")[0] for v in videos})


def most_pairs(truths: list[Interval], found: list[Interval]) -> int:
    """By trying every order of the detections: each truth takes the detection at its place."""
    padded = [*found, *[None] * len(truths)]
    return max(
        sum(
            one is not None and truth.video == one.video and truth.kind == one.kind and truth.iou(one) >= 0.5
            for truth, one in zip(truths, order, strict=False)
        )
        for order in permutations(padded, len(truths))
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(intervals, max_size=4), st.lists(intervals, max_size=4))
def test_true_positives_are_the_largest_matching_and_counts_add_up(truths: list, found: list) -> None:
    overall = score(truths, found)["overall"]
    assert overall["tp"] == most_pairs(truths, found)
    assert overall["tp"] + overall["fn"] == len(truths)
    assert overall["tp"] + overall["fp"] == len(found)


@settings(max_examples=40, deadline=None)
@given(few, few, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_of_videos_does_not_matter(truths: list, found: list, random: object) -> None:
    once = score(truths, found)
    metric = SpottingScore()
    for video in ("b/1", "a/1", "a/2"):  # one video at a time
        metric.update([t for t in truths if t.video == video], [f for f in found if f.video == video])
    spotting = [once[g][n] for g in once for n in ("tp", "fp", "fn", "f1")]
    assert [metric.compute()[g][n] for g in once for n in ("tp", "fp", "fn", "f1")] == spotting
    random.shuffle(truths)
    random.shuffle(found)
    again = score(truths, found)
    assert [again[g][n] for g in once for n in ("tp", "fp", "fn", "f1")] == spotting


@given(few)
def test_the_truth_itself_is_perfect(truths: list[Interval]) -> None:
    rows = list({(t.video, t.kind, t.onset): t for t in truths}.values())
    found = score(rows, rows)["overall"]
    assert (found["fp"], found["fn"]) == (0, 0)
    assert found["f1"] == (1.0 if rows else 0.0)


def test_first_and_last_frame_count_and_half_is_enough() -> None:
    truth = Interval("v", "micro", 10, 19)
    assert truth.iou(Interval("v", "micro", 10, 14)) == 0.5
    assert len(match([truth], [Interval("v", "micro", 10, 14)])) == 1
    assert len(match([truth], [Interval("v", "micro", 10, 13)])) == 0
    assert len(match([truth], [Interval("w", "micro", 10, 19)])) == 0


def test_the_matching_gives_most_true_positives_not_the_nearest_pair() -> None:
    truths = [Interval("v", "micro", 0, 9), Interval("v", "micro", 4, 13)]
    found = [Interval("v", "micro", 2, 11), Interval("v", "micro", 6, 15)]  # the first is near both truths
    assert sorted(match(truths, found)) == [(0, 0), (1, 1)]


def five_and_five() -> tuple[list[Interval], list[Interval]]:
    """The ready example: 5 truths, 5 detections, 3 hits; one of three classes is right."""
    truths = [Interval("v", "micro", 100 * k, 100 * k + 9, c) for k, c in enumerate((*CLASSES, *CLASSES[:2]))]
    called = ["negative", "surprise", "positive"]
    hits = [Interval("v", "micro", 100 * k, 100 * k + 9, c) for k, c in enumerate(called)]
    return truths, [*hits, Interval("v", "micro", 50, 59), Interval("w", "micro", 0, 9)]


def test_the_ready_example() -> None:
    truths, found = five_and_five()
    micro = score(truths, found)["micro"]
    assert (micro["tp"], micro["fp"], micro["fn"]) == (3, 2, 2)
    assert micro["f1"] == pytest.approx(0.6)
    assert micro["analysis_f1"] == pytest.approx(1 / 3)
    assert micro["strs"] == pytest.approx(0.2)


def test_analysis_is_the_harmonic_mean_and_leaves_others_out() -> None:
    def video(pairs: list[tuple[str, str]]) -> tuple[list[Interval], list[Interval]]:
        where = [(100 * k, 100 * k + 9) for k in range(len(pairs))]
        return tuple(
            [Interval("v", "micro", *at, pair[side]) for at, pair in zip(where, pairs, strict=True)]
            for side in (0, 1)
        )

    pairs = [("negative", "negative")] * 3 + [("positive", "negative"), ("surprise", "others")]
    found = score(*video(pairs))["micro"]
    assert found["analysis_precision"] == pytest.approx((3 / 4 + 0 + 0) / 3)
    assert found["analysis_recall"] == pytest.approx((1 + 0 + 0) / 3)
    harmonic = 2 * 0.25 * (1 / 3) / (0.25 + 1 / 3)
    assert found["analysis_f1"] == pytest.approx(harmonic)
    with_others = score(*video([*pairs, ("others", "negative")]))["micro"]
    assert with_others["analysis_f1"] == pytest.approx(harmonic)


def reasons(truths: list[Interval], found: list[Interval]) -> dict[str, str]:
    return {reason: number for number, reason in elsewhere(table(truths), table(found))}


def test_each_fault_of_another_evaluator_is_named_where_it_changes_the_number() -> None:
    macro = [Interval("a/1", "macro", 0, 9)]
    said = reasons(macro, [Interval("a/1", "micro", 0, 9)])
    assert said["micro matched with macro"] == "F1 1.0000 (TP 1, FP 0, FN 0)"
    assert score(macro, [Interval("a/1", "micro", 0, 9)])["overall"]["f1"] == 0

    two = [Interval("a/1", "micro", 0, 9), Interval("a/1", "micro", 1, 10)]
    assert "TP 2, FP 0, FN 0" in reasons(two, two[:1])["one detection counted for several truths"]

    silent = reasons(two[:1], [*two[:1], Interval("b/1", "micro", 0, 9)])
    assert "FP 0" in silent["videos without a truth left out, and the false positives in them"]

    unheard = reasons([*two[:1], Interval("b/1", "micro", 0, 9)], two[:1])
    assert "FN 0" in unheard["subjects without a detection left out, and the misses in them"]

    half = reasons([Interval("a/1", "micro", 10, 19)], [Interval("a/1", "micro", 10, 14)])
    assert "TP 0" in half["the last frame not counted as part of it"]

    truths, called = five_and_five()
    assert reasons(truths, truths) == {}
    called[1] = Interval("v", "micro", 100, 109, "negative")
    assert "UAR" in reasons(truths, called)["the mean precision called UAR"]


def test_ranks_add_up() -> None:
    truths, found = five_and_five()
    whole, halves = SpottingScore(), [SpottingScore(), SpottingScore()]
    whole.update(truths, found)
    for half, video in zip(halves, ("v", "w"), strict=True):
        half.update([t for t in truths if t.video == video], [f for f in found if f.video == video])
    assert torch.equal(whole.spotted, halves[0].spotted + halves[1].spotted)
    assert torch.equal(whole.called, halves[0].called + halves[1].called)


@given(few)
def test_files_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("csv") / "found.csv"
    write_intervals(path, rows, ["a/3"])
    read = read_intervals(path)
    assert list(read.intervals) == sorted(rows)
    assert read.videos == {row.video for row in rows} | {"a/3"}


def test_the_command_reads_a_challenge_file_and_gives_reasons(tmp_path, capsys) -> None:
    truth, found = tmp_path / "truth.csv", tmp_path / "found.csv"
    truth.write_text(
        "Database,Subject,Filename,Type,Onset,Offset,Emotion\n"
        "samm,006,006_1,Micro - 1/2,10,19.000001,negative\n"
        "samm,006,006_2,,,,\nsamm,007,007_1,Macro,5,90,positive\n"
    )
    found.write_text(
        "dataset,sub,vid,type,pred_onset,pred_offset,emotion\n"
        "samm,006,006_1,me,11,20,negative\nsamm,006,006_2,me,3,9,\n"
    )
    assert main(["score-spotting", str(truth), str(found), "--out", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr().out
    assert "3 videos" in said
    assert "subjects without a detection left out" in said
    assert "F1 0.6667 (TP 1, FP 0, FN 1): videos without a truth left out" in said
    assert (tmp_path / "scores.json").is_file()
    assert main(["score-spotting", str(truth), str(found), "--out", str(truth)]) == 2
    assert "truth.csv: a folder, or holds something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("video,onset,offset\n", "no column kind"),
        ("video,kind,onset,offset\nv,nano,1,2\n", "row 2: kind is 'nano'; write micro or macro"),
        ("video,kind,onset,offset\nv,micro,1,2\nv,micro,9,2\n", "row 3: offset 2 lies before onset 9"),
        ("video,kind,onset,offset\nv,micro,one,2\n", "row 2: onset is 'one', not a frame number"),
        ("video,kind,onset,offset\nv,micro,inf,2\n", "row 2: onset is 'inf', not a frame number"),
        ("video,kind,onset,offset\n,micro,1,2\n", "row 2: no video named"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text: str, complaint: str) -> None:
    path = tmp_path / "found.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint) as caught:
        read_intervals(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
