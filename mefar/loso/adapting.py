"""Folds whose tokenizer goes on learning: one after another, each trained by all ranks together.

The published training downstream ("From Pixels to Semantics", ICLR 2026) has two optimisers. One trains the
head on tokens that pass no gradient back; the other keeps adapting the tokenizer to the fold's training
pairs, by 0.1 times the squared error of the rebuilt apex. The held-out subject reaches neither. Tokens then
change with every fold and step, so a fold needs images and shares no program with others; clips, initial
values, order, views, loss, class weights and schedule of a fold are those of every other training of ours.

Choices where the published code leaves one:
- The head learns from hard tokens of the tokenizer as it is, as it will read them in its test.
- Input scaling (`normalise`) is measured on the fold's training clips with the tokenizer that every fold
  starts from, and then stays.
- Codes of an `ema` book stay in place, codes of an `nsvq` book follow their gradient (quantizer.relaxed).

Ranks share every batch by ordinary DDP: rank r takes its clips r, r + world, ... and its loss is its part of
the whole batch's, so that nothing is padded, dropped or counted twice; a rank that finds no clip in a short
last batch takes part with weight 0. Sums are then added in another order: without dropout probabilities of
two ranks agree with those of one to 1e-4 (tests/loso/test_adapting.py); with dropout ranks draw masks of
their own, as another seed would. Rank 0 predicts the held-out clips: all ranks hold the same weights.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mefar.classifier.head import HeadFactory
from mefar.classifier.module import TokenClassifier
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.files import claim
from mefar.loso.callback import make_trainer, quiet
from mefar.loso.folds import Fold, FoldResult, StudyTokens, fold_result, fold_view
from mefar.loso.run import Run, Where
from mefar.progress import shown
from mefar.randomness import epoch_order, seed_of, view_of
from mefar.tokens import AdaptableTokenizer

PUBLISHED_WEIGHT = 0.1


@dataclass(frozen=True)
class Adaptation:
    """What folds need to adapt the tokenizer.

    Attributes:
        tokenizer: every fold starts with a copy of it; never changed itself.
        pairs: one item per clip, in the study's order: a dict with `onset` and `apex`, (3, H, W) uint8, or
            (V, 3, H, W) where there are several views.
        weight: of the squared error (published: 0.1). AdamW hardly feels it.
    """

    tokenizer: AdaptableTokenizer
    pairs: Dataset[dict[str, Any]]
    weight: float = PUBLISHED_WEIGHT


def check(weight: float, training: HeadTraining, group: int | None = None) -> None:
    """Refuse by a UserError what does not go together with adapting; a weight of 0 adapts nothing."""
    if not 0 <= weight < math.inf:
        raise UserError(
            f"adapt_tokenizer is {weight}; give 0 to leave the tokenizer as it is, or a weight such as "
            f"{PUBLISHED_WEIGHT} (published)"
        )
    if weight == 0:
        return
    if training.inner:
        raise UserError(
            "inner selection is not offered where folds adapt the tokenizer; switch training.inner or "
            "adapt_tokenizer off"
        )
    if group is not None:
        raise UserError(
            f"group is {group}, but folds that adapt the tokenizer run one after another; leave group "
            "out, or adapt_tokenizer"
        )


def pair_of(item: Mapping[str, Any], view: int) -> tuple[Tensor, Tensor]:
    """One view of a clip: two (3, H, W) uint8."""
    onset, apex = item["onset"], item["apex"]
    return (onset, apex) if onset.ndim == 3 else (onset[view], apex[view])


class AdaptingFold(LightningModule):
    """One fold: a classifier whose tokenizer, which made the study's tokens, goes on learning too."""

    def __init__(
        self,
        study: StudyTokens,
        fold: Fold,
        head: HeadFactory,
        training: HeadTraining,
        adaptation: Adaptation,
    ) -> None:
        super().__init__()
        self.study, self.fold, self.settings, self.adaptation = study, fold, training, adaptation
        self.labels, self.view = study.labels_of(fold.seed), fold_view(study, fold)
        rows, C = self.view.train, len(study.class_names)
        tokenizer = copy.deepcopy(adaptation.tokenizer)
        self.classifier = TokenClassifier(tokenizer, C, head, training, fold.subject, fold.seed)
        self.classifier.align(study.anchors if training.edclip_weight else None)
        tokens = study.tokens[rows].double().flatten(0, 2)
        counts = torch.bincount(self.labels[rows], minlength=C)
        self.classifier.measure(counts, tokens.mean(0), tokens.square().mean(0))
        self.classifier.requires_grad_(True)
        self.steps = training.steps(len(rows))
        self.path: list[Tensor] = []
        self.attention: Tensor | None = None

    @property
    def tokenizer(self) -> Any:
        """The one that learns."""
        return self.classifier.tokenizer

    def setup(self, stage: str) -> None:
        """A forked rank has one thread: those of its parent are not in it, and torch would wait for them."""
        if self.trainer.world_size > 1 and self.device.type == "cpu":
            torch.set_num_threads(1)

    def train_dataloader(self) -> DataLoader[int]:
        """The numbers of an epoch's steps; images are read where they are used."""
        numbers: Any = range(self.steps)
        return DataLoader(numbers, batch_size=None)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the head and the tokenizer; neither feels the other's gradients."""
        optimiser = self.settings.optimiser(self.parameters())
        schedule = self.settings.scheduler(optimiser, self.steps * self.settings.epochs)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Head and tokenizer are clipped each by themselves."""
        for part in (self.classifier.head, self.tokenizer):
            nn.utils.clip_grad_norm_(part.parameters(), self.settings.clip_norm)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """This rank's part of a step; DDP's mean over ranks is the step of the whole batch."""
        epoch, step = self.current_epoch, int(batch)
        size, key, world = self.settings.batch_size, self.view.key, self.trainer.world_size
        rows = self.view.train[epoch_order(key, epoch, len(self.view.train))][step * size : (step + 1) * size]
        mine = rows[self.trainer.global_rank :: world]
        mask = torch.ones(len(mine)) if len(mine) else torch.zeros(1)
        mine = mine if len(mine) else rows[:1]
        V = self.study.tokens.shape[1]
        views = [view_of(key, epoch, self.study.clips[row], V) for row in mine.tolist()]
        items = (self.adaptation.pairs[row] for row in mine.tolist())
        pairs = [pair_of(item, view) for item, view in zip(items, views, strict=True)]
        onset, apex = (torch.stack(column).to(self.device) / 255 for column in zip(*pairs, strict=True))
        output = self.classifier(self.classifier.tokens({"onset": onset, "apex": apex})[:, 0])
        labels, whole = (self.labels[each].to(self.device) for each in (mine, rows))
        mask = mask.to(output.logits)
        terms = self.classifier.losses(output, labels, mask, whole)
        seeds = [seed_of(key, f"noise {epoch} {row}") for row in mine.tolist()]
        error: Tensor = self.tokenizer.adaptation_error(onset, apex, seeds)
        rebuilt = self.adaptation.weight * (error * mask).sum() / len(rows)
        loss = (torch.stack(list(terms.values())).sum() + rebuilt) * world
        self._refuse_unless(torch.isfinite(loss))  # torch's grid_sample crashes going back through nan
        return loss

    def on_train_epoch_end(self) -> None:
        """Look for broken weights on every rank, and let rank 0 predict the held-out clips."""
        self._refuse_unless(torch.stack([value.isfinite().all() for value in self.parameters()]).all())
        if self.trainer.is_global_zero:
            self.predict_held_out()

    def _refuse_unless(self, finite: Tensor) -> None:
        if not finite:
            raise UserError(
                f"fold {self.fold.key}: training diverged in epoch {self.current_epoch + 1}; "
                "lower training.learning_rate"
            )

    @torch.no_grad()
    def predict_held_out(self) -> None:
        """Add probabilities (n, C) of the held-out clips to the path, and keep their attention (n, L)."""
        self.eval()
        at_once = max(1, self.settings.batch_size // self.study.tokens.shape[1])
        said = []
        for rows in torch.split(self.view.test, at_once):
            pairs = [self.adaptation.pairs[row] for row in rows.tolist()]
            batch = {name: torch.stack([pair[name] for pair in pairs]) for name in ("onset", "apex")}
            said.append(self.classifier.predicted(move_data_to_device(batch, self.device)))
        self.train()
        probabilities, attention = zip(*said, strict=True)
        self.path.append(torch.cat(probabilities).float().cpu())
        self.attention = None if attention[0] is None else torch.cat(attention).float().cpu()

    def result(self) -> FoldResult:
        """The fold's predictions, after its last epoch, on rank 0."""
        rows = self.view.test
        return fold_result(self.fold, rows, self.labels[rows], torch.stack(self.path), self.attention)

    def state(self) -> dict[str, Tensor]:
        """Head, adapted tokenizer, and mean and scale of the tokens."""
        made, head = self.classifier, self.classifier.head.state_dict()
        parts = {"tokens.mean": made.mean, "tokens.scale": made.scale, **head}
        parts |= {f"tokenizer.{name}": value for name, value in self.tokenizer.state_dict().items()}
        return {name: value.detach().cpu() for name, value in parts.items()}


class FoldWriter(Callback):
    """Writes a finished fold on rank 0; it is in the ledger before any rank goes on."""

    def __init__(self, run: Run) -> None:
        self.run, self.began = run, time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A UserError unless all ranks are about the same fold: none was finished since some have looked."""
        assert isinstance(pl_module, AdaptingFold)
        if trainer.strategy.broadcast(pl_module.fold.key) != pl_module.fold.key:
            raise UserError(f"{self.run.out}: another run has worked here; give the same command again")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the fold."""
        assert isinstance(pl_module, AdaptingFold)
        if trainer.is_global_zero:
            self.run.add([pl_module.result()], [pl_module.state()], time.monotonic() - self.began)
        trainer.strategy.barrier("fold written")


def train(run: Run, where: Where, adaptation: Adaptation) -> bool:
    """Train the folds that are not in the ledger, each on all ranks, and conclude the run.

    Returns:
        Whether this process leads.

    Raises:
        UserError: a fold diverged, or another command trains this run.
    """
    done = run.ledger.read()
    left = [fold for fold in run.folds if fold not in done]
    count, began = len(run.folds), time.monotonic()
    leads = make_trainer(where, 1, []).is_global_zero
    with claim(run.out / "locks" / "adapting.lock") as mine, shown("adapting", "folds") as progress:
        if leads and not mine:
            raise UserError(f"{run.out}: another command trains this run; wait for it")
        for number, fold in enumerate(left):
            one = AdaptingFold(run.study, fold, run.head, run.training, adaptation)
            with quiet():
                trainer = make_trainer(where, 1, [FoldWriter(run)], max_epochs=run.training.epochs)
                trainer.fit(one)
            if leads:
                rate = (number + 1) / (time.monotonic() - began)
                progress(count - len(left) + number + 1, count, rate)
    if leads:
        run.conclude()
    return leads
