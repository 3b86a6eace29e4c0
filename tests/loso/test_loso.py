"""A whole run: ledger, ranks, kills, pooled scores, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import end, ended, start, wait_for
from rich.console import Console
from sklearn.metrics import confusion_matrix, f1_score, recall_score
from token_sets import anchors, study, token_set

from mefar.baselines.pixels import linear_control
from mefar.classifier.head import HeadSize
from mefar.errors import UserError
from mefar.loso import machine
from mefar.loso.engine import Training
from mefar.loso.folds import Fold, FoldResult
from mefar.loso.ledger import Ledger
from mefar.loso.machine import Machine
from mefar.loso.run import Run
from mefar.loso.scores import ORACLE_WARNING, pool, pooled_attention, table

SIZE = HeadSize(dim=8, depth=1, heads=2, feedforward=12, dropout=0.25)
TRAINING = Training(epochs=3, batch_size=8, learning_rate=5e-3)
STUDY = study(token_set(noise=1.5))
CPU = Machine(accelerator="cpu", group=2, workers=2)
SLOW = pytest.mark.slow


def run(out: Path, machine: Machine = CPU, seeds: Sequence[int] = (0,), **changes: object) -> dict:  # type: ignore[type-arg]
    settings = {"study": STUDY, "size": SIZE, "training": TRAINING} | changes
    return Run(out=out, machine=machine, seeds=seeds, **settings).execute()  # type: ignore[arg-type]


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "predictions.csv").read_text())))


# Scores


def test_scores_are_scikit_learns_on_the_predictions(tmp_path: Path) -> None:
    summary = run(tmp_path)
    rows = rows_of(tmp_path)
    assert sorted("/".join((row["database"], row["subject"], row["clip"])) for row in rows) == sorted(
        STUDY.clips
    )
    every = {"labels": [0, 1, 2], "average": "macro", "zero_division": 0}
    for selection in ("last", "oracle"):
        assert set(summary["scores"][selection]) == {"full", "casme2", "samm", "smic"}
        for place, found in summary["scores"][selection].items():
            inside = [row for row in rows if place in ("full", row["database"])]
            labels, guesses = ([int(row[name]) for row in inside] for name in ("label", selection))
            assert found["uf1"] == pytest.approx(f1_score(labels, guesses, **every))
            assert found["uar"] == pytest.approx(recall_score(labels, guesses, **every))
            if selection == "last":
                matrix = json.loads((tmp_path / "confusion.json").read_text())["last"][place]
                assert matrix == confusion_matrix(labels, guesses, labels=[0, 1, 2]).tolist()
    for row in rows:
        p = [float(row[f"p_{name}"]) for name in summary["classes"]]
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert max(range(3), key=lambda i: p[i]) == int(row["last"])
    subjects = sorted({(row["database"], row["subject"]) for row in rows})
    assert {(row["database"], row["subject"], int(row["fold"])) for row in rows} == {
        (*subject, number) for number, subject in enumerate(subjects)
    }


def test_attention_is_the_mean_over_the_held_out_clips_of_a_class(tmp_path: Path) -> None:
    run(tmp_path, seeds=(0, 1))
    pooled = json.loads((tmp_path / "attention.json").read_text())
    assert set(pooled) == {"full", "casme2", "samm", "smic"}
    entries = [json.loads(line) for line in (tmp_path / "folds.jsonl").read_text().splitlines()]
    for place, by_class in pooled.items():
        for label, weights in enumerate(by_class):
            own = [
                clip
                for entry in entries
                for row, clip in zip(entry["rows"], entry["attention"], strict=True)
                if STUDY.data.labels[row] == label and place in ("full", STUDY.databases[row])
            ]
            assert weights == pytest.approx(torch.tensor(own).mean(0).tolist(), abs=2e-5)
    assert pooled["full"][0] != pytest.approx(pooled["full"][1], abs=1e-3)


def test_a_class_that_a_database_lacks_has_no_attention() -> None:
    labels = [i for i, place in enumerate(STUDY.databases) if place == "smic" and STUDY.data.labels[i] == 2]
    kept = [r for r in range(len(STUDY.clips)) if r not in labels]
    results = [FoldResult(Fold("all", 0), kept, [], {}, {}, [[0.25] * 4] * len(kept))]
    assert pooled_attention(STUDY, results)["smic"] == [[0.25] * 4, [0.25] * 4, None]
    assert pooled_attention(STUDY, [*results, replace(results[0], attention=[])]) == {}


def test_the_summary_says_what_was_run(tmp_path: Path) -> None:
    chosen = replace(STUDY, dropped=(("samm/99/x", "no face found"),))
    summary = run(tmp_path, study=chosen, notes={"command": "mefar loso --x"})
    assert summary["folds"] == 6
    assert summary["clips"] == 34
    assert summary["seeds"] == [0]
    assert summary["tokenizer"] == STUDY.tokenizer
    assert summary["dropped"] == [["samm/99/x", "no face found"]]
    assert summary["command"] == "mefar loso --x"
    assert summary["wall_seconds"] >= 0
    assert "control" not in summary


def test_the_oracle_is_never_below_the_last_epoch_on_any_subject(tmp_path: Path) -> None:
    run(tmp_path)
    rows = rows_of(tmp_path)
    for fold in {row["fold"] for row in rows}:
        own = [row for row in rows if row["fold"] == fold]
        right = {name: sum(row[name] == row["label"] for row in own) for name in ("last", "oracle")}
        assert right["oracle"] >= right["last"]


def test_several_seeds_give_mean_and_deviation_and_reuse_the_first(tmp_path: Path) -> None:
    one = run(tmp_path)
    first = rows_of(tmp_path)
    three = run(tmp_path, seeds=(0, 1, 2))
    rows = rows_of(tmp_path)
    assert len(rows) == 3 * len(first)
    assert rows[: len(first)] == first
    per_seed = []
    for seed in ("0", "1", "2"):
        own = [row for row in rows if row["seed"] == seed]
        labels, guesses = ([int(row[name]) for row in own] for name in ("label", "last"))
        per_seed.append(f1_score(labels, guesses, average="macro"))
    found = three["scores"]["last"]["full"]
    assert per_seed[0] == pytest.approx(one["scores"]["last"]["full"]["uf1"])
    assert found["uf1"] == pytest.approx(torch.tensor(per_seed).mean().item())
    assert found["uf1_std"] == pytest.approx(torch.tensor(per_seed).std().item())
    assert len(set(per_seed)) > 1


def test_a_clip_tested_twice_or_never_is_noticed() -> None:
    good = [FoldResult(Fold(s, 0), [r for r, o in enumerate(STUDY.data.subjects) if o == s], [], {}, {})
            for s in set(STUDY.data.subjects)]  # fmt: skip
    good = [replace(each, predictions={"last": [0] * len(each.rows)}) for each in good]
    pool(STUDY, good, [0])
    with pytest.raises(RuntimeError, match="predictions for 34 clips"):
        pool(STUDY, good[1:], [0])
    with pytest.raises(RuntimeError, match="predictions for 34 clips"):
        pool(STUDY, [*good, good[0]], [0])


def test_the_table_shows_both_selections_and_the_warning(tmp_path: Path) -> None:
    summary = run(tmp_path) | {"controls": {"pixels": {}}}
    summary["controls"]["pixels"] = summary["scores"]["last"]
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table(summary))
    text = console.export_text()
    assert ORACLE_WARNING in text
    for word in ("last", "oracle*", "pixels", "casme2", "smic", "34 clips, 6 subjects"):
        assert word in text
    assert f"{summary['scores']['last']['full']['uf1']:.4f}".removeprefix("0") + "/" in text


def test_a_shuffled_control_is_marked_everywhere(tmp_path: Path) -> None:
    shuffled = STUDY.shuffled()
    assert sorted(shuffled.data.labels.tolist()) == sorted(STUDY.data.labels.tolist())
    assert shuffled.data.labels.tolist() != STUDY.data.labels.tolist()
    summary = run(tmp_path, study=shuffled)
    assert summary["control"] == "shuffled"
    assert {row["control"] for row in rows_of(tmp_path)} == {"shuffled"}
    assert json.loads((tmp_path / "study.json").read_text())["control"] == "shuffled"
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table(summary))
    assert "CONTROL" in console.export_text()
    with pytest.raises(UserError, match="control"):
        run(tmp_path)


def test_inner_selection_and_text_go_through(tmp_path: Path) -> None:
    chosen = replace(STUDY, data=replace(STUDY.data, anchors=anchors()))
    summary = run(tmp_path, study=chosen, training=replace(TRAINING, inner=True))
    assert list(summary["scores"]) == ["last", "oracle", "inner"]
    assert "inner" in rows_of(tmp_path)[0]


# Ranks


@pytest.mark.parametrize("devices", [2, 3, 5])
def test_any_number_of_ranks_gives_the_same_bytes(tmp_path: Path, devices: int) -> None:
    """Five ranks share three groups: two of them have nothing to do."""
    run(tmp_path / "one")
    summary = run(tmp_path / "many", replace(CPU, devices=devices, workers=1))
    for name in ("predictions.csv", "confusion.json", "attention.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    assert summary["clips"] == 34
    assert not list((tmp_path / "many").glob("folds.rank*"))


def test_workers_and_threads_do_not_matter(tmp_path: Path) -> None:
    for number, workers in enumerate((1, 3)):
        run(tmp_path / str(number), replace(CPU, workers=workers))
    assert (tmp_path / "0/predictions.csv").read_bytes() == (tmp_path / "1/predictions.csv").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ranks are not forked unasked")
def test_cores_are_shared_by_ranks_unless_somebody_else_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cores", lambda: 4)
    for name in ("LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    plain = Machine(accelerator="cpu")
    assert plain.spread(17).devices == 4 and plain.spread(3).devices == 3
    for decided in (CPU, replace(plain, devices=2), replace(plain, accelerator="gpu")):
        assert decided.spread(17) == decided
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert plain.spread(17).devices == 1


@pytest.mark.parametrize("name", ["devices", "num_nodes", "group", "workers"])
def test_fewer_than_one_of_anything_is_refused(name: str) -> None:
    for number in (0, -2):
        with pytest.raises(UserError, match=f"{name} is {number}; give at least 1"):
            Machine(**{name: number})


# Interruptions


def trained(out: Path) -> Counter[tuple[str, int]]:
    """How often each fold stands in the ledgers."""
    lines = [json.loads(line) for path in out.glob("folds*.jsonl") for line in whole_lines(path)]
    return Counter((line["subject"], line["seed"]) for line in lines)


def whole_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.endswith("}")]
    except FileNotFoundError:  # just merged
        return []


@pytest.mark.parametrize(
    ("ranks", "kills"), [(1, 4), (2, 3), pytest.param(1, 20, marks=SLOW), pytest.param(2, 20, marks=SLOW)]
)
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path: Path, ranks: int, kills: int) -> None:
    """kill -9 at random moments, restarted at once; folds are small, so that kills come between them."""
    machine = replace(CPU, devices=ranks, workers=1, group=1)

    def work() -> None:
        run(out, machine, seeds=(0, 1))

    out = tmp_path / "whole"
    assert end(start(work, {}, tmp_path / "log"), 120) == 0
    moments, killed, middles = random.Random(ranks), 0, 0
    out = tmp_path / "killed0"
    while killed < kills or middles < 2:
        assert killed < 5 * kills, "kills must come in the middle"
        process = start(work, {}, tmp_path / "log")
        enough = trained(out).total() + moments.randrange(3)
        wait_for(lambda: trained(out).total() >= enough or ended(process))  # noqa: B023
        time.sleep(moments.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL)
        killed += end(process) == -signal.SIGKILL
        middles += 0 < trained(out).total() < 12
        if (out / "summary.json").exists():
            out = tmp_path / f"killed{killed}"
    assert end(start(work, {}, tmp_path / "log"), 120) == 0, (tmp_path / "log").read_text()
    for each in tmp_path.glob("killed*"):
        assert len(trained(each)) == 12
        assert set(trained(each).values()) == {1}, "trained twice"
        for name in ("predictions.csv", "confusion.json"):
            assert (each / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_second_run_keeps_the_time_of_the_first(tmp_path: Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path)
    assert again["scores"] == first["scores"]
    assert again["training_seconds"] == first["training_seconds"]
    assert again["wall_seconds"] == first["wall_seconds"]


# Bad input


def test_a_directory_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"training.epochs \(3 there, 4 asked for\); choose another --out"):
        run(tmp_path, training=replace(TRAINING, epochs=4))
    with pytest.raises(UserError, match="another tokenizer"):
        run(tmp_path, study=replace(STUDY, tokenizer={**STUDY.tokenizer, "sha256": "1"}))
    with pytest.raises(UserError, match="another data"):
        run(tmp_path, study=study(token_set(seed=5)))
    with pytest.raises(UserError, match=r"head.dim \(8 there, 16"):
        run(tmp_path, size=replace(SIZE, dim=16))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_diverging_fold_ends_the_run_with_its_name(tmp_path: Path) -> None:
    data = STUDY.data
    tokens = data.tokens.clone()
    tokens[0] = torch.inf
    with pytest.raises(UserError, match=r"model \w+/\d+ seed 0: training diverged in epoch 1"):
        run(tmp_path, study=study(replace(data, tokens=tokens)))
    assert not (tmp_path / "summary.json").exists()


def test_no_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no seed"):
        run(tmp_path, seeds=())


def test_folds_of_another_study_and_damaged_ones_reach_nothing(tmp_path: Path) -> None:
    run(tmp_path / "clean")
    run(tmp_path / "mixed")
    path = tmp_path / "mixed" / "folds.jsonl"
    lines = path.read_text().splitlines()
    others = [line.replace('"last": [0', '"last": [1') for line in lines if '"last": [0' in line]
    assert others, "something must differ"
    other = Ledger(tmp_path / "mixed", "another study")
    path.write_text("".join(f"{line}\n" for line in [*others, *lines[2:]]))  # two are damaged, two are lost
    for fold in [Fold(subject, 0) for subject in sorted(set(STUDY.data.subjects))]:
        other.append([FoldResult(fold, [0], [[1.0, 0.0, 0.0]], {"last": [0]}, {"last": 1})], 1.0)
    foreign = other.read()
    run(tmp_path / "mixed")
    for name in ("predictions.csv", "confusion.json"):
        assert (tmp_path / "mixed" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()
    assert other.read() == foreign


def test_classes_that_a_subject_or_a_training_set_lacks(tmp_path: Path) -> None:
    """One subject has only one class, and the third class is that of another subject alone."""
    subjects = sorted(set(STUDY.data.subjects))
    labels = STUDY.data.labels % 2
    for row, subject in enumerate(STUDY.data.subjects):
        labels[row] = {subjects[0]: 2, subjects[1]: 0}.get(subject, labels[row])
    data = replace(STUDY.data, labels=labels)
    summary = run(tmp_path, study=replace(STUDY, data=data), training=replace(TRAINING, inner=True))
    rows = rows_of(tmp_path)
    found, guesses = ([int(row[name]) for row in rows] for name in ("label", "last"))
    assert sorted(found) == sorted(labels.tolist())
    expected = f1_score(found, guesses, labels=[0, 1, 2], average="macro", zero_division=0)
    assert summary["scores"]["last"]["full"]["uf1"] == pytest.approx(expected)
    control = linear_control(data.tokens[:, 0].flatten(1), labels, data.subjects, 3)
    own = torch.tensor([subject == subjects[0] for subject in data.subjects])
    assert (control[own] != 2).all()
