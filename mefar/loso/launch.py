"""How the ranks of a fold run connect without outliving who started them."""

from __future__ import annotations

import os
import signal
from typing import Literal

from lightning.pytorch.strategies import DDPStrategy

from mefar.errors import UserError


class FoldStrategy(DDPStrategy):
    """DDP whose forked ranks end at once when their launcher does, also while they wait for each other.

    torch tells a forked rank of its launcher's death by SIGINT. Ranks connect outside of Python, for up to
    half an hour where one is missing, and Python's handler would not hear of it until then.

    Args:
        backend: of the process group; None picks by device.
        start: `fork`, or `popen` where ranks are processes that Lightning, torchrun or SLURM starts.
    """

    def __init__(self, backend: str | None, start: Literal["fork", "popen"]) -> None:
        super().__init__(process_group_backend=backend, start_method=start)
        self.forked_by = os.getpid() if start == "fork" else None

    def setup_environment(self) -> None:
        """Connect the ranks.

        Raises:
            UserError: the process that forked this one is gone.
        """
        if self.forked_by is None:
            super().setup_environment()
            return
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            if os.getppid() != self.forked_by:  # it died before torch could ask for the signal
                raise UserError("the process that started this rank died")
            super().setup_environment()
        finally:
            signal.signal(signal.SIGINT, before)
