"""A whole run: ledger, ranks, kills, pooled scores, and what it refuses."""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import token_sets
import torch
from foreign_heads import Bad, NoModule
from rich.console import Console
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, f1_score, recall_score
from token_sets import anchors, rows_of, token_set

from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso import callback, tracker
from mefar.loso.folds import Fold, FoldResult
from mefar.loso.ledger import Ledger
from mefar.loso.run import Run, Where
from mefar.loso.scores import ORACLE_WARNING, pooled_attention, predictions_csv, table

SMALL = partial(token_sets.SMALL, dropout=0.25)
TRAINING = HeadTraining(epochs=3, batch_size=8, learning_rate=5e-3)
STUDY = token_set(noise=1.5)
CPU = Where("cpu", 1, group=2)
SLOW = pytest.mark.slow


def run(out: Path, where: Where = CPU, seeds: Sequence[int] = (0,), **changes: Any) -> dict[str, Any]:
    settings = {"study": STUDY, "head": SMALL, "training": TRAINING} | changes
    made = Run(out=out, where=where, seeds=seeds, **settings)
    callback.train([made], where)
    return made.summary()


# Scores


def test_scores_are_scikit_learns_on_the_predictions_and_stand_in_the_table(tmp_path: Path) -> None:
    """A class that smic lacks counts 0 there."""
    smic = torch.tensor([database == "smic" for database in STUDY.databases])
    labels = torch.where(smic & (STUDY.labels == 2), 1, STUDY.labels)
    summary = run(tmp_path, study=replace(STUDY, labels=labels))
    rows = rows_of(tmp_path)
    assert ["/".join((row["database"], row["subject"], row["clip"])) for row in rows] == [*STUDY.clips]
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
    folds = {(row["database"], row["subject"], int(row["fold"])) for row in rows}
    assert [number for *_, number in sorted(folds)] == list(range(6))
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table(summary | {"controls": {"pixels": summary["scores"]["last"]}}))
    text = console.export_text()
    score = f"{summary['scores']['last']['full']['uf1']:.4f}".removeprefix("0") + "/"
    for words in (ORACLE_WARNING, "last", "oracle*", "pixels", "smic", "34 clips, 6 subjects", score):
        assert words in text


def test_attention_is_the_mean_over_the_clips_of_a_class_in_a_place() -> None:
    """None for a class that a database lacks; nothing where a fold has none."""
    rows = [r for r, place in enumerate(STUDY.databases) if place != "smic" or STUDY.labels[r] != 2]
    weights = torch.rand(len(rows), 4)
    results = [FoldResult(Fold("all", 0), rows, [], {}, {}, weights.tolist())]
    pooled = pooled_attention(STUDY, results)
    assert set(pooled) == {"full", "casme2", "samm", "smic"} and pooled["smic"][2] is None
    for place, by_class in pooled.items():
        for label, found in enumerate(by_class):
            inside = [place in ("full", STUDY.databases[r]) and int(STUDY.labels[r]) == label for r in rows]
            own = torch.tensor(inside)
            assert found is None or found == pytest.approx(weights[own].mean(0).tolist(), abs=1e-5)
    assert pooled_attention(STUDY, [*results, replace(results[0], attention=[])]) == {}


def test_more_seeds_keep_the_folds_that_are_there_and_give_mean_and_deviation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(tmp_path)
    first, trained = rows_of(tmp_path), []
    real = callback.train_group

    def counted(study: Any, group: Any, *rest: Any) -> Any:
        trained.extend(group)
        return real(study, group, *rest)

    monkeypatch.setattr(callback, "train_group", counted)
    found = run(tmp_path, seeds=(0, 1, 2))["scores"]["last"]["full"]
    assert sorted(fold.seed for fold in trained) == [1] * 6 + [2] * 6
    rows = rows_of(tmp_path)
    assert rows[: len(first)] == first and len(rows) == 3 * len(first)
    per_seed = []
    for seed in ("0", "1", "2"):
        own = [row for row in rows if row["seed"] == seed]
        labels, guesses = ([int(row[name]) for row in own] for name in ("label", "last"))
        per_seed.append(f1_score(labels, guesses, average="macro"))
    assert per_seed[0] == pytest.approx(one["scores"]["last"]["full"]["uf1"]) and len(set(per_seed)) > 1
    assert found["uf1"] == pytest.approx(torch.tensor(per_seed).mean().item())
    assert found["uf1_std"] == pytest.approx(torch.tensor(per_seed).std().item())


def test_a_clip_tested_twice_or_never_is_noticed() -> None:
    subjects, good = sorted(set(STUDY.subjects)), []
    for subject in subjects:
        rows = [row for row, owner in enumerate(STUDY.subjects) if owner == subject]
        good.append(FoldResult(Fold(subject, 0), rows, [[1.0, 0, 0]] * len(rows), {"last": rows}, {}))
    assert predictions_csv(STUDY, good).count("\n") == 1 + len(STUDY.clips)
    for wrong in (good[1:], [*good, good[0]]):
        with pytest.raises(RuntimeError, match="predictions for 34 clips"):
            predictions_csv(STUDY, wrong)


def test_a_shuffled_control_has_labels_of_its_own_for_every_seed_and_is_marked(tmp_path: Path) -> None:
    shuffled = STUDY.shuffled()
    labels = [shuffled.labels_of(seed).tolist() for seed in (0, 1)]
    assert sorted(labels[0]) == sorted(labels[1]) == sorted(STUDY.labels.tolist())
    assert len({tuple(each) for each in (*labels, STUDY.labels.tolist())}) == 3
    summary = run(tmp_path, study=shuffled, seeds=(0, 1))
    assert summary["control"] == "shuffled" and "control-shuffled" in tracker.tags(summary)
    rows = rows_of(tmp_path)
    assert {row["control"] for row in rows} == {"shuffled"}
    for seed in (0, 1):
        assert [int(row["label"]) for row in rows if row["seed"] == str(seed)] == labels[seed]
    with pytest.raises(UserError, match="control"):
        run(tmp_path)


# Heads


def test_an_edited_head_is_another_run_and_a_comment_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "edited_head.py", tmp_path / "out"
    source = (Path(__file__).parents[1] / "foreign_heads.py").read_text()
    path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    head = importlib.import_module("edited_head").MeanHead
    run(out, head=head)
    path.write_text(source.replace("Mean of the tokens", "The mean of all tokens") + "# the end\n")
    run(out, head=head)
    path.write_text(source.replace("tokens.mean(1)))", "tokens.amax(1)))"))
    with pytest.raises(UserError, match=r"otherwise \(head\.code"):
        run(out, head=head)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("shape", r"foreign_heads.Bad: logits of a batch of 2 is \(2, 4\), expected \(2, 3\)"),
        ("attention", r"attention of a batch of 2 is \(2, 6\), expected \(2, 4\)"),
        ("tuple", "its output has no logits; return mefar.classifier.head.HeadOutput"),
        ("nan", "logits of tokens that are all 0 is not finite"),
        ("parameters", "has no parameters to train"),
        ("crash", r"fails on tokens \(2, 4, 6\)"),
        ("constructor", "cannot be made of num_tokens=4, token_dim=6, num_classes=3: how could"),
        (NoModule, "foreign_heads.NoModule: not a torch.nn.Module"),
        (lambda: None, "cannot be made"),
    ],
)
def test_a_head_that_is_none_is_named_before_anything_is_written(
    tmp_path: Path, head: Any, says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        run(tmp_path / "out", head=partial(Bad, how=head) if isinstance(head, str) else head)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_inner_selection_and_text_go_through_and_heads_are_kept(tmp_path: Path) -> None:
    """What a kept head says at the last epoch, over all views, is what was written of its subject."""
    chosen = replace(STUDY, anchors=anchors())
    summary = run(tmp_path, study=chosen, training=replace(TRAINING, inner=True), keep_heads=True)
    assert list(summary["scores"]) == ["last", "oracle", "inner"]
    assert "inner" in rows_of(tmp_path)[0]
    assert len(list((tmp_path / "heads").glob("*.safetensors"))) == 6
    state = load_file(tmp_path / "heads" / "casme2-00-seed0.safetensors")
    head = SMALL(4, 6, 3, text_dim=8).eval()
    head.load_state_dict({name: value for name, value in state.items() if not name.startswith("tokens.")})
    result, _ = Ledger(tmp_path, summary["identity"]).read()[Fold("casme2/00", 0)]
    x = (STUDY.tokens[result.rows].flatten(0, 1) - state["tokens.mean"]) * state["tokens.scale"]
    with torch.no_grad():
        output = head(x)
    said = (output.logits.softmax(-1), result.probabilities), (output.attention, result.attention)
    for of_views, written in said:
        mean = of_views.unflatten(0, (len(result.rows), -1)).mean(1)
        torch.testing.assert_close(mean, torch.tensor(written), atol=1e-4, rtol=0)


# Ranks


@pytest.mark.parametrize("devices", [2, 3, 5])
def test_any_number_of_ranks_gives_the_same_bytes(
    tmp_path: Path, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five ranks share four groups: one of them has nothing to do."""
    monkeypatch.delenv("MASTER_PORT", raising=False)
    run(tmp_path / "one")
    summary = run(tmp_path / "many", replace(CPU, devices=devices))
    for name in ("predictions.csv", "confusion.json", "attention.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    assert summary["clips"] == 34
    assert "MASTER_PORT" not in os.environ, "the next run of this process takes a port of its own"


def test_cores_are_used_unless_somebody_else_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "cores", lambda: 4)
    for name in ("LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    plain = Where("cpu")
    assert callback.make_trainer(plain, 17, []).num_devices == 4
    assert callback.make_trainer(plain, 3, []).num_devices == 3
    assert callback.make_trainer(replace(plain, devices=2), 17, []).num_devices == 2
    assert callback.strategy(plain, 4, started=False) == "ddp_fork"
    assert callback.strategy(plain, 4, started=True) == "ddp"


def test_fewer_than_one_of_anything_is_refused() -> None:
    for name, number in product(("devices", "num_nodes", "group"), (0, -2)):
        with pytest.raises(UserError, match=f"{name} is {number}; give at least 1"):
            Where(**{name: number})


# Interruptions


def folds_in(out: Path) -> Counter[tuple[str, int]]:
    """How often each fold stands in the ledger."""
    path = out / "folds.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return Counter((line["subject"], line["seed"]) for line in whole)


def started(out: Path, ranks: int, log: Path) -> Any:
    """A process that makes a run of twelve folds in twelve groups."""

    def work() -> None:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run(out, replace(CPU, devices=ranks, group=1), seeds=(0, 1))

    process = get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.parametrize(
    ("ranks", "kills"), [(1, 3), (2, 2), pytest.param(1, 20, marks=SLOW), pytest.param(2, 20, marks=SLOW)]
)
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path: Path, ranks: int, kills: int) -> None:
    """kill -9 of the launcher at random moments, restarted at once beside ranks that may still live."""
    run(tmp_path / "whole", replace(CPU, group=1), seeds=(0, 1))
    moments, out, log, killed = random.Random(ranks), tmp_path / "killed0", tmp_path / "log", 0
    attempts = 0
    while killed < kills:
        attempts += 1
        assert attempts < 5 * kills + 5, log.read_text()
        process, enough = started(out, ranks, log), folds_in(out).total() + moments.randrange(3)
        while folds_in(out).total() < enough and process.is_alive():
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.03))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        if (out / "summary.json").exists():
            out = tmp_path / f"killed{killed}"
    last = started(out, ranks, log)
    last.join(240)
    assert last.exitcode == 0, log.read_text()
    for each in tmp_path.glob("killed*"):
        assert len(folds_in(each)) == 12
        assert set(folds_in(each).values()) == {1}, "trained twice"
        for name in ("predictions.csv", "confusion.json"):
            assert (each / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ranks_may_join_a_running_study(tmp_path: Path) -> None:
    """Two commands at once, started apart: each fold once, and both end with the summary."""
    run(tmp_path / "whole", replace(CPU, group=1), seeds=(0, 1))
    both = [started(tmp_path / "both", 1, tmp_path / "log") for _ in range(2)]
    for process in both:
        process.join(240)
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert set(folds_in(tmp_path / "both").values()) == {1}
    whole, shared = (tmp_path / name / "predictions.csv" for name in ("whole", "both"))
    assert whole.read_bytes() == shared.read_bytes()


def test_a_second_run_keeps_the_time_of_the_first(tmp_path: Path) -> None:
    assert run(tmp_path) == run(tmp_path)


# Bad input


def test_two_configurations_never_share_a_fresh_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = get_context("fork")
    # Both look before either writes.
    monkeypatch.setattr("mefar.files.remove_leftovers", lambda folder: time.sleep(0.5))

    def claimed(epochs: int, said: Any) -> None:
        try:
            Run(STUDY, tmp_path / "out", SMALL, replace(TRAINING, epochs=epochs))
            said.put("claimed")
        except UserError:
            said.put("refused")

    said = context.Queue()
    both = [context.Process(target=claimed, args=(epochs, said)) for epochs in (3, 4)]
    for process in both:
        process.start()
    assert sorted(said.get(timeout=240) for _ in both) == ["claimed", "refused"]
