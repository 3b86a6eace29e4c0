"""UF1 and UAR: equal to scikit-learn on all classes, whatever is absent and whoever saw what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, recall_score
from torch.multiprocessing.spawn import start_processes

from mefar.metrics import UAR, UF1, confusion, scores

C = 4
pairs = st.lists(st.tuples(st.integers(0, C - 1), st.integers(0, C - 1)), min_size=1, max_size=60)


def columns(rows: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.tensor(rows)
    return both[:, 0], both[:, 1]


@given(pairs)
@settings(deadline=None)
def test_scores_are_those_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, guesses = columns(rows)
    found = scores(labels, guesses, C)
    every = {"labels": list(range(C)), "average": "macro", "zero_division": 0}
    assert found["uf1"] == pytest.approx(f1_score(labels, guesses, **every))
    assert found["uar"] == pytest.approx(recall_score(labels, guesses, **every))
    assert (
        confusion(labels, guesses, C).tolist() == confusion_matrix(labels, guesses, labels=range(C)).tolist()
    )


@given(pairs)
@settings(deadline=None)
def test_metrics_pool_over_batches(rows: list[tuple[int, int]]) -> None:
    labels, guesses = columns(rows)
    uf1, uar = UF1(C), UAR(C)
    for part in torch.arange(len(rows)).split(7):
        logits = torch.nn.functional.one_hot(guesses[part], C).float()
        uf1.update(logits, labels[part])
        uar.update(guesses[part], labels[part])
    expected = scores(labels, guesses, C)
    assert float(uf1.compute()) == pytest.approx(expected["uf1"], abs=1e-6)
    assert float(uar.compute()) == pytest.approx(expected["uar"], abs=1e-6)


def test_an_absent_class_counts_as_zero() -> None:
    """The widely copied bug averages over the classes present: 1.0 here."""
    labels = torch.tensor([0, 0, 1, 1])
    assert scores(labels, labels, 3) == {"uf1": pytest.approx(2 / 3), "uar": pytest.approx(2 / 3)}


def test_pooling_is_not_the_mean_of_folds() -> None:
    labels, guesses = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    folds = [scores(labels[:2], guesses[:2], 2)["uf1"], scores(labels[2:], guesses[2:], 2)["uf1"]]
    assert scores(labels, guesses, 2)["uf1"] != pytest.approx(sum(folds) / 2)


@pytest.mark.parametrize("labels", [[0, 1, -1], [0, 1, 3]])
def test_classes_outside_the_range_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        confusion(torch.tensor(labels), torch.zeros(3, dtype=torch.int64), 3)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="predictions"):
        confusion(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 3)


def _rank(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    metric = UF1(3)
    share = [[(0, 0), (1, 1), (2, 0), (0, 1), (1, 1)], [(2, 2)], []][rank]
    for label, guess in share:
        metric.update(torch.tensor([guess]), torch.tensor([label]))
    (Path(folder) / f"rank{rank}").write_text(repr(float(metric.compute())))
    os._exit(0)  # torch 2.4 has been seen to wait for ever when it takes a process group apart


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_ranks_with_unequal_shares_or_none_agree(tmp_path: Path) -> None:
    start_processes(_rank, args=(3, str(tmp_path)), nprocs=3, start_method="fork")
    expected = scores(torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 0, 1, 1, 2]), 3)["uf1"]
    for rank in range(3):
        assert float((tmp_path / f"rank{rank}").read_text()) == pytest.approx(expected, abs=1e-6)
