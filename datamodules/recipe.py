"""What pictures on disk were made by: a fingerprint of source code, so that nobody must remember to count up.

Caches of crops put it beside their settings. Comments and layout do not count, everything else does: a crop
that is made once more costs a moment, one that is out of date costs a result.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from importlib import resources


@functools.cache
def recipe(*modules: str) -> str:
    """sha256 of the code of modules.

    Args:
        modules: names within datamodules, such as "faces".
    """
    digest = hashlib.sha256()
    for module in modules:
        digest.update(f"{module}\n{ast.dump(ast.parse(_source(module)))}\n".encode())
    return digest.hexdigest()


def _source(module: str) -> bytes:
    return resources.files("datamodules").joinpath(f"{module}.py").read_bytes()
