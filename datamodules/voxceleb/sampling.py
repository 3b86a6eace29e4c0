"""The order of the pretraining pairs: an endless row of numbers, dealt to ranks, resumed where it stood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler


@lru_cache(maxsize=4)
def visit(seed: int, turn: int, count: int) -> NDArray[np.int64]:
    """In which order the turn-th visit to all windows goes."""
    return np.random.default_rng((seed, turn)).permutation(count)


@dataclass(frozen=True)
class Place:
    """How far a training has come along the endless row of pair numbers.

    Attributes:
        epoch: the epoch that it is in, or that comes next; counted here, because Lightning counts one too
            many when it resumes at an epoch's end a training that is limited by steps.
        first: number of that epoch's first pair.
        batch: batches of that epoch that every rank has trained.
        trained: batches trained since the beginning, as Lightning counts them.
        layout: pairs per epoch, pairs per batch and ranks with which `batch` was counted.
    """

    epoch: int = 0
    first: int = 0
    batch: int = 0
    trained: int = 0
    layout: tuple[int, int, int] = (0, 0, 0)

    def after(self, trained: int, length: int, cut: bool, layout: tuple[int, int, int]) -> Place:
        """The place of a training that went on from here.

        Args:
            trained: batches trained since the beginning.
            length: batches of an epoch.
            cut: whether the epoch was ended before its last batch; its other pairs are never trained.
            layout: of the run.
        """
        epochs, batch = divmod(self.batch + max(0, trained - self.trained), length)
        if batch and cut:
            epochs, batch = epochs + 1, 0
        return Place(self.epoch + epochs, self.first + epochs * layout[0], batch, trained, layout)


class PairSampler(DistributedSampler[Any]):
    """Batches of pair numbers: each rank its own, none twice, none padded, another set every epoch.

    A DistributedSampler, so that Lightning leaves it in place and tells it the epoch.

    Args:
        dataset: gives the number of pairs per epoch.
        batch_size: pairs per batch and rank.
        fixed: the same pairs every epoch (validation).
        place: says where a training stands, when an epoch begins or is resumed: Lightning then goes on
            counting batches, but asks for the epoch's first ones again. Without it, the start of the epoch.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        fixed: bool = False,
        place: Callable[[], Place] | None = None,
    ) -> None:
        ready = torch.distributed.is_available() and torch.distributed.is_initialized()
        world = torch.distributed.get_world_size() if ready else 1
        super().__init__(dataset, world, torch.distributed.get_rank() if ready else 0, shuffle=False)
        self.batch_size, self.fixed, self.pairs = batch_size, fixed, len(dataset)  # type: ignore[arg-type]
        self.place = place

    @property
    def layout(self) -> tuple[int, int, int]:
        """Pairs per epoch, pairs per batch, ranks."""
        return self.pairs, self.batch_size, self.num_replicas

    def __iter__(self) -> Iterator[list[int]]:
        base, begin = 0 if self.fixed else self.epoch * self.pairs, 0
        if self.place is not None:
            now = self.place()
            base, begin = now.first, now.batch
        for batch in range(begin, len(self)):
            start = (batch * self.num_replicas + self.rank) * self.batch_size
            yield list(range(base + start, base + min(start + self.batch_size, self.pairs)))

    def __len__(self) -> int:
        whole = self.pairs // (self.batch_size * self.num_replicas)
        # Every rank makes the same number of steps; what does not fill one is left out.
        # On one rank the last, smaller batch is made too.
        return whole if self.num_replicas > 1 else -(-self.pairs // self.batch_size)
