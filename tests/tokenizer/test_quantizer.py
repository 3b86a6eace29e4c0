"""The quantiser: lookups, live codes from every start, statistics of every rank."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mefar.tokenizer.quantizer import VectorQuantizer, kmeans, perplexity, published_revival


def vectors(generator: torch.Generator, batch: int = 16, shift: float = 0.0) -> torch.Tensor:
    """Batches of a mixture of 64 clusters, as an encoder's outputs are: (batch, 16, 8)."""
    centres = torch.randn(64, 8, generator=torch.Generator().manual_seed(99)) * 3
    pick = torch.randint(64, (batch, 16), generator=generator)
    return centres[pick] + 0.3 * torch.randn(batch, 16, 8, generator=generator) + shift


def live(quantizer: VectorQuantizer, generator: torch.Generator, shift: float = 0.0) -> int:
    quantizer.eval()
    indices = torch.cat([quantizer(vectors(generator, shift=shift)).indices for _ in range(20)])
    quantizer.train()
    return len(indices.unique())


@given(st.integers(2, 64), st.integers(1, 8), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_codes_and_indices_round_trip(codes: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(codes, width).eval()
    indices = torch.randint(codes, (3, 5))
    codes = quantizer.lookup(indices)
    again = quantizer.nearest(codes)
    same = (quantizer.lookup(again) - codes).abs().amax(
        -1
    ) < 1e-3  # two codes may lie closer than float32 tells
    assert bool(((again == indices) | same).all())


def test_nearest_is_the_nearest() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(32, 4).eval()
    x = torch.randn(7, 16, 4)
    brute = (x.unsqueeze(-2) - quantizer.codebook).square().sum(-1).argmin(-1)
    assert torch.equal(quantizer(x).indices, brute)


@pytest.mark.parametrize("start", ["kmeans", "collapsed", "shifted"])
def test_no_collapse(start: str) -> None:
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    quantizer = VectorQuantizer(32, 8, "ema", warmup_steps=5 if start == "kmeans" else 0)
    shift = 0.0
    for step in range(400):
        quantizer(vectors(generator, shift=shift))
        if step == 100 and start == "collapsed":
            quantizer.codebook.fill_(50.0)  # every vector is far from every code, and all codes are one
            quantizer.cluster_sum.fill_(50.0)
            quantizer.cluster_size.fill_(1.0)
        if step == 100 and start == "shifted":
            shift = 20.0
    assert live(quantizer, generator, shift) >= 30


def test_continuous_phase_passes_vectors_through() -> None:
    quantizer = VectorQuantizer(8, 4, "ema", warmup_steps=2)
    x = torch.randn(4, 16, 4, requires_grad=True)
    assert torch.equal(quantizer(x).values, x)
    for _ in range(3):
        quantized = quantizer(x)
    assert bool(quantizer.started) and not torch.equal(quantized.values, x)


def test_gradients_reach_the_encoder() -> None:
    for method in ("ema", "nsvq"):
        quantizer = VectorQuantizer(8, 4, method)  # type: ignore[arg-type]
        x = torch.randn(4, 16, 4, requires_grad=True)
        quantizer(x).values.sum().backward()
        assert x.grad is not None and x.grad.abs().sum() > 0


def test_evaluation_changes_nothing() -> None:
    quantizer = VectorQuantizer(8, 4).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(4, 16, 4))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_state_survives_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(4)
    first = VectorQuantizer(32, 8)
    for _ in range(30):
        first(vectors(generator))
    torch.save(first.state_dict(), tmp_path / "vq.pt")
    second = VectorQuantizer(32, 8)
    second.load_state_dict(torch.load(tmp_path / "vq.pt", weights_only=True))
    for _ in range(60):  # over a revival, whatever else draws random numbers
        batch = vectors(generator)
        first(batch)
        torch.rand(3)
        second(batch)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


class Asked(TorchDispatchMode):
    """Counts how often a number is asked of the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["ema", "nsvq"])
def test_a_training_step_does_not_wait_for_the_device(method: str) -> None:
    quantizer = VectorQuantizer(8, 4, method, revive_every=50)
    for _ in range(2):
        quantizer(torch.randn(6, 4, 4, requires_grad=True))
    with Asked() as asked:
        quantizer(torch.randn(6, 4, 4, requires_grad=True))
    assert asked.count == 0
    earlier = VectorQuantizer(8, 4, method).state_dict()
    quantizer.load_state_dict(earlier)
    with Asked() as asked:
        quantizer(torch.randn(6, 4, 4, requires_grad=True))
    assert asked.count > 0, "a loaded state is asked for its step"
    assert int(quantizer.step) == 1


def test_published_revival_schedule() -> None:
    steps = [step for step in range(6001) if published_revival(step)]
    assert steps == [*range(10, 100, 10), *range(100, 1000, 100), *range(1000, 4501, 500)]


def test_kmeans_finds_separate_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.eye(6) * 10
    points = centres.repeat(50, 1) + 0.1 * torch.randn(300, 6)
    found = kmeans(points, 6)
    assert torch.cdist(centres, found).min(1).values.max() < 0.5


def test_perplexity_of_known_histograms() -> None:
    assert perplexity(torch.ones(32)).item() == pytest.approx(32)
    assert perplexity(torch.tensor([5, 0, 0])).item() == pytest.approx(1)


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)  # a forked process must not wake the thread pool of its parent
    torch.manual_seed(100 + rank)
    quantizer = VectorQuantizer(32, 8, "ema", warmup_steps=3)  # before the process group exists
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(rank)
    for step in range(260):  # the last 60, over a revival, once more from a checkpoint
        if step == 200:
            torch.save(quantizer.state_dict(), f"{folder}/rank{rank}.pt")
            dist.barrier()
            again = VectorQuantizer(32, 8, "ema", warmup_steps=3)
            again.load_state_dict(torch.load(f"{folder}/rank0.pt", weights_only=True))
        batch = vectors(generator, shift=40.0 * rank)  # each rank sees another half of the world
        quantizer(batch)
        if step >= 200:
            again(batch)
    torch.save(quantizer.state_dict(), f"{folder}/end{rank}.pt")
    torch.save(again.state_dict(), f"{folder}/again{rank}.pt")
    os._exit(0)  # torch 2.4 has been seen to wait for ever when it takes a process group apart


def test_two_ranks_hold_one_book_made_of_both(tmp_path: Path) -> None:
    mp.start_processes(_rank, (2, str(tmp_path)), nprocs=2, start_method="fork")
    books = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(books[0][name], books[1][name]) for name in books[0])
    means = books[0]["codebook"].mean(-1)
    assert (means < 20).sum() >= 8 and (means > 20).sum() >= 8  # codes from both ranks' data
    quantizer = VectorQuantizer(32, 8).eval()
    quantizer.load_state_dict(books[0])
    seen = [vectors(torch.Generator().manual_seed(rank), 320, 40.0 * rank) for rank in (0, 1)]
    assert len(quantizer(torch.cat(seen)).indices.unique()) >= 30
    for name, value in torch.load(tmp_path / "end0.pt", weights_only=True).items():
        for other in ("end1", "again0", "again1"):
            assert torch.equal(value, torch.load(tmp_path / f"{other}.pt", weights_only=True)[name]), name


def test_the_published_rule_keeps_its_codes_but_does_not_come_back_from_a_collapse() -> None:
    """Why ours is the default: copies of the one code that is left in use stay where it is."""
    for collapsed in (False, True):
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        quantizer = VectorQuantizer(32, 8, "nsvq")
        optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)
        for step in range(300):
            x = vectors(generator)
            optimizer.zero_grad()
            (quantizer(x).values - x).square().mean().backward()
            optimizer.step()
            if step == 100 and collapsed:
                quantizer.codebook.data.fill_(50.0)
        assert live(quantizer, generator) >= 30 if not collapsed else live(quantizer, generator) <= 3
