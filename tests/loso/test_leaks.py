"""The held-out subject reaches nothing but its own test; each way in has a test, and a leak that it catches.

Held with our head and with one of a user's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from foreign_heads import ConvolutionHead
from token_sets import SMALL, token_set

from mefar.classifier.head import HeadFactory
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso import engine
from mefar.loso.engine import Trainer, train_group
from mefar.loso.folds import Fold, StudyTokens, View, fold_view, inner_view

TRAINING = HeadTraining(epochs=4, batch_size=5, learning_rate=5e-3, eval_views=1)
Change = Callable[[StudyTokens], StudyTokens]
HEADS: list[HeadFactory] = [partial(SMALL, dropout=0.25), ConvolutionHead]


def outcome(study: StudyTokens, training: HeadTraining, head: HeadFactory) -> dict[str, Any]:
    """What a fold and its companion come to, but for how its predictions are scored."""
    fold, found, inputs = Fold(study.subjects[0], 0), {}, []
    for name, view in (("values", engine.fold_view), ("inner values", engine.inner_view)):
        if name == "values" or training.inner:
            trainer = engine.Trainer(study, [view(study, fold)], head, training)
            trainer.run()
            heads = trainer.heads
            found[name] = {key: value.tolist() for key, value in heads.values.items()}
            inputs += [each.tolist() for each in (heads.mean, heads.scale, heads.weights)]
    (result,), _ = train_group(study, [fold], head, training)
    found["scaling and class weights"] = inputs
    found["predictions"] = result.probabilities, result.predictions["last"]
    found["inner selection"] = result.predictions.get("inner"), result.epochs.get("inner")
    return found


def reached(study: StudyTokens, change: Change, training: HeadTraining, head: HeadFactory) -> set[str]:
    """What a change of the held-out subject reaches."""
    before, after = outcome(study, training, head), outcome(change(study), training, head)
    return {name for name in before if before[name] != after[name]}


def corrupted(study: StudyTokens) -> StudyTokens:
    """Every copy of the first subject's clips turned to noise, except the ones it is tested on."""
    tokens = study.tokens.clone()
    own = torch.tensor([subject == study.subjects[0] for subject in study.subjects])
    tokens[own, 1:] = 100 * torch.randn(tokens[own, 1:].shape, generator=torch.Generator().manual_seed(0))
    return replace(study, tokens=tokens)


def relabelled(study: StudyTokens) -> StudyTokens:
    """The first subject's labels moved on by one."""
    own = torch.tensor([subject == study.subjects[0] for subject in study.subjects])
    return replace(study, labels=torch.where(own, (study.labels + 1) % 3, study.labels))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("change", [corrupted, relabelled])
def test_the_held_out_subject_reaches_nothing_but_its_test(change: Change, head: HeadFactory) -> None:
    """Not the training, not the scaling, not the class weights, not the inner selection."""
    for inner in (False, True):
        assert not reached(token_set(noise=1.5), change, replace(TRAINING, inner=inner), head)


def a_clip_in_training(patch: pytest.MonkeyPatch) -> None:
    def leaky(study: StudyTokens, fold: Fold) -> View:
        view = fold_view(study, fold)
        return replace(view, train=torch.cat([view.train, view.test[:1]]))

    patch.setattr(engine, "fold_view", leaky)


def scaling_by_all_clips(patch: pytest.MonkeyPatch) -> None:
    real = engine._statistics
    every = lambda study, rows, training: real(study, torch.arange(len(study.labels)), training)  # noqa: E731
    patch.setattr(engine, "_statistics", every)


def class_weights_of_all_clips(patch: pytest.MonkeyPatch) -> None:
    class Leaky(Trainer):
        def __init__(self, study: StudyTokens, *rest: object) -> None:
            super().__init__(study, *rest)  # type: ignore[arg-type]
            weights = engine.label_weights(study.labels, 3, self.training).to(self.heads.weights)
            self.heads.weights = weights.expand_as(self.heads.weights)

    patch.setattr(engine, "Trainer", Leaky)


def a_clip_in_the_inner_training(patch: pytest.MonkeyPatch) -> None:
    def leaky(study: StudyTokens, fold: Fold) -> View:
        view = inner_view(study, fold)
        return replace(view, train=torch.cat([view.train, fold_view(study, fold).test[:1]]))

    patch.setattr(engine, "inner_view", leaky)


def selection_by_its_own_clips(patch: pytest.MonkeyPatch) -> None:
    leaky = lambda study, fold: replace(inner_view(study, fold), test=fold_view(study, fold).test)  # noqa: E731
    patch.setattr(engine, "inner_view", leaky)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("plant", "change", "where"),
    [
        (a_clip_in_training, corrupted, {"values"}),
        (a_clip_in_training, relabelled, {"values"}),
        (scaling_by_all_clips, corrupted, {"scaling and class weights", "values"}),
        (class_weights_of_all_clips, relabelled, {"scaling and class weights", "values"}),
        (a_clip_in_the_inner_training, corrupted, {"inner values"}),
        (selection_by_its_own_clips, relabelled, {"inner selection"}),
    ],
)
def test_a_planted_leak_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None],
    change: Change,
    where: set[str],
    head: HeadFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test above fails on an engine that lets the held-out subject in anywhere."""
    plant(monkeypatch)
    study = token_set(noise=2.5, clips=(8, 8, 7, 6))
    training = replace(TRAINING, epochs=8, learning_rate=2e-2, inner=True)
    assert where <= reached(study, change, training, head)


def test_broken_tokens_of_the_held_out_subject_stay_its_own() -> None:
    study = token_set()
    tokens = study.tokens.clone()
    tokens[[i for i, subject in enumerate(study.subjects) if subject == study.subjects[0]]] = torch.nan
    broken = replace(study, tokens=tokens)
    (result,), _ = train_group(broken, [Fold(study.subjects[0], 0)], HEADS[0], TRAINING)
    assert torch.tensor(result.probabilities).isnan().all()
    with pytest.raises(UserError, match=rf"fold {study.subjects[-1]} seed 0: training diverged in epoch 1"):
        train_group(broken, [Fold(study.subjects[-1], 0)], HEADS[0], TRAINING)
