"""Root may write everywhere: what is forbidden to others can be tried only without that power."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_OTHERS_FILES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of linux/capability.h


@contextmanager
def powerless() -> Iterator[None]:
    """The modes of files count in this block, for root too."""
    if os.geteuid() != 0:
        yield
        return
    library, head, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(head, sets) == 0
    whole = sets[0]
    try:
        sets[0] = whole & ~_OTHERS_FILES
        assert library.capset(head, sets) == 0
        yield
    finally:
        sets[0] = whole
        assert library.capset(head, sets) == 0
