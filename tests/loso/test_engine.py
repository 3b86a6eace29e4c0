"""Folds: a head in a group is the head alone, whatever the head; who may see what."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from foreign_heads import BatchNormHead, ConvolutionHead, GRUHead, MeanHead, OneHotHead
from hypothesis import given, settings
from hypothesis import strategies as st
from token_sets import SMALL, anchors, token_set
from torch import Tensor, nn
from torch.nn import functional

from mefar.classifier.head import HeadFactory, build_head
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso.engine import Trainer, can_map, train_group
from mefar.loso.folds import Fold, FoldResult, StudyTokens, View, fold_view, inner_view, plan
from mefar.randomness import epoch_order, seed_of, view_of

TRAINING = HeadTraining(epochs=4, batch_size=5, learning_rate=5e-3, eval_views=1)
subject_lists = st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=40).map(tuple)


# The plan


@given(subject_lists, st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
@settings(deadline=None)
def test_every_fold_is_planned_once(subjects: tuple[str, ...], group: int, seeds: list[int]) -> None:
    groups = plan(subjects, seeds, group, TRAINING)
    every = [fold for each in groups for fold in each]
    assert sorted(every) == sorted(Fold(subject, seed) for subject in set(subjects) for seed in seeds)
    for each in groups:
        assert 1 <= len(each) <= group
        assert len({TRAINING.steps(len(subjects) - subjects.count(fold.subject)) for fold in each}) == 1
    # More seeds later must find the old groups in their ledger.
    assert plan(subjects, seeds[:1], group, TRAINING) == groups[: len(groups) // len(seeds)]


@given(st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_a_fold_splits_by_subject(seed: int) -> None:
    study = token_set()
    for fold in (Fold(subject, seed) for subject in set(study.subjects)):
        outer, inner = fold_view(study, fold), inner_view(study, fold)
        parts = (outer.train, outer.test, inner.train, inner.test)
        names = [{study.subjects[i] for i in rows} for rows in parts]
        assert names[1] == {fold.subject}
        assert not names[0] & names[1]
        assert not names[2] & names[3]
        assert fold.subject not in names[2] | names[3]
        assert sorted([*outer.train.tolist(), *outer.test.tolist()]) == list(range(len(study.labels)))


def test_subjects_of_the_same_number_stay_apart() -> None:
    view = fold_view(token_set((4, 5, 6), subjects=("casme2/06", "samm/06", "smic/06")), Fold("samm/06", 0))
    assert view.test.tolist() == [4, 5, 6, 7, 8]
    assert view.train.tolist() == [0, 1, 2, 3, 9, 10, 11, 12, 13, 14]


# One by one


def one_by_one(
    study: StudyTokens, view: View, factory: HeadFactory, training: HeadTraining
) -> tuple[Tensor, nn.Module]:
    """A fold as everybody would write it: plain loop, torch's AdamW, torch's loss, torch's clipping."""
    _, V, L, D = study.tokens.shape
    torch.manual_seed(seed_of(view.key, "values"))
    text = study.anchors.vectors.shape[1] if study.anchors else None
    head = build_head(factory, L, D, 3, text).to(study.tokens.dtype)
    optimiser = torch.optim.AdamW(
        head.parameters(), training.learning_rate, training.betas, weight_decay=training.weight_decay
    )
    own = study.tokens[view.train].flatten(0, 2)
    mean, deviation = own.mean(0), own.std(0, correction=0)
    weights = len(view.train) / (3 * torch.bincount(study.labels[view.train], minlength=3).to(own))
    steps, path = -(-len(view.train) // training.batch_size), []
    for epoch in range(training.epochs):
        head.train()
        rows = view.train[epoch_order(view.key, epoch, len(view.train))]
        picks = torch.tensor([view_of(view.key, epoch, study.clips[row], V) for row in rows.tolist()])
        for step in range(steps):
            part = slice(step * training.batch_size, (step + 1) * training.batch_size)
            output = head((study.tokens[rows[part], picks[part]] - mean) / deviation)
            labels = study.labels[rows[part]]
            loss = functional.cross_entropy(
                output.logits, labels, weights, label_smoothing=training.label_smoothing
            )
            if output.attention is not None:
                entropy = -(output.attention * output.attention.log()).sum(-1).mean()
                loss = loss + training.entropy_weight * entropy
            if study.anchors is not None and output.text is not None:
                cosines, has = output.text @ study.anchors.vectors[:2].T, labels < 2
                if has.any():
                    warm = training.temperature * (1 if output.temperature is None else output.temperature)
                    near = functional.cross_entropy(cosines[has] / warm, labels[has])
                    loss = loss + training.edclip_weight * near
                if not has.all():
                    far = (cosines[~has].amax(-1) - training.margin).relu().mean()
                    loss = loss + training.edclip_weight * training.others_weight * far
            for parameter in head.parameters():  # not None, which AdamW passes over
                parameter.grad = torch.zeros_like(parameter)
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), training.clip_norm)
            optimiser.param_groups[0]["lr"] = training.learning_rate * training.rate(
                epoch * steps + step, steps * training.epochs
            )
            optimiser.step()
        head.eval()
        with torch.no_grad():
            path.append(head((study.tokens[view.test, 0] - mean) / deviation).logits.softmax(-1))
    return torch.stack(path), head


KINDS: dict[str, HeadFactory] = {
    "token": SMALL,
    "a matrix per position": partial(SMALL, embedding="per_position", initial="published"),
    "cls on a grid": partial(SMALL, position="2d", pooling="cls"),
    "mean, learned temperature": partial(SMALL, position="none", pooling="mean", learn_temperature=True),
    "mean": partial(MeanHead, dropout=0.0),
    "convolution": ConvolutionHead,
    "one hot": OneHotHead,
    "gru": GRUHead,
    "batch norm": BatchNormHead,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [False, True])
def test_a_group_is_its_folds_one_by_one(kind: str, text: bool) -> None:
    study = replace(token_set(dtype=torch.float64), anchors=anchors(dtype=torch.float64) if text else None)
    factory, training = KINDS[kind], replace(
        TRAINING, epochs=8, label_smoothing=0.2, entropy_weight=0.02, edclip_weight=0.4, others_weight=0.5,
        temperature=0.1, margin=-0.1,
        batch_size=11 if kind == "batch norm" else 4,  # a batch of one clip has no statistics
    )  # fmt: skip
    groups = plan(study.subjects, [3], 99, training)
    assert len(groups) > 1 or kind == "batch norm", "folds must differ in their number of steps"
    together = can_map(factory, study, training)
    assert together == (kind not in ("gru", "batch norm"))
    for group in groups:
        views = [fold_view(study, fold) for fold in group]
        trainer = Trainer(study, views, factory, training, together)
        for index, (view, path) in enumerate(zip(views, trainer.run(), strict=True)):
            expected, head = one_by_one(study, view, factory, training)
            torch.testing.assert_close(path.double(), expected, atol=1e-6, rtol=0)
            state = trainer.heads.state(index)
            for name, value in head.named_parameters():
                torch.testing.assert_close(state[name], value.detach(), atol=1e-6, rtol=0)


def test_a_batch_that_a_head_cannot_take_is_named() -> None:
    with pytest.raises(UserError, match=r"BatchNormHead.*batch of 1 clips.*training.batch_size"):
        train_group(
            token_set(), [Fold("casme2/00", 0)], BatchNormHead, replace(TRAINING, batch_size=28), False
        )


def test_what_cannot_be_mapped_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    assert not can_map(GRUHead, token_set(), TRAINING)
    (record,) = caplog.records
    assert "foreign_heads.GRUHead" in record.message and "one after another" in record.message
    assert "\n" not in record.message


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step() -> None:
    study, fold = token_set(), Fold("casme2/00", 0)
    plain, fused = (
        train_group(study, [fold], SMALL, TRAINING, compiled=each)[0][0] for each in (False, True)
    )
    torch.testing.assert_close(
        torch.tensor(plain.probabilities), torch.tensor(fused.probabilities), atol=1e-4, rtol=0
    )


def test_seeds_and_folds_have_their_own_values() -> None:
    study = token_set()
    first = Fold(study.subjects[0], 0)
    views = [fold_view(study, fold) for fold in (first, replace(first, seed=1))]
    values = Trainer(study, views, SMALL, TRAINING).heads.values["query"]
    assert not torch.equal(values[0], values[1])
    assert torch.equal(values[0], Trainer(study, views[:1], SMALL, TRAINING).heads.values["query"][0])


# Selections


def only(study: StudyTokens, fold: Fold, training: HeadTraining) -> FoldResult:
    return train_group(study, [fold], SMALL, training)[0][0]


def test_selections_take_their_epochs() -> None:
    study = token_set(noise=2.5, clips=(9, 8, 7, 9))
    fold = Fold(study.subjects[0], 0)
    training = replace(TRAINING, epochs=6, inner=True)
    views = [fold_view(study, fold), inner_view(study, fold)]
    paths = [Trainer(study, [view], SMALL, training).run()[0].argmax(-1) for view in views]
    result = only(study, fold, training)
    right = [(path == study.labels[view.test]).sum(1) for path, view in zip(paths, views, strict=True)]
    assert result.predictions["last"] == paths[0][-1].tolist()
    assert result.epochs["oracle"] == int(right[0].argmax()) + 1
    assert result.predictions["oracle"] == paths[0][int(right[0].argmax())].tolist()
    assert result.epochs["inner"] == int((right[1] == right[1].max()).nonzero()[0]) + 1
    assert result.predictions["inner"] == paths[0][result.epochs["inner"] - 1].tolist()


# Bad input


def test_studies_that_cannot_be_tested_are_refused() -> None:
    study = token_set()
    with pytest.raises(UserError, match="no clip of class 'surprise'"):
        replace(study, labels=study.labels.clamp(max=1))
    with pytest.raises(ValueError, match="do not match"):
        replace(study, tokens=study.tokens[:-1])
    two = token_set((4, 5))
    with pytest.raises(UserError, match="at least 3 subjects"):
        inner_view(two, Fold(two.subjects[0], 0))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("clip_norm", 0.0, "clip_norm"), ("label_smoothing", 1.0, r"in \[0, 1\)")],
)
def test_settings_out_of_range_are_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        HeadTraining(**{name: value})


def test_a_class_that_only_the_held_out_subject_has_is_simply_never_learned() -> None:
    study = token_set()
    own = torch.tensor([subject == study.subjects[0] for subject in study.subjects])
    study = replace(study, labels=torch.where(own, 2, study.labels % 2))
    fold = Fold(study.subjects[0], 0)
    assert Trainer(study, [fold_view(study, fold)], SMALL, TRAINING).heads.weights[0, 2] == 0
    result = only(study, fold, replace(TRAINING, epochs=20, learning_rate=0.02))
    probabilities = torch.tensor(result.probabilities)
    assert probabilities.isfinite().all()
    assert (probabilities.argmax(1) != 2).all()
