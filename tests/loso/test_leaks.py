"""The held-out subject reaches nothing but its own test; each way in has a test, and a leak that it catches.

Subjects of equal number in different databases: test_folds.py; the control on pixels: test_controls.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from token_sets import token_set
from torch import Tensor

from mefar.classifier import losses
from mefar.classifier.head import HeadSize
from mefar.errors import UserError
from mefar.loso import folds
from mefar.loso.engine import GroupTrainer, Model, TokenSet, Training
from mefar.loso.folds import Fold, FoldResult, fold_model, inner_model, train_group

SIZE = HeadSize(dim=8, depth=1, heads=2, feedforward=12, dropout=0.25)
TRAINING = Training(epochs=4, batch_size=5, learning_rate=5e-3, eval_views=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def outcome(data: TokenSet, training: Training = TRAINING) -> tuple[Tensor, Tensor, FoldResult]:
    """Parameters of all models of a fold, its scaling and class weights, its result."""
    fold = Fold(data.subjects[0], 0)
    models = [folds.fold_model(data, fold)] + ([folds.inner_model(data, fold)] if training.inner else [])
    trainer = folds.GroupTrainer(data, models, SIZE, training)
    trainer.run()
    inputs = torch.cat([x.flatten() for x in (trainer.mean, trainer.scale, trainer.objective.class_weights)])
    (result,) = train_group(data, [fold], SIZE, training)
    return trainer.optimiser.values(), inputs, result


def reached(data: TokenSet, change: Callable[[TokenSet], TokenSet], training: Training) -> set[str]:
    """What a change of the held-out subject reaches, besides how that subject's predictions are scored."""
    before, after = outcome(data, training), outcome(change(data), training)
    (old, new), found = (before[2], after[2]), set()
    if not torch.equal(before[0], after[0]):
        found.add("parameters")
    if not torch.equal(before[1], after[1]):
        found.add("scaling and class weights")
    if old.probabilities != new.probabilities or old.predictions["last"] != new.predictions["last"]:
        found.add("predictions")
    if old.predictions.get("inner") != new.predictions.get("inner") or old.epochs.get(
        "inner"
    ) != new.epochs.get("inner"):
        found.add("inner selection")
    return found


def corrupted(data: TokenSet) -> TokenSet:
    """Every copy of the first subject's clips turned to noise, except the ones it is tested on."""
    tokens = data.tokens.clone()
    own = torch.tensor([subject == data.subjects[0] for subject in data.subjects])
    tokens[own, 1:] = 100 * torch.randn(tokens[own, 1:].shape)
    return replace(data, tokens=tokens)


def relabelled(data: TokenSet) -> TokenSet:
    """The first subject's labels moved on by one."""
    own = torch.tensor([subject == data.subjects[0] for subject in data.subjects])
    return replace(data, labels=torch.where(own, (data.labels + 1) % 3, data.labels))


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("change", [corrupted, relabelled])
def test_the_held_out_subject_reaches_nothing_but_its_test(
    change: Callable[[TokenSet], TokenSet], inner: bool
) -> None:
    """Not the training, not the scaling, not the class weights, not the inner selection."""
    assert not reached(token_set(noise=1.5), change, replace(TRAINING, inner=inner))


def test_labels_of_the_held_out_subject_do_change_its_scoring() -> None:
    data = token_set(noise=1.5)
    (_, _, before), (_, _, after) = outcome(data), outcome(relabelled(data))
    assert before.epochs["oracle"] != after.epochs["oracle"], "the oracle looks at them: that is its sin"


def a_clip_in_training(patch: pytest.MonkeyPatch) -> None:
    real = folds.fold_model

    def leaky(data: TokenSet, fold: Fold) -> Model:
        model = real(data, fold)
        return replace(model, train=torch.cat([model.train, model.test[:1]]))

    patch.setattr(folds, "fold_model", leaky)


def scaling_by_all_clips(patch: pytest.MonkeyPatch) -> None:
    class Leaky(GroupTrainer):
        def _statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            honest, every = self.models, torch.arange(len(self.data.labels))
            self.models = [replace(model, train=every) for model in honest]
            found = super()._statistics(dtype)
            self.models = honest
            return found

    patch.setattr(folds, "GroupTrainer", Leaky)


def class_weights_of_all_clips(patch: pytest.MonkeyPatch) -> None:
    class Leaky(GroupTrainer):
        def __init__(self, data: TokenSet, *rest: Any) -> None:
            super().__init__(data, *rest)
            honest = self.objective.class_weights
            weights = losses.balanced(torch.bincount(data.labels, minlength=3)).to(honest).expand_as(honest)
            self.objective = replace(self.objective, class_weights=weights)

    patch.setattr(folds, "GroupTrainer", Leaky)


def a_clip_in_the_inner_training(patch: pytest.MonkeyPatch) -> None:
    def leaky(data: TokenSet, fold: Fold) -> Model:
        model = inner_model(data, fold)
        return replace(model, train=torch.cat([model.train, fold_model(data, fold).test[:1]]))

    patch.setattr(folds, "inner_model", leaky)


def selection_by_its_own_clips(patch: pytest.MonkeyPatch) -> None:
    def leaky(data: TokenSet, fold: Fold) -> Model:
        return replace(inner_model(data, fold), test=fold_model(data, fold).test)

    patch.setattr(folds, "inner_model", leaky)


@pytest.mark.parametrize(
    ("plant", "change", "where"),
    [
        (a_clip_in_training, corrupted, {"parameters"}),
        (a_clip_in_training, relabelled, {"parameters"}),
        (scaling_by_all_clips, corrupted, {"scaling and class weights", "parameters"}),
        (class_weights_of_all_clips, relabelled, {"scaling and class weights", "parameters"}),
        (a_clip_in_the_inner_training, corrupted, {"parameters"}),
        (selection_by_its_own_clips, relabelled, {"inner selection"}),
    ],
)
def test_a_planted_leak_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None],
    change: Callable[[TokenSet], TokenSet],
    where: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test above fails on an engine that lets the held-out subject in anywhere."""
    plant(monkeypatch)
    data = token_set(noise=2.5, clips=(8, 8, 7, 6))
    assert where <= reached(data, change, replace(TRAINING, epochs=8, inner=True))


def test_broken_tokens_of_the_held_out_subject_stay_its_own() -> None:
    data = token_set()
    tokens = data.tokens.clone()
    tokens[[i for i, subject in enumerate(data.subjects) if subject == data.subjects[0]]] = torch.nan
    results = train_group(replace(data, tokens=tokens), [Fold(data.subjects[0], 0)], SIZE, TRAINING)
    assert torch.tensor(results[0].probabilities).isnan().all()
    with pytest.raises(UserError, match="diverged"):
        train_group(replace(data, tokens=tokens), [Fold(data.subjects[-1], 0)], SIZE, TRAINING)
