"""What the processes of one training tell each other; with one process, or none started, nothing.

Whether there are others is asked at run time, never when a module is built: most are built before the process
group exists.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def add_up(tensor: Tensor) -> None:
    """Replace a tensor by its sum over ranks."""
    if world() > 1:
        dist.all_reduce(tensor)


def copy_from_first(tensor: Tensor) -> None:
    """Replace a tensor by that of rank 0."""
    if world() > 1:
        dist.broadcast(tensor, src=0)


def gather(tensor: Tensor) -> Tensor:
    """Equal-sized (n, d) of each rank -> (world * n, d), the same on every rank."""
    if world() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def mean(tensor: Tensor) -> Tensor:
    """A new tensor, the mean over ranks."""
    summed = tensor.detach().clone()
    add_up(summed)
    return summed / world()


def anywhere(flag: Tensor) -> bool:
    """Whether a () bool is true on any rank; the same answer on all of them."""
    count = flag.float()
    add_up(count)
    return bool(count > 0)


def told_by_all(line: str) -> list[str]:
    """One line of each rank, on every rank."""
    lines = [line] * world()
    if world() > 1:
        dist.all_gather_object(lines, line)
    return lines
