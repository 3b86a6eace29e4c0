"""Action units: who is coded, what is scored, and leaving a database out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from token_sets import token_set
from torch.nn import functional

from mefar.baselines.svm import LinearSVM
from mefar.classifier.head import HeadOutput, TokenHead
from mefar.classifier.losses import head_loss, label_weights
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso import callback, units
from mefar.loso.folds import Fold, fold_view
from mefar.loso.results import Predictions, read_predictions
from mefar.loso.run import Run, Where

CPU = Where("cpu", 1)
STUDY = token_set()
SHOWN = [{0: (4, 7), 1: (6, 12), 2: (1, 2)}[label] if db != "smic" else () for label, db in
         zip(STUDY.labels.tolist(), STUDY.databases, strict=True)]  # fmt: skip


def test_databases_without_units_are_left_out_and_said() -> None:
    rows, uncoded = units.coded_rows(SHOWN, STUDY.databases)
    assert uncoded == ["smic"] and all(STUDY.databases[row] != "smic" for row in rows)
    with pytest.raises(UserError, match="no clip of casme2, samm, smic has action units"):
        units.coded_rows([()] * len(SHOWN), STUDY.databases)


def test_a_unit_is_learned_where_its_clips_tell_it(tmp_path: Path) -> None:
    rows, _ = units.coded_rows(SHOWN, STUDY.databases)
    found, missing = units.studies(STUDY, SHOWN, rows)
    assert sorted(found) == [1, 2, 4, 6, 7, 12] and missing[15] == "shown in 0 folds"
    run = Run(found[12], tmp_path, LinearSVM, where=CPU)
    callback.train([run], CPU)
    predictions = read_predictions(tmp_path)
    scores = units.unit_scores(predictions)
    assert set(scores) == {"casme2", "samm"}
    for name, values in scores.items():
        own = [i for i, clip in enumerate(predictions.clips) if clip.startswith(name)]
        truth, guess = predictions.labels[own], predictions.chosen["last"][own]
        assert values["macro"] == pytest.approx(f1_score(truth, guess, average="macro", labels=[0, 1]))
        assert values["binary"] == pytest.approx(f1_score(truth, guess))
        assert values["binary"] > 0.7


def test_one_head_tells_all_units(tmp_path: Path) -> None:
    rows, _ = units.coded_rows(SHOWN, STUDY.databases)
    found, _ = units.studies(STUDY, SHOWN, rows)
    both = units.together(found)
    assert both.labels.tolist() == [[int(unit in SHOWN[row]) for unit in found] for row in rows]
    assert both.class_names == ("AU1", "AU2", "AU4", "AU6", "AU7", "AU12")
    small = partial(TokenHead, dim=16, heads=2, feedforward=16)
    training = HeadTraining(epochs=15, batch_size=8, learning_rate=1e-2, inner=True)
    run = units.UnitsRun(both, tmp_path, small, training, where=CPU)
    callback.train([run], CPU)
    for number, unit in enumerate(found):
        predictions = read_predictions(tmp_path / f"AU{unit}")
        shown = [SHOWN[STUDY.clips.index(clip)] for clip in predictions.clips]
        assert predictions.labels.tolist() == [int(unit in each) for each in shown]
        assert set(predictions.chosen) == {"last", "oracle", "inner"}
        likely = predictions.probabilities[:, 1] > 0.5
        assert (predictions.chosen["last"] == likely).all(), number
        assert all(values["binary"] > 0.7 for values in units.unit_scores(predictions).values())


def test_the_loss_of_several_units_is_torchs_and_ignores_what_is_masked() -> None:
    dice = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=dice, dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    weights = label_weights(labels, 3, HeadTraining())
    torch.testing.assert_close(weights[:, 0], torch.tensor([6 / (2 * 2), 6 / (2 * 4)]).double())
    mask = torch.tensor([1.0, 1, 1, 1, 1, 0], dtype=torch.float64)
    ours = head_loss(HeadOutput(logits), labels, weights, HeadTraining(label_smoothing=0.0), mask=mask)
    own = torch.where(labels[:5] == 1, weights[1], weights[0])
    theirs = functional.binary_cross_entropy_with_logits(logits[:5], labels[:5].double(), own)
    torch.testing.assert_close(ours["classification"], theirs / own.mean())


def test_a_unit_that_a_database_never_shows_is_not_a_zero() -> None:
    labels = np.array([1, 0, 0, 0])
    rows = Predictions(
        ("a/s/1", "a/s/2", "b/s/1", "b/s/2"),
        (0,) * 4,
        labels,
        {"last": labels},
        np.eye(2)[labels],
        units.CLASSES,
    )
    scores = {1: units.unit_scores(rows)}
    assert scores[1] == {"a": {"macro": 1.0, "binary": 1.0}}
    assert units.summarise(scores)["mean"] == {"macro": 1.0, "binary": 1.0}


def test_leaving_a_database_out_trains_on_none_of_it() -> None:
    study = units.by_database(STUDY)
    view = fold_view(study, Fold("samm", 0))
    assert {study.databases[row] for row in view.test.tolist()} == {"samm"}
    assert "samm" not in {study.databases[row] for row in view.train.tolist()}
    single = token_set(subjects=tuple(f"samm/{i}" for i in range(6)))
    with pytest.raises(UserError, match="composite is one database, samm"):
        units.by_database(single)
    assert torch.equal(study.labels, STUDY.labels)
