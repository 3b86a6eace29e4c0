"""What a tokenizer's training keeps for its report page: how it was started, and pictures of its validation.

RUN/starts.jsonl holds one line per start: command, commit, versions, time, step. RUN/samples/ holds two
small archives, first.npz and newest.npz, of the same few pairs after the first and the newest validation, so
that the page shows how far the tokens have come. A training that starts anew in the folder begins both anew.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mefar import __version__
from mefar.files import commit, replacing
from mefar.tokenizer.module import FacialActionTokenizer

FOLDER, STARTS = "samples", "starts.jsonl"


class SampleKeeper(Callback):
    """Keeps a handful of validation pairs, and what their tokens bring back, after every validation.

    A disk that is full or gone costs the page, never the training: what cannot be written is a warning.

    Args:
        folder: of the training.
        command: what the user typed.
        pairs: how many pairs to keep, spread over the first validation batch of rank 0.
        side: pictures are shrunk to at most this many pixels.
    """

    def __init__(self, folder: Path, command: str, pairs: int = 6, side: int = 128) -> None:
        self.folder, self.command, self.pairs, self.side = Path(folder), command, pairs, side
        self.kept: dict[str, NDArray[Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how this start was made; of a training that begins anew, remove what an earlier one left."""
        if not trainer.is_global_zero:
            return
        entry = {
            "command": self.command,
            "commit": commit(),
            "mefar": __version__,
            "torch": torch.__version__,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": trainer.global_step,
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            anew = trainer.global_step == 0
            if anew:
                for name in ("first", "newest"):
                    (self.folder / FOLDER / f"{name}.npz").unlink(missing_ok=True)
            with (self.folder / STARTS).open("w" if anew else "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            rank_zero_warn(f"{self.folder}: the report page will lack this start ({error})")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Make the pictures of some pairs of the first batch; the loader gives the same ones every time."""
        if trainer.sanity_checking or batch_idx or dataloader_idx or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FacialActionTokenizer)
        last = len(batch["onset"]) - 1
        rows = torch.tensor(sorted({round(i * last / max(1, self.pairs - 1)) for i in range(self.pairs)}))
        onset, apex = (batch[name][rows] for name in ("onset", "apex"))
        tokens = pl_module.tokenize(onset, apex)
        others = tokens.select(torch.arange(len(rows), device=onset.device).roll(1))
        images = {
            "onset": onset,
            "apex": apex,
            "reconstruction": pl_module.reconstruct(onset, tokens),
            "transferred": pl_module.reconstruct(onset, others),
        }
        self.kept = {name: self._levels(image) for name, image in images.items()}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the pictures, with how often each code was chosen in this validation by all ranks."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, FacialActionTokenizer)
        # Here the module has not yet begun its counts anew; every rank must take part in the sum.
        usage = trainer.strategy.reduce(pl_module.quality.counts.sum(0), reduce_op="sum")
        if not self.kept:
            return
        arrays = self.kept | {
            "usage": usage.round().long().cpu().numpy(),
            "step": np.array(trainer.global_step),
        }
        self.kept = {}
        try:
            folder = self.folder / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("first", "newest"):
                path = folder / f"{name}.npz"
                if name == "newest" or not path.exists():
                    with replacing(path) as temporary, temporary.open("wb") as file:
                        np.savez_compressed(file, **arrays)
        except OSError as error:
            rank_zero_warn(f"{self.folder / FOLDER}: samples of this validation are not kept ({error})")

    def _levels(self, images: Tensor) -> NDArray[Any]:
        """(n, 3, H, W) float in [0, 1] -> (n, h, w, 3) uint8, h and w at most `side`."""
        images = images.detach().float()
        scale = self.side / max(images.shape[2:])
        if scale < 1:
            size = [round(length * scale) for length in images.shape[2:]]
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        levels = (images * 255).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).cpu().numpy()
