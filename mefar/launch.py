"""How the ranks of a fold run connect without outliving who started them."""

from __future__ import annotations

import os
import signal
from typing import Literal

from lightning.pytorch.strategies import DDPStrategy

from mefar.tokens import InputError


class FoldStrategy(DDPStrategy):
    """DDP whose forked ranks end at once when their launcher does, also while they wait for each other.

    torch tells a forked rank of its launcher's death by SIGINT. Ranks connect outside of Python, for up to
    half an hour where one is missing, and Python's handler would not hear of it until then.
    """

    started_by = 0

    def setup_environment(self) -> None:
        """Connect the ranks.

        Raises:
            InputError: the process that forked this one is gone.
        """
        if os.getpid() == self.started_by:
            super().setup_environment()
            return
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            if os.getppid() != self.started_by:  # it died before torch could ask for the signal
                raise InputError("the process that started this rank died")
            super().setup_environment()
        finally:
            signal.signal(signal.SIGINT, before)


def strategy(backend: str | None, start: Literal["fork", "popen"]) -> DDPStrategy:
    """Of a run with several ranks.

    Args:
        backend: of the process group; None picks by device.
        start: `fork`, or `popen` where ranks are processes that Lightning, torchrun or SLURM starts.
    """
    if start != "fork":
        return DDPStrategy(process_group_backend=backend, start_method=start)
    made = FoldStrategy(process_group_backend=backend, start_method="fork")
    made.started_by = os.getpid()
    return made
