"""The ledger of folds: what was written comes back; what is torn, damaged or another study's does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mefar.loso.folds import Fold, FoldResult
from mefar.loso.ledger import Ledger


def result(subject: str, seed: int = 0) -> FoldResult:
    return FoldResult(
        Fold(subject, seed),
        [0, 1],
        [[0.5, 0.5], [1 / 3, 2 / 3]],
        {"last": [0, 1], "oracle": [1, 1]},
        {"last": 3},
        [[0.25, 0.75], [0.9, 0.1]],
    )


def test_the_ledger_gives_back_what_it_was_given(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "study a")
    ledger.append([result("casme2/01"), result("samm/01")], 3.0)
    ledger.append([result("smic/01")], 1.0)
    found = ledger.read()
    assert {fold: each for fold, (each, _) in found.items()} == {
        Fold(name, 0): result(name) for name in ("casme2/01", "samm/01", "smic/01")
    }
    assert sum(seconds for _, seconds in found.values()) == 4.0


@pytest.mark.parametrize("cut", [2, 30, 200])
def test_a_torn_line_is_ignored_and_does_no_harm(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path, "study a")
    ledger.append([result("casme2/01")], 1.0)
    ledger.append([result("samm/01")], 1.0)
    path = tmp_path / "folds.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert set(ledger.read()) == {Fold("casme2/01", 0)}
    ledger.append([result("smic/01")], 1.0)
    assert set(ledger.read()) == {Fold("casme2/01", 0), Fold("smic/01", 0)}


def test_lines_of_another_study_are_left_alone(tmp_path: Path) -> None:
    Ledger(tmp_path, "study a").append([result("casme2/01")], 1.0)
    other = Ledger(tmp_path, "study b")
    assert other.read() == {}
    other.append([result("casme2/01", seed=1)], 1.0)
    assert set(other.read()) == {Fold("casme2/01", 1)}
    assert set(Ledger(tmp_path, "study a").read()) == {Fold("casme2/01", 0)}


def test_damaged_lines_are_as_good_as_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "study a")
    ledger.append([result("casme2/01"), result("samm/01")], 1.0)
    path = tmp_path / "folds.jsonl"
    first, second = path.read_text().splitlines()
    for damaged in (
        first.replace("[0, 1]", "[0, 2]", 1),
        first.replace("rows", "rovs"),
        "[]",
        '{"study": 1}',
        json.dumps({name: value for name, value in json.loads(first).items() if name != "check"}),
    ):
        assert damaged != first
        path.write_text(f"{damaged}\n{second}\n")
        assert set(ledger.read()) == {Fold("samm/01", 0)}
    path.write_bytes(first.encode()[:30] + b"\x00\xff\xfe" + first.encode()[30:] + b"\n" + second.encode())
    assert set(ledger.read()) == {Fold("samm/01", 0)}
    path.write_text(json.dumps({"study": "study a", "subject": "smic/01", "seed": 0}))
    assert ledger.read() == {}
