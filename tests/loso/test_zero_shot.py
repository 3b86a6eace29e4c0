"""A class that is left out of training: nothing of it reaches a head but its text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from token_sets import CLASSES, SMALL, anchors, token_set

from mefar.classifier.losses import TextAnchors
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso import callback
from mefar.loso.engine import Heads
from mefar.loso.folds import Fold, StudyTokens, fold_view, inner_view
from mefar.loso.results import read_predictions
from mefar.loso.run import Run, Where
from mefar.loso.study import Options, without_class

TRAINING = HeadTraining(epochs=10, batch_size=8, learning_rate=1e-2, edclip_weight=1.0, normalise=False)


def left_out() -> StudyTokens:
    vectors = torch.nn.functional.normalize(torch.eye(3, 8) + 0.1, dim=1)
    texts = TextAnchors(vectors, torch.tensor([True, True, True]))
    return without_class(replace(token_set(), anchors=texts), CLASSES[1], TRAINING)


def test_no_fold_is_trained_on_the_class() -> None:
    study = left_out()
    for view in (fold_view, inner_view):
        rows = view(study, Fold(study.subjects[0], 0))
        assert 1 not in study.labels[rows.train] and 1 in study.labels[rows.test]


def test_its_clips_and_its_text_change_no_training() -> None:
    study = left_out()
    assert study.anchors is not None
    own = (study.labels == 1).view(-1, 1, 1, 1)
    vectors = study.anchors.vectors.clone()
    vectors[1] = -vectors[1]
    other = replace(
        study,
        tokens=torch.where(own, torch.full_like(study.tokens, 9.0), study.tokens),
        anchors=replace(study.anchors, vectors=vectors),
    )
    view = fold_view(study, Fold(study.subjects[0], 0))
    rows, labels = view.train[None, :4], study.labels[view.train][None, :4]
    found = []
    for each in (study, other):
        heads = Heads([view], SMALL, each, TRAINING)
        found.append(heads.gradients(each.tokens[rows, 0], labels, torch.ones(1, 4)))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_every_clip_is_recognised_by_the_nearest_text(tmp_path: Path) -> None:
    run = Run(left_out(), tmp_path, SMALL, TRAINING, where=Where("cpu", 1))
    callback.train([run], Where("cpu", 1))
    rows = read_predictions(tmp_path)
    assert sorted(rows.clips) == sorted(run.study.clips)
    seen = rows.labels != 1
    assert (rows.chosen["last"][seen] == rows.labels[seen]).mean() > 0.6


def test_shuffled_sentences_are_those_of_other_classes() -> None:
    own = anchors()
    other = own.shuffled()
    assert torch.equal(other.vectors[[0, 1]], own.vectors[[1, 0]]) and torch.equal(
        other.vectors[2], own.vectors[2]
    )


def test_what_cannot_be_known_by_text_is_said_in_a_line() -> None:
    study = replace(token_set(), anchors=anchors())
    for name, training, text in (
        ("bored", TRAINING, "no class 'bored'"),
        ("surprise", TRAINING, "needs one"),
        ("positive", replace(TRAINING, edclip_weight=0.0), "needs one"),
    ):
        with pytest.raises(UserError, match=text):
            without_class(study, name, training)
    with pytest.raises(UserError, match="neither shuffled labels"):
        Options(zero_shot="positive", shuffle_labels=True)
