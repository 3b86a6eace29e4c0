"""The smallest model and data that `mefar fit` can train, with every way to go wrong that we catch."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mefar.errors import UserError


class ToyModel(LightningModule):
    """One linear layer that learns to say zero.

    Args:
        width: inputs, at most 4.
        fails: where to fail: "init" as a user's mistake, "step" as Ctrl-C, "bug" as a bug.
        num_classes: number of classes, if it has any.
        class_names: their names.
    """

    def __init__(
        self,
        width: int = 4,
        fails: str = "",
        num_classes: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if fails == "init":
            raise UserError("anchors.safetensors: no such anchors file; make one with `mefar anchors`")
        self.width, self.fails = width, fails
        self.net = torch.nn.Linear(width, 1)

    def training_step(self, batch: Tensor) -> Tensor:
        if self.fails == "step":
            raise KeyboardInterrupt
        if self.fails == "bug":
            raise ZeroDivisionError("a bug")
        loss = self.net(batch[:, : self.width]).pow(2).mean()
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor) -> None:
        self.log("val/loss", self.net(batch[:, : self.width]).pow(2).mean())

    test_step = validation_step

    def predict_step(self, batch: Tensor) -> dict[str, object]:
        odds = batch[:, :3].softmax(-1)
        return {"clip": [f"clip{float(row[0]):.4f}" for row in odds], "probabilities": odds}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class ToyDataset(Dataset[Tensor]):
    """Sixteen random vectors."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        if self.broken:
            raise UserError(f"clip {index}.mp4: does not decode; fetch it again")
        return torch.randn(4, generator=torch.Generator().manual_seed(index))


class ToyData(LightningDataModule):
    """Random vectors.

    Args:
        data: a folder that is never looked at.
        broken: whether every sample is.
        num_workers: loader processes.
        classes: names of the classes, if there are any.
    """

    def __init__(
        self, data: str, broken: bool = False, num_workers: int = 0, classes: list[str] | None = None
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.study = classes and SimpleNamespace(protocol="toys", class_names=tuple(classes))
        self.broken, self.num_workers = broken, num_workers

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(ToyDataset(self.broken), batch_size=8, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(ToyDataset(False), batch_size=8)

    test_dataloader = predict_dataloader = val_dataloader
