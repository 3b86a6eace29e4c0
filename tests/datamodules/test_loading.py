"""Loader processes that cannot do their work end the run in one line; nothing of a parent is collected."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from datamodules import loading
from datamodules.loading import PictureLoader
from mefar.errors import UserError


class Numbers(Dataset[torch.Tensor]):
    """What an item does: dies, hangs or is a number."""

    def __init__(self, deadly: int = -1) -> None:
        self.deadly = deadly

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGBUS)  # as Linux does where shared memory ends
        return torch.tensor(index)


def loader(data: Any, **named: Any) -> PictureLoader:
    return PictureLoader(data, batch_size=2, **{"num_workers": 1, "batch_bytes": 16, **named})


def test_batches_are_those_of_a_data_loader() -> None:
    for workers in (0, 1):
        assert [batch.tolist() for batch in loader(Numbers(), num_workers=workers)] == [
            [0, 1],
            [2, 3],
            [4, 5],
        ]


def test_too_little_shared_memory_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that does not fit is lost in the worker, and a run would wait for it for ever."""
    usage = type("Usage", (), {"free": 64_000_000})
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"/dev/shm: 64 MB free, 8 .* need 1208 MB; set num_workers to 0"):
        list(loader(Numbers(), num_workers=8, batch_bytes=64 * 4 * 3 * 256 * 256))
    assert len(list(loader(Numbers(), num_workers=0, batch_bytes=1 << 30))) == 3


def test_a_loader_process_that_dies_ends_the_run() -> None:
    with pytest.raises(UserError, match=r"loader process ended .*(Bus error|exited).*num_workers") as error:
        list(loader(Numbers(deadly=3)))
    assert "/dev/shm" in str(error.value)
    assert "\n" not in str(error.value)


class Decoder:
    """Stands for a decoder: a worker that takes it apart waits for threads that it does not have."""

    owner = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != Decoder.owner:
            os._exit(1)


class Collecting(Numbers):
    def __getitem__(self, index: int) -> torch.Tensor:
        gc.collect()
        return super().__getitem__(index)


def test_a_forked_worker_collects_no_decoder_of_its_parent() -> None:
    kept: list[Any] = []  # a cycle that the parent still holds when it forks

    class Holder:
        def __init__(self) -> None:
            self.itself, self.decoder = self, Decoder()

    Decoder.owner = os.getpid()
    Holder()  # garbage already: collected here, before the fork
    kept.append(Holder())
    assert len(list(loader(Collecting(), multiprocessing_context="fork"))) == 3
    assert gc.get_freeze_count() == 0, "the parent goes on collecting"
