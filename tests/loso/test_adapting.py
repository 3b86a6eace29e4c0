"""Folds that adapt the tokenizer: what learns, what stays, who is never seen, ranks and kills."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from pair_sets import SUBJECTS, Pairs, adaptation, material, tokenizer
from token_sets import CLASSES, anchors
from torch import Tensor

from mefar.classifier.head import HeadSize
from mefar.errors import UserError
from mefar.loso import adapting
from mefar.loso.adapting import Adaptation, AdaptingFold, FoldWriter
from mefar.loso.engine import Model, TokenSet, Training
from mefar.loso.folds import Fold, train_group
from mefar.loso.run import Machine, Run
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokens import AdaptableTokenizer

SIZE = HeadSize(dim=8, depth=1, heads=2, feedforward=12, dropout=0.25)
TRAINING = Training(epochs=2, batch_size=4, learning_rate=5e-3, weight_decay=1e-5)


def fit(
    fold: str = "casme2/1",
    given: Adaptation | None = None,
    data: TokenSet | None = None,
    training: Training = TRAINING,
    size: HeadSize = SIZE,
) -> AdaptingFold:
    """One fold, trained in this process."""
    module = AdaptingFold(
        material().data if data is None else data, Fold(fold, 0), size, training, given or adaptation()
    )
    fitting = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=training.epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    fitting.fit(module)
    return module


def run(out: Path, devices: int = 1, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"study": material(), "size": SIZE, "training": TRAINING}
    settings |= {"adaptation": adaptation(), "machine": Machine(accelerator="cpu", devices=devices)}
    return Run(out=out, **(settings | changes)).execute()


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


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
    with torch.enable_grad():
        # Untrained, the last layer of the warping decoder is 0 and lets nothing through.
        for value in model.parameters():
            value.grad = None
        model.adaptation_error(onset, apex, [5, 6, 7]).sum().backward()
    assert all(value.grad is not None for value in model.parameters()), "DDP waits for every parameter"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.zero_grad()


# One fold


def test_it_is_the_frozen_fold_where_the_tokenizer_stands_still() -> None:
    """Same clips, order, views, initial values, dropout, class weights, scaling, schedule as grouped.py."""
    data = replace(material().data, anchors=anchors())
    still = replace(TRAINING, weight_decay=0.0, epochs=3)
    module = fit(given=adaptation(weight=0.0), data=data, training=still)
    (frozen,) = train_group(data, [Fold("casme2/1", 0)], SIZE, still)
    result = module.result()
    torch.testing.assert_close(
        torch.tensor(result.probabilities), torch.tensor(frozen.probabilities), atol=2e-5, rtol=0
    )
    torch.testing.assert_close(
        torch.tensor(result.attention), torch.tensor(frozen.attention), atol=2e-4, rtol=0
    )
    assert (result.rows, result.predictions, result.epochs) == (
        frozen.rows,
        frozen.predictions,
        frozen.epochs,
    )


@pytest.mark.parametrize("network", ["warp", "published"])
def test_the_tokenizer_learns_and_the_starting_one_stays(network: str) -> None:
    given, start = adaptation(network, weight=1.0), tokenizer(network)
    before = {name: value.clone() for name, value in [*start.named_parameters(), *start.named_buffers()]}
    training = replace(TRAINING, epochs=10, learning_rate=1e-2)
    module = fit(given=given, data=material(network).data, training=training)
    adapted, pairs = module.tokenizer, given.pairs
    assert isinstance(adapted, FacialActionTokenizer) and isinstance(pairs, Pairs)
    assert all(torch.equal(before[name], value) for name, value in start.named_parameters())
    still = {name for name, value in adapted.named_parameters() if torch.equal(before[name], value)}
    # The last bias of the encoder falls out of the difference of the frames.
    assert still <= {"network.readout.4.bias", "network.bottleneck.convolutions.0.bias"}
    for name, value in adapted.named_buffers():
        assert torch.equal(before[name], value), f"{name}: nothing but the optimiser may move"
    rows = module.model.train.tolist()
    assert error(adapted, pairs, rows) < 0.95 * error(start, pairs, rows)


def test_the_head_sends_nothing_into_the_tokenizer() -> None:
    still = replace(TRAINING, weight_decay=0.0)
    module = fit(given=adaptation(weight=0.0), training=still)
    start = tokenizer().state_dict()
    assert all(torch.equal(start[name], value) for name, value in module.tokenizer.state_dict().items())
    fresh = AdaptingFold(material().data, Fold("casme2/1", 0), SIZE, still, adaptation())
    assert not all(
        torch.equal(a, b) for a, b in zip(module.head.parameters(), fresh.head.parameters(), strict=True)
    )


# Leaks


def weights_of(module: AdaptingFold) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def held_out_matters() -> bool:
    """Whether garbage in place of the held-out subject's pictures changes what the fold has learned."""
    honest, spoilt = (fit(given=adaptation(spoilt=name)) for name in ("", "casme2/1"))
    assert honest.path[-1].shape == (4, 3)
    assert not torch.equal(honest.path[-1], spoilt.path[-1]), "the garbage must be seen, in the test"
    return not same(weights_of(honest), weights_of(spoilt))


def test_the_held_out_subject_reaches_neither_head_nor_tokenizer() -> None:
    assert not held_out_matters()


def test_garbage_in_training_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check on a fold that leaks one held-out clip into training."""
    real = adapting.fold_model

    def leaking(data: TokenSet, fold: Fold) -> Model:
        model = real(data, fold)
        return replace(model, train=torch.cat([model.train, model.test[:1]]))

    monkeypatch.setattr(adapting, "fold_model", leaking)
    assert held_out_matters()


def test_training_opens_the_training_clips_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    given = adaptation(views=1)
    assert isinstance(given.pairs, Pairs)
    monkeypatch.setattr(
        AdaptingFold, "predict_held_out", lambda self: (torch.full((4, 3), 1 / 3), torch.ones(4, 4))
    )
    module = fit(given=given, data=material(views=1).data)
    # Every training clip once per epoch.
    assert sorted(given.pairs.read) == sorted(module.model.train.tolist() * TRAINING.epochs)


# Runs


def test_a_run_feeds_ledger_table_and_summary(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert summary["adapt_tokenizer"] == 0.1
    rows = rows_of(tmp_path)
    assert sorted(f"{row['database']}/{row['subject']}/{row['clip']}" for row in rows) == sorted(
        material().clips
    )
    assert list(summary["scores"]) == ["last", "oracle"]
    assert len((tmp_path / "folds.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "study.json").read_text())["adapt_tokenizer"] == 0.1
    assert summary["training_seconds"] > 0


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_mean_over_ranks_is_the_gradient_of_the_batch(
    number: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, for a full batch and for the last one, of a single clip."""
    data = replace(material("published").data, anchors=anchors(dtype=torch.float64))
    data = replace(data, tokens=data.tokens.double())
    module = AdaptingFold(data, Fold("casme2/1", 0), SIZE, TRAINING, adaptation("published")).double()
    module.stream = torch.Generator()

    def gradient(world: int) -> list[Tensor]:
        monkeypatch.setattr(AdaptingFold, "trainer", SimpleNamespace(world_size=world))
        module.zero_grad()
        for rank in range(world):
            module.stream.manual_seed(number)
            batch = adapting._Batches(module.adaptation.pairs, module.plan, rank, world)[number]
            assert len(batch["rows"]) == (4, 4, 1)[number]
            (module.loss(batch | {"step": 1}) / world).backward()
        return [value.grad.clone() for value in module.parameters() if value.grad is not None]

    for whole, parts in zip(gradient(1), gradient(world), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-8)


def test_two_ranks_share_every_batch(tmp_path: Path) -> None:
    """Fold casme2/1 ends in a batch of one clip: the other rank takes part with nothing."""
    with_text = replace(material(), data=replace(material().data, anchors=anchors()))
    slowly = replace(TRAINING, learning_rate=1e-3)
    run(tmp_path / "one", study=with_text, training=slowly)
    run(tmp_path / "many", 2, study=with_text, training=slowly)
    one, many = rows_of(tmp_path / "one"), rows_of(tmp_path / "many")
    assert len(one) == len(many) == len(SUBJECTS)
    for here, there in zip(one, many, strict=True):
        for name in ("clip", "label", "last", "oracle"):
            assert here[name] == there[name]
        for name in (f"p_{each}" for each in CLASSES):
            assert float(here[name]) == pytest.approx(float(there[name]), abs=2e-4)
    assert not list((tmp_path / "many").glob("folds.rank*"))


def test_a_forked_rank_has_one_thread() -> None:
    """Its parent's other threads are not in it; torch would wait for them for ever."""
    module = AdaptingFold(material().data, Fold("casme2/1", 0), SIZE, TRAINING, adaptation())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        module.setup("fit")
        assert torch.get_num_threads() == 2
        child = get_context("fork").Process(
            target=lambda: (module.setup("fit"), sys.exit(torch.get_num_threads()))
        )
        child.start()
        child.join()
        assert child.exitcode == 1
    finally:
        torch.set_num_threads(threads)


def test_a_fold_is_the_same_alone_and_after_others(tmp_path: Path) -> None:
    run(tmp_path)
    module = fit("casme2/2")
    p = [[float(row[f"p_{name}"]) for name in CLASSES] for row in rows_of(tmp_path) if row["fold"] == "2"]
    torch.testing.assert_close(torch.tensor(p), module.path[-1], atol=1e-6, rtol=0)


def stop_in_the_second_fold(out: Path, training: Training) -> None:
    """A run that trains one fold and an epoch of the next, and then waits for its end."""
    real = FoldWriter.on_train_epoch_end

    def waiting(self: FoldWriter, *rest: Any) -> None:
        real(self, *rest)
        while self.number == 1:
            (out / "waiting").touch()
            time.sleep(1)

    FoldWriter.on_train_epoch_end = waiting  # type: ignore[method-assign]
    run(out, training=training)


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = replace(TRAINING, epochs=3)
    run(tmp_path / "whole", training=training)
    out = tmp_path / "killed"
    process = get_context("fork").Process(target=stop_in_the_second_fold, args=(out, training))
    process.start()
    deadline = time.monotonic() + 60
    while not (out / "waiting").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert len((out / "folds.jsonl").read_text().splitlines()) == 1
    assert not (out / "summary.json").exists()
    trained: list[str] = []
    real = AdaptingFold.configure_optimizers

    def counted(self: AdaptingFold) -> list[torch.optim.Optimizer]:
        trained.append(self.fold.subject)
        return real(self)

    monkeypatch.setattr(AdaptingFold, "configure_optimizers", counted)
    run(out, training=training)
    assert len(trained) == 2
    assert (out / "predictions.csv").read_bytes() == (tmp_path / "whole/predictions.csv").read_bytes()
    run(out, training=training)
    assert len(trained) == 2, "a finished run trains nothing"


# What is refused


def test_adapted_and_frozen_folds_never_mix(tmp_path: Path) -> None:
    run(tmp_path / "frozen", adaptation=None)
    with pytest.raises(UserError, match=r"another adapt_tokenizer \(None there, 0.1 asked for\)"):
        run(tmp_path / "frozen", machine=Machine(accelerator="cpu"))
    run(tmp_path / "adapted")
    with pytest.raises(UserError, match="another adapt_tokenizer"):
        run(tmp_path / "adapted", adaptation=None)
    with pytest.raises(UserError, match=r"adapt_tokenizer \(0.1 there, 0.2 asked for\)"):
        run(tmp_path / "adapted", adaptation=adaptation(weight=0.2))
    with pytest.raises(UserError, match="another pairs"):
        run(tmp_path / "adapted", adaptation=replace(adaptation(), fingerprint="other"))


@pytest.mark.parametrize(
    ("weight", "changes", "says"),
    [
        (-1.0, {}, "adapt_tokenizer is -1.0"),
        (float("nan"), {}, "adapt_tokenizer is nan"),
        (0.1, {"inner": True}, "inner"),
        (0.1, {"group": 4}, "group is 4"),
        (0.1, {"workers": 1}, "workers is 1"),
    ],
)
def test_what_does_not_go_together_is_refused(weight: float, changes: dict[str, Any], says: str) -> None:
    inner = changes.pop("inner", False)
    with pytest.raises(UserError, match=says):
        adapting.check(weight, replace(TRAINING, inner=inner), **changes)
    if weight > 0:
        adapting.check(0.0, replace(TRAINING, inner=inner), **changes)


def test_a_diverging_fold_ends_the_run_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model casme2/\d seed 0: training diverged in epoch 1"):
        run(tmp_path, training=replace(TRAINING, learning_rate=1e30))
    assert not (tmp_path / "summary.json").exists()
