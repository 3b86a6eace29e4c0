"""Intervals over subjects, and the paired comparison of two runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from token_sets import token_set

from mefar.__main__ import main
from mefar.errors import UserError
from mefar.loso import bootstrap
from mefar.loso.results import Predictions, read_predictions
from mefar.loso.scores import place_scores
from mefar.metrics import scores

HEAD = "database,subject,clip,fold,seed,label,last,oracle,p_a,p_b\n"


def write(folder: Path, right: float, clips: int = 6, subjects: int = 12, seed: int = 0) -> Path:
    """A run whose predictions are right with a probability, in two databases."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for subject in range(subjects):
        for clip in range(clips):
            label = clip % 2
            hit = float(torch.rand((), generator=generator)) < right
            guess = label if hit else 1 - label
            database = "samm" if subject % 2 else "casme2"
            rows.append(f"{database},{subject},c{clip},{subject},0,{label},{guess},{label},0.5,0.5\n")
    folder.mkdir()
    (folder / "predictions.csv").write_text(HEAD + "".join(rows))
    return folder


def table(folder: Path, rows: list[tuple[str, str, str, int, int]], classes: int = 3) -> Predictions:
    """predictions.csv of rows (database, subject, clip, label, guess), read back."""
    p = ",".join(f"p_{number}" for number in range(classes))
    lines = [f"{','.join(map(str, row[:3]))},0,{row[3]},{row[4]}{',0.5' * classes}" for row in rows]
    folder.mkdir(exist_ok=True)
    (folder / "predictions.csv").write_text("\n".join([f"database,subject,clip,seed,label,last,{p}", *lines]))
    return read_predictions(folder)


def test_the_mean_of_whole_draws_is_the_score(tmp_path: Path) -> None:
    rows = read_predictions(write(tmp_path / "a", 0.8))
    names, counts = bootstrap.subject_counts(rows, "last")
    once = torch.ones(1, len(names), dtype=torch.float64)
    found = bootstrap.resampled(counts, once)
    expected = scores(torch.from_numpy(rows.labels), torch.from_numpy(rows.chosen["last"]), 2)
    assert found["uf1"].item() == pytest.approx(expected["uf1"])
    assert found["uar"].item() == pytest.approx(expected["uar"])


def test_more_clips_of_the_same_faces_are_no_more_certainty(tmp_path: Path) -> None:
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
    once_read, twice_read = table(tmp_path / "once", rows), table(tmp_path / "twice", twice)
    found, doubled = (bootstrap.intervals(each)["last"]["full"] for each in (once_read, twice_read))
    for name in ("uf1", "uar"):
        assert doubled[name] == pytest.approx(found[name])
        assert found[name][1] - found[name][0] > 0.3
    difference = bootstrap.compare(once_read, table(tmp_path / "worse", worse))["uf1"]
    same = bootstrap.compare(twice_read, table(tmp_path / "worse twice", worse_twice))["uf1"]
    assert (same.low, same.high) == pytest.approx((difference.low, difference.high))
    assert difference.high == 0 > difference.low  # a third of the draws do not hold s1


def test_a_class_that_a_draw_or_a_database_lacks_counts_zero(tmp_path: Path) -> None:
    """Everything is right; class 2 is seen in one subject of casme2 only, and class 1 not in smic."""
    rows = [("casme2", f"s{subject}", f"c{label}", label, label) for subject in range(6) for label in (0, 1)]
    rows += [("casme2", "s0", "c2", 2, 2)]
    rows += [("smic", f"s{subject}", "c0", 0, 0) for subject in range(3)]
    predictions = table(tmp_path / "run", rows)
    found = bootstrap.intervals(predictions)["last"]
    for name in ("uf1", "uar"):
        assert found["full"][name] == pytest.approx([2 / 3, 1])
        assert found["casme2"][name] == pytest.approx([2 / 3, 1])
        assert found["smic"][name] == pytest.approx([1 / 3, 1 / 3])
    against = bootstrap.compare(predictions, table(tmp_path / "same", rows))["uf1"]
    assert against.first == against.second == pytest.approx(1)
    worse = table(tmp_path / "worse", [(*row[:4], 0) for row in rows])
    both = bootstrap.compare(predictions, worse)["uar"]  # 1 or, without s0, 2/3, against 1/3 always
    assert (both.low, both.high) == pytest.approx((1 / 3 - 1, 1 / 3 - 2 / 3))


def test_rows_of_single_databases_count_absent_classes_too() -> None:
    """Everything is right, smic has no clip of the third class: its scores are 2/3, not 1."""
    data = token_set(subjects=(*(f"casme2/{i}" for i in range(5)), "smic/0"))
    databases = [subject.split("/")[0] for subject in data.subjects]
    labels = torch.tensor([i % 2 if name == "smic" else i % 3 for i, name in enumerate(databases)])
    material = replace(data, labels=labels)
    found = place_scores(material, labels)
    assert found["smic"] == pytest.approx({"uf1": 2 / 3, "uar": 2 / 3})
    assert found["casme2"] == found["full"] == pytest.approx({"uf1": 1.0, "uar": 1.0})


def test_draws_keep_the_number_of_subjects_of_each_database() -> None:
    names = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1")]
    weights = bootstrap.draws(names, 50)
    assert (weights[:, :3].sum(1) == 3).all() and (weights[:, 3] == 1).all()
    assert weights[:, :3].std(0).min() > 0.5


def test_intervals_hold_the_score_and_narrow_with_more_subjects(tmp_path: Path) -> None:
    few = bootstrap.intervals(read_predictions(write(tmp_path / "few", 0.7, subjects=8)))
    many = bootstrap.intervals(read_predictions(write(tmp_path / "many", 0.7, subjects=80)))
    assert set(few["last"]) == {"full", "casme2", "samm"}
    low, high = many["last"]["full"]["uf1"]
    assert low < 0.7 < high
    assert high - low < 0.6 * (few["last"]["full"]["uf1"][1] - few["last"]["full"]["uf1"][0])
    assert few["oracle"]["full"]["uf1"] == [1.0, 1.0]


def test_a_real_difference_is_seen_and_none_is_not(tmp_path: Path) -> None:
    weak, good = write(tmp_path / "weak", 0.6), write(tmp_path / "good", 0.95, seed=1)
    found = bootstrap.compare(read_predictions(weak), read_predictions(good))["uf1"]
    assert found.low > 0 and found.reversed_share == 0 and found.second > found.first
    same = bootstrap.compare(read_predictions(weak), read_predictions(weak))["uf1"]
    assert same.low == same.high == 0 and same.reversed_share == 1


def test_other_clips_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0.8), write(tmp_path / "b", 0.8, clips=4)
    with pytest.raises(UserError, match="casme2/0/c4"):
        bootstrap.compare(read_predictions(a), read_predictions(b))
    with pytest.raises(UserError, match="other classes, a, b and 0, 1, 2"):
        bootstrap.compare(read_predictions(a), table(tmp_path / "three", [("samm", "1", "c", 0, 0)]))
    with pytest.raises(UserError, match="selection 'inner'"):
        bootstrap.compare(read_predictions(a), read_predictions(a), "inner")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", 0.6), write(tmp_path / "b", 0.9, seed=1)
    assert main(["compare", str(a), str(b)]) == 0
    assert "UF1" in capsys.readouterr().out
    assert main(["compare", str(a), str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none/predictions.csv: no such file" in error


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        ("", "no column 'database'"),
        (HEAD, "no rows"),
        (HEAD.replace("label,", "truth,") + "samm,1,c,0,0,0,0,0,.5,.5\n", "no column 'label'"),
        (HEAD + "samm,1,c,0,0,0,0,0,.5,.5\nsamm,1,d,0,0,x,0,0,.5,.5\n", "line 3: label is 'x'"),
        (HEAD + "samm,1,c,0,0,0,2,0,.5,.5\n", "line 2: last 2 of 2 classes"),
        (HEAD + "samm,1,c,0,0,0,0,0,.5\n", "line 2: p_b is None"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, damaged: str, says: str) -> None:
    (tmp_path / "predictions.csv").write_text(damaged)
    with pytest.raises(UserError, match=rf"predictions\.csv.*{says}"):
        read_predictions(tmp_path)
