"""Pretraining pairs from talking faces: two frames of one utterance, a fraction of a second apart.

VoxCeleb2 (Chung, Nagrani, Zisserman 2018): `{dev,test}/mp4/id00012/21Uxsk56VDQ/00001.mp4`, 224x224 face
tracks at 25 fps, 5,994 + 118 speakers, 1.09 M + 36 k utterances. VoxCeleb1 (2017): 1,251 speakers, nested the
same way or flat as `idNNNNN#video#start#end.mp4`. Any other folder of videos works: a folder per person, or
files that are each another person's.

Crops come from a cache (shards.py) that is built on first use. Split by speaker, never by clip.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.counter_random import uniforms
from datamodules.faces.align import FaceMode
from datamodules.loading import PictureLoader
from datamodules.voxceleb import shards
from datamodules.voxceleb.augmentation import PairTransform
from datamodules.voxceleb.sampling import PairSampler, Place, visit
from datamodules.voxceleb.stores import Shard, open_shard
from mefar.errors import UserError
from mefar.files import code_fingerprint, fingerprint
from mefar.progress import shown


class PairDataset(Dataset[dict[str, Tensor]]):
    """Pairs by number, whole batches at a time; the same number is always the same pair.

    Args:
        folder: a finished cache.
        speakers: names of the speakers to draw from; None for all.
        gap_seconds: smallest and largest time between onset and apex.
        transform: applied to every pair.
        pairs: numbers count * pairs to (count + 1) * pairs - 1 are one epoch and visit the windows evenly.
        two_views: also make `onset_view`, `apex_view`: the same pair under a second draw of crop, colour and
            noise.
        seed: of the draws.
        twins: numbers 2 n and 2 n + 1 show one action on two people's faces, and `partner` (B,) int64 is
            the row of the batch with the other one, or the row itself; see VoxCelebDataModule.

    Raises:
        UserError: no window of these speakers is long enough for the gap.
    """

    def __init__(
        self,
        folder: Path,
        speakers: set[str] | None,
        gap_seconds: tuple[float, float],
        transform: PairTransform,
        pairs: int,
        two_views: bool = False,
        seed: int = 0,
        twins: bool = False,
    ) -> None:
        self.folder, self.transform, self.pairs = folder, transform, pairs
        self.gap, self.two_views, self.seed = gap_seconds, two_views, seed
        document, (windows, times) = shards.read_index(folder)
        plan = document["plan"]
        self.videos, self.store = Path(plan["source"]), plan["store"]
        self.side = plan["size"] + 2 * plan["margin"]
        ends = np.cumsum(windows[:, 2])
        starts = ends - windows[:, 2]
        keep = times[ends - 1] - times[starts] >= gap_seconds[0] - 1e-6
        if speakers is not None:
            keep &= np.isin(
                windows[:, 3], [i for i, name in enumerate(document["speakers"]) if name in speakers]
            )
        if not keep.any():
            raise UserError(
                f"{folder}: none of {len(speakers or document['speakers'])} speakers shows a face for "
                f"{gap_seconds[0]} s; see quarantine.csv there, or lower gap_seconds"
            )
        self.windows, self.starts, self.times = windows[keep], starts[keep], times
        self.paths = np.array(document["paths"], np.str_)[keep]
        self.twin = self._twins() if twins else None
        self._shards = lru_cache(maxsize=256)(self._open)

    def __len__(self) -> int:
        return self.pairs

    def __getitem__(self, numbers: list[int]) -> dict[str, Tensor]:
        """Pair numbers -> onset, apex (and views), each (B, 3, H, W) uint8 RGB; with twins also `partner`."""
        wanted = np.asarray(numbers, np.int64)
        sides = np.zeros_like(wanted)
        if self.twin is not None:
            wanted, sides = np.divmod(wanted, 2)
        size = self.transform.image_size
        names = ("onset", "apex", "onset_view", "apex_view")[: 4 if self.two_views else 2]
        out = {name: np.empty((len(wanted), size, size, 3), np.uint8) for name in names}
        count = len(names) // 2  # of views, all of one flip; a twin has its own
        views = (
            [self.transform.draw(wanted, view) for view in range(count * (1 + int(sides.max())))]
            if self.transform.train
            else []
        )
        for i, (window, first, second) in enumerate(self.choose(wanted)):
            if sides[i] and self.twin is not None:
                window = int(self.twin[window])
            shard, row = self._shards(int(self.windows[window, 0])), int(self.windows[window, 1])
            onset, apex = shard.pair(row + first, row + second, str(self.paths[window]))
            for view in range(count):
                if self.transform.train:
                    pair = self.transform.apply(views[view + count * sides[i]][i], onset, apex)
                else:
                    pair = self.transform.middle(onset), self.transform.middle(apex)
                out[names[2 * view]][i], out[names[2 * view + 1]][i] = pair
        batch = {
            key: rearrange(torch.from_numpy(images), "b h w c -> b c h w").contiguous()
            for key, images in out.items()
        }
        if self.twin is not None:
            rows = {number: row for row, number in enumerate(numbers)}
            batch["partner"] = torch.tensor([rows.get(n ^ 1, row) for row, n in enumerate(numbers)])
        return batch

    def _twins(self) -> NDArray[np.int64]:
        """For every window the same times in the other speaker's video; itself where there are none."""
        alike: dict[tuple[str, bytes], list[int]] = {}
        for window, (path, start) in enumerate(zip(self.paths, self.starts, strict=True)):
            film = PurePath(path)
            times = self.times[start : start + int(self.windows[window, 2])]
            alike.setdefault((f"{film.parent.name}/{film.name}", times.tobytes()), []).append(window)
        twin = np.arange(len(self.windows))
        for together in alike.values():
            twin[together] = np.roll(together, 1)
        return twin

    def choose(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Pair numbers -> (window, frame of the onset, frame of the apex), counted inside the window."""
        draws = uniforms(self.seed, numbers, 2)
        for number, (u, v) in zip(numbers.tolist(), draws.tolist(), strict=True):
            turn, place = divmod(number, len(self.windows))
            window = int(visit(self.seed, turn, len(self.windows))[place])
            start = int(self.starts[window])
            times = self.times[start : start + int(self.windows[window, 2])]
            # Onsets that leave room for the smallest gap; then a gap that fits.
            room = int(np.searchsorted(times, times[-1] - self.gap[0] + 1e-6, side="right"))
            first = int(u * room)
            longest = min(self.gap[1], float(times[-1] - times[first]))
            gap = self.gap[0] + v * (longest - self.gap[0])
            later = times[first + 1 :] - times[first]
            yield window, first, first + 1 + int(np.abs(later - gap).argmin())

    def __getstate__(self) -> dict[str, Any]:
        # Open memory maps stay in the process that opened them.
        return {key: value for key, value in self.__dict__.items() if key != "_shards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards = lru_cache(maxsize=256)(self._open)

    def _open(self, shard: int) -> Shard:
        return open_shard(self.folder, shard, self.store, self.videos, self.side)


class _PairLoader(PictureLoader):
    """Tells Lightning that it can be resumed; what must be remembered is VoxCelebDataModule's state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class VoxCelebDataModule(LightningDataModule):
    """Onset and apex pairs of talking faces, (B, 3, H, W) uint8 RGB under the keys `onset` and `apex`.

    Args:
        data: folder of VoxCeleb (either layout), any folder of face videos, or a cache made by `mefar cache`.
        image_size: side of the pictures in pixels.
        gap_seconds: smallest and largest time from onset to apex, in seconds.
        pairs_per_epoch: training pairs drawn per epoch, over all ranks.
        val_pairs: validation pairs, the same in every epoch.
        batch_size: pairs per step and rank.
        num_workers: loader processes; 0 loads in the training process.
        faces: `align` finds and aligns faces; `precropped` takes the frames as they are.
        stabilise: remove the head's rigid motion between the frames of a pair.
        two_views: also give `onset_view`, `apex_view`: the same pair under another crop, colour and noise.
        twins: videos of one name under two speakers play one script, as `mefar make-demo` renders them: give
            every training pair beside the same moments of the other face, and `partner`, its row.
        cache_dir: where caches are kept; each folder and setting has its own below.
        frames_per_utterance: crops kept per video file: 25 are one window of two seconds at steps of 80 ms;
            all pairs of the file come from it; 50 are two windows where the file has four seconds.
        store: how crops are kept: `raw`, `jpeg` (a twelfth of the bytes), `video` (nothing but where they are
            in the videos, decoded for every pair); `auto` chooses by size and says so.
        val_fraction: share of the speakers, in [0, 1], kept for validation; 1 leaves none to train on.
        seed: of the split, the pairs and the transforms.
    """

    def __init__(
        self,
        data: str,
        image_size: int = 256,
        gap_seconds: tuple[float, float] = (0.32, 0.60),
        pairs_per_epoch: int = 20_000,
        val_pairs: int = 512,
        batch_size: int = 64,
        num_workers: int = 1,
        faces: FaceMode = "align",
        stabilise: bool = True,
        two_views: bool = False,
        cache_dir: str = "runs/cache",
        frames_per_utterance: int = 25,
        store: shards.StoreChoice = "auto",
        val_fraction: float = 0.05,
        seed: int = 0,
        twins: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 0 < gap_seconds[0] <= gap_seconds[1]:
            raise UserError(f"gap_seconds: {gap_seconds} must be two times in seconds, the smaller first")
        if not 0 <= val_fraction <= 1:
            raise UserError(f"val_fraction: {val_fraction} must be in [0, 1]")
        self.data, self.image_size, self.gap_seconds = Path(data), image_size, gap_seconds
        self.pairs_per_epoch, self.val_pairs, self.batch_size = pairs_per_epoch, val_pairs, batch_size
        self.num_workers, self.two_views = num_workers, two_views
        self.faces, self.stabilise = faces, stabilise
        self.frames_per_utterance, self.store = frames_per_utterance, store
        self.val_fraction, self.seed, self.twins = val_fraction, seed, twins
        self.folder = self._folder(Path(cache_dir))
        self._train: PairDataset | None = None
        self._val: PairDataset | None = None
        self._place = Place()

    def _folder(self, cache_dir: Path) -> Path:
        if (self.data / "index.json").is_file():
            return self.data
        data = self.data.resolve()
        how = (self.faces, self.stabilise, self.frames_per_utterance, self.store, self.seed)
        digest = fingerprint(shards.VERSION, code_fingerprint(*shards.MADE_BY), str(data), *how)[:8]
        return cache_dir / f"{data.name}-{self.image_size}px-{digest}"

    def prepare_data(self) -> None:
        """Build the cache, or what is missing of it; say which videos gave nothing."""
        if self.folder != self.data:
            news = not (self.folder / "index.json").is_file()
            with shown("reading videos") as progress:
                shards.build(
                    self.data,
                    self.folder,
                    self.image_size,
                    self.frames_per_utterance,
                    self.faces,
                    workers=os.cpu_count() or 1,
                    seed=self.seed,
                    progress=progress,
                    stabilise=self.stabilise,
                    store=self.store,
                    tell=rank_zero_info,
                )
            if news and (line := shards.left_out(self.folder)):
                rank_zero_warn(line)

    def setup(self, stage: str) -> None:
        """Split the speakers and open the cache.

        Raises:
            UserError: unfinished cache, a cache of other pictures or another store, too few speakers.
        """
        self._place = Place()  # a checkpoint is loaded after this
        if self._train is not None or self._val is not None:
            return
        document, _ = shards.read_index(self.folder)
        plan = document["plan"]
        if plan["size"] != self.image_size:
            raise UserError(
                f"{self.folder}: holds crops of {plan['size']} px, image_size asks for {self.image_size}"
            )
        if self.store not in ("auto", plan["store"]):
            raise UserError(f"{self.folder}: holds crops as {plan['store']}, store asks for {self.store}")
        names = sorted(document["speakers"])
        kept_out = round(self.val_fraction * len(names)) or int(self.val_fraction > 0)
        if kept_out >= len(names) and self.val_fraction < 1:
            raise UserError(
                f"{self.folder}: has {len(names)} speaker(s), none left to train; set val_fraction to 0, or, "
                "where a folder holds many people, give that folder as data"
            )
        mixed = np.random.default_rng(self.seed).permutation(len(names)).tolist()
        val = {names[i] for i in mixed[:kept_out]}
        train_transform = PairTransform(self.image_size, True, self.seed)
        if train := set(names) - val:
            self._train = PairDataset(
                self.folder,
                train,
                self.gap_seconds,
                train_transform,
                self.pairs_per_epoch,
                self.two_views,
                self.seed,
                self.twins,
            )
        if val:
            plain = PairTransform(self.image_size, False, self.seed)
            self._val = PairDataset(
                self.folder, val, self.gap_seconds, plain, self.val_pairs, self.two_views, self.seed + 1
            )

    def state_dict(self) -> dict[str, Any]:
        """Place of the trained batches, whatever loader processes have fetched ahead; see `Place`."""
        return {} if self.trainer is None else asdict(self._now())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where the next training begins."""
        self._place = Place(**{**state_dict, "layout": tuple(state_dict["layout"])})

    def _now(self) -> Place:
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        if not math.isfinite(loop.max_batches):  # the loader is being made
            return self._place
        trained = loop.epoch_loop.batch_progress.total.state_dict()["processed"]
        epochs = loop.epoch_progress.current.state_dict()
        cut = epochs["started"] == epochs["processed"] and trained > self._place.trained
        layout = (self.pairs_per_epoch, self.batch_size, self.trainer.world_size)
        return self._place.after(trained, int(loop.max_batches), cut, layout)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of training pairs, transformed.

        Raises:
            UserError: resumed in the middle of an epoch of other batches or ranks; all speakers validate.
        """
        if self._train is None:
            assert self._val is not None, "setup() was not called"
            raise UserError("val_fraction: 1 leaves no speaker to train on; use less")
        loader = self._loader(self._train, fixed=False)
        layout = loader.sampler.layout  # type: ignore[attr-defined]
        if self._place.batch and self._place.layout != layout:
            raise UserError(
                "pairs per epoch, batch size, ranks: the checkpoint is from amid an epoch with "
                f"{self._place.layout}, this run has {layout}; resume with these, or from an epoch's end"
            )
        return loader

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[Any]:
        """Batches of validation pairs of other speakers, not transformed; none where val_fraction is 0."""
        return [] if self._val is None else self._loader(self._val, fixed=True)

    def _loader(self, dataset: PairDataset, fixed: bool) -> DataLoader[dict[str, Tensor]]:
        # One thread per worker, set here and not in the worker: where this process has used OpenCV's threads,
        # a forked child that changes their number waits for ever for threads that it does not have.
        cv2.setNumThreads(1)
        dataset.transform.ready()
        pictures = 4 if dataset.two_views else 2
        return (PictureLoader if fixed else _PairLoader)(
            dataset,
            batch_size=None,
            sampler=PairSampler(
                dataset, self.batch_size, fixed, None if fixed or self.trainer is None else self._now
            ),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            batch_bytes=self.batch_size * pictures * 3 * self.image_size**2,
        )
