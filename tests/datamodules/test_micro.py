from __future__ import annotations

import json
import os
import pickle
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from replicas import Row, dropped, image_bytes, notes, write_casme2, write_samm, write_smic
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader

from datamodules import crops as pairs
from datamodules.databases.action_units import parse_action_units
from datamodules.micro import MicroExpressionDataModule, MicroExpressionDataset, UnpaddedSampler, fingerprint
from datamodules.protocols import load
from datamodules.views import draw_view
from mefar.errors import UserError

LOOK = {"size": (40, 40)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rows = [Row(s, f"EP02_0{i}", emotion=e) for s in (1, 2, 3) for i, e in enumerate(("disgust", "surprise"))]
    write_casme2(root / "casme2", [*rows, Row(9, "EP01_01", apex="/", emotion="happiness")], **LOOK)
    write_samm(
        root / "samm", [Row(6, "006_1_2", emotion="Anger"), Row(7, "007_1_2", emotion="Happiness")], **LOOK
    )
    write_smic(root / "smic", [(1, "negative", 1), (2, "positive", 1)], **LOOK)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def module(data: Path, cache: str, **settings: Any) -> MicroExpressionDataModule:
    given = {
        "image_size": 32,
        "faces": "precropped",
        "batch_size": 4,
        "cache_dir": cache,
        **settings,
    }
    made = MicroExpressionDataModule("composite", str(data), **given)
    made.prepare_data()
    made.setup("fit")
    return made


def keys(loader: Any) -> list[str]:
    return [key for batch in loader for key in batch["clip"]]


def test_an_item_and_a_batch(data: Path, cache: str) -> None:
    made = module(data, cache)
    item = made.dataset[0]
    assert item["onset"].shape == item["apex"].shape == (3, 32, 32)
    assert item["onset"].dtype == item["apex"].dtype == torch.uint8
    batch = next(iter(made.predict_dataloader()))
    assert batch["onset"].shape == (4, 3, 32, 32)
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [0, 2, 0, 2]
    assert batch["clip"][:2] == ["casme2/sub01/EP02_00", "casme2/sub01/EP02_01"]
    assert batch["subject"] == ["casme2/sub01", "casme2/sub01", "casme2/sub02", "casme2/sub02"]
    assert batch["database"] == ["casme2"] * 4
    gray = next(item for item in made.dataset if item["database"] == "samm")["onset"]
    assert torch.equal(gray[0], gray[1])
    assert torch.equal(gray[0], gray[2])
    assert gray.float().std() > 5


def test_views_are_stacked_and_the_first_is_the_same_without_them(data: Path, cache: str) -> None:
    plain, viewed = module(data, cache), module(data, cache, views=3)
    batch = next(iter(viewed.predict_dataloader()))
    assert batch["apex"].shape == (4, 3, 3, 32, 32)
    single = next(iter(plain.predict_dataloader()))
    assert torch.equal(batch["apex"][:, 0], single["apex"])
    assert not torch.equal(batch["apex"][:, 1], single["apex"])


def test_crops_that_are_not_square_fill_the_square_where_asked_to(tmp_path: Path) -> None:
    data = write_casme2(tmp_path / "casme2", [Row(1, "EP02_01f")], size=(60, 40))
    asked = {"image_size": 48, "faces": "precropped", "cache_dir": str(tmp_path / "cache")}
    kept, filled = (
        MicroExpressionDataModule("casme2", str(data), **asked, stretch=stretch).dataset[0]["onset"]
        for stretch in (False, True)
    )
    bars = [(picture[:, :, :3] == picture[:, :, :1]).all() for picture in (kept, kept.mT, filled, filled.mT)]
    assert bars.count(True) == 1 and bars.index(True) < 2, "an edge is repeated beside what is kept"


def test_mirrored_views_exchange_left_and_right_action_units(data: Path, cache: str) -> None:
    study = load("casme2", data / "casme2", classes=3)
    clips = [replace(clip, aus=parse_action_units("4+R12")[0]) for clip in study.clips]
    made = MicroExpressionDataset(
        replace(study, clips=tuple(clips)), 32, "precropped", views=6, cache_dir=cache
    )
    flips = 0
    for row, clip in enumerate(made.study.clips):
        for v, units in enumerate(made[row]["aus"]):
            flip = draw_view(0, clip.key, v).flip
            assert units == ("4+L12" if flip else "4+R12")
            flips += flip
    assert flips > 3
    single = MicroExpressionDataset(study, 32, "precropped", cache_dir=cache)
    assert isinstance(single[0]["aus"], str)
    loaded = next(iter(DataLoader(made, batch_size=2)))["aus"]
    assert len(loaded) == 6 and loaded[0] == ("4+R12", "4+R12")


def test_the_held_out_subject_is_never_trained_on(data: Path, cache: str) -> None:
    everything = keys(module(data, cache).predict_dataloader())
    made = module(data, cache, held_out="casme2/sub02")
    train, held = keys(made.train_dataloader()), keys(made.val_dataloader())
    assert held == ["casme2/sub02/EP02_00", "casme2/sub02/EP02_01"]
    assert sorted(train + held) == everything
    assert keys(made.test_dataloader()) == held


def test_prediction_is_every_clip_once_in_order(data: Path, cache: str) -> None:
    for batch_size in (1, 3, 4, 100):
        made = module(data, cache, batch_size=batch_size)
        assert keys(made.predict_dataloader()) == [clip.key for clip in made.study.clips]
    assert len(made.study.clips) == 11
    assert made.val_dataloader() == []


class Counting(LightningModule):
    """Notes which clips a rank evaluates, and whether anything was told to the other ranks in between."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out, self.seen = out, []
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(3))  # distributed training synchronises buffers

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        return self.scale * batch["onset"].float().mean()

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        self.seen += batch["clip"]
        self.log("val/clips", float(len(batch["clip"])), reduce_fx="sum", sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        (self.out / f"{self.trainer.state.fn.value}-{self.global_rank}").write_text(json.dumps(self.seen))
        self.seen = []

    predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def _rank(rank: int, ports: int, data: Path, cache: str, out: Path) -> None:
    torch.set_num_threads(1)  # a forked process must not wake the thread pool of its parent
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "NODE_RANK": "0"}
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", plugins=[LightningEnvironment()], max_epochs=1,
        enable_model_summary=False, num_sanity_val_steps=0, **quiet,
    )  # fmt: skip
    given = {"image_size": 32, "faces": "precropped", "batch_size": 1, "cache_dir": cache}
    loaded = MicroExpressionDataModule("casme2", str(data), held_out="casme2/sub02", **given)
    trainer.fit(Counting(out), loaded)
    trainer.validate(Counting(out), loaded, verbose=False)
    few = MicroExpressionDataModule("casme2", str(data), held_out="casme2/sub09", **given)
    with pytest.raises(UserError, match="1 clips to evaluate on 2 ranks; use fewer devices"):
        trainer.validate(Counting(out), few, verbose=False)


def test_two_ranks_evaluate_every_held_out_clip_once(tmp_path: Path) -> None:
    rows = [Row(s, f"EP02_0{i}") for s in (1, 2) for i in range(3)]
    data = write_casme2(tmp_path / "casme2", [*rows, Row(9, "EP01_01", emotion="happiness")], **LOOK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_rank, (port, data, str(tmp_path / "cache"), tmp_path), nprocs=2, start_method="fork")
    for stage in ("fit", "validate"):
        seen = [json.loads((tmp_path / f"{stage}-{rank}").read_text()) for rank in (0, 1)]
        assert seen == [
            ["casme2/sub02/EP02_00", "casme2/sub02/EP02_02"],
            ["casme2/sub02/EP02_01"],
        ]


@given(st.integers(1, 40), st.integers(1, 9))
def test_ranks_share_items_without_repeats(items: int, ranks: int) -> None:
    samplers = [UnpaddedSampler(range(items), ranks, rank) for rank in range(ranks)]  # type: ignore[arg-type]
    assert sorted(index for sampler in samplers for index in sampler) == list(range(items))
    assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]


def test_items_travel_to_worker_processes(data: Path, cache: str) -> None:
    dataset = module(data, cache).dataset
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["apex"], dataset[3]["apex"])


def test_training_order_is_the_seeds(data: Path, cache: str) -> None:
    orders = [keys(module(data, cache, seed=seed).train_dataloader()) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_the_apex_rules_are_counted(data: Path, cache: str) -> None:
    made = module(data, cache)
    assert ("casme2", "apex: annotated 6, middle 1") in notes(made.study.findings)
    assert ("smic", "apex: middle 2") in notes(made.study.findings)
    assert made.dataset.apexes["smic/s1/s1_ne_01"].number == 99999
    middle = module(data, cache, apex="middle")
    assert ("casme2", "apex: middle 7") in notes(middle.study.findings)


def test_a_clip_without_a_face_is_dropped_with_its_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture of every replica is the same: frames of one clip are replaced, and known by their size."""
    study = load("casme2", write_casme2(tmp_path / "casme2", [Row(i, "EP02_01") for i in (1, 2, 3)], **LOOK))
    lost = study.clips[1].frames[10]
    lost.write_bytes(image_bytes(".jpg", (24, 24)))
    estimate = pairs.FaceAligner.estimate
    monkeypatch.setattr(
        pairs.FaceAligner, "estimate", lambda self, frame: None if len(frame) == 24 else estimate(self, frame)
    )
    made = MicroExpressionDataset(study, 32, "precropped", cache_dir=tmp_path / "cache")
    assert [clip.subject for clip in made.study.clips] == ["sub01", "sub03"]
    assert [item["subject"] for item in made] == ["casme2/sub01", "casme2/sub03"]
    assert dropped(made.study.findings) == (("casme2/sub02/EP02_01", f"no face found in onset frame {lost}"),)
    assert made.fingerprint() == fingerprint(made.study, made.settings)


def test_no_face_anywhere_is_an_error_that_says_what_to_do(data: Path, tmp_path: Path) -> None:
    study = load("smic", data / "smic")
    with pytest.raises(UserError, match=r"reg_image099998.bmp: no face found.*faces=precropped") as caught:
        MicroExpressionDataset(study, 32, "align", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_one_line(data: Path, cache: str) -> None:
    with pytest.raises(
        UserError, match="held_out 'sub02': no such subject; there are 8, such as casme2/sub01"
    ):
        module(data, cache, held_out="sub02")
    with pytest.raises(UserError, match="image_size 8, views 1"):
        module(data, cache, image_size=8)
    with pytest.raises(UserError, match="unknown"):
        MicroExpressionDataModule("imagenet", str(data), cache_dir=cache).setup()  # type: ignore[arg-type]


def test_cropped_frames_are_preferred_where_faces_are_precropped(tmp_path: Path) -> None:
    rows = [Row(1, "EP02_01"), Row(2, "EP02_01", emotion="surprise")]
    for layout in ("raw", "cropped"):
        write_casme2(tmp_path, rows, layout, **LOOK)
    made = MicroExpressionDataModule(
        "casme2", str(tmp_path), image_size=32, faces="precropped", cache_dir=str(tmp_path / "cache")
    )
    assert {path.name[:7] for clip in made.study.clips for path in clip.frames.values()} == {"reg_img"}


def test_two_runs_read_the_same_pixels(data: Path, cache: str, tmp_path: Path) -> None:
    ours = [item["apex"].numpy() for item in module(data, cache, views=2).dataset]
    fresh = [item["apex"].numpy() for item in module(data, str(tmp_path), views=2).dataset]
    assert all(np.array_equal(a, b) for a, b in zip(ours, fresh, strict=True))
