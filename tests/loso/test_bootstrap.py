"""Intervals over subjects, and the paired comparison of two runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_runs import write_run
from sklearn.metrics import f1_score

from mefar.__main__ import main
from mefar.errors import UserError
from mefar.loso import bootstrap
from mefar.loso.results import Predictions, read_predictions

HEADER = "database,subject,clip,seed,label,last,oracle,p_a,p_b"


def predictions(rows: list[tuple[str, str, str, int, int]], classes: int = 3) -> Predictions:
    """Rows (database, subject, clip, label, guess)."""
    labels, guesses = (np.array([row[column] for row in rows]) for column in (3, 4))
    clips, p = tuple("/".join(row[:3]) for row in rows), np.full((len(rows), classes), 0.5)
    return Predictions(clips, (0,) * len(rows), labels, {"last": guesses}, p, tuple("abcd"[:classes]))


def drawn(right: float, clips: int = 6, subjects: int = 12, seed: int = 0) -> Predictions:
    """Predictions that are right with a probability, of two classes in two databases."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for subject, clip in product(range(subjects), range(clips)):
        hit = float(torch.rand((), generator=generator)) < right
        database, label = ("casme2", "samm")[subject % 2], clip % 2
        rows.append((database, str(subject), f"c{clip}", label, label if hit else 1 - label))
    return predictions(rows, 2)


def test_more_clips_of_the_same_faces_are_no_more_certainty() -> None:
    """Every clip twice: draws of clips would narrow the interval, draws of subjects cannot see it."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for subject in range(10):  # a subject is mostly right or mostly wrong, as people are
        sure = 0.95 if subject % 2 else 0.2
        for clip in range(8):
            right = float(torch.rand((), generator=generator)) < sure
            rows.append(("samm", f"s{subject}", f"c{clip}", clip % 3, clip % 3 if right else (clip + 1) % 3))
    twice = [(*row[:2], f"{row[2]}{copy}", *row[3:]) for row in rows for copy in "ab"]
    worse = [(*row[:4], (row[3] + 1) % 3 if row[1] == "s1" else row[4]) for row in rows]
    worse_twice = [(*row[:2], f"{row[2]}{copy}", *row[3:]) for row in worse for copy in "ab"]
    once_read, twice_read = predictions(rows), predictions(twice)
    found, doubled = (bootstrap.intervals(each)["last"]["full"] for each in (once_read, twice_read))
    for name in ("uf1", "uar"):
        assert doubled[name] == pytest.approx(found[name])
        assert found[name][1] - found[name][0] > 0.3
    difference = bootstrap.compare(once_read, predictions(worse))["uf1"]
    same = bootstrap.compare(twice_read, predictions(worse_twice))["uf1"]
    assert (same.low, same.high) == pytest.approx((difference.low, difference.high))
    assert difference.high == 0 > difference.low  # a third of the draws do not hold s1


def test_a_class_that_a_draw_or_a_database_lacks_counts_zero() -> None:
    """Everything is right; class 2 is seen in one subject of casme2 only, and class 1 not in smic."""
    rows = [("casme2", f"s{subject}", f"c{label}", label, label) for subject in range(6) for label in (0, 1)]
    rows += [("casme2", "s0", "c2", 2, 2)]
    rows += [("smic", f"s{subject}", "c0", 0, 0) for subject in range(3)]
    found = bootstrap.intervals(predictions(rows))["last"]
    for name in ("uf1", "uar"):
        assert found["full"][name] == pytest.approx([2 / 3, 1])
        assert found["casme2"][name] == pytest.approx([2 / 3, 1])
        assert found["smic"][name] == pytest.approx([1 / 3, 1 / 3])
    against = bootstrap.compare(predictions(rows), predictions(rows))["uf1"]
    assert against.first == against.second == pytest.approx(1)
    worse = predictions([(*row[:4], 0) for row in rows])
    both = bootstrap.compare(predictions(rows), worse)["uar"]  # 1 or, without s0, 2/3, against 1/3 always
    assert (both.low, both.high) == pytest.approx((1 / 3 - 1, 1 / 3 - 2 / 3))


def test_draws_keep_the_number_of_subjects_of_each_database() -> None:
    names = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1")]
    weights = bootstrap.draws(names, 50)
    assert (weights[:, :3].sum(1) == 3).all() and (weights[:, 3] == 1).all()
    assert weights[:, :3].std(0).min() > 0.5


def test_intervals_hold_the_score_and_narrow_with_more_subjects() -> None:
    few, many = (bootstrap.intervals(drawn(0.7, subjects=number))["last"] for number in (8, 80))
    assert set(few) == {"full", "casme2", "samm"}
    low, high = many["full"]["uf1"]
    assert low < 0.7 < high
    assert high - low < 0.6 * (few["full"]["uf1"][1] - few["full"]["uf1"][0])


def test_a_real_difference_is_seen_and_none_is_not() -> None:
    weak = drawn(0.6)
    found = bootstrap.compare(weak, drawn(0.95, seed=1))["uf1"]
    assert found.low > 0 and found.reversed_share == 0 and found.second > found.first
    assert found.first == pytest.approx(f1_score(weak.labels, weak.chosen["last"], average="macro"))
    same = bootstrap.compare(weak, weak)["uf1"]
    assert same.low == same.high == 0 and same.reversed_share == 1


def test_heads_of_other_seeds_are_compared_as_they_are() -> None:
    rows = drawn(0.7)
    seeds = (*[0] * len(rows.clips), *[1] * len(rows.clips))
    chosen = {name: np.concatenate([guess, guess]) for name, guess in rows.chosen.items()}
    twice = replace(
        rows, clips=rows.clips * 2, seeds=seeds, labels=np.concatenate([rows.labels] * 2), chosen=chosen,
        probabilities=np.concatenate([rows.probabilities] * 2),
    )  # fmt: skip
    same = bootstrap.compare(rows, twice)["uf1"]
    assert (same.low, same.high, same.second) == pytest.approx((0, 0, same.first))
    better = drawn(0.95, seed=1)
    for first in (rows, twice):
        assert bootstrap.compare(first, better)["uf1"].low == pytest.approx(
            bootstrap.compare(rows, better)["uf1"].low
        )


def test_other_clips_are_refused() -> None:
    rows = drawn(0.8)
    with pytest.raises(UserError, match="casme2/0/c4"):
        bootstrap.compare(rows, drawn(0.8, clips=4))
    with pytest.raises(UserError, match="other classes, a, b and a, b, c"):
        bootstrap.compare(rows, predictions([("samm", "1", "c", 0, 0)]))
    with pytest.raises(UserError, match="selection 'inner'"):
        bootstrap.compare(rows, rows, "inner")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "run", pictures={}))
    assert main(["compare", run, run]) == 0
    assert "UF1" in capsys.readouterr().out
    assert main(["compare", run, str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none/predictions.csv: no such file" in error


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        ("", [], "no column 'database'"),
        (HEADER, [], "no rows"),
        (HEADER.replace("label", "truth"), ["samm,1,c,0,0,0,0,.5,.5"], "no column 'label'"),
        (HEADER, ["samm,1,c,0,0,0,0,.5,.5", "samm,1,d,0,x,0,0,.5,.5"], "line 3: label is 'x'"),
        (HEADER, ["samm,1,c,0,0,2,0,.5,.5"], "line 2: last 2 of 2 classes"),
        (HEADER, ["samm,1,c,0,0,0,0,.5"], "line 2: p_b is None"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, header: str, rows: list[str], says: str) -> None:
    (tmp_path / "predictions.csv").write_text("\n".join([header, *rows]))
    with pytest.raises(UserError, match=rf"predictions\.csv.*{says}"):
        read_predictions(tmp_path)
