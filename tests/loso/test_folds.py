"""Folds: a model in a group is the model alone, and the held-out subject reaches nothing but its test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_sets import anchors, token_set
from torch import Tensor
from torch.nn import functional

from mefar.classifier import losses
from mefar.classifier.head import HeadSize, TokenHead
from mefar.classifier.layers import DropoutNoise
from mefar.errors import UserError
from mefar.loso.engine import GroupTrainer, Model, TokenSet, Training, random_seed
from mefar.loso.folds import Fold, FoldResult, FoldTrainer, fold_model, inner_model, plan, train_group
from mefar.loso.grouped_adamw import GroupedAdamW

SIZE = HeadSize(dim=8, depth=1, heads=2, feedforward=12, dropout=0.25)
TRAINING = Training(epochs=4, batch_size=5, learning_rate=5e-3, eval_views=1)
subject_lists = st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=40).map(tuple)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# The plan


@given(subject_lists, st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
@settings(deadline=None)
def test_every_fold_is_planned_once(subjects: tuple[str, ...], group: int, seeds: list[int]) -> None:
    groups = plan(subjects, seeds, group)
    every = [fold for each in groups for fold in each]
    assert sorted(every) == sorted(Fold(subject, seed) for subject in set(subjects) for seed in seeds)
    assert all(1 <= len(each) <= group for each in groups)
    # More seeds later must find the old groups in their ledger.
    assert plan(subjects, seeds[:1], group) == groups[: len(groups) // len(seeds)]


@pytest.mark.parametrize("folds", [12, 26, 28, 32, 68])
def test_two_ranks_have_equally_many_folds(folds: int) -> None:
    groups = plan([f"{number:02d}" for number in range(folds)], [0], 4)
    assert [sum(map(len, groups[rank::2])) for rank in (0, 1)] == [folds // 2] * 2


@given(st.integers(1, 12), st.integers(1, 8), st.sets(st.integers(0, 11)))
@settings(deadline=None)
def test_ranks_share_all_unfinished_groups(count: int, world: int, finished: set[int]) -> None:
    module = FoldTrainer.__new__(FoldTrainer)
    module.__dict__.update(groups=[()] * count, finished=frozenset(finished))
    dealt = [number for rank in range(world) for number in module.mine(rank, world)]
    assert sorted(dealt) == sorted(set(range(count)) - finished)


def test_subjects_of_the_same_number_stay_apart() -> None:
    data = token_set((4, 5, 6), subjects=("casme2/06", "samm/06", "smic/06"))
    model = fold_model(data, Fold("samm/06", 0))
    assert model.test.tolist() == [4, 5, 6, 7, 8]
    assert model.train.tolist() == [0, 1, 2, 3, 9, 10, 11, 12, 13, 14]
    assert len(plan(data.subjects, [0], 8)[0]) == 3


@given(st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_a_fold_splits_by_subject(seed: int) -> None:
    data = token_set()
    for fold in (Fold(subject, seed) for subject in set(data.subjects)):
        model, inner = fold_model(data, fold), inner_model(data, fold)
        names = [
            {data.subjects[i] for i in rows} for rows in (model.train, model.test, inner.train, inner.test)
        ]
        assert names[1] == {fold.subject}
        assert not names[0] & names[1]
        assert not names[2] & names[3]
        assert fold.subject not in names[2] | names[3]
        assert sorted([*model.train.tolist(), *model.test.tolist()]) == list(range(len(data.labels)))


# One by one


def one_by_one(data: TokenSet, model: Model, size: HeadSize, training: Training) -> tuple[Tensor, TokenHead]:
    """A fold as everybody would write it: plain loop, torch's AdamW, torch's loss, torch's clipping."""
    _, V, L, D = data.tokens.shape
    text = data.anchors.vectors.shape[1] if data.anchors else None
    head = TokenHead(L, D, 3, size, text, (random_seed(model.key, "values"),)).to(data.tokens.dtype)
    optimiser = torch.optim.AdamW(
        head.parameters(), training.learning_rate, training.betas, weight_decay=training.weight_decay
    )
    own = data.tokens[model.train].flatten(0, 2)
    mean, deviation = own.mean(0), own.std(0, correction=0)
    counts = torch.bincount(data.labels[model.train], minlength=3)
    weights = len(model.train) / (3 * counts.to(own))
    stream = torch.Generator()
    steps = -(-len(model.train) // training.batch_size)
    path = []
    for epoch in range(training.epochs):
        order = torch.Generator().manual_seed(random_seed(model.key, f"order {epoch}"))
        rows = model.train[torch.randperm(len(model.train), generator=order)]
        views = torch.randint(V, (len(rows),), generator=order)
        stream.manual_seed(random_seed(model.key, f"dropout {epoch}"))
        for step in range(steps):
            part = slice(step * training.batch_size, (step + 1) * training.batch_size)
            x = (data.tokens[rows[part], views[part]] - mean) / deviation
            output = head(x[None], DropoutNoise((stream,), size.dropout, training.batch_size))
            loss = functional.cross_entropy(
                output.logits[0], data.labels[rows[part]], weights, label_smoothing=training.label_smoothing
            )
            loss = loss + training.entropy_weight * losses.attention_entropy(output.attention[0])
            if data.anchors is not None:
                terms = losses.alignment_losses(
                    output.text[0], data.labels[rows[part]], data.anchors.vectors, data.anchors.described
                )
                loss = loss + training.edclip_weight * (terms["described"] + 0.2 * terms["others"])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), training.clip_norm)
            t, total = epoch * steps + step, steps * training.epochs
            falling = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * t / total, dtype=torch.float64)))
            rate = min((t + 1) / max(1, 0.05 * total), float(falling))
            optimiser.param_groups[0]["lr"] = training.learning_rate * rate
            optimiser.step()
        with torch.no_grad():
            held_out = (data.tokens[model.test, 0] - mean) / deviation
            path.append(head(held_out[None]).logits[0].softmax(-1))
    return torch.stack(path), head


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("embedding", ["shared", "per_position"])
@pytest.mark.parametrize("text", [False, True])
def test_a_group_is_its_folds_one_by_one(dropout: float, embedding: str, text: bool) -> None:
    data = token_set(dtype=torch.float64)
    if text:
        data = replace(data, anchors=anchors(dtype=torch.float64))
    size = replace(SIZE, dropout=dropout, embedding=embedding)
    training = replace(TRAINING, epochs=12)
    models = [fold_model(data, fold) for fold in plan(data.subjects, [3], 99)[0]]
    assert len({len(model.train) for model in models}) > 3, "folds must differ in size"
    assert len({-(-len(model.train) // 5) for model in models}) > 1, "some must rest while others train"
    trainer = GroupTrainer(data, models, size, training)
    before = trainer.optimiser.values()
    together = trainer.run()
    assert (trainer.optimiser.values() - before).abs().max() > 0.01
    for index, model in enumerate(models):
        alone, head = one_by_one(data, model, size, training)
        torch.testing.assert_close(together[index].double(), alone, atol=2e-7, rtol=0)
        state = trainer.head.model_state(index)
        for name, value in head.named_parameters():
            torch.testing.assert_close(state[name], value.detach(), atol=1e-7, rtol=0)


def test_the_size_of_groups_does_not_matter() -> None:
    """In float32 too the predictions here do not even differ in the last digit."""
    data = token_set()

    def results(group: int) -> list[FoldResult]:
        made = [train_group(data, each, SIZE, TRAINING) for each in plan(data.subjects, [0], group)]
        return [result for each in made for result in each]

    one, two, six = results(1), results(2), results(6)
    assert [r.fold for r in one] == [r.fold for r in two] == [r.fold for r in six]
    for a, b, c in zip(one, two, six, strict=True):
        assert a.predictions == b.predictions == c.predictions
        torch.testing.assert_close(torch.tensor(a.probabilities), torch.tensor(c.probabilities))


def test_seeds_and_folds_have_their_own_streams() -> None:
    data = token_set()
    first = Fold(data.subjects[0], 0)
    models = [fold_model(data, fold) for fold in (first, replace(first, seed=1), Fold(data.subjects[-1], 0))]
    values = GroupTrainer(data, models, SIZE, TRAINING).optimiser.values()
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    again = GroupTrainer(data, models[::-1], SIZE, TRAINING).optimiser.values()
    assert torch.equal(values[0], again[2])


def test_a_resting_model_keeps_every_number() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((3, 5), (6, 2), (3, 2, 2))]
    optimiser = GroupedAdamW(parameters, [3, 3, 2], (0.9, 0.98), 0.1, 1.0)

    def step(*active: bool) -> None:
        gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
        optimiser.step(gradients, [0.1] * 3, active)

    def everything() -> list[list[Tensor]]:
        """Of the models that go together, then of the third: values, step counts and moments."""
        state = [x.clone() for part in optimiser.states[1] for x in part]
        return [[optimiser.values()[:2]], [optimiser.values()[2:], *state]]

    step(True, True, True)
    before = everything()
    step(True, True, False)
    after = everything()
    assert len(before[1]) == 1 + 2 * 4  # values, two moments and step count of each of two blocks
    assert all(torch.equal(old, new) for old, new in zip(before[1], after[1], strict=True))
    assert not torch.equal(before[0][0], after[0][0])


def test_the_optimiser_is_adamw_with_clipping_per_model() -> None:
    """Of parameters in the common matrix and outside of it; what they were is not changed by moving them."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5), (4, 3), (2, 2, 2))
    parameters = [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]
    alone = [
        [torch.nn.Parameter(p.detach().unflatten(0, (2, -1))[i].clone()) for p in parameters] for i in (0, 1)
    ]
    optimiser = GroupedAdamW(parameters, [2, 1], (0.9, 0.98), 0.1, 0.7)
    theirs = [torch.optim.AdamW(each, betas=(0.9, 0.98), weight_decay=0.1) for each in alone]
    for step in range(5):
        gradients = [torch.randn(p.shape, generator=generator) * (step % 2 + 0.05) for p in parameters]
        for i in (0, 1):
            if i == 1 and step == 2:  # it rests
                continue
            for value, gradient in zip(alone[i], gradients, strict=True):
                value.grad = gradient.unflatten(0, (2, -1))[i].clone()
            torch.nn.utils.clip_grad_norm_(alone[i], 0.7)
            theirs[i].param_groups[0]["lr"] = 0.01 * (i + 1)
            theirs[i].step()
        optimiser.step(gradients, [0.01, 0.02], [True, step != 2])
    for index, value in enumerate(parameters):
        for i in (0, 1):
            torch.testing.assert_close(value.detach().unflatten(0, (2, -1))[i], alone[i][index].detach())


# Views


def test_training_uses_all_views_and_the_test_those_asked_for() -> None:
    data = token_set(views=3)
    noisy = data.tokens.clone()
    fold = Fold(data.subjects[0], 0)
    model = fold_model(data, fold)
    noisy[model.train, 2] += 5
    first, every = replace(TRAINING, eval_views=1), replace(TRAINING, eval_views=0)
    base = train_group(data, [fold], SIZE, first)[0].probabilities
    assert train_group(replace(data, tokens=noisy), [fold], SIZE, first)[0].probabilities != base
    noisy = data.tokens.clone()
    noisy[model.test, 1:] += 5
    changed = replace(data, tokens=noisy)
    assert train_group(changed, [fold], SIZE, first)[0].probabilities == base
    assert train_group(changed, [fold], SIZE, every)[0].probabilities != base
    three = train_group(changed, [fold], SIZE, replace(TRAINING, eval_views=3))[0].probabilities
    assert three == train_group(changed, [fold], SIZE, every)[0].probabilities


@pytest.mark.parametrize("eval_views", [1, 2])
def test_attention_is_that_of_the_last_epoch_over_the_test_views(eval_views: int) -> None:
    data = token_set(noise=1.5)
    fold, training = Fold(data.subjects[0], 0), replace(TRAINING, eval_views=eval_views)
    model = fold_model(data, fold)
    trainer = GroupTrainer(data, [model], SIZE, training)
    trainer.run()
    with torch.no_grad():
        views = [trainer.forward(data.tokens[None, model.test, v], None).attention for v in range(eval_views)]
    expected = torch.stack(views).mean(0)[0]
    assert (expected - 1 / 4).abs().max() > 1e-3, "the query must have learned something"
    (result, _) = train_group(data, [fold, Fold(data.subjects[-1], 0)], SIZE, training)
    torch.testing.assert_close(torch.tensor(result.attention), expected, atol=1e-4, rtol=0)


# Selections


def test_selections_take_their_epochs() -> None:
    data = token_set(noise=2.5, clips=(9, 8, 7, 9))
    fold = Fold(data.subjects[0], 0)
    training = replace(TRAINING, epochs=6, inner=True)
    models = [fold_model(data, fold), inner_model(data, fold)]
    paths = [path.argmax(-1) for path in GroupTrainer(data, models, SIZE, training).run()]
    (result,) = train_group(data, [fold], SIZE, training)
    right = (paths[0] == data.labels[models[0].test]).sum(1)
    assert result.predictions["last"] == paths[0][-1].tolist()
    assert result.epochs["oracle"] == int(right.argmax()) + 1
    assert result.predictions["oracle"] == paths[0][int(right.argmax())].tolist()
    inner = (paths[1] == data.labels[models[1].test]).sum(1)
    assert result.epochs["inner"] == int((inner == inner.max()).nonzero()[0]) + 1
    assert result.predictions["inner"] == paths[0][result.epochs["inner"] - 1].tolist()


def test_it_learns() -> None:
    data = token_set((6,) * 8, noise=0.5)
    training = Training(epochs=30, batch_size=16, learning_rate=5e-3)
    results = [r for each in plan(data.subjects, [0], 8) for r in train_group(data, each, SIZE, training)]
    right = sum(
        int(guess == data.labels[row])
        for result in results
        for row, guess in zip(result.rows, result.predictions["last"], strict=True)
    )
    assert right / len(data.labels) > 0.85


# Bad input


def test_studies_that_cannot_be_tested_are_refused() -> None:
    data = token_set()
    with pytest.raises(UserError, match="at least 2 subjects, found 1"):
        replace(data, subjects=(data.subjects[0],) * len(data.subjects))
    with pytest.raises(UserError, match="no clip of class 'surprise'"):
        replace(data, labels=data.labels.clamp(max=1))
    with pytest.raises(UserError, match="eval_views is 5 but there are 2"):
        train_group(data, [Fold(data.subjects[0], 0)], SIZE, replace(TRAINING, eval_views=5))
    with pytest.raises(UserError, match="epochs is 0"):
        Training(epochs=0)
    with pytest.raises(UserError, match="multiple of heads"):
        HeadSize(dim=10, heads=4)
    two = token_set((4, 5))
    with pytest.raises(UserError, match="at least 3 subjects"):
        inner_model(two, Fold(two.subjects[0], 0))


def test_a_class_that_only_the_held_out_subject_has_is_simply_never_learned() -> None:
    data = token_set()
    own = torch.tensor([subject == data.subjects[0] for subject in data.subjects])
    data = replace(data, labels=torch.where(own, 2, data.labels % 2))
    fold = Fold(data.subjects[0], 0)
    assert GroupTrainer(data, [fold_model(data, fold)], SIZE, TRAINING).objective.class_weights[0, 2] == 0
    (result,) = train_group(data, [fold], SIZE, replace(TRAINING, epochs=20, learning_rate=0.02))
    probabilities = torch.tensor(result.probabilities)
    assert probabilities.isfinite().all()
    assert (probabilities.argmax(1) != 2).all()
