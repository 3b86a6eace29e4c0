"""Folds whose tokenizer goes on learning: one after another, each trained by all ranks together.

The published training downstream ("From Pixels to Semantics", ICLR 2026) has two optimisers. One trains the
head on tokens that pass no gradient back; the other keeps adapting the tokenizer to the fold's training
pairs, by 0.1 times the squared error of the rebuilt apex. The held-out subject reaches neither. Tokens then
change with every fold and step, so a fold needs images and shares no program with others; clips, initial
values, order, views, dropout, class weights and schedule of a fold are those of grouped.py.

Choices where the published code leaves one:
- The head learns from hard tokens of the tokenizer as it is, as it will read them in its test.
- Input scaling (`normalise`) is measured on the fold's training clips with the tokenizer that every fold
  starts from, and then stays.
- Codes of an `ema` book stay in place, codes of an `nsvq` book follow their gradient (quantizer.relaxed).

A batch is the same batch on any number of ranks: its clips, dropout and noise follow from the fold's name.
Rank r takes its clips r, r + world, ... and weighs its part so that the mean that DDP takes over ranks is the
gradient of the whole batch; nothing is padded, dropped or counted twice. A rank that finds no clip in a short
last batch takes part with weight 0. Rank 0 predicts the held-out clips: all ranks hold the same weights.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mefar.classifier import losses
from mefar.classifier.head import HeadOutput, HeadSize
from mefar.classifier.layers import DropoutNoise
from mefar.errors import UserError
from mefar.loso.engine import GroupTrainer, TokenSet, Training, random_seed
from mefar.loso.folds import Fold, FoldResult, fold_model, fold_result
from mefar.loso.ledger import Ledger
from mefar.tokens import AdaptableTokenizer

PUBLISHED_WEIGHT = 0.1


@dataclass(frozen=True)
class Adaptation:
    """What folds need to adapt the tokenizer.

    Attributes:
        tokenizer: every fold starts with a copy of it; never changed itself.
        pairs: one item per clip, in the study's order: a dict with `onset` and `apex`, (3, H, W) uint8, or
            (V, 3, H, W) where there are several views.
        fingerprint: hash of the pairs.
        weight: of the squared error (published: 0.1). AdamW hardly feels it.
    """

    tokenizer: AdaptableTokenizer
    pairs: Dataset[dict[str, Any]]
    fingerprint: str
    weight: float = PUBLISHED_WEIGHT


def check(weight: float, training: Training, group: int | None = None, workers: int | None = None) -> None:
    """Refuse what does not go together with adapting the tokenizer; a weight of 0 adapts nothing.

    Raises:
        UserError: a weight that is negative or no number, inner selection, folds side by side.
    """
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
    for name, value in (("group", group), ("workers", workers)):
        if value is not None:
            raise UserError(
                f"{name} is {value}, but folds that adapt the tokenizer run one after another; leave {name} "
                "out, or adapt_tokenizer"
            )


class _Epochs(Sampler[int]):
    """Numbers of the steps of an epoch, counted from the first step of the fold."""

    def __init__(self, steps: int) -> None:
        self.steps, self.epoch = steps, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.steps, (self.epoch + 1) * self.steps))

    def __len__(self) -> int:
        return self.steps


class _Batches(Dataset[dict[str, Any]]):
    """What one rank takes of every step of a fold.

    Items: `onset`, `apex` (b, 3, H, W) uint8 of the rank's clips; `rows` (B,) int64, the clips of the whole
    batch; `mine` (b,) int64, which of them are the rank's; `mask` (b,) 1, or 0 where the rank only takes
    part; `epoch`, `step`.
    """

    def __init__(self, pairs: Dataset[dict[str, Any]], plan: GroupTrainer, rank: int, world: int) -> None:
        self.pairs, self.plan, self.rank, self.world = pairs, plan, rank, world
        self.steps, self.size = int(plan.steps[0]), plan.training.batch_size
        self.epoch, self.order = -1, (torch.empty(0), torch.empty(0))

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, step = divmod(number, self.steps)
        if epoch != self.epoch:
            rows, views, _ = self.plan.order(epoch)
            count = len(self.plan.models[0].train)  # the rest is padding, for models side by side
            self.epoch, self.order = epoch, (rows[0, :count].cpu(), views[0, :count].cpu())
        part = slice(step * self.size, (step + 1) * self.size)
        rows, views = (values[part] for values in self.order)
        mine = torch.arange(len(rows))[self.rank :: self.world]
        mask = torch.ones(len(mine)) if len(mine) else torch.zeros(1)
        mine = mine if len(mine) else torch.zeros(1, dtype=torch.int64)
        images = [_pair(self.pairs[int(rows[i])], int(views[i])) for i in mine]
        onset, apex = (torch.stack(column) for column in zip(*images, strict=True))
        batch = {"onset": onset, "apex": apex, "rows": rows, "mine": mine, "mask": mask}
        return batch | {"epoch": epoch, "step": step}


def _pair(item: dict[str, Any], view: int) -> tuple[Tensor, Tensor]:
    """One view of a clip: two (3, H, W) uint8."""
    onset, apex = item["onset"], item["apex"]
    return (onset, apex) if onset.ndim == 3 else (onset[view], apex[view])


class _PartNoise(DropoutNoise):
    """Dropout masks of a whole batch of `size` clips, of which a rank uses the rows of its own.

    Args:
        generator: the fold's stream, at the same place on every rank.
        probability: share of entries set to 0.
        size: clips in a full batch.
        mine: (b,) int64 the rank's clips in the batch.
    """

    def __init__(self, generator: torch.Generator, probability: float, size: int, mine: Tensor) -> None:
        super().__init__((generator,), probability)
        self.size, self.mine = size, mine

    def keep(self, samples: int, entries: int, device: torch.device) -> Tensor | None:
        """Masks (1, b, entries) of the rank's clips."""
        whole = super().keep(self.size, entries, device)
        return None if whole is None else whole[:, self.mine]


class AdaptingFold(LightningModule):
    """One fold: a head, and a copy of the tokenizer that goes on learning.

    Args:
        data: labels, subjects and classes of the study, and its tokens by the starting tokenizer.
        fold: which subject is held out, and the seed.
        size: of the head.
        training: how to train both.
        adaptation: tokenizer, images and weight.
    """

    mean: Tensor
    scale: Tensor
    class_weights: Tensor
    labels: Tensor
    vectors: Tensor
    described: Tensor

    def __init__(
        self, data: TokenSet, fold: Fold, size: HeadSize, training: Training, adaptation: Adaptation
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.fold, self.training_plan, self.adaptation = fold, training, adaptation
        self.born = os.getpid()
        self.model = fold_model(data, fold)
        self.plan = GroupTrainer(data, [self.model], size, training)
        self.head = self.plan.head
        tokenizer: Any = copy.deepcopy(adaptation.tokenizer)
        assert isinstance(tokenizer, nn.Module) and isinstance(tokenizer, AdaptableTokenizer)
        self.tokenizer = tokenizer.requires_grad_(True).eval()
        self.register_buffer("mean", self.plan.mean[0])
        self.register_buffer("scale", self.plan.scale[0])
        self.register_buffer("class_weights", self.plan.objective.class_weights[0])
        self.register_buffer("labels", data.labels)
        if data.anchors is not None:
            self.register_buffer("vectors", data.anchors.vectors.to(data.tokens))
            self.register_buffer("described", data.anchors.described)
        self.path: list[Tensor] = []
        self.attention = torch.empty(0)

    def train(self, mode: bool = True) -> AdaptingFold:
        """As ever, but the tokenizer stays in eval mode: nothing but the optimiser moves it."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def setup(self, stage: str) -> None:
        """A forked rank has one thread: those of its parent are not in it, and torch would wait for them."""
        if os.getpid() != self.born:
            torch.set_num_threads(1)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """One item per step: this rank's part of the batch."""
        trainer = self.trainer
        batches = _Batches(self.adaptation.pairs, self.plan, trainer.global_rank, trainer.world_size)
        return DataLoader(batches, batch_size=None, sampler=_Epochs(batches.steps))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW twice, of the head and of the tokenizer."""
        rate, decay = self.training_plan.learning_rate, self.training_plan.weight_decay
        first, second = self.training_plan.betas
        return [
            torch.optim.AdamW(part.parameters(), rate, (first, second), weight_decay=decay)
            for part in (self.head, self.tokenizer)
        ]

    def on_fit_start(self) -> None:
        """The device is known only now."""
        self.stream = torch.Generator(self.device)

    def forward(self, tokens: Tensor, noise: DropoutNoise | None) -> HeadOutput:
        """(B, L, D) token embeddings -> output of the head, with a group dimension of 1."""
        output: HeadOutput = self.head(((tokens - self.mean) * self.scale).unsqueeze(0), noise)
        return output

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One step of head and tokenizer on this rank's part of a batch."""
        loss = self.loss(batch)
        self._refuse_unless(torch.isfinite(loss))  # torch's grid_sample crashes going back through nan
        self.manual_backward(loss)
        plan, step = self.training_plan, batch["epoch"] * int(self.plan.steps[0]) + batch["step"]
        rate = float(self.plan.rate(torch.tensor([step])))
        optimisers = self.optimizers()
        assert isinstance(optimisers, list)
        for optimiser, part in zip(optimisers, (self.head, self.tokenizer), strict=True):
            nn.utils.clip_grad_norm_(part.parameters(), plan.clip_norm)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """This rank's part of a batch's loss; the mean over ranks is the loss of the whole batch."""
        key, epoch, step, mine = self.fold.key, batch["epoch"], batch["step"], batch["mine"]
        if step == 0:
            self.stream.manual_seed(random_seed(key, f"dropout {epoch}"))
        onset, apex = (batch[name].to(self.mean) / 255 for name in ("onset", "apex"))
        noise = _PartNoise(self.stream, self.head.size.dropout, self.training_plan.batch_size, mine)
        output = self(self.tokenizer.tokenize(onset, apex).embeddings, noise)  # tokens carry no gradient
        seeds = [random_seed(key, f"noise {epoch} {step} {place}") for place in mine.tolist()]
        error: Tensor = self.tokenizer.adaptation_error(onset, apex, seeds)
        rebuilt: Tensor = (error * batch["mask"]).sum() / len(batch["rows"]) * self.trainer.world_size
        return self.head_loss(output, batch) + self.adaptation.weight * rebuilt

    def head_loss(self, output: HeadOutput, batch: dict[str, Any]) -> Tensor:
        """The head's share of it.

        Every term is a weighted mean over clips: a rank's mean counts as much as the share of the batch's
        weight that its clips have.
        """
        plan, mask = self.training_plan, batch["mask"]
        labels = self.labels[batch["rows"]]
        own = labels[batch["mine"]]

        def share(weight: Tensor) -> Tensor:
            here: Tensor = (weight[batch["mine"]] * mask).sum() / weight.sum().clamp(min=1e-12)
            return here * self.trainer.world_size

        smoothing = plan.label_smoothing
        classified = losses.classification_loss(output.logits[0], own, self.class_weights, mask, smoothing)
        terms = [share(self.class_weights[labels]) * classified]
        entropy = losses.attention_entropy(output.attention[0], mask)
        terms.append(share(torch.ones_like(self.class_weights[labels])) * plan.entropy_weight * entropy)
        if output.text is not None:
            aligned = losses.alignment_losses(output.text[0], own, self.vectors, self.described, mask)
            has_text = self.described[labels].to(mask.dtype)
            others = plan.others_weight * aligned["others"]
            terms.append(share(has_text) * plan.edclip_weight * aligned["described"])
            terms.append(share(1 - has_text) * plan.edclip_weight * others)
        return torch.stack(terms).sum()

    def on_train_epoch_end(self) -> None:
        """Look for broken weights on every rank, and let rank 0 predict the held-out clips."""
        self._refuse_unless(torch.stack([value.isfinite().all() for value in self.parameters()]).all())
        if self.trainer.is_global_zero:
            probabilities, self.attention = self.predict_held_out()
            self.path.append(probabilities)

    def _refuse_unless(self, finite: Tensor) -> None:
        if not finite:
            raise UserError(
                f"model {self.fold.key}: training diverged in epoch {self.current_epoch + 1}; "
                "lower training.learning_rate"
            )

    @torch.no_grad()
    def predict_held_out(self) -> tuple[Tensor, Tensor]:
        """Probabilities (n, C) and pooling weights (n, L) of the held-out clips, float32 on the CPU.

        Each is the mean over the views to test.
        """
        was_training, found = self.training, []
        self.eval()
        held_out, size = self.model.test.tolist(), self.training_plan.batch_size
        for start in range(0, len(held_out), size):
            items = [self.adaptation.pairs[row] for row in held_out[start : start + size]]
            views = []
            for view in range(self.plan.test_views):
                pairs = zip(*(_pair(item, view) for item in items), strict=True)
                onset, apex = (torch.stack(images).to(self.mean) / 255 for images in pairs)
                output = self(self.tokenizer.tokenize(onset, apex).embeddings, None)
                views.append((output.logits[0].softmax(-1), output.attention[0]))
            found.append([torch.stack(part).mean(0).float().cpu() for part in zip(*views, strict=True)])
        self.train(was_training)
        probabilities, attention = (torch.cat(part) for part in zip(*found, strict=True))
        return probabilities, attention

    def result(self) -> FoldResult:
        """The fold's predictions, after its last epoch, on rank 0."""
        if len(self.path) != self.training_plan.epochs:
            raise RuntimeError(f"{self.fold.key}: {len(self.path)} of {self.training_plan.epochs} epochs")
        rows = self.model.test
        labels = self.labels.cpu()[rows]
        return fold_result(self.fold, rows, labels, torch.stack(self.path), self.attention)


class FoldWriter(Callback):
    """Shows how far the folds are, writes a finished one to the ledger, and concludes the run after the last.

    Args:
        ledger: of the run.
        number: of this fold among all, from 0.
        count: of all folds.
        conclude: for the last fold, called on rank 0 when it is in the ledger; the other ranks wait.
    """

    def __init__(
        self, ledger: Ledger, number: int, count: int, conclude: Callable[[], None] | None = None
    ) -> None:
        self.ledger, self.number, self.count, self.conclude = ledger, number, count, conclude
        self.began = 0.0
        self.progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the folds before this one have left it."""
        self.began = time.monotonic()
        assert isinstance(pl_module, AdaptingFold)
        if not trainer.is_global_zero:
            return
        percent, screen = TextColumn("{task.percentage:>3.0f}%"), Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), percent, TimeRemainingColumn())
        # On a terminal it vanishes when the fold ends and the next fold draws it further on.
        self.progress = Progress(*columns, console=screen, transient=screen.is_terminal)
        epochs = pl_module.training_plan.epochs
        ranks = f" on {trainer.world_size} ranks" if trainer.world_size > 1 else ""
        text = f"fold {self.number + 1} of {self.count}{ranks}"
        self.progress.add_task(text, completed=self.number * epochs, total=self.count * epochs)
        self.progress.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One epoch further."""
        if self.progress is not None:
            self.progress.advance(self.progress.task_ids[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the fold; it is in the ledger before any rank goes on."""
        assert isinstance(pl_module, AdaptingFold)
        self._close()
        if trainer.is_global_zero:
            self.ledger.append([pl_module.result()], time.monotonic() - self.began)
            if self.conclude is not None:
                self.conclude()
        trainer.strategy.barrier("fold written")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
