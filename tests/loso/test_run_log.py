"""A finished run as a tracker sees it; the tracker is a stand-in that keeps what it is told."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sample_runs import write_run

from mefar.loso import tracker
from mefar.loso.folds import Fold, FoldResult
from mefar.loso.ledger import Ledger


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A made-up run with a ledger."""
    intervals = {"last": {"full": {"uf1": [0.4, 0.6], "uar": [0.5, 0.7]}}}
    folder = write_run(tmp_path / "run", identity="id", intervals=intervals, views=8)
    with (folder / "predictions.csv").open(newline="") as file:
        subjects = sorted({(row["database"], row["subject"]) for row in csv.DictReader(file)})
    ledger = Ledger(folder, "id")
    for number, (database, subject) in enumerate(subjects):
        fold = Fold(f"{database}/{subject}", 0)
        ledger.append([FoldResult(fold, [], [], {}, {"last": 60, "oracle": number})], 1.0)
    return folder


def test_scores_and_tags_have_the_names_of_the_table(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    found, scores = tracker.metrics(summary), summary["scores"]
    for name in ("uf1", "uar"):
        assert found[f"loso/{name}"] == found[f"loso/last/{name}"] == scores["last"]["full"][name]
        assert found[f"loso/oracle/samm/{name}"] == scores["oracle"]["samm"][name]
    assert found["control/pixels/uf1"] == 0.61
    assert (found["loso/last/uf1_low"], found["loso/last/uar_high"]) == (0.4, 0.7)
    assert tracker.group(summary) == "composite-9f2c9f2c"
    names = ["composite", "tokenizer-9f2c9f2c", "selection-last"]
    assert tracker.tags(summary) == names
    assert tracker.tags(summary | {"control": "shuffled"}) == [*names, "control-shuffled"]


def test_the_tables_count_every_clip_once(run: Path) -> None:
    logger = Mock()
    tracker.write(logger, run)
    summary = json.loads((run / "summary.json").read_text())
    tables: dict[str, Any] = {call.args[0]: call.args[1:] for call in logger.log_table.call_args_list}
    columns, rows = tables["loso/folds"]
    assert columns == ["database", "subject", "seed", "clips", "right last", "epoch last",
                       "right oracle (leaks)", "epoch oracle (leaks)"]  # fmt: skip
    assert len(rows) == summary["folds"] and sum(row[3] for row in rows) == summary["clips"]
    assert sorted(row[7] for row in rows) == list(range(len(rows))) and {row[5] for row in rows} == {60}
    places = {name.rpartition("/")[2] for name in tables if name.startswith("loso/confusion/last/")}
    assert places == {"full", "casme2", "samm", "smic"} and len(tables) == 5, "none of the oracle"
    columns, matrix = tables["loso/confusion/last/full"]
    assert columns == ["truth", *summary["classes"]]
    assert [row[0] for row in matrix] == summary["classes"]
    assert sum(matrix[i][1 + i] for i in range(3)) == sum(row[4] for row in rows)
