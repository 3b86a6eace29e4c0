"""How a run of a sweep knows itself: by WANDB_RUN_ID, of `wandb agent` or `mefar sweep --local`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mefar.errors import UserError

RUN_ID = "WANDB_RUN_ID"


def name_run(words: Sequence[str]) -> list[str]:
    """In a sweep's run, put its name where `{run}` stands, and null where W&B says None."""
    name = os.environ.get(RUN_ID)
    return [re.sub(r"=None$", "=null", word.replace("{run}", name)) if name else word for word in words]


def fill(path: Path, **values: int | None) -> Path:
    """Put values where their names stand in braces: `K{num_codes}/last.ckpt` -> `K32/last.ckpt`."""
    for name in re.findall(r"\{(\w+)\}", str(path)):
        if values.get(name) is None:
            hint = f"it is {RUN_ID}, which a sweep sets" if name == "run" else f"give --{name}"
            raise UserError(f"{path}: nothing to put for {{{name}}}; {hint}")
    return Path(str(path).format(**values))
