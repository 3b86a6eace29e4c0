"""Pairs come from one utterance, a set time apart; ranks, workers and epochs never repeat each other."""

import multiprocessing
import pickle
import warnings

import cv2
import numpy as np
import pytest
import torch
from filming import barcode, film, number_in
from lightning.pytorch import LightningModule, Trainer

from datamodules.voxceleb.augmentation import PairTransform
from datamodules.voxceleb.module import PairDataset, PairSampler, VoxCelebDataModule
from datamodules.voxceleb.shards import build, read_index
from mefar.errors import UserError

FAST = {"preset": "ultrafast", "threads": "1", "bf": "2", "g": "30"}
SIZE, SPEAKERS, FRAMES = 96, 6, 36
GAP = (0.32, 0.60)


@pytest.fixture(scope="module")
def voxceleb(tmp_path_factory):
    """Frame numbers of speaker s start at 100 s, of its second utterance at 100 s + 50."""
    root = tmp_path_factory.mktemp("voxceleb")
    for speaker in range(SPEAKERS):
        for utterance in range(2):
            first = 100 * speaker + 50 * utterance
            path = root / "dev" / "mp4" / f"id{speaker:05d}" / f"v{utterance}" / "00001.mp4"
            film(path, (barcode(first + i) for i in range(FRAMES)), options=FAST)
    return root


@pytest.fixture(scope="module")
def folder(voxceleb, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "c"
    build(voxceleb, out, SIZE, faces="precropped", workers=0, stabilise=False)
    return out


def module(data, **changes):
    usual = {"image_size": SIZE, "pairs_per_epoch": 48, "val_pairs": 24, "batch_size": 8, "num_workers": 0}
    # Not stabilised: the barcodes move, and would be held still.
    still = {"faces": "precropped", "stabilise": False, "val_fraction": 0.3}
    made = VoxCelebDataModule(str(data), **{**usual, **still, **changes})
    made.prepare_data()
    made.setup("fit")
    return made


def dataset(folder, train=False, **changes):
    usual = {"speakers": None, "gap_seconds": GAP, "transform": PairTransform(SIZE, train), "pairs": 60}
    return PairDataset(folder, **{**usual, **changes})


def numbers(images):
    """Frame numbers of a batch (B, 3, H, W): 64 rows were fitted into 96."""
    return [number_in(image.permute(1, 2, 0).numpy()[16:]) for image in images]


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_pairs_are_of_one_utterance_and_the_gap_is_kept(folder):
    batch = dataset(folder)[list(range(200))]
    onset, apex = np.array(numbers(batch["onset"])), np.array(numbers(batch["apex"]))
    np.testing.assert_array_equal(onset // 50, apex // 50)
    gaps = (apex - onset) / 25
    assert gaps.min() >= GAP[0] - 0.041, "a gap falls on whole frames"
    assert gaps.max() <= GAP[1] + 0.041
    assert len(np.unique(gaps)) > 5
    assert np.ptp(onset % 50) > 15, "onsets from all over the utterance"


def test_windows_are_visited_evenly(folder):
    windows = [window for window, *_ in dataset(folder).choose(np.arange(36))]
    assert np.bincount(windows).tolist() == [3] * 12


def test_batches_are_uint8_rgb_under_the_agreed_keys(folder):
    batch = dataset(folder, train=True)[[0, 1, 2]]
    assert list(batch) == ["onset", "apex"]
    for images in batch.values():
        assert images.shape == (3, 3, SIZE, SIZE)
        assert images.dtype == torch.uint8
        assert images.is_contiguous()


def test_two_views_show_one_pair_twice(folder):
    plain = dataset(folder, two_views=True)[[4, 5, 6]]
    assert list(plain) == ["onset", "apex", "onset_view", "apex_view"]
    assert torch.equal(plain["onset"], plain["onset_view"])
    trained = dataset(folder, train=True, two_views=True)[[4, 5, 6]]
    one = dataset(folder, train=True)[[4, 5, 6]]
    assert torch.equal(trained["onset"], one["onset"]), "the second view must not change the first"
    assert not torch.equal(trained["onset"], trained["onset_view"])


def test_twins_are_the_same_moments_of_the_other_speaker(folder):
    whole = {"id00000", "id00004"}  # whose windows no cut shortens
    batch = dataset(folder, speakers=whole, twins=True)[[6, 7, 8, 9, 11]]
    assert batch.pop("partner").tolist() == [1, 0, 3, 2, 4]
    onset, apex = np.array(numbers(batch["onset"])), np.array(numbers(batch["apex"]))
    for one, other in ((0, 1), (2, 3)):
        assert onset[one] // 100 != onset[other] // 100, "another speaker"
        assert (onset[one] % 100, apex[one] % 100) == (onset[other] % 100, apex[other] % 100)
    alone = dataset(folder, speakers={"id00002"}, twins=True)[[0, 1]]  # the others belong to another split
    assert torch.equal(alone["onset"][0], alone["onset"][1])


def test_twins_share_the_flip_and_no_other_draw(folder):
    still = PairTransform(SIZE, True, turn=0, grow=0, shift=0, light=0, gray=0, camera=0, noise=0)
    alone = {"speakers": {"id00002"}, "twins": True}  # everybody is their own twin
    batch = dataset(folder, transform=still, **alone)[list(range(40))]
    assert torch.equal(batch["onset"][::2], batch["onset"][1::2])
    batch = dataset(folder, train=True, **alone)[list(range(40))]
    assert not torch.equal(batch["onset"][::2], batch["onset"][1::2])


def test_a_number_is_the_same_pair_in_any_batch_and_process(folder):
    data = dataset(folder, train=True)
    together = data[list(range(20, 30))]
    for i, number in enumerate(range(20, 30)):
        alone = data[[number]]
        assert all(torch.equal(alone[key][0], together[key][i]) for key in alone)
    assert same(pickle.loads(pickle.dumps(data))[list(range(20, 30))], together)
    other = dataset(folder, train=True, seed=1)[list(range(20, 30))]
    assert not same(other, together)


@pytest.mark.parametrize(("world", "batch_size", "pairs"), [(1, 8, 60), (2, 8, 60), (3, 4, 60), (4, 7, 60)])
def test_ranks_share_an_epoch_without_repeats(folder, world, batch_size, pairs):
    data, epochs = dataset(folder, pairs=pairs), []
    for epoch in range(3):
        seen, lengths = [], set()
        for rank in range(world):
            sampler = PairSampler(data, batch_size)
            sampler.num_replicas, sampler.rank = world, rank
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            lengths.add(len(batches))
            seen += [number for batch in batches for number in batch]
        assert len(lengths) == 1, "a rank with more steps would wait for ever"
        assert len(seen) == len(set(seen))
        assert all(epoch * pairs <= number < (epoch + 1) * pairs for number in seen)
        if world == 1:
            assert len(seen) == pairs
        epochs.append(set(seen))
    assert not epochs[0] & epochs[1]


def test_training_and_validation_share_no_speaker(voxceleb, tmp_path):
    made = module(voxceleb, cache_dir=str(tmp_path))
    made._train.transform.train = False  # to read the barcodes
    people = {}
    for name, loader in (("train", made.train_dataloader()), ("val", made.val_dataloader())):
        people[name] = {n // 100 for batch in loader for n in numbers(batch["onset"])}
    assert len(people["train"]) == 4
    assert len(people["val"]) == 2
    assert not people["train"] & people["val"]


def test_workers_give_the_same_batches(voxceleb, tmp_path):
    none, two = (module(voxceleb, cache_dir=str(tmp_path), num_workers=workers) for workers in (0, 2))
    assert all(same(a, b) for a, b in zip(none.train_dataloader(), two.train_dataloader(), strict=True))


def test_workers_start_after_opencv_has_used_its_threads(folder):
    """A forked worker that sets the number of threads itself hangs here."""
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((1500, 1500, 3), np.uint8), (0, 0), 5)
    loader = module(folder, num_workers=1).train_dataloader()
    loader.timeout = 60
    assert len(list(loader)) == 6


def test_validation_is_fixed_and_training_is_not(voxceleb, tmp_path):
    made = module(voxceleb, cache_dir=str(tmp_path))
    for loader, fixed in ((made.train_dataloader(), False), (made.val_dataloader(), True)):
        loader.sampler.set_epoch(0)
        first = list(loader)
        loader.sampler.set_epoch(1)
        assert all(same(a, b) for a, b in zip(first, loader, strict=True)) == fixed


class Watcher(LightningModule):
    """Keeps the first pixel sums it sees in each epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((self.current_epoch, int(batch["apex"].long().sum())))
        return self.weight.sum()

    def validation_step(self, batch, _):
        self.log("val/sum", batch["apex"].float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fitted(data, epochs, tmp_path, checkpoint=None):
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )
    watcher = Watcher()
    trainer.fit(
        watcher,
        datamodule=VoxCelebDataModule(str(data), SIZE, GAP, 24, 8, 8, 0, "precropped"),
        ckpt_path=checkpoint,
    )
    return watcher, trainer


def test_a_trainer_moves_on_each_epoch_and_resumes_where_it_was(folder, tmp_path):
    straight, _ = fitted(folder, 2, tmp_path)
    assert [epoch for epoch, _ in straight.seen] == [0] * 3 + [1] * 3
    assert len({value for _, value in straight.seen}) == 6
    _, trainer = fitted(folder, 1, tmp_path)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed, _ = fitted(folder, 2, tmp_path, tmp_path / "one.ckpt")
    assert resumed.seen == straight.seen[3:]


def _on_rank(rank, folder, meeting, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    made = VoxCelebDataModule(
        str(folder), SIZE, pairs_per_epoch=32, batch_size=4, num_workers=0, faces="precropped"
    )
    made.setup("fit")
    queue.put(sorted(number for batch in made.train_dataloader().sampler for number in batch))
    torch.distributed.destroy_process_group()


def test_two_processes_split_an_epoch(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [
        context.Process(target=_on_rank, args=(rank, folder, tmp_path / "meeting", queue))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    shares = [queue.get(timeout=200) for _ in children]
    for child in children:
        child.join(10)
    assert sorted(shares[0] + shares[1]) == list(range(32))
    assert len(shares[0]) == len(shares[1]) == 16


def test_a_cache_serves_as_data(folder, voxceleb, tmp_path):
    from_cache = module(folder)
    from_files = module(voxceleb, cache_dir=str(tmp_path))
    assert same(next(iter(from_cache.train_dataloader())), next(iter(from_files.train_dataloader())))
    assert len(list(tmp_path.iterdir())) == 1
    assert read_index(from_files.folder)[0]["plan"]["size"] == SIZE


def test_left_out_videos_are_reported_once(tmp_path):
    for name in ("one", "two"):
        film(tmp_path / "in" / f"{name}.mp4", (barcode(i) for i in range(FRAMES)), options=FAST)
    (tmp_path / "in" / "text.mp4").write_text("no video")
    with pytest.warns(UserWarning, match=r"1 of 3 videos .*quarantine\.csv.* text\.mp4: not a readable"):
        module(tmp_path / "in", cache_dir=str(tmp_path / "c"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(tmp_path / "in", cache_dir=str(tmp_path / "c"))


def test_mistakes_are_named(folder, voxceleb, tmp_path):
    for changes, word in (
        ({"gap_seconds": (0.6, 0.3)}, "gap_seconds"),
        ({"val_fraction": 1.1}, "val_fraction"),
        ({"store": "jpeg"}, "holds crops as raw, store asks for jpeg"),
        ({"gap_seconds": (1.9, 2.0)}, "1.9 s"),
        ({"image_size": 64}, "96 px"),
        ({"val_fraction": 0.95}, "none left to train"),
    ):
        with pytest.raises(UserError, match=word):
            module(folder, **changes)
    with pytest.raises(UserError, match="no such folder"):
        module(tmp_path / "nowhere", cache_dir=str(tmp_path / "cache"))
    lonely = tmp_path / "lonely"
    film(lonely / "one.mp4", (barcode(i) for i in range(FRAMES)), options=FAST)
    with pytest.raises(UserError, match="none left to train"):
        module(lonely, cache_dir=str(tmp_path))
    assert module(lonely, cache_dir=str(tmp_path), val_fraction=0.0).val_dataloader() == []
    data = dataset(folder)
    data.folder = tmp_path
    with pytest.raises(UserError, match="shard"):
        data[[0]]
