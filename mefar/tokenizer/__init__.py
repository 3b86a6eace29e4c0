"""From two frames to action tokens and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mefar.tokenizer.module import FacialActionTokenizer as FacialActionTokenizer
    from mefar.tokenizer.module import load as load

_WHERE = {"FacialActionTokenizer": "mefar.tokenizer.module", "load": "mefar.tokenizer.module"}


def __getattr__(name: str) -> Any:
    """Give the module and its loader by short names; imported when asked for, since they bring lightning."""
    from importlib import import_module

    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
