"""Random numbers that depend on names alone: the same on any rank, in any order, alone and in company."""

from __future__ import annotations

import hashlib
import zlib

import torch
from torch import Tensor


def seed_of(key: str, purpose: str) -> int:
    """A seed in [0, 2**63) that depends on a name (of a fold, say) and the purpose alone."""
    return int.from_bytes(hashlib.sha256(f"{key}\n{purpose}".encode()).digest()[:8], "big") >> 1


def fold_key(subject: str | None, seed: int) -> str:
    """Name of a fold: who is held out (None: nobody), and the seed."""
    return f"{subject or 'nobody'} seed {seed}"


def epoch_order(key: str, epoch: int, clips: int) -> Tensor:
    """The order in which a fold sees its training clips in an epoch: (clips,) int64, a permutation."""
    generator = torch.Generator().manual_seed(seed_of(key, f"order {epoch}"))
    return torch.randperm(clips, generator=generator)


def view_of(key: str, epoch: int, clip: str, views: int) -> int:
    """Which of its views a clip shows in an epoch of a fold."""
    return zlib.crc32(f"{key}\n{epoch}\n{clip}".encode()) % views
