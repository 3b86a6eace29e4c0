"""LightningModule 1: the interface, its checkpoints, training that resumes exactly, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mefar.tokenizer import FacialActionTokenizer, load
from mefar.tokens import ActionTokenizer, ActionTokens, InputError

SMALL = {"image_size": 48, "dim": 16, "depth": 1, "num_codes": 8, "num_tokens": 4, "code_dim": 4}


class Pairs(Dataset[dict[str, Any]]):
    """Smooth random pictures and the same shifted by two pixels, uint8."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, row: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(row)
        coarse = torch.rand(1, 3, 9, 9, generator=generator)
        image = torch.nn.functional.interpolate(coarse, (48, 48), mode="bilinear")[0]
        moved = torch.roll(image, 2 if row % 2 else -2, dims=1 + row // 2 % 2)
        return {
            "onset": (image * 255).byte(),
            "apex": (moved * 255).byte(),
            "clip": f"clip{row}",
        }


def trainer(folder: Path, epochs: int, **options: Any) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", devices=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def loader() -> DataLoader[dict[str, Any]]:
    return DataLoader(Pairs(), batch_size=8)


def batch(count: int = 3, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(count, 3, size, size), torch.rand(count, 3, size, size)


def test_it_is_an_action_tokenizer() -> None:
    model = FacialActionTokenizer(**SMALL).eval()
    assert isinstance(model, ActionTokenizer)
    onset, apex = batch()
    tokens = model.tokenize(onset, apex)
    assert isinstance(tokens, ActionTokens)
    assert tokens.indices.shape == (3, 4) and tokens.embeddings.shape == (3, 4, 16)
    rebuilt = model.reconstruct(onset, tokens)
    assert rebuilt.shape == onset.shape and rebuilt.min() >= 0 and rebuilt.max() <= 1


@pytest.mark.parametrize(
    ("onset", "apex", "says"),
    [
        (torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), "image_size"),
        (torch.rand(1, 1, 48, 48), torch.rand(1, 1, 48, 48), "(B, 3, 48, 48)"),
        (torch.zeros(1, 3, 48, 48, dtype=torch.uint8), torch.rand(1, 3, 48, 48), "divide uint8"),
        (torch.rand(3, 48, 48), torch.rand(3, 48, 48), "onset is"),
    ],
)
def test_wrong_images_are_refused(onset: torch.Tensor, apex: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError) as caught:
        FacialActionTokenizer(**SMALL).tokenize(onset, apex)
    assert says in str(caught.value)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        FacialActionTokenizer(image_size=100)


def test_training_lowers_the_loss_and_logs_the_gates(tmp_path: Path) -> None:
    L.seed_everything(0)
    model = FacialActionTokenizer(**SMALL, learning_rate=3e-3, continuous_share=0.2)
    fit = trainer(tmp_path, 12)
    rows = next(iter(loader()))
    before = sum(model.losses(model.on_after_batch_transfer(dict(rows), 0)).values())
    fit.fit(model, loader(), loader())
    after = sum(model.losses(model.on_after_batch_transfer(dict(rows), 0)).values())
    assert after < before
    gates = {"val/code_usage", "val/perplexity", "val/perplexity_per_position", "val/psnr", "val/delta_psnr",
             "val/gain_over_copy", "val/no_action_spread"}  # fmt: skip
    assert gates <= set(fit.callback_metrics)
    assert fit.callback_metrics["val/gain_over_copy"] > 0


class KilledError(Exception):
    """Ends a training as a kill would, after a checkpoint."""


class Kill(L.Callback):
    def __init__(self, epoch: int, path: Path) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            raise KilledError


def test_a_resumed_training_is_the_unbroken_one(tmp_path: Path) -> None:
    def run(callbacks: list[L.Callback], checkpoint: Path | None = None) -> FacialActionTokenizer:
        L.seed_everything(1)
        model = FacialActionTokenizer(**SMALL)
        fit = trainer(tmp_path, 4, enable_checkpointing=False, callbacks=callbacks)
        fit.fit(model, loader(), ckpt_path=checkpoint)
        return model

    unbroken = run([])
    with pytest.raises(KilledError):
        run([Kill(1, tmp_path / "half.ckpt")])
    resumed = run([], tmp_path / "half.ckpt")
    there, here = unbroken.state_dict(), resumed.state_dict()
    for name in there:
        torch.testing.assert_close(here[name], there[name], atol=1e-5, rtol=1e-4, msg=name)


def test_checkpoints_load(tmp_path: Path) -> None:
    model = FacialActionTokenizer(**SMALL).eval()
    fit = trainer(tmp_path, 1, limit_train_batches=1)
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt")
    onset, apex = batch()
    assert torch.equal(again.tokenize(onset, apex).indices, model.eval().tokenize(onset, apex).indices)


@pytest.mark.parametrize("kind", ["absent", "text", "list", "other", "lies"])
def test_what_is_not_a_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "other":
        torch.save({"state_dict": {}, "hyper_parameters": {"size": 1}}, path)
    elif kind == "lies":
        state = FacialActionTokenizer(**SMALL).state_dict()
        torch.save({"state_dict": state, "hyper_parameters": {**SMALL, "dim": 32}}, path)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_that_is_not_finite_names_its_clip() -> None:
    model = FacialActionTokenizer(**SMALL)
    onset, apex = batch()
    apex[1, 0, 5, 5] = float("nan")
    with pytest.raises(InputError, match="b/second"):
        model.training_step({"onset": onset, "apex": apex, "clip": ["a/first", "b/second", "c/third"]}, 0)
