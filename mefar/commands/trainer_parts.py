"""What every `mefar fit | validate | test | predict` gives the Trainer, beside what the YAML names."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.plugins import TorchCheckpointIO

from mefar.errors import UserError
from mefar.files import csv_text, remove_leftovers, replacing, write_text
from mefar.progress import LOG_SECONDS, time_left


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning's own writer goes through the system's temporary folder. Where that lies on another disk, a
    process killed at the wrong moment leaves half a `last.ckpt` in place of the one before.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write beside the old file, then rename; addresses (`s3://...`) are left to Lightning.

        Raises:
            UserError: the disk takes no more.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with replacing(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:
                if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                    raise
                raise UserError(f"{path}: cannot be written; is the disk full?") from error


class ToTheEnd(Callback):
    """Lets the last step be validated and saved, wherever it falls between two validations."""

    began = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for the number of steps once: the Trainer looks at the loader for it."""
        self.began, self.last = True, trainer.estimated_stepping_batches

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """A Trainer that is told to stop validates first; one that has made its last step may not."""
        if trainer.global_step >= self.last:
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the training came to.

        Raises:
            UserError: to nothing, because no batch was full.
        """
        if not self.began:
            raise UserError(
                f"data: not one batch for each of {trainer.world_size} ranks, so nothing was trained; give "
                "more pairs or clips, a smaller batch_size or fewer devices"
            )
        if trainer.is_global_zero:
            print(f"{trainer.default_root_dir}: trained {trainer.global_step} steps", flush=True)


class LogLines(Callback):
    """Progress where there is no terminal: a line a minute, and one for every validation."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here: a resumed training has its steps from before."""
        self.began = self.said = time.monotonic()
        self.first, self.total = trainer.global_step, trainer.estimated_stepping_batches

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Say where the training stands, if a minute has passed."""
        if time.monotonic() - self.said < LOG_SECONDS or not trainer.is_global_zero:
            return
        self.said = time.monotonic()
        step = trainer.global_step
        rate = (step - self.first) / (self.said - self.began)
        left = time_left(step, int(self.total), rate) if math.isfinite(self.total) else "no end"
        self._say(trainer, f"of {self.total}, epoch {trainer.current_epoch}, {rate:.2f} steps/s, {left} left")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was found."""
        if trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._say(trainer, "validated")

    def _say(self, trainer: Trainer, line: str) -> None:
        metrics = ", ".join(
            f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items()
        )
        print(f"step {trainer.global_step} {line}{metrics and f'; {metrics}'}", flush=True)


class SameClasses(Callback):
    """Holds the classes that a classifier's configuration names against those of the data."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, where both have classes.

        Raises:
            UserError: another number, or another name at the same label.
        """
        study = getattr(trainer.datamodule, "study", None)  # type: ignore[attr-defined]
        if study is None:
            return
        there, here = list(study.class_names), pl_module.hparams.get("class_names")
        count = len(here) if here else pl_module.hparams.get("num_classes")
        shown = f"the classes of {study.protocol} are {', '.join(there)}"
        if count is not None and count != len(there):
            raise UserError(
                f"model: has {count} classes, the data {len(there)}; {shown}: correct the model's"
            )
        if here and list(here) != there:
            label = next(i for i, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1])
            raise UserError(
                f"model.init_args.class_names: label {label} is {here[label]} in the model, {there[label]} "
                f"in the data; {shown}, in this order"
            )


class PredictionTable(BasePredictionWriter):
    """Writes predictions.csv: clip, predicted class, probability of each class."""

    def __init__(self, path: Path) -> None:
        super().__init__("epoch")
        self.path = path

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather what the ranks have found, in the order of the clips' names."""
        found = [
            (clip, probabilities.tolist())
            for batch in predictions
            for clip, probabilities in zip(batch["clip"], batch["probabilities"], strict=True)
        ]
        parts: list[Any] = [found] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(parts, found)
            found = [row for part in parts for row in part]
        if not trainer.is_global_zero:
            return
        study = getattr(trainer.datamodule, "study", None)  # type: ignore[attr-defined]
        names = list(study.class_names) if study else [str(label) for label in range(len(found[0][1]))]
        rows = []
        for clip, shares in sorted(found):
            guess = names[max(range(len(names)), key=shares.__getitem__)]
            rows.append([clip, guess, *(f"{share:.6f}" for share in shares)])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, csv_text(["clip", "predicted", *names], rows))
        print(f"{self.path}: {len(found)} clips")
