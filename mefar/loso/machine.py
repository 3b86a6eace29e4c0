"""Where folds are trained: device, ranks, and how ranks come to life.

On CPUs one process forks its ranks: tokens are shared, nothing is imported or tokenized again. On GPUs,
which do not survive a fork, Lightning starts the command once more per rank. torchrun and SLURM have
started it before we come.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mefar.errors import UserError


@dataclass(frozen=True)
class Machine:
    """Where the folds are trained; none of it changes a result but the kind of device.

    Attributes:
        accelerator: auto, cpu, gpu, ...
        devices: ranks on this machine.
        num_nodes: machines, each started by torchrun or SLURM.
        group: models trained side by side; None picks by device.
        workers: groups that a rank trains at a time; None: the rank's share of the cores, on a GPU 1.

    Raises:
        UserError: a number below 1.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    group: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "group", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; give at least 1, or leave it out")

    @property
    def on_gpu(self) -> bool:
        """Whether the folds go to a GPU."""
        return self.accelerator not in ("auto", "cpu") or (
            self.accelerator == "auto" and torch.cuda.is_available()
        )

    @property
    def share(self) -> int:
        """Groups at a time, as decided."""
        ranks = max(self.devices, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return self.workers or (1 if self.on_gpu else max(1, _cores() // ranks))

    def spread(self, groups: int) -> Machine:
        """The same machine, with a rank per core where nobody has said how many.

        Processes share two cores a quarter faster than threads, which wait for each other's Python.

        Args:
            groups: to train; more ranks would have nothing to do.
        """
        free = self.devices == self.num_nodes == 1 and self.workers is None and self.start == "fork"
        if not free or sys.platform != "linux":  # elsewhere libraries mind being forked
            return self
        return replace(self, devices=max(1, min(_cores(), groups)))

    @property
    def start(self) -> Literal["fork", "popen"]:
        """How Lightning starts ranks; `popen` starts none where they have been started."""
        # As Lightning tells a job step from an allocation that somebody types commands in.
        slurm = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in (
            "bash",
            "interactive",
        )
        return "popen" if self.on_gpu or "LOCAL_RANK" in os.environ or slurm else "fork"

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0, which writes and prints for all."""
        told = os.environ
        if "RANK" not in told and "LOCAL_RANK" in told:  # one of those that Lightning started
            return int(told["LOCAL_RANK"]) == int(told.get("NODE_RANK", "0")) == 0
        return int(told.get("RANK", told.get("SLURM_PROCID", "0"))) == 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
