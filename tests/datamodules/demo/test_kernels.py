"""Compiled loops on a machine that gives them no place for what was compiled."""

from __future__ import annotations

from typing import Any

import numba
import pytest

from datamodules.demo import kernels


def test_without_a_place_for_a_cache_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As numba does where neither the package nor the home can be written."""
    plain = numba.njit

    def refusing(*function: Any, **settings: Any) -> Any:
        if settings.get("cache"):
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return plain(*function, **settings)

    monkeypatch.setattr(kernels.numba, "njit", refusing)
    assert kernels._jit(_plus_one)(2) == 3


def _plus_one(x: int) -> int:
    return x + 1
