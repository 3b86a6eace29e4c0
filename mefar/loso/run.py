"""Leave-one-subject-out over tokens: the study, the callback that gathers it, the composite table.

Every fold is trained a fixed number of epochs and tested on one subject. Predictions of all folds are
pooled before anything is scored: UF1 and UAR are never means over folds. From the same run come the
`last` epoch (our score, fixed in advance) and the `oracle`, the epoch that is best on the test subject
itself: the practice of most published scripts, printed only to compare with their tables.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mefar import __version__
from mefar.classifier.head import HeadSize
from mefar.errors import UserError
from mefar.files import code_fingerprint, write_text
from mefar.loso import adapting, bootstrap, meeting
from mefar.loso.engine import Training
from mefar.loso.folds import FoldTrainer, plan
from mefar.loso.launch import FoldStrategy
from mefar.loso.ledger import Ledger
from mefar.loso.machine import Machine
from mefar.loso.meeting import Meeting, occupy
from mefar.loso.results import read_predictions
from mefar.loso.scores import StudyTokens, pool, pooled_attention, pooled_confusion, predictions_csv
from mefar.loso.token_table import MADE_BY

CPU_GROUP, GPU_GROUP = 4, 128
_TALKERS = ("lightning.pytorch", "lightning.fabric", "torch.multiprocessing.spawn")


@contextmanager
def _quiet() -> Iterator[None]:
    """Inventories of hardware and ranks are no news to somebody who waits for a table."""
    levels = {name: logging.getLogger(name).level for name in _TALKERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR if name.startswith("torch") else logging.WARNING)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


CODE = (
    "mefar.loso.engine",
    "mefar.loso.folds",
    "mefar.loso.objective",
    "mefar.loso.grouped_adamw",
    "mefar.classifier",
)
ADAPTING_CODE = ("mefar.loso.adapting", *MADE_BY)


class Run:
    """One LOSO run in one directory.

    Args:
        study: what is tested.
        out: run directory; made, or continued if it is of the same study.
        size: of the heads.
        training: how every fold is trained.
        seeds: models per fold.
        machine: where.
        notes: further entries of summary.json, for example the command.
        adaptation: images and tokenizer, where every fold adapts the tokenizer; its folds are not grouped.

    Raises:
        UserError: the directory holds a run with another configuration.
    """

    def __init__(
        self,
        study: StudyTokens,
        out: Path,
        size: HeadSize,
        training: Training,
        seeds: Sequence[int] = (0,),
        machine: Machine | None = None,
        notes: Mapping[str, Any] | None = None,
        adaptation: adapting.Adaptation | None = None,
    ) -> None:
        self.study, self.out, self.size, self.training = study, Path(out), size, training
        self.seeds, self.machine, self.notes = tuple(seeds), machine or Machine(), dict(notes or {})
        if not self.seeds:
            raise UserError("no seed; give at least 1")
        training.views_to_test(study.data.tokens.shape[1])
        self.adaptation = adaptation
        self.started, self.trained, self.process = time.monotonic(), False, os.getpid()
        group = self.machine.group or (GPU_GROUP if self.machine.on_gpu else CPU_GROUP)
        if adaptation is not None:
            adapting.check(adaptation.weight, training, self.machine.group, self.machine.workers)
            group = 1
        self.groups = plan(study.data.subjects, self.seeds, group)
        self.configuration = {
            "protocol": study.protocol,
            "control": study.control,
            "data": study.data.fingerprint(),
            "tokenizer": study.tokenizer["sha256"],
            "head": asdict(size),
            "training": asdict(training) | {"betas": list(training.betas)},
            "group": group,
            "device": "gpu" if self.machine.on_gpu else "cpu",
            "torch": torch.__version__,
            "code": code_fingerprint(*CODE),
        }
        if adaptation is not None:
            self.configuration |= {"adapt_tokenizer": adaptation.weight, "pairs": adaptation.fingerprint}
            self.configuration["code"] = code_fingerprint(*CODE, *ADAPTING_CODE)
        text = json.dumps(self.configuration, sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        self.ledger = Ledger(self.out, self.identity)
        self._claim()

    def _claim(self) -> None:
        """Write study.json, or refuse a directory that another configuration has claimed."""
        path = self.out / "study.json"
        if path.exists():
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: not JSON; delete {self.out} or choose another --out") from error
            if there != self.configuration:
                what = _first_difference(there, self.configuration)
                raise UserError(
                    f"{self.out} holds a run with another {what}; choose another --out or delete it"
                )
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(self.configuration, indent=1, sort_keys=True))

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and prints for the whole run."""
        return self.machine.leads

    def _trainer(self, callback: Callback, epochs: int | None = None) -> Trainer:
        many = self.machine.devices * self.machine.num_nodes > 1
        # Gloo on GPUs too where nothing travels: a process group of NCCL cannot be left alone.
        backend = "gloo" if self.adaptation is None else None
        return Trainer(
            accelerator=self.machine.accelerator,
            devices=self.machine.devices,
            num_nodes=self.machine.num_nodes,
            strategy=FoldStrategy(backend, self.machine.start) if many else "auto",
            callbacks=[callback],
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
        )

    @property
    def starter(self) -> int | None:
        """The process without which this rank must not go on: its launcher, where that is known."""
        if os.getpid() != self.process:
            return self.process
        return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def finished(self) -> frozenset[int]:
        """Numbers of the groups that are in the ledger."""
        done = self.ledger.read()
        return frozenset(
            number for number, group in enumerate(self.groups) if all(fold in done for fold in group)
        )

    def execute(self) -> dict[str, Any]:
        """Train what is unfinished, on all ranks, and return the summary.

        Raises:
            UserError: a fold diverged, or a rank died; what is finished is kept.
        """
        finished = self.finished()
        with _quiet():
            self.trained = len(finished) < len(self.groups)
            if self.trained:
                try:
                    self._train(finished)
                except Exception as error:
                    if (told := meeting.explained(error)) is None:
                        raise
                    raise told from error
            elif self.leads:
                meeting.sweep(self.out)
                self.conclude()
        return self._earlier()

    def _train(self, finished: Collection[int]) -> None:
        """Train the other groups: each on one rank, or, where they adapt the tokenizer, each on all ranks."""
        if self.adaptation is None:
            module = FoldTrainer(
                self.study.data, self.groups, self.size, self.training, finished, self.machine.share
            )
            self._trainer(LOSOCallback(self)).predict(module, return_predictions=False)
            return
        left = [number for number in range(len(self.groups)) if number not in finished]
        for done, number in enumerate(left, len(finished)):
            (fold,) = self.groups[number]
            conclude = self.conclude if number == left[-1] else None
            writer = adapting.FoldWriter(self.ledger, done, len(self.groups), conclude)
            one = adapting.AdaptingFold(self.study.data, fold, self.size, self.training, self.adaptation)
            self._trainer(writer, self.training.epochs).fit(one)

    def _earlier(self) -> dict[str, Any]:
        """The summary that this very run left before, if it did."""
        try:
            there: dict[str, Any] = json.loads((self.out / "summary.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        return there if there.get("identity") == self.identity else {}

    def conclude(self) -> None:
        """Pool all folds of the ledger and write predictions, confusion matrices and summary."""
        self.ledger.merge()
        done = self.ledger.read()
        wall = round(time.monotonic() - self.started, 1)
        if not self.trained:  # all was there: say how long it took then, not how long reading it took now
            wall = self._earlier().get("wall_seconds", wall)
        missing = [fold for group in self.groups for fold in group if fold not in done]
        if missing:
            raise RuntimeError(f"{len(missing)} folds are not in the ledger, first {missing[0]}")
        results = [done[fold][0] for group in self.groups for fold in group]
        pooled_scores = pool(self.study, results, self.seeds)
        write_text(self.out / "predictions.csv", predictions_csv(self.study, results))
        write_text(self.out / "confusion.json", json.dumps(pooled_confusion(self.study, results)))
        write_text(self.out / "attention.json", json.dumps(pooled_attention(self.study, results)))
        summary = {
            "protocol": self.study.protocol,
            "classes": list(self.study.data.class_names),
            "seeds": list(self.seeds),
            "folds": len(set(self.study.data.subjects)),
            "clips": len(self.study.clips),
            "counts": self.study.counts,
            "scores": pooled_scores,
            "intervals": bootstrap.intervals(read_predictions(self.out)),
            "tokenizer": dict(self.study.tokenizer),
            "dropped": [list(pair) for pair in self.study.dropped],
            "head": self.configuration["head"],
            "training": self.configuration["training"],
            "identity": self.identity,
            "training_seconds": round(sum(seconds for _, seconds in done.values()), 1),
            "wall_seconds": wall,
            "mefar": __version__,
        }
        if self.study.control:
            summary["control"] = self.study.control
        if self.adaptation is not None:
            summary["adapt_tokenizer"] = self.adaptation.weight
        write_text(self.out / "summary.json", json.dumps(summary | self.notes, indent=1))


def _first_difference(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> str:
    """Name of the first entry that differs, with both values where they are short."""
    for key in sorted(set(there) | set(here)):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old != new:
            return _first_difference(old, new, f"{prefix}{key}.")
        if old != new:
            short = key not in ("data", "tokenizer", "code", "pairs")
            return f"{prefix}{key} ({old} there, {new} asked for)" if short else f"{prefix}{key}"
    return "content"


class LOSOCallback(Callback):
    """Writes every finished group to the ledger, shows progress, and concludes the run on rank 0."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.progress: Progress | None = None
        self.meeting: Meeting | None = None
        self.lock: IO[bytes] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for the end of earlier attempts, and let all ranks know of this one and of each other."""
        assert isinstance(pl_module, FoldTrainer)
        rank, run = trainer.global_rank, self.run
        if rank == 0:
            self.lock = occupy(run.out / "study.json", first=True)
        attempt = trainer.strategy.broadcast(secrets.token_hex(8))
        if rank != 0:
            self.lock = occupy(run.out / "study.json", first=False)
        pl_module.finished = run.finished()  # once more: an earlier attempt may have gone on until now
        self.meeting = Meeting(run.out, attempt, rank, trainer.world_size, run.starter)
        self.meeting.open()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the other ranks after every epoch; open the progress bar of rank 0's share."""
        assert isinstance(pl_module, FoldTrainer) and self.meeting is not None
        self.meeting.catch_orders()
        check = self.meeting.check
        pl_module.each_epoch = check
        if not trainer.is_global_zero:
            return
        share = pl_module.mine(trainer.global_rank, trainer.world_size)
        models = sum(len(group) for group in pl_module.groups)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        # To stderr, like every progress bar of ours: stdout is for results.
        self.progress = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        )
        ranks = f" on {trainer.world_size} ranks" if trainer.world_size > 1 else ""
        task = self.progress.add_task(
            f"{models} folds{ranks}", total=len(share) * self.run.training.epochs or None
        )
        self.progress.start()
        bar = self.progress

        def each_epoch() -> None:
            check()
            bar.advance(task)

        pl_module.each_epoch = each_epoch

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the groups to this rank's ledger."""
        for results, seconds in outputs:
            self.run.ledger.append(results, seconds, trainer.global_rank)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for all ranks, also those without a group, and let rank 0 conclude."""
        assert self.meeting is not None
        self._close()
        self.meeting.catch_orders()  # Lightning has just put back what was there before it
        self.meeting.finish(self.run.conclude)
        self._unlock()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the other ranks, and leave the terminal as it was."""
        self._close()
        if self.meeting is not None:
            self.meeting.fail(exception)
        self._unlock()

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _unlock(self) -> None:
        if self.lock is not None:
            self.lock.close()
