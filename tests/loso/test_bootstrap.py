"""Intervals over subjects, and the paired comparison of two runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mefar.__main__ import main
from mefar.errors import UserError
from mefar.loso import bootstrap
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


def test_the_mean_of_whole_draws_is_the_score(tmp_path: Path) -> None:
    rows = bootstrap.read(write(tmp_path / "a", 0.8))
    owners = [(database, subject) for _, database, subject, _ in rows.keys]
    names, counts = bootstrap.subject_counts(owners, rows.labels, rows.chosen["last"], 2)
    once = torch.ones(1, len(names), dtype=torch.float64)
    found = bootstrap.resampled(counts, once)
    expected = scores(rows.labels, rows.chosen["last"], 2)
    assert found["uf1"].item() == pytest.approx(expected["uf1"])
    assert found["uar"].item() == pytest.approx(expected["uar"])


def test_draws_keep_the_number_of_subjects_of_each_database() -> None:
    names = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1")]
    weights = bootstrap.draws(names, 50)
    assert (weights[:, :3].sum(1) == 3).all() and (weights[:, 3] == 1).all()
    assert weights[:, :3].std(0).min() > 0.5


def test_intervals_hold_the_score_and_narrow_with_more_subjects(tmp_path: Path) -> None:
    few = bootstrap.intervals(bootstrap.read(write(tmp_path / "few", 0.7, subjects=8)))
    many = bootstrap.intervals(bootstrap.read(write(tmp_path / "many", 0.7, subjects=80)))
    assert set(few["last"]) == {"full", "casme2", "samm"}
    low, high = many["last"]["full"]["uf1"]
    assert low < 0.7 < high
    assert high - low < 0.6 * (few["last"]["full"]["uf1"][1] - few["last"]["full"]["uf1"][0])
    assert few["oracle"]["full"]["uf1"] == [1.0, 1.0]


def test_a_real_difference_is_seen_and_none_is_not(tmp_path: Path) -> None:
    weak, good = write(tmp_path / "weak", 0.6), write(tmp_path / "good", 0.95, seed=1)
    found = bootstrap.compare(bootstrap.read(weak), bootstrap.read(good))["uf1"]
    assert found.low > 0 and found.reversed_share == 0 and found.second > found.first
    same = bootstrap.compare(bootstrap.read(weak), bootstrap.read(weak))["uf1"]
    assert same.low == same.high == 0 and same.reversed_share == 1


def test_other_clips_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0.8), write(tmp_path / "b", 0.8, clips=4)
    with pytest.raises(UserError, match="casme2/0/c4"):
        bootstrap.compare(bootstrap.read(a), bootstrap.read(b))
    with pytest.raises(UserError, match="selection 'inner'"):
        bootstrap.compare(bootstrap.read(a), bootstrap.read(a), "inner")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", 0.6), write(tmp_path / "b", 0.9, seed=1)
    assert main(["compare", str(a), str(b)]) == 0
    assert "UF1" in capsys.readouterr().out
    assert main(["compare", str(a), str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none/predictions.csv: no such file" in error
