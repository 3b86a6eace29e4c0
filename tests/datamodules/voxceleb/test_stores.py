"""Three ways to keep crops: the same pairs from each; what is damaged is named, and made anew alone."""

import csv
import os
import re

import numpy as np
import pytest
import torch
from filming import barcode, film
from lightning.pytorch import seed_everything

from datamodules.voxceleb import shards, stores
from datamodules.voxceleb.augmentation import PairTransform
from datamodules.voxceleb.module import PairDataset, VoxCelebDataModule
from datamodules.voxceleb.shards import build, read_index
from mefar.errors import UserError

FAST = {"preset": "ultrafast", "threads": "1", "bf": "2", "g": "30", "crf": "15"}
STORES = ("raw", "jpeg", "video")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for number in range(5):
        film(
            root / f"id{number:05d}" / "v" / "1.mp4",
            (barcode(100 * number + i) for i in range(40)),
            options=FAST,
        )
    return root


def made(root, out, store, **changes):
    usual = {"size": 64, "faces": "precropped", "workers": 0, "stabilise": False}
    return build(root, out, store=store, **{**usual, **changes})


@pytest.fixture(scope="module")
def caches(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    for store in STORES:
        made(videos, folder / store, store)
    return folder


def pairs(folder, numbers=range(40)):
    dataset = PairDataset(folder, None, (0.32, 0.6), PairTransform(64, False), 100)
    return dataset[list(numbers)]


def test_every_store_gives_the_same_pairs(caches):
    raw, jpeg, video = (pairs(caches / store) for store in STORES)
    for key, images in raw.items():
        assert (images.float() - jpeg[key].float()).abs().mean() < 1.5
        # The decoders turn colours from YUV with roundings of their own.
        assert (images.float() - video[key].float()).abs().mean() < 1.5


def test_frames_decoded_on_the_fly_by_the_same_decoder_are_the_stored_ones(caches, monkeypatch):
    monkeypatch.setattr(stores.video, "HAS_DECORD", False)
    raw, video = pairs(caches / "raw"), pairs(caches / "video")
    assert all(torch.equal(raw[key], video[key]) for key in raw)


def test_sizes_are_what_they_are_called(caches):
    bytes_of = {
        store: sum(path.stat().st_size for path in (caches / store).glob("shard-*") if path.suffix != ".json")
        for store in STORES
    }
    summaries = {store: shards.summary(caches / store) for store in STORES}
    assert {store: made.bytes for store, made in summaries.items()} == bytes_of
    assert len({made.frames for made in summaries.values()}) == 1
    assert bytes_of["jpeg"] < bytes_of["raw"] / 4
    assert bytes_of["video"] < 100 * summaries["video"].frames + 1000


def overwrite(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("store", "damaged"),
    [("raw", "shard-00000.npy"), ("jpeg", "shard-00000.jpg"), ("video", "shard-00000.rows.npy")],
)
def test_an_overwritten_shard_is_named_and_made_anew_alone(videos, tmp_path, store, damaged):
    made(videos, tmp_path, store)
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("shard-*")}
    other = (tmp_path / "shard-00001.rows.npy").stat().st_mtime_ns
    overwrite(tmp_path / damaged)
    with pytest.raises(UserError, match=rf"{damaged}, crop \d+: damaged; start again") as caught:
        pairs(tmp_path, range(300))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not finished"):
        read_index(tmp_path)
    made(videos, tmp_path, store)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("shard-*")} == whole
    assert (tmp_path / "shard-00001.rows.npy").stat().st_mtime_ns == other


@pytest.mark.parametrize("damaged", ["index.npz", "index.json", "shard-00001.json"])
def test_a_damaged_index_is_made_anew_without_decoding(videos, tmp_path, damaged):
    made(videos, tmp_path, "jpeg")
    before = read_index(tmp_path)
    shard = (tmp_path / "shard-00000.jpg").stat().st_mtime_ns
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-30])
    if damaged.startswith("shard"):
        (tmp_path / "index.json").unlink()
    made(videos, tmp_path, "jpeg")
    after = read_index(tmp_path)
    assert after[0] == before[0]
    assert np.array_equal(after[1][0], before[1][0])
    assert (tmp_path / "shard-00000.jpg").stat().st_mtime_ns == shard


def test_a_missing_or_changed_video_is_one_line(videos, tmp_path):
    root = tmp_path / "in"
    for path in videos.rglob("*.mp4"):
        copy = root / path.relative_to(videos)
        copy.parent.mkdir(parents=True)
        copy.write_bytes(path.read_bytes())
    made(root, tmp_path / "out", "video")
    lost = next(root.rglob("*.mp4"))
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(UserError, match=rf"{re.escape(str(lost))}: no such file"):
        pairs(tmp_path / "out", range(300))
    lost.write_bytes(content)
    os.utime(lost, ns=(1, 1))
    with pytest.raises(UserError, match="the videos changed"):
        made(root, tmp_path / "out", "video")


def test_the_choice_goes_by_size_and_is_kept(videos, tmp_path, monkeypatch):
    said: list[str] = []
    assert made(videos, tmp_path / "small", "auto", tell=said.append).bytes > 0
    assert read_index(tmp_path / "small")[0]["plan"]["store"] == "raw"
    assert re.search(
        r"small: 5 videos as raw, 25 crops each: about [\d.e-]+ GB and [\d.e-]+ core-hours", said[0]
    )
    usage = type("Usage", (), {"free": 2_000_000})
    with monkeypatch.context() as patch:
        patch.setattr(shards.shutil, "disk_usage", lambda path: usage)
        patch.setattr(shards, "RAW_UP_TO", 1000)
        made(videos, tmp_path / "middle", "auto")
        assert read_index(tmp_path / "middle")[0]["plan"]["store"] == "jpeg"
        usage.free = 300_000
        made(videos, tmp_path / "large", "auto")
        assert read_index(tmp_path / "large")[0]["plan"]["store"] == "video"
    said.clear()
    for name in ("small", "middle", "large"):  # whatever the disk says now
        made(videos, tmp_path / name, "auto", tell=said.append)
    assert not said, "nothing to do, nothing to say"
    with pytest.raises(UserError, match="store is 'jpeg' there, 'raw' now"):
        made(videos, tmp_path / "middle", "raw")
    with pytest.raises(UserError, match="unknown way 'png'"):
        made(videos, tmp_path / "other", "png")


@pytest.mark.parametrize("store", STORES)
def test_a_disk_too_small_for_a_store_is_foreseen(videos, tmp_path, monkeypatch, store):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=f"as {store}, the disk has .* free; choose another folder") as caught:
        made(videos, tmp_path, store)
    assert ("video needs" in str(caught.value)) == (store != "video")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_other_code_is_another_cache(videos, tmp_path, monkeypatch):
    made(videos, tmp_path / "out", "raw")
    monkeypatch.setattr(shards, "code_fingerprint", lambda *modules: "another")
    with pytest.raises(UserError, match="the code that makes crops changed"):
        made(videos, tmp_path / "out", "raw")
    before = VoxCelebDataModule(str(videos), 64, cache_dir=str(tmp_path)).folder
    monkeypatch.setattr("datamodules.voxceleb.module.code_fingerprint", lambda *modules: "another")
    assert VoxCelebDataModule(str(videos), 64, cache_dir=str(tmp_path)).folder != before


def test_all_speakers_can_validate(videos, tmp_path):
    seed_everything(0, verbose=False)
    whole = VoxCelebDataModule(
        str(videos), 64, val_pairs=8, batch_size=4, num_workers=0, faces="precropped", stabilise=False,
        val_fraction=1.0, cache_dir=str(tmp_path), store="video",
    )  # fmt: skip
    whole.prepare_data()
    whole.setup("validate")
    assert len(list(whole.val_dataloader())) == 2
    with pytest.raises(UserError, match="val_fraction: 1 leaves no speaker to train on"):
        whole.train_dataloader()


def test_one_frame_makes_no_pair(videos, tmp_path):
    root = tmp_path / "in"
    film(root / "one.mp4", [barcode(0)], options=FAST)
    film(root / "two.mp4", [barcode(0), barcode(1)], options=FAST)
    assert made(root, tmp_path / "out", "jpeg").windows == 1
    with (tmp_path / "out" / "quarantine.csv").open() as rows:
        assert list(csv.DictReader(rows)) == [
            {"path": "one.mp4", "reason": "has one frame only; a pair needs two"}
        ]
