"""Leave-one-subject-out under Lightning: a module whose prediction steps train groups, and the callback.

Prediction is the one loop of Lightning that neither pads, nor synchronises gradients, nor cares how many
batches a rank has: no gradient travels between folds. Every rank goes through all groups twice: first it
trains what nobody has taken, then it waits for what others have taken and trains what they left unfinished.
More ranks may join a running study by the same command.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from mefar.classifier.head import HeadFactory
from mefar.loso.engine import can_map, train_group
from mefar.loso.folds import FoldResult
from mefar.loso.run import Run, Where
from mefar.progress import shown


class FoldTrainer(LightningModule):
    """Trains groups of folds, one per step of `Trainer(inference_mode=False).predict(FoldTrainer(...))`.

    Args:
        runs: whose groups; a study and its control, say.
        compiled: fuse training steps by torch.compile.
    """

    def __init__(self, runs: Sequence[Run], compiled: bool = False) -> None:
        super().__init__()
        self.runs, self.compiled = runs, compiled
        self.each_epoch: Callable[..., None] | None = None
        self._together: dict[HeadFactory, bool] = {}

    def setup(self, stage: str) -> None:
        """Operations of this size spend more time waiting for each other's threads than computing."""
        if self.device.type == "cpu":
            torch.set_num_threads(1)

    def predict_dataloader(self) -> DataLoader[tuple[int, int, bool]]:
        """(run, group, whether to wait for who has taken it); every rank begins elsewhere."""
        every = [(r, g) for r, run in enumerate(self.runs) for g in range(len(run.groups))]
        start = len(every) * self.trainer.global_rank // self.trainer.world_size
        every = every[start:] + every[:start]
        items = [(r, g, wait) for wait in (False, True) for r, g in every]
        return DataLoader(items, batch_size=None)  # type: ignore[arg-type]

    def predict_step(self, batch: tuple[int, int, bool], batch_idx: int) -> list[FoldResult]:
        """Train a group unless it is finished or taken."""
        r, number, wait = batch
        run = self.runs[r]
        with run.take(number, wait) as mine:
            if not mine:
                return []
            began, group = time.monotonic(), run.groups[number]
            study = run.study.to(self.device)
            if run.head not in self._together:
                self._together[run.head] = can_map(run.head, study, run.training)
            seen = 0

            def each_epoch() -> None:
                nonlocal seen
                seen += 1
                if self.each_epoch is not None:
                    self.each_epoch(seen * len(group) // run.training.epochs)

            results, heads = train_group(
                study, group, run.head, run.training, self._together[run.head], self.compiled, each_epoch
            )
            run.add(results, heads, time.monotonic() - began)
        return results


class LOSOCallback(Callback):
    """Shows how far all ranks are, and gathers the folds into composite scores.

    The ledger is where ranks meet: the first that finds all folds of a run in it concludes the run.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the progress bar of rank 0; it counts what all ranks have finished."""
        assert isinstance(pl_module, FoldTrainer)
        # Lightning takes a note of `kill` or `scancel` that no prediction reads, and tells other ranks, which
        # wait for nobody. What is finished is on disk: end. Its teardown puts back what was there before.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not trainer.is_global_zero:
            return
        runs, ranks, began, last = pl_module.runs, trainer.world_size, time.monotonic(), 0.0
        total, before = sum(len(run.folds) for run in runs), sum(len(run.ledger.read()) for run in runs)
        progress = self._stack.enter_context(shown("training" + f" on {ranks} ranks" * (ranks > 1), "folds"))

        def each_epoch(own: int, always: bool = False) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 1 or always:
                done = sum(len(run.ledger.read()) for run in runs) + own
                progress(done, total, (done - before) / (now - began))
                last = time.monotonic()

        pl_module.each_epoch = each_epoch

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Conclude what is complete; whoever comes first does it, the others find it done."""
        assert isinstance(pl_module, FoldTrainer)
        if pl_module.each_epoch is not None:
            pl_module.each_epoch(0, always=True)
        self._stack.close()
        for run in pl_module.runs:
            run.conclude()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stack.close()


def train(runs: Sequence[Run], where: Where) -> bool:
    """Train what is unfinished of some runs, on all ranks, and conclude them.

    Returns:
        Whether this process leads: the one that prints and writes pages.

    Raises:
        UserError: a fold diverged; what is finished is kept.
    """
    groups = sum(len(run.groups) for run in runs)
    trainer = make_trainer(where, groups, [LOSOCallback()])
    with quiet():
        if all(run.complete for run in runs):
            for run in runs:
                run.conclude()
        else:
            trainer.predict(FoldTrainer(runs, where.compiled), return_predictions=False)
    return trainer.is_global_zero


def make_trainer(where: Where, most: int, callbacks: list[Callback], **more: Any) -> Trainer:
    """A Trainer on the ranks that are asked for; on CPUs, if nobody says how many, one per core.

    At most `most` of them, which can have something to do. `more` are further arguments of the Trainer.
    """
    started = "LOCAL_RANK" in os.environ or "SLURM_NTASKS" in os.environ
    devices = where.devices
    if devices is None:
        devices = 1 if where.on_gpu or started or where.num_nodes > 1 else max(1, min(cores(), most))
    with quiet():
        return Trainer(
            accelerator="gpu" if where.on_gpu else "cpu",
            devices=devices,
            num_nodes=where.num_nodes,
            strategy=strategy(where, devices, started),
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
            **more,
        )


def strategy(where: Where, devices: int, started: bool) -> str:
    """Lightning's name for how ranks are started: on CPUs by a fork, unless somebody has started them."""
    if devices * where.num_nodes == 1:
        return "auto"
    return "ddp" if where.on_gpu or started else "ddp_fork"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def quiet() -> Iterator[None]:
    """Around a Trainer: its inventories are no news, and the port of its ranks is no other Trainer's."""
    port = os.environ.get("MASTER_PORT")
    talkers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
        if port is None:
            os.environ.pop("MASTER_PORT", None)
