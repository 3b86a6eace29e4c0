"""From action tokens to a class: heads, their loss, and the two LightningModules that train one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mefar.classifier.edclip import EDCLIP as EDCLIP
    from mefar.classifier.module import TokenClassifier as TokenClassifier

_WHERE = {"TokenClassifier": "mefar.classifier.module", "EDCLIP": "mefar.classifier.edclip"}


def __getattr__(name: str) -> Any:
    """Give the LightningModules by short names; imported when asked for, since they bring lightning."""
    from importlib import import_module

    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
