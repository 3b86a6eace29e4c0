"""Pairs of frames from videos of talking faces, to pretrain on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.voxceleb.module import VoxCelebDataModule as VoxCelebDataModule


def __getattr__(name: str) -> Any:
    """Give the datamodule by a short name; imported when asked for, since it brings lightning."""
    from importlib import import_module

    if name != "VoxCelebDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("datamodules.voxceleb.module"), name)
