"""All folds of a leave-one-subject-out study, trained at once; which rank trains which fold.

With a frozen tokenizer a clip is a handful of vectors, and folds differ only in which clips they may
see, so F folds x S seeds train as groups of models side by side (grouped.py).

Groups are fixed by the study before anything runs, and ranks are dealt whole groups: no result depends
on how many ranks there are, no gradient travels, nothing is padded, lost or doubled.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from mefar.classifier.head import HeadSize
from mefar.errors import UserError
from mefar.loso.engine import GroupTrainer, Model, TokenSet, Training, random_seed, single_threaded


@dataclass(frozen=True, order=True)
class Fold:
    """One model of a study: the subject it never sees, and its seed."""

    subject: str
    seed: int

    @property
    def key(self) -> str:
        """Name of the fold, the source of its random numbers."""
        return f"{self.subject} seed {self.seed}"


@dataclass(frozen=True)
class FoldResult:
    """Held-out predictions of one fold.

    Attributes:
        fold: subject and seed.
        rows: n row numbers of the subject's clips in the study.
        probabilities: n x C, of the last epoch.
        predictions: selection -> n class indices; `last`, `oracle` and, when asked for, `inner`.
        epochs: selection -> the epoch it took, counted from 1.
        attention: n x L pooling weights of the last epoch, to 4 digits; no rows where nobody asked for them.
    """

    fold: Fold
    rows: list[int]
    probabilities: list[list[float]]
    predictions: dict[str, list[int]]
    epochs: dict[str, int]
    attention: list[list[float]] = field(default_factory=list)


def plan(subjects: Sequence[str], seeds: Sequence[int], group: int) -> list[tuple[Fold, ...]]:
    """Split all folds x seeds into groups of at most `group` models, always in the same way.

    Subjects with equally many clips sit together, because held-out batches are padded to the largest.
    Of an odd number of groups, 3 or more, the last one is halved, so that two ranks have equal work.

    Args:
        subjects: subject key of every clip.
        seeds: one model per subject and seed.
        group: G, models per group.
    """
    if group < 1:
        raise UserError(f"group is {group}; give at least 1 model per group")
    clips = Counter(subjects)
    ordered = sorted(clips, key=lambda subject: (clips[subject], subject))
    chunks = [ordered[start : start + group] for start in range(0, len(ordered), group)]
    last, middle = chunks[-1], len(chunks[-1]) // 2
    if len(chunks) % 2 and len(chunks) > 2 and middle:
        chunks[-1:] = [last[:middle], last[middle:]]
    # A group never mixes seeds: more seeds later add groups and leave the old ones as they are.
    return [tuple(Fold(subject, seed) for subject in chunk) for seed in seeds for chunk in chunks]


def fold_model(data: TokenSet, fold: Fold) -> Model:
    """The model of a fold: learns from everybody but the subject, is tested on the subject."""
    held_out = torch.tensor([subject == fold.subject for subject in data.subjects])
    if not held_out.any():
        raise ValueError(f"no clip of subject {fold.subject!r}")
    return Model(fold.key, (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0])


def inner_model(data: TokenSet, fold: Fold) -> Model:
    """The companion that selects an epoch: tested on a fifth of the fold's training subjects."""
    others = sorted(set(data.subjects) - {fold.subject})
    if len(others) < 2:
        raise UserError("inner selection needs at least 3 subjects; switch training.inner off")
    generator = torch.Generator().manual_seed(random_seed(fold.key, "inner"))
    order = torch.randperm(len(others), generator=generator).tolist()
    inside = {others[i] for i in order[: max(1, len(others) // 5)]}
    test = [row for row, subject in enumerate(data.subjects) if subject in inside]
    train = [row for row, subject in enumerate(data.subjects) if subject not in inside | {fold.subject}]
    return Model(fold.key, torch.tensor(train), torch.tensor(test))


def train_group(
    data: TokenSet,
    group: Sequence[Fold],
    size: HeadSize,
    training: Training,
    each_epoch: Callable[[], None] | None = None,
) -> list[FoldResult]:
    """Train the folds of one group together and predict their held-out clips.

    Args:
        data: tokens, on the device to train on; their dtype is the arithmetic's.
        group: folds to train.
        size: of the head.
        training: how to train.
        each_epoch: called after every epoch.

    Raises:
        UserError: the loss of a fold is no longer finite.
    """
    models = [fold_model(data, fold) for fold in group]
    if training.inner:
        models += [inner_model(data, fold) for fold in group]
    trainer = GroupTrainer(data, models, size, training)
    paths, attention = trainer.run(each_epoch), trainer.attention()
    results = []
    labels = data.labels.cpu()
    for index, fold in enumerate(group):
        inner = None
        if training.inner:
            inside = len(group) + index
            inner = _best_epoch(paths[inside].argmax(-1), labels[models[inside].test])
        rows = models[index].test
        results.append(fold_result(fold, rows, labels[rows], paths[index], attention[index], inner))
    return results


def fold_result(
    fold: Fold, rows: Tensor, labels: Tensor, path: Tensor, attention: Tensor, inner: int | None = None
) -> FoldResult:
    """Choose the epochs of a fold.

    Args:
        fold: subject and seed.
        rows: (n,) int64 rows of its held-out clips.
        labels: (n,) int64, theirs.
        path: (epochs, n, C) probabilities after each epoch.
        attention: (n, L) pooling weights of the last epoch.
        inner: epoch chosen by training subjects, from 1, where asked for.
    """
    guesses = path.argmax(-1)  # (epochs, n)
    # Ties go to the earliest epoch, as in published scripts, which keep strict improvements.
    epochs = {"last": len(path), "oracle": _best_epoch(guesses, labels)}
    if inner is not None:
        epochs["inner"] = inner
    chosen = {selection: guesses[epoch - 1].tolist() for selection, epoch in epochs.items()}
    # The ledger keeps them as text; nothing is decided by them, and a heat map needs no more digits.
    weights = [[round(weight, 4) for weight in clip] for clip in attention.tolist()]
    return FoldResult(fold, rows.tolist(), path[-1].tolist(), chosen, epochs, weights)


def _best_epoch(guesses: Tensor, labels: Tensor) -> int:
    """First epoch, from 1, with the most right guesses: (epochs, n), (n,)."""
    right = (guesses == labels).sum(1)
    return int((right == right.max()).nonzero()[0]) + 1


class FoldTrainer(LightningModule):
    """Trains groups of folds, some per step of `Trainer(inference_mode=False).predict(FoldTrainer(...))`.

    Prediction is the one loop of Lightning that neither pads, nor synchronises gradients, nor cares how
    many batches a rank has. Ranks take the groups rank, rank + world, rank + 2 world, ...

    On CPUs every group has a thread of its own and torch's own threads are off (grouped.single_threaded).

    Args:
        data: tokens of the study.
        groups: all groups of the study, in the order of `plan`.
        size: of the heads.
        training: how to train.
        finished: numbers of the groups that need no training any more.
        workers: groups that a rank trains at the same time.
    """

    def __init__(
        self,
        data: TokenSet,
        groups: Sequence[tuple[Fold, ...]],
        size: HeadSize,
        training: Training,
        finished: Collection[int] = (),
        workers: int = 1,
    ) -> None:
        super().__init__()
        self.data, self.groups, self.size, self.training_plan = data, groups, size, training
        self.finished, self.workers = frozenset(finished), workers
        self.each_epoch: Callable[[], None] | None = None
        # More ranks than groups is fine: some ranks have nothing to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def mine(self, rank: int, world: int) -> list[int]:
        """Numbers of the groups that a rank still has to train.

        Dealt from all groups, not from the unfinished ones: ranks that read the ledger at different
        moments must not come to different deals.
        """
        return [number for number in range(rank, len(self.groups), world) if number not in self.finished]

    def predict_dataloader(self) -> DataLoader[int]:
        """Some group numbers per batch."""
        numbers = self.mine(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(numbers, batch_size=self.workers, collate_fn=list)  # type: ignore[arg-type]

    def predict_step(self, batch: list[int], batch_idx: int) -> list[tuple[list[FoldResult], float]]:
        """Train the groups of these numbers: results and seconds of each."""
        data = self.data.to(self.device)
        stop = threading.Event()

        def epoch_is_over() -> None:
            if stop.is_set():
                raise CancelledError
            if self.each_epoch is not None:
                self.each_epoch()

        def train(number: int) -> tuple[list[FoldResult], float]:
            began = time.monotonic()
            results = train_group(data, self.groups[number], self.size, self.training_plan, epoch_is_over)
            return results, time.monotonic() - began

        with single_threaded(), ThreadPoolExecutor(len(batch)) as pool:
            try:
                return list(pool.map(train, batch))
            except BaseException:
                stop.set()  # or leaving the pool would wait for whole groups
                raise
