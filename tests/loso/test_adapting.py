"""Folds that adapt the tokenizer: what learns, what stays, who is never seen, ranks, going on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_sets import SUBJECTS, Pairs, adaptation, material, tokenizer
from safetensors.torch import load_file
from token_sets import CLASSES, SMALL, anchors, rows_of

from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.files import lock
from mefar.loso import adapting
from mefar.loso.adapting import Adaptation, AdaptingFold
from mefar.loso.callback import make_trainer
from mefar.loso.engine import train_group
from mefar.loso.folds import Fold, StudyTokens, View
from mefar.loso.run import Run, Where
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokens import AdaptableTokenizer

TRAINING = HeadTraining(epochs=2, batch_size=4, learning_rate=5e-3, weight_decay=1e-5)
CPU = Where("cpu", 1)


def fit(
    fold: str = "casme2/1",
    given: Adaptation | None = None,
    study: StudyTokens | None = None,
    training: HeadTraining = TRAINING,
) -> AdaptingFold:
    """One fold, trained in this process."""
    module = AdaptingFold(study or material(), Fold(fold, 0), SMALL, training, given or adaptation())
    make_trainer(CPU, 1, [], max_epochs=training.epochs).fit(module)
    return module


def run(
    out: Path, devices: int = 1, given: Adaptation | None = None, pairs: str = "", **changes: Any
) -> dict[str, Any]:
    given, where = given or adaptation(), replace(CPU, devices=devices)
    decides = {"adapt_tokenizer": given.weight, "pairs": pairs}
    settings: dict[str, Any] = {"study": material(), "head": SMALL, "training": TRAINING} | changes
    made = Run(out=out, where=where, adapting=decides, **settings)
    adapting.train(made, where, given)
    return made.summary()


def error(module: FacialActionTokenizer, pairs: Pairs, rows: Sequence[int]) -> float:
    items = [pairs[row] for row in rows]
    onset, apex = (torch.stack([item[name][0] for item in items]).float() / 255 for name in ("onset", "apex"))
    with torch.no_grad():
        return float(module.adaptation_error(onset, apex, [0] * len(rows)).mean())


# The tokenizer's side


@pytest.mark.parametrize("network", ["warp", "published"])
def test_the_error_of_a_pair_is_its_own_and_reaches_every_parameter(network: str) -> None:
    model = tokenizer(network)
    assert isinstance(model, AdaptableTokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    onset, apex = torch.rand(2, 3, 3, model.image_size, model.image_size).unbind()
    whole = model.adaptation_error(onset, apex, [5, 6, 7])
    assert whole.shape == (3,)
    single = model.adaptation_error(onset[1:2], apex[1:2], [6])
    assert whole[1].item() == pytest.approx(single.item(), rel=1e-5)
    other = model.adaptation_error(onset[1:2], apex[1:2], [8])
    assert (other.item() == single.item()) == (network == "warp"), "noise is nsvq's alone"
    for value in model.parameters():
        value.grad = None
    with torch.enable_grad():
        model.adaptation_error(onset, apex, [5, 6, 7]).sum().backward()
    assert all(value.grad is not None for value in model.parameters()), "DDP waits for every parameter"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.zero_grad()


# One fold


def test_it_is_the_frozen_fold_where_the_tokenizer_stands_still() -> None:
    """Same clips, order, views, initial values, loss, class weights, scaling and schedule as the engine.

    It stands still where nothing is rebuilt: the head sends nothing into it.
    """
    study = replace(material(), anchors=anchors())
    still = replace(TRAINING, weight_decay=0.0, epochs=3)
    module, start = fit(given=adaptation(weight=0.0), study=study, training=still), tokenizer().state_dict()
    assert all(torch.equal(start[name], value) for name, value in module.tokenizer.state_dict().items())
    result = module.result()
    (frozen,), _ = train_group(study, [Fold("casme2/1", 0)], SMALL, still)
    for name in ("probabilities", "attention"):
        found, expected = (torch.tensor(getattr(each, name)) for each in (result, frozen))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for name in ("rows", "predictions", "epochs"):
        assert getattr(result, name) == getattr(frozen, name)


@pytest.mark.parametrize("network", ["warp", "published"])
def test_the_tokenizer_learns_and_the_starting_one_stays(network: str) -> None:
    given, start = adaptation(network, weight=1.0), tokenizer(network)
    before = {name: value.clone() for name, value in [*start.named_parameters(), *start.named_buffers()]}
    training = replace(TRAINING, epochs=10, learning_rate=1e-2)
    module = fit(given=given, study=material(network), training=training)
    adapted, pairs = module.tokenizer, given.pairs
    assert isinstance(adapted, FacialActionTokenizer) and isinstance(pairs, Pairs)
    assert not module.train().tokenizer.training
    assert all(torch.equal(before[name], value) for name, value in start.named_parameters())
    still = {name for name, value in adapted.named_parameters() if torch.equal(before[name], value)}
    assert len(still) <= 1, "the last bias of an encoder falls out of the difference of the frames"
    for name, value in adapted.named_buffers():
        assert torch.equal(before[name], value), f"{name}: nothing but the optimiser may move"
    rows = module.view.train.tolist()
    assert error(adapted, pairs, rows) < 0.95 * error(start, pairs, rows)


# Leaks


def held_out_matters() -> bool:
    """Whether garbage in place of the held-out subject's pictures changes what the fold has learned."""
    honest, spoilt = (fit(given=adaptation(spoilt=name)) for name in ("", "casme2/1"))
    assert honest.path[-1].shape == (4, 3)
    assert not torch.equal(honest.path[-1], spoilt.path[-1]), "the garbage must be seen, in the test"
    pairs = zip(honest.parameters(), spoilt.parameters(), strict=True)
    return not all(torch.equal(here, there) for here, there in pairs)


def test_the_held_out_subject_reaches_neither_head_nor_tokenizer() -> None:
    assert not held_out_matters()


def test_garbage_in_training_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check on a fold that leaks one held-out clip into training."""
    real = adapting.fold_view

    def leaking(study: StudyTokens, fold: Fold) -> View:
        view = real(study, fold)
        return replace(view, train=torch.cat([view.train, view.test[:1]]))

    monkeypatch.setattr(adapting, "fold_view", leaking)
    assert held_out_matters()


# Runs


def test_a_run_keeps_its_models_and_a_fold_is_the_same_alone_and_after_others(tmp_path: Path) -> None:
    summary = run(tmp_path, keep_heads=True)
    assert list(summary["scores"]) == ["last", "oracle"] and summary["training_seconds"] > 0
    assert json.loads((tmp_path / "study.json").read_text())["adapt_tokenizer"] == 0.1
    alone, rows = fit("casme2/2"), rows_of(tmp_path)
    assert len(rows) == len(material().clips)
    p = [[float(row[f"p_{name}"]) for name in CLASSES] for row in rows if row["fold"] == "2"]
    torch.testing.assert_close(torch.tensor(p), alone.path[-1], atol=1e-6, rtol=0)
    state = load_file(tmp_path / "heads" / "casme2-2-seed0.safetensors")
    assert state.keys() == alone.state().keys()
    for name, value in alone.state().items():
        torch.testing.assert_close(state[name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("devices", [2, 3])
def test_ranks_share_every_batch(tmp_path: Path, devices: int) -> None:
    """Fold casme2/1 ends in a batch of one clip: the other ranks take part with nothing."""
    with_text = replace(material(), anchors=anchors())
    slowly = replace(TRAINING, learning_rate=1e-3)
    run(tmp_path / "one", study=with_text, training=slowly)
    run(tmp_path / "many", devices, study=with_text, training=slowly)
    one, many = rows_of(tmp_path / "one"), rows_of(tmp_path / "many")
    assert len(one) == len(many) == len(SUBJECTS)
    for here, there in zip(one, many, strict=True):
        for name in ("clip", "label", "last", "oracle"):
            assert here[name] == there[name]
        for name in (f"p_{each}" for each in CLASSES):
            assert float(here[name]) == pytest.approx(float(there[name]), abs=1e-4)


def test_a_run_with_folds_left_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves: a ledger with one fold, and a torn line of the next."""
    run(tmp_path)
    whole, ledger = (tmp_path / "predictions.csv").read_bytes(), tmp_path / "folds.jsonl"
    first, second, _ = ledger.read_text().splitlines()
    ledger.write_text(f"{first}\n{second[:50]}")
    for name in ("predictions.csv", "summary.json"):
        (tmp_path / name).unlink()
    trained: list[str] = []
    real = AdaptingFold.configure_optimizers

    def counted(self: AdaptingFold) -> Any:
        trained.append(self.fold.subject)
        return real(self)

    monkeypatch.setattr(AdaptingFold, "configure_optimizers", counted)
    for _ in range(2):
        run(tmp_path)
        assert len(trained) == 2, "a finished fold is never trained again"
        assert (tmp_path / "predictions.csv").read_bytes() == whole


# What is refused


def test_adapted_and_frozen_folds_never_mix_and_two_commands_do_not_train_twice(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match=r"adapt_tokenizer \(0.1 there, None asked for\)"):
        Run(material(), tmp_path, SMALL, TRAINING, where=replace(CPU, group=1))
    with pytest.raises(UserError, match=r"adapt_tokenizer \(0.1 there, 0.2 asked for\)"):
        run(tmp_path, given=adaptation(weight=0.2))
    with pytest.raises(UserError, match=r"otherwise \(pairs"):
        run(tmp_path, pairs="other")
    with lock(tmp_path / "locks" / "adapting.lock"), pytest.raises(UserError, match="another command trains"):
        run(tmp_path)


def test_a_diverging_fold_ends_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fold casme2/\d seed 0: training diverged in epoch 1"):
        run(tmp_path, training=replace(TRAINING, learning_rate=1e30))
