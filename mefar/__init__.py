"""mefar: micro-expression facial action representations.

Shape legend of the whole package: B batch, L tokens, K codes, D width, P patches,
H W pixels, C classes, F folds, S seeds, V views, G models trained together.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mefar.commands.model import Model as Model
    from mefar.commands.model import load as load
    from mefar.commands.pictures import align as align
    from mefar.commands.pictures import example as example
    from mefar.commands.recognise import recognise as recognise

__version__ = "0.1.0"

# Nothing goes to the network unasked: libraries that would look for news of themselves, or tell of our use.
for _switch, _value in {
    "NO_ALBUMENTATIONS_UPDATE": "1",  # asks a package index at every import
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",  # W&B itself is asked for by --wandb or a logger
}.items():
    os.environ.setdefault(_switch, _value)

_PUBLIC = {
    "recognise": "mefar.commands.recognise",
    "load": "mefar.commands.model",
    "Model": "mefar.commands.model",
    "align": "mefar.commands.pictures",
    "example": "mefar.commands.pictures",
}
"""What `import mefar` offers -> where it is; imported when asked for, since `mefar --help` must be quick."""


def __getattr__(name: str) -> Any:
    """The public functions by their short names."""
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
