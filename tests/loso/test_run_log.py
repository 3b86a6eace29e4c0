"""A finished run as a tracker sees it; the tracker is a stand-in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from sample_runs import write_run

from mefar.loso import tracker as run_log
from mefar.loso.folds import Fold, FoldResult
from mefar.loso.ledger import Ledger


class Tracker:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.tables: dict[str, tuple[list[str], list[list[Any]]]] = {}
        self.summary: dict[str, Any] = {}

    @property
    def experiment(self) -> Tracker:
        return self

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.config.update(params)

    def log_metrics(self, metrics: Any) -> None:
        self.metrics.update(metrics)

    def log_table(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
        self.tables[key] = (columns, data)


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


def test_the_summary_is_the_commands_own(run: Path) -> None:
    tracker = Tracker()
    run_log.write(tracker, run)
    summary = json.loads((run / "summary.json").read_text())
    scores = summary["scores"]
    for name in ("uf1", "uar"):
        assert tracker.metrics[f"loso/{name}"] == scores["last"]["full"][name]
        for selection in ("last", "oracle"):
            assert tracker.metrics[f"loso/{selection}/{name}"] == scores[selection]["full"][name]
            assert tracker.metrics[f"loso/{selection}/samm/{name}"] == scores[selection]["samm"][name]
    assert tracker.metrics["control/pixels/uf1"] == 0.61
    assert (tracker.metrics["loso/last/uf1_low"], tracker.metrics["loso/last/uar_high"]) == (0.4, 0.7)
    assert "leaks" in tracker.summary["loso/oracle/warning"]
    assert tracker.config["command"] == summary["command"] and tracker.config["views"] == 8
    assert "scores" not in tracker.config


def test_the_tables_count_every_clip_once(run: Path) -> None:
    tracker = Tracker()
    run_log.write(tracker, run)
    summary = json.loads((run / "summary.json").read_text())
    columns, rows = tracker.tables["loso/folds"]
    assert columns == ["database", "subject", "seed", "clips", "right last", "epoch last",
                       "right oracle (leaks)", "epoch oracle (leaks)"]  # fmt: skip
    assert len(rows) == summary["folds"] and sum(row[3] for row in rows) == summary["clips"]
    assert sorted(row[7] for row in rows) == list(range(len(rows))) and {row[5] for row in rows} == {60}
    places = {name.rpartition("/")[2] for name in tracker.tables if name.startswith("loso/confusion/last/")}
    assert places == {"full", "casme2", "samm", "smic"}
    assert not [name for name in tracker.tables if "oracle" in name]
    columns, matrix = tracker.tables["loso/confusion/last/full"]
    assert columns == ["truth", *summary["classes"]]
    assert [row[0] for row in matrix] == summary["classes"]
    right = sum(matrix[i][1 + i] for i in range(3))
    assert right == sum(row[4] for row in rows)


def test_group_and_tags_say_what_may_be_compared(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert run_log.group(summary) == "composite-9f2c9f2c"
    assert run_log.tags(summary) == ["composite", "tokenizer-9f2c9f2c", "selection-last"]
    summary["scores"]["inner"] = summary["scores"]["last"]
    summary["control"] = "shuffled"
    assert run_log.tags(summary)[2:] == ["selection-last", "selection-inner", "control-shuffled"]
