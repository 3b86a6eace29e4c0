"""Pairs of frames from videos of talking faces, to pretrain on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.voxceleb.module import VoxCelebDataModule as VoxCelebDataModule

_WHERE = {"VoxCelebDataModule": "datamodules.voxceleb.module"}


def __getattr__(name: str) -> Any:
    """Give the datamodule by short names; imported when asked for, since they bring lightning."""
    from importlib import import_module

    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
