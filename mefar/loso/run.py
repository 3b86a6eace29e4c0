"""One leave-one-subject-out run in one directory: claimed, trained in groups, resumed, concluded.

Every fold is trained a fixed number of epochs and tested on one subject. Predictions of all folds are
pooled before anything is scored: UF1 and UAR are never means over folds. From the same run come the
`last` epoch (our score, fixed in advance) and the `oracle`, the epoch that is best on the test subject
itself: the practice of most published scripts, printed only to compare with their tables.

Ranks take groups of folds under file locks; a lock ends with the process that holds it, so what a dead rank
had taken is taken over by another, or by the same command started again. The ledger says what is finished.
Whoever sees it complete concludes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mefar import __version__, files
from mefar.classifier.head import HeadFactory, TokenHead, options_of
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso import bootstrap
from mefar.loso.engine import State, head_for
from mefar.loso.folds import FoldResult, StudyTokens, plan
from mefar.loso.ledger import Ledger
from mefar.loso.results import read_predictions
from mefar.loso.scores import pool, pooled_attention, pooled_confusion, predictions_csv

CPU_GROUP, GPU_GROUP = 17, 128
CODE = ("mefar.classifier", "mefar.loso.engine", "mefar.loso.folds", "mefar.randomness")
"""Whose code decides what the heads of a study become."""


@dataclass(frozen=True)
class Where:
    """Where heads are trained.

    Attributes:
        accelerator: auto, cpu or gpu.
        devices: ranks on this machine; None = one per core on CPUs, else 1.
        num_nodes: machines, each started by torchrun or SLURM.
        group: heads trained at once; None = 17 on CPUs, 128 on GPUs.
        compiled: let torch.compile fuse a step: a minute at the start, then faster steps.

    Raises:
        UserError: a number below 1.
    """

    accelerator: str = "auto"
    devices: int | None = None
    num_nodes: int = 1
    group: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; give at least 1")

    @property
    def on_gpu(self) -> bool:
        """Whether heads are trained on GPUs; a UserError where one is asked for and torch finds none."""
        if self.accelerator in ("cpu", "auto"):
            return self.accelerator == "auto" and torch.cuda.is_available()
        if not torch.cuda.is_available():
            raise UserError(f"accelerator {self.accelerator!r}: torch finds no GPU; use auto or cpu")
        return True


def describe_head(factory: HeadFactory, study: StudyTokens, training: HeadTraining) -> dict[str, Any]:
    """What makes a head the head it is: class, options, and the code of its file where it is not ours."""
    head = head_for(study, factory, training)
    kind = type(head)
    options = options_of(factory)
    told: dict[str, Any] = {"class_path": f"{kind.__module__}.{kind.__qualname__}"}
    told["init_args"] = json.loads(json.dumps(options, default=repr))
    given = {name: value for name, value in options.items() if isinstance(value, Path) and value.is_file()}
    if given:  # weights, for example
        told["files"] = {name: files.fingerprint(path) for name, path in given.items()}
    told["parameters"] = sum(parameter.numel() for parameter in head.parameters())
    if not kind.__module__.startswith("mefar.classifier."):
        told["code"] = files.code_of(kind)
    return told


class Run:
    """One study in one run directory.

    Args:
        study: what is tested.
        out: run directory; made, or continued if it is of the same study.
        head: makes a head.
        training: how every fold is trained.
        seeds: heads per fold.
        where: whose group and device count for the result.
        notes: further entries of summary.json, for example the command.
        adapting: what else decides the result, where folds adapt the tokenizer; such folds are not grouped.
        keep_heads: write the state of every head into out/heads.

    Raises:
        UserError: the directory holds a run with another configuration.
    """

    def __init__(
        self,
        study: StudyTokens,
        out: Path,
        head: HeadFactory = TokenHead,
        training: HeadTraining | None = None,
        seeds: Sequence[int] = (0,),
        where: Where | None = None,
        notes: Mapping[str, Any] | None = None,
        adapting: Mapping[str, Any] | None = None,
        keep_heads: bool = False,
    ) -> None:
        self.study, self.out, self.head = study, Path(out), head
        self.training, self.seeds = training or HeadTraining(), tuple(seeds)
        self.notes, self.keep_heads, self.started = dict(notes or {}), keep_heads, time.monotonic()
        where = where or Where()
        self.training.views_to_test(study.tokens.shape[1])
        group = 1 if adapting else where.group or (GPU_GROUP if where.on_gpu else CPU_GROUP)
        self.groups = plan(study.subjects, self.seeds, group, self.training, study.learnable.tolist())
        self.folds = [fold for each in self.groups for fold in each]
        self.configuration: dict[str, Any] = {
            "protocol": study.protocol,
            "control": study.control,
            "data": study.fingerprint(),
            "tokenizer": study.tokenizer.get("sha256"),
            "head": describe_head(head, study, self.training),
            "training": asdict(self.training) | {"betas": list(self.training.betas)},
            "group": group,
            "device": "gpu" if where.on_gpu else "cpu",
            "torch": torch.__version__,
            "code": files.code_fingerprint(*CODE),
            **(adapting or {}),
        }
        self.identity = files.fingerprint(self.configuration)
        self.ledger = Ledger(self.out, self.identity)
        with files.lock(self.out / "locks" / "study.lock", say=False):
            files.remove_leftovers(self.out)
            files.mark_folder(self.out / "study.json", self.configuration)

    def finished(self, number: int) -> bool:
        """Whether all folds of a group are in the ledger."""
        done = self.ledger.read()
        return all(fold in done for fold in self.groups[number])

    @property
    def complete(self) -> bool:
        """Whether all folds are in the ledger."""
        done = self.ledger.read()
        return all(fold in done for fold in self.folds)

    @contextmanager
    def take(self, number: int, wait: bool) -> Iterator[bool]:
        """Take a group: whether it is this rank's to train.

        `wait` for the rank that holds it, and take over what it leaves unfinished.
        """
        path = self.out / "locks" / f"{number}.lock"
        if self.finished(number):
            yield False
        elif wait:
            with files.lock(path, say=False):
                yield not self.finished(number)
        else:
            with files.claim(path) as mine:
                yield mine and not self.finished(number)

    def add(self, results: Sequence[FoldResult], heads: Sequence[State], seconds: float) -> None:
        """Write a finished group, its heads first: what is in the ledger is never trained again."""
        if self.keep_heads:
            folder = self.out / "heads"
            folder.mkdir(exist_ok=True)
            for result, state in zip(results, heads, strict=True):
                name = f"{result.fold.subject.replace('/', '-')}-seed{result.fold.seed}.safetensors"
                with files.replacing(folder / name) as temporary:
                    save_file({key: value.contiguous() for key, value in state.items()}, temporary)
        self.ledger.append(results, seconds)

    def conclude(self) -> dict[str, Any]:
        """Pool all folds, once.

        Returns:
            summary.json; empty while folds are missing.
        """
        with files.lock(self.out / "locks" / "study.lock", say=False):
            there = self.summary()
            if there or not self.complete:
                return there
            done = self.ledger.read()
            return self.pool([done[fold][0] for fold in self.folds])

    def pool(self, results: Sequence[FoldResult]) -> dict[str, Any]:
        """Write what all folds say together, and return summary.json."""
        study = self.study
        files.write_text(self.out / "predictions.csv", predictions_csv(study, results))
        rows = read_predictions(self.out)
        files.write_text(self.out / "confusion.json", json.dumps(pooled_confusion(rows)))
        files.write_text(self.out / "attention.json", json.dumps(pooled_attention(study, results)))
        made = {
            "protocol": study.protocol,
            "classes": list(study.class_names),
            "seeds": list(self.seeds),
            "folds": len(set(study.subjects)),
            "clips": len(study.clips),
            "counts": study.counts,
            "scores": pool(rows),
            "intervals": bootstrap.intervals(rows),
            "tokenizer": dict(study.tokenizer),
            "head": self.configuration["head"],
            "training": self.configuration["training"],
            "identity": self.identity,
            "training_seconds": round(self.seconds(), 1),
            "wall_seconds": round(time.monotonic() - self.started, 1),
            "mefar": __version__,
        }
        if study.control:
            made["control"] = study.control
        made |= self.notes
        files.write_text(self.out / "summary.json", json.dumps(made, indent=1))
        return made

    def seconds(self) -> float:
        """What training has taken so far, on all ranks together."""
        return sum(seconds for _, seconds in self.ledger.read().values())

    def summary(self) -> dict[str, Any]:
        """The summary that this very study left before; empty if it did not."""
        try:
            there: dict[str, Any] = json.loads((self.out / "summary.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        same = there.get("identity") == self.identity and there.get("seeds") == list(self.seeds)
        return there if same and (self.out / "predictions.csv").is_file() else {}
