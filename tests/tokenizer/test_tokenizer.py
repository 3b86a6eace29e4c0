"""LightningModule 1: the interface, its checkpoints, training that resumes exactly, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset

from mefar.errors import UserError
from mefar.tokenizer.module import FacialActionTokenizer, load
from mefar.tokenizer.network import ActionNetwork
from mefar.tokenizer.published_network import PublishedNetwork
from mefar.tokenizer.warp_network import WarpNetwork
from mefar.tokens import ActionTokenizer, ActionTokens

SMALL = {"image_size": 48, "dim": 16, "depth": 1, "num_codes": 8, "num_tokens": 4, "code_dim": 4}


def small() -> FacialActionTokenizer:
    return FacialActionTokenizer(WarpNetwork(**SMALL))


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
    model = small().eval()
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
        (torch.rand(1, 3, 48, 48), 255 * torch.rand(1, 3, 48, 48), "expected [0, 1]"),
        (torch.full((1, 3, 48, 48), float("nan")), torch.rand(1, 3, 48, 48), "onset holds nan"),
    ],
)
def test_wrong_images_are_refused(onset: torch.Tensor, apex: torch.Tensor, says: str) -> None:
    with pytest.raises(UserError) as caught:
        small().tokenize(onset, apex)
    assert says in str(caught.value)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 16"):
        WarpNetwork(100)


def test_training_lowers_the_loss_and_logs_the_gates(tmp_path: Path) -> None:
    L.seed_everything(0)
    model = FacialActionTokenizer(
        WarpNetwork(**SMALL, continuous_share=0.2, still_share=0.0), learning_rate=3e-3
    )
    fit = trainer(tmp_path, 12)
    rows = next(iter(loader()))
    before = model.network.losses(model.on_after_batch_transfer(dict(rows), 0))
    fit.fit(model, loader(), loader())
    after = model.network.losses(model.on_after_batch_transfer(dict(rows), 0))
    assert after["reconstruction"] < before["reconstruction"]
    gates = {"val/code_usage", "val/perplexity", "val/perplexity_per_position", "val/psnr", "val/delta_psnr",
             "val/gain_over_copy", "val/no_action_spread"}  # fmt: skip
    assert gates <= set(fit.callback_metrics)
    assert fit.callback_metrics["val/gain_over_copy"] > 0


def test_validation_before_and_between_trainings(tmp_path: Path) -> None:
    """`Trainer.validate` makes tensors that training may not write into."""
    model, run = small(), trainer(tmp_path, 1)
    run.validate(model, loader(), verbose=False)
    run.fit(model, loader(), loader())
    counted = run.callback_metrics["val/psnr"].clone()
    run.validate(model, loader(), verbose=False)
    assert run.callback_metrics["val/psnr"] == pytest.approx(float(counted)), "each validation counts anew"
    run.fit_loop.max_epochs = 2
    run.fit(model, loader(), loader())


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
        model = small()
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
    model = small().eval()
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
        state = small().state_dict()
        other = FacialActionTokenizer(WarpNetwork(**(SMALL | {"dim": 32}))).hparams
        torch.save({"state_dict": state, "hyper_parameters": dict(other)}, path)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_that_is_not_finite_names_its_clip() -> None:
    model = small()
    onset, apex = batch()
    apex[1, 0, 5, 5] = float("nan")
    with pytest.raises(UserError, match="b/second"):
        model.training_step({"onset": onset, "apex": apex, "clip": ["a/first", "b/second", "c/third"]}, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"apex": torch.rand(2, 3, 64, 64)}, r"apex is \(2, 3, 64, 64\), expected \(B, 3, 48, 48\)"),
        ({"onset": torch.rand(2, 1, 48, 48)}, r"onset is \(2, 1, 48, 48\)"),
        ({"onset_view": torch.zeros(2, 3, 48, 47, dtype=torch.uint8)}, "onset_view is"),
        ({"apex_view": 255 * torch.rand(2, 3, 48, 48)}, r"apex_view holds .* expected \[0, 1\]"),
        ({"onset": torch.rand(2, 3, 48, 48) - 0.5}, "onset holds -0."),
        ({"onset": torch.zeros(2, 3, 48, 48, dtype=torch.int64)}, "onset is torch.int64"),
    ],
)
def test_wrong_images_are_refused_in_training_too(changes: dict[str, torch.Tensor], says: str) -> None:
    model = small()
    right = {"onset": torch.full((2, 3, 48, 48), 255, dtype=torch.uint8), "apex": torch.rand(2, 3, 48, 48)}
    assert model.on_after_batch_transfer(right, 0)["onset"].max() == 1
    with pytest.raises(UserError, match=says):
        model.on_after_batch_transfer(right | changes, 0)


def _one_bad_clip(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # a forked process must not wake the thread pool of its parent
    model = small()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    onset, apex = batch()
    if rank == 1:
        apex[1, 0, 5, 5] = float("nan")
    names = [f"rank{rank}/{row}" for row in range(3)]
    said = ""
    try:
        model.training_step(
            model.on_after_batch_transfer({"onset": onset, "apex": apex, "clip": names}, 0), 0
        )
    except UserError as error:
        said = str(error)
    Path(folder, f"said{rank}").write_text(said)
    os._exit(0)  # torch 2.4 has been seen to wait for ever when it takes a process group apart


def test_one_rank_that_meets_a_bad_clip_stops_all(tmp_path: Path) -> None:
    """A rank that stopped alone would leave the others waiting in the next collective."""
    mp.start_processes(_one_bad_clip, (str(tmp_path),), nprocs=2, start_method="fork")
    said = {(tmp_path / f"said{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1 and "not finite in rank1/1; remove or repair" in said.pop()


@pytest.mark.parametrize(
    ("codes", "tokens"), [(8, 1), (8, 64), (1024, 1), (1024, 64), (32, 4), (32, 9), (32, 16), (32, 25)]
)
def test_codebook_size_and_token_count_are_configuration(codes: int, tokens: int, tmp_path: Path) -> None:
    """From one pair: fewer vectors than codes must not keep k-means from starting."""
    torch.manual_seed(0)
    model = FacialActionTokenizer(WarpNetwork(48, 8, 1, codes, tokens, 4, continuous_share=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        onset, apex = batch(1)
        loss = torch.stack(list(model.network.losses({"onset": onset, "apex": apex}).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bool(model.network.vq.started) and torch.isfinite(loss)
    assert torch.isfinite(model.network.vq.codebook).all()
    # Twenty-five vectors are drawn with replacement, so that one of them may be missing.
    assert len(model.network.vq.codebook.unique(dim=0)) >= min(codes, tokens) - 1
    model.eval()
    found = model.tokenize(onset, apex)
    assert found.indices.shape == (1, tokens) and found.embeddings.shape == (1, tokens, 8)
    assert found.indices.min() >= 0 and found.indices.max() < codes
    chosen = model.network.vq.lookup(found.indices)  # k-means had to repeat vectors, so codes may be twins
    torch.testing.assert_close(model.network.vq.lookup(model.network.vq.nearest(chosen)), chosen)
    torch.save(
        {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, tmp_path / "x.ckpt"
    )
    again = load(tmp_path / "x.ckpt")
    assert torch.equal(again.tokenize(onset, apex).indices, found.indices)
    assert torch.equal(again.reconstruct(onset, found), model.reconstruct(onset, found))


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (WarpNetwork, {"num_codes": 1}, "num_codes >= 2"),
        (WarpNetwork, {"num_tokens": 0}, "num_tokens >= 1"),
        (WarpNetwork, {"code_dim": 0}, "code_dim >= 1"),
        (WarpNetwork, {"dim": 2}, "dim >= 4"),
        (WarpNetwork, {"depth": -1}, "depth >= 0"),
        (PublishedNetwork, {"num_tokens": 9}, "num_tokens 9 of 4x4 patches"),
        (PublishedNetwork, {"num_tokens": 0}, "num_tokens 0"),
        (PublishedNetwork, {"image_size": 256, "num_codes": 1}, "num_codes >= 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    kind: type[ActionNetwork], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        kind(**({"image_size": 64} | settings))
