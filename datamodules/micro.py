"""Micro-expression clips as batches: a Dataset over a Study, and the LightningDataModule around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset

from datamodules.clips import Clip, Study, mirrored
from datamodules.crops import PairSettings, PairStore, Progress, fingerprint
from datamodules.faces.align import FaceMode
from datamodules.faces.apex import Apex, ApexRule
from datamodules.findings import Finding
from datamodules.loading import PictureLoader
from datamodules.look_alikes import look_alikes
from datamodules.protocols import load
from datamodules.views import draw_view
from mefar.errors import UserError
from mefar.progress import shown
from mefar.randomness import epoch_order, fold_key

__all__ = ["MicroExpressionDataModule", "MicroExpressionDataset", "fingerprint"]


class MicroExpressionDataset(Dataset[dict[str, Any]]):
    """The clips of a study as pairs of aligned face crops.

    Building it makes every pair that is not in the cache yet. An item is a dict:

    - `onset`, `apex`: (3, S, S) uint8 RGB; with views > 1 (V, 3, S, S), view 0 untouched;
    - `label`: int64 in [0, C);
    - `subject`, `clip`, `database`: str, `Clip.subject_key`, `Clip.key` and `Clip.database`;
    - `aus`: str such as "4+R12", "" where none are annotated; with views > 1 a tuple of V, in which mirrored
      views have left and right exchanged.

    Args:
        study: from protocols.load.
        image_size, faces, apex, views, seed, stabilise, stretch: of the crops; see crops.PairSettings.
        cache_dir: folder for the crops.
        workers: threads that make crops; 0 = one per core, up to 8.
        progress: told (done, total, clips per second) while crops are made.

    Attributes:
        study: the study as it can be used: its findings name clips without a face and count the apex rules.
        apexes: key -> chosen apex.

    Raises:
        UserError: a frame cannot be read, or no clip is left.
    """

    def __init__(
        self,
        study: Study,
        image_size: int = 256,
        faces: FaceMode = "align",
        apex: ApexRule = "annotated",
        views: int = 1,
        seed: int = 0,
        cache_dir: str | Path = "runs/cache",
        stabilise: bool = True,
        workers: int = 0,
        progress: Progress | None = None,
        stretch: bool = False,
    ) -> None:
        if image_size < 16 or views < 1:
            raise UserError(f"image_size {image_size}, views {views}: must be at least 16 and 1")
        self.settings = PairSettings(image_size, faces, apex, stabilise, views, seed, stretch)
        self._store = PairStore(Path(cache_dir) / "pairs", self.settings)
        made = self._store.prepare(study.clips, workers, progress)
        kept = [clip for clip in study.clips if made[clip.key][1] is not None]
        lost = [clip for clip in study.clips if made[clip.key][1] is None]
        if study.clips and not kept:
            raise UserError(
                f"{lost[0].frames[lost[0].onset]}: no face found, nor in any of the {len(lost)} clips; "
                "use faces=precropped if the frames are face crops already"
            )
        self.apexes: dict[str, Apex] = {key: apex for key, (_, apex) in made.items() if apex is not None}
        self._paths = [made[clip.key][0] for clip in kept]
        no_face = [_no_face(clip) for clip in lost]
        self.study = replace(
            study,
            clips=tuple(kept),
            findings=(*study.findings, *no_face, *self._look_alikes(kept), *_apex_rules(kept, self.apexes)),
        )

    def _look_alikes(self, clips: Sequence[Clip]) -> list[Finding]:
        """Clips that another subject's show too: in the folds they are on both sides."""
        pairs = look_alikes(
            [clip.subject_key for clip in clips], np.stack([self._store.looks(path) for path in self._paths])
        )
        if not pairs:
            return []
        first, second = (clips[index] for index in pairs[0])
        detail = f"{len(pairs)} clips show what a clip of another subject shows, and leak over folds: "
        detail += f"{second.key} and {first.key}; remove one of each (mefar doctor lists all)"
        return [Finding("warning", "same pictures", second.database, detail)]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.study.clips[index]
        onset, apex = (
            rearrange(torch.from_numpy(images), "v h w c -> v c h w").contiguous()
            for images in self._store.load(self._paths[index])
        )
        single = self.settings.views == 1
        return {
            "onset": onset[0] if single else onset,
            "apex": apex[0] if single else apex,
            "label": torch.tensor(clip.label),
            "subject": clip.subject_key,
            "clip": clip.key,
            "database": clip.database,
            "aus": self._units(clip, 0)
            if single
            else tuple(self._units(clip, v) for v in range(self.settings.views)),
        }

    def _units(self, clip: Clip, v: int) -> str:
        """Action units as view v shows them: a mirrored picture has left and right exchanged."""
        flip = draw_view(self.settings.seed, clip.key, v).flip
        return "+".join(map(str, mirrored(clip.aus) if flip else clip.aus))

    def fingerprint(self) -> str:
        """sha256 of the data and settings behind the items, for ledgers and caches."""
        return fingerprint(self.study, self.settings)


def _no_face(clip: Clip) -> Finding:
    file = str(clip.frames[clip.onset])
    return Finding("lost", "no face", clip.database, f"no face found in onset frame {file}", clip.key, file)


def _apex_rules(clips: Sequence[Clip], apexes: dict[str, Apex]) -> Iterator[Finding]:
    for name in sorted({clip.database for clip in clips}):
        used = Counter(apexes[clip.key].rule for clip in clips if clip.database == name)
        told = ", ".join(f"{rule} {count}" for rule, count in sorted(used.items()))
        yield Finding("note", "apex rule", name, f"apex: {told}")


class UnpaddedSampler(DistributedSampler[Any]):
    """Every item to exactly one rank: every W-th, beginning with the rank's own number.

    The sampler that Lightning puts in its place repeats items until all ranks have equally many, and metrics
    count them twice. A sampler of this type is left alone.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


class FoldSampler(Sampler[int]):
    """Rows in the order in which `mefar loso` shows them to the fold of this subject and seed.

    Args:
        held_out: subject, or None.
        seed: of the fold.
        clips: n, rows are 0 to n - 1.
    """

    def __init__(self, held_out: str | None, seed: int, clips: int) -> None:
        self.key, self.clips, self.epoch = fold_key(held_out, seed), clips, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.key, self.epoch, self.clips).tolist())

    def __len__(self) -> int:
        return self.clips


class MicroExpressionDataModule(LightningDataModule):
    """Micro-expression clips of a protocol for training, validation on one subject, and prediction.

    Batches: `onset`, `apex` (B, 3, S, S) uint8 RGB, with views > 1 (B, V, 3, S, S); `label` (B,) int64;
    `subject`, `clip`, `database`, `aus` lists of B str (with views > 1 `aus` is V lists).

    Args:
        dataset: composite, a database's name (`mefar databases` lists them), or the path of a file that
            describes one.
        data: for composite the folder with one folder per database, else the database's folder or its parent.
        classes: number of classes; null = the protocol's own.
        image_size: side of the face crops in pixels, at least 16.
        faces: `align` finds the face once per clip; `precropped` takes frames that are face crops already.
        apex: `annotated` (the middle where there is none), `middle`, or `spotted` (largest motion).
        stretch: fill the square with a precropped frame, as published code does, not keeping its aspect.
        errata: correct annotations that are known to be wrong.
        stabilise: take out the head's own motion between onset and apex.
        held_out: subject to validate and test on and never to train on, such as "casme2/sub01"; null = none.
        views: pairs per clip; the first is untouched, the others differ a little in place, light and apex.
        batch_size: clips per batch.
        num_workers: processes that read crops.
        cache_dir: folder for the face crops; made once, used by every later run.
        seed: of views and of the order of training clips.
    """

    def __init__(
        self,
        dataset: str,
        data: str,
        classes: int | None = None,
        image_size: int = 256,
        faces: FaceMode = "align",
        apex: ApexRule = "annotated",
        errata: bool = True,
        stabilise: bool = True,
        held_out: str | None = None,
        views: int = 1,
        batch_size: int = 16,
        num_workers: int = 0,
        cache_dir: str = "runs/cache",
        seed: int = 0,
        stretch: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.dataset_name, self.data, self.classes, self.errata = dataset, Path(data), classes, errata
        self.image_size, self.faces, self.apex, self.stabilise = image_size, faces, apex, stabilise
        self.stretch = stretch
        self.held_out, self.views, self.seed = held_out, views, seed
        self.batch_size, self.num_workers, self.cache_dir = batch_size, num_workers, cache_dir
        self._dataset: MicroExpressionDataset | None = None
        self._train: list[int] = []
        self._held: list[int] = []

    def prepare_data(self) -> None:
        """Make the face crops that are not in the cache, on one process per machine."""
        with shown("aligning faces", "clips") as progress:
            self._build(progress)

    def setup(self, stage: str | None = None) -> None:
        """Open the crops and part the held-out subject from the others.

        Raises:
            UserError: what protocols.load and MicroExpressionDataset raise; an unknown held_out subject.
        """
        if self._dataset is not None:
            return
        dataset = self._build(None)
        subjects = [clip.subject_key for clip in dataset.study.clips]
        if self.held_out is not None and self.held_out not in subjects:
            known = sorted(set(subjects))
            raise UserError(
                f"held_out {self.held_out!r}: no such subject; there are {len(known)}, such as {known[0]}"
            )
        self._held = [i for i, subject in enumerate(subjects) if subject == self.held_out]
        self._train = [i for i, subject in enumerate(subjects) if subject != self.held_out]
        if not self._train:
            raise UserError(f"held_out {self.held_out!r}: is the only subject, none is left to train on")
        self._dataset = dataset

    def _build(self, progress: Progress | None) -> MicroExpressionDataset:
        prefer: Literal["raw", "cropped"] = "raw" if self.faces == "align" else "cropped"
        study = load(self.dataset_name, self.data, self.classes, self.errata, prefer)
        return MicroExpressionDataset(
            study,
            self.image_size,
            self.faces,
            self.apex,
            self.views,
            self.seed,
            self.cache_dir,
            self.stabilise,
            progress=progress,
            stretch=self.stretch,
        )

    @property
    def dataset(self) -> MicroExpressionDataset:
        """All clips, in order; after setup()."""
        if self._dataset is None:
            self.setup()
        assert self._dataset is not None
        return self._dataset

    @property
    def study(self) -> Study:
        """The clips that can be used, and an account of the others; after setup()."""
        return self.dataset.study

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """All clips but the held-out subject's, in the order of the fold: see FoldSampler."""
        return self._loader(self._train, FoldSampler(self.held_out, self.seed, len(self._train)))

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """The held-out subject's clips, each once over all ranks; nothing where no subject is held out.

        Raises:
            UserError: fewer clips than ranks: a rank without any would leave the others waiting.
        """
        return self._loader(self._held, share=True) if self._held else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """The same as val_dataloader."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """All clips in order, each once over all ranks."""
        return self._loader(range(len(self.dataset)), share=True)

    def _loader(
        self,
        indices: Sequence[int],
        sampler: Sampler[int] | None = None,
        share: bool = False,
    ) -> DataLoader[dict[str, Any]]:
        chosen = Subset(self.dataset, list(indices))
        ranks = dist.get_world_size() if share and dist.is_available() and dist.is_initialized() else 1
        if ranks > len(indices):
            raise UserError(f"{len(indices)} clips to evaluate on {ranks} ranks; use fewer devices")
        return PictureLoader(
            chosen,
            batch_size=self.batch_size,
            sampler=UnpaddedSampler(chosen, shuffle=False) if ranks > 1 else sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            batch_bytes=self.batch_size * self.views * 6 * self.image_size**2,
        )
