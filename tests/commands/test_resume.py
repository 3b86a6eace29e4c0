"""A training that goes on from a checkpoint is the unbroken one: every pair once, the same losses."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from diary import Diary, number_pairs, read
from filming import barcode, film
from lightning.pytorch.callbacks import ModelCheckpoint
from places import ROOT

from datamodules.voxceleb.module import VoxCelebDataModule
from datamodules.voxceleb.shards import build
from mefar.__main__ import main
from mefar.commands.train import WholeFiles
from mefar.errors import UserError
from mefar.tokenizer.module import FacialActionTokenizer, load
from mefar.tokenizer.warp_network import WarpNetwork

SMALL = {"image_size": 48, "dim": 8, "depth": 1, "num_codes": 8, "num_tokens": 4, "code_dim": 4}
DATA = {"image_size": 48, "pairs_per_epoch": 18, "val_pairs": 4, "batch_size": 4, "faces": "precropped",
        "val_fraction": 0.3, "num_workers": 0}  # fmt: skip
# An epoch has five batches, the last one of two pairs; a training has three epochs.
STEPS = {"max_steps": 14, "max_epochs": -1}
TWO = {"accumulate_grad_batches": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three speakers."""
    root = tmp_path_factory.mktemp("faces")
    for number in range(3):
        film(root / f"{number}.mp4", (barcode(100 * number + i) for i in range(30)))
    build(root, root / "cache", 48, faces="precropped", workers=0, stabilise=False)
    return root / "cache"


@pytest.fixture(autouse=True)
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    number_pairs(monkeypatch)


@pytest.fixture(scope="module")
def made() -> dict[str, Path]:
    """Unbroken trainings by their options, each with a checkpoint of every step and every validation."""
    return {}


def fit(
    folder: Path, out: Path, options: dict[str, Any], checkpoint: Path | None = None, **changes: Any
) -> FacialActionTokenizer:
    L.seed_everything(1)
    model = {name: changes.pop(name) for name in ("quantizer",) if name in changes}
    module = FacialActionTokenizer(WarpNetwork(**(SMALL | model)))
    if checkpoint is not None:
        torch.manual_seed(9)  # an exact resume does not hang on what else has drawn
    kept = {"save_top_k": -1, "enable_version_counter": False}
    callbacks = [
        Diary(str(out / "diary")),
        ModelCheckpoint(out, "step-{step}", every_n_train_steps=1, auto_insert_metric_name=False, **kept),
        ModelCheckpoint(out, "validation-{step}", auto_insert_metric_name=False, **kept),
    ]
    out.mkdir(exist_ok=True)
    trainer = L.Trainer(
        callbacks=callbacks, accelerator="cpu", devices=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, **({"max_epochs": 3} | options),
    )  # fmt: skip
    trainer.fit(module, datamodule=VoxCelebDataModule(str(folder), **(DATA | changes)), ckpt_path=checkpoint)
    return module


@pytest.mark.parametrize(
    ("options", "changes", "checkpoint", "kept"),
    [
        pytest.param({}, {}, "step-3", 3, id="amid the first epoch"),
        pytest.param({}, {}, "step-8", 8, id="amid a later epoch"),
        pytest.param({}, {"num_workers": 1}, "step-8", 8, id="amid a later epoch, fetched ahead"),
        pytest.param({}, {}, "step-10", 10, id="after the last batch of an epoch"),
        pytest.param({}, {"num_workers": 1}, "step-10", 10, id="after the last batch, fetched ahead"),
        pytest.param({}, {}, "validation-10", 10, id="at the end of an epoch"),
        pytest.param({}, {"num_workers": 1}, "validation-10", 10, id="at the end, fetched ahead"),
        pytest.param({}, {"quantizer": "nsvq"}, "step-8", 8, id="noise for the published quantiser"),
        pytest.param(STEPS, {}, "step-8", 8, id="steps are counted"),
        pytest.param(STEPS, {}, "validation-10", 10, id="at the end of an epoch, steps are counted"),
        pytest.param({"val_check_interval": 2}, {}, "validation-7", 7, id="at a validation amid an epoch"),
        pytest.param(
            {"val_check_interval": 4, "check_val_every_n_epoch": None}, {}, "validation-8", 8,
            id="at a validation counted over epochs",
        ),
        pytest.param(TWO, {}, "step-5", 9, id="after a step of two batches"),
        pytest.param(TWO | {"val_check_interval": 3}, {}, "validation-4", 8, id="amid a step of two batches"),
    ],
)  # fmt: skip
def test_nothing_is_lost_or_trained_twice(
    options: dict[str, Any],
    changes: dict[str, Any],
    checkpoint: str,
    kept: int,
    folder: Path,
    made: dict[str, Path],
    tmp_path: Path,
) -> None:
    name = f"{options}{changes.get('quantizer')}"
    if name not in made:
        made[name] = tmp_path / "unbroken"
        fit(folder, made[name], options, **changes)
    resumed = fit(folder, tmp_path / "resumed", options, made[name] / f"{checkpoint}.ckpt", **changes)
    whole, rest = read(made[name] / "diary"), read(tmp_path / "resumed" / "diary")
    assert [pairs for pairs, _ in rest] == [pairs for pairs, _ in whole[kept:]]
    numbers = [number for pairs, _ in whole[:kept] + rest for number in pairs]
    assert numbers == list(range(len(numbers)))
    for (_, here), (_, there) in zip(rest, whole[kept:], strict=True):
        assert here == pytest.approx(there, rel=1e-6)
    last = sorted(made[name].glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)[-1]
    for key, value in torch.load(last, weights_only=True)["state_dict"].items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=1e-6, atol=1e-7, msg=key)


def shipped(
    folder: Path,
    out: Path,
    network: dict[str, Any],
    config: str = "pretrain",
    validate: int = 5,
    **changes: Any,
) -> list[str]:
    """`mefar fit` with a shipped YAML, made small; WeightEMA is switched on where the YAML shows it."""
    text = (ROOT / "experiments" / "configs" / f"{config}.yaml").read_text()
    content = yaml.safe_load(text.replace("# - class_path: WeightEMA", "- class_path: WeightEMA"))
    trainer = content["trainer"]
    trainer |= {"default_root_dir": str(out), "max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 1}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False} | changes
    if config != "demo":
        assert trainer["check_val_every_n_epoch"] is None and trainer["val_check_interval"] in (
            2000,
            validate,
        )
        trainer["val_check_interval"] = validate
    steps = [c["init_args"] for c in trainer["callbacks"] if "every_n_train_steps" in c.get("init_args", {})]
    for step in steps:
        assert (step["filename"], step["every_n_train_steps"]) == ("last", 1000)
        step["every_n_train_steps"] = 3
    sizes = {name: size for name, size in SMALL.items() if (name, config) != ("depth", "tokenizer_paper")}
    trainer["callbacks"].append({"class_path": "diary.Diary", "init_args": {"path": str(out / "diary")}})
    content["model"]["init_args"]["network"]["init_args"] |= sizes | network
    content["data"]["init_args"] |= DATA | {"data": str(folder)}
    del content["data"]["init_args"]["image_size"]  # it follows the network's
    out.mkdir(exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(content))
    return ["fit", "--config", str(file)]


def test_a_shipped_training_survives_kill_9(folder: Path, tmp_path: Path) -> None:
    """Bfloat16, clipping, the average of the weights and the checkpoints as they are shipped."""
    network = {"continuous_share": 0.1}
    assert main(shipped(folder, tmp_path / "unbroken", network)) == 0
    words = shipped(folder, tmp_path / "killed", network)
    child = multiprocessing.get_context("fork").Process(target=_alone, args=(words,))
    child.start()
    diary = tmp_path / "killed" / "diary"
    child.join()
    before = read(diary)
    assert child.exitcode == -signal.SIGKILL and len(before) == 8, "killed amid the training"
    Path(f"{diary}.0").unlink()
    assert main([*words, "--ckpt_path", "last"]) == 0
    whole, after = read(tmp_path / "unbroken" / "diary"), read(diary)
    kept = len(whole) - len(after)
    assert 5 <= kept <= len(before), "the newest checkpoint was found"
    assert len(before) - kept <= 3, "nothing is lost beyond it"
    assert whole[: len(before)] == before
    assert [pairs for pairs, _ in after] == [pairs for pairs, _ in whole[kept:]]
    assert [loss for _, loss in after] == pytest.approx([loss for _, loss in whole[kept:]], rel=1e-5)

    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    here, there = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("killed", "unbroken")
    )
    for state in ("state_dict", "current_model_state"):
        for name, value in there[state].items():
            torch.testing.assert_close(here[state][name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert not list(last.parent.glob("*.tmp"))
    averaged, model = here["state_dict"], load(last)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in averaged.items())
    differs = {name for name, value in here["current_model_state"].items() if not value.equal(averaged[name])}
    parameters = {name for name, _ in model.named_parameters()}
    assert differs and differs <= parameters, "a codebook, its counts and its reservoir make no average"
    assert bool(averaged["network.vq.started"]) and averaged["network.vq.step"] == 15


def _alone(words: list[str]) -> None:
    torch.set_num_threads(1)  # a forked process must not wake the thread pool of its parent
    Diary.kill_after = 8
    main(words)


@pytest.mark.parametrize("config", ["demo", "tokenizer_paper"])
def test_the_end_of_a_run_is_its_last_checkpoint(config: str, folder: Path, tmp_path: Path) -> None:
    """Also where only the first epoch validates best, and where the run ends between two checkpoints."""
    if config == "demo":
        words = shipped(folder, tmp_path / "run", {}, config, max_epochs=2)
        words += ["--model.init_args.learning_rate", "0.0"]
    else:
        sizes = {"temporal_depth": 1, "heads": 2, "head_dim": 8, "dim": 16, "spatial_depth": 1,
                 "bottleneck": "halving"}  # fmt: skip
        words = shipped(folder, tmp_path / "run", sizes, config, validate=4, max_epochs=None, max_steps=10)
    assert main(words) == 0
    folder = tmp_path / "run" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 10
    if config == "demo":
        assert torch.load(folder / "best.ckpt", weights_only=True)["global_step"] == 5


def test_another_layout_resumes_only_at_an_epochs_end(folder: Path, tmp_path: Path) -> None:
    unbroken = tmp_path / "unbroken"
    fit(folder, unbroken, {"max_epochs": 2})
    with pytest.raises(UserError, match=r"\(18, 4, 1\), this run has \(18, 2, 1\); resume with these"):
        fit(folder, tmp_path / "amid", {}, unbroken / "step-8.ckpt", batch_size=2)
    fit(folder, tmp_path / "end", {}, unbroken / "validation-10.ckpt", batch_size=3, pairs_per_epoch=9)
    rest = [number for pairs, _ in read(tmp_path / "end" / "diary") for number in pairs]
    assert rest == list(range(36, 45)), "no number of the two epochs before"


def test_a_write_that_is_killed_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 1}, path)

    def half(content: object, file: Path) -> None:
        file.write_bytes(b"half")
        assert file.parent == path.parent, "a rename across disks would be a copy"
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        WholeFiles().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.parametrize("two", [{}, TWO], ids=["", "accumulated"])
def test_the_schedule_ends_where_the_run_ends(two: dict[str, int], folder: Path, tmp_path: Path) -> None:
    """Up to the peak, then down to a hundredth of it at the last step, however many batches a step has."""
    rates: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    module = FacialActionTokenizer(
        WarpNetwork(**SMALL), learning_rate=1.0, weight_decay=0.0, lr_warmup_share=0.2
    )
    trainer = L.Trainer(
        callbacks=[Rates()], accelerator="cpu", devices=1, logger=False, max_epochs=4, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path, gradient_clip_val=1e-6, **two,
    )  # fmt: skip
    trainer.fit(module, datamodule=VoxCelebDataModule(str(folder), **DATA))
    steps = 12 if two else 20
    assert len(rates) == steps == trainer.global_step
    warm = int(0.2 * steps)
    assert rates[:warm] == pytest.approx([(step + 1) / warm for step in range(warm)])
    assert rates[warm] == 1 and rates[warm:] == sorted(rates[warm:], reverse=True)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)
    assert module.network.vq.warmup_steps == int(0.15 * steps * (2 if two else 1)), "of batches"


def test_a_run_without_end_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_epochs or"):
        fit(folder, tmp_path / "endless", {"max_epochs": -1})
