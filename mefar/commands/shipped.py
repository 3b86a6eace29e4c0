"""YAML that ships with mefar, by its name: `mefar fit --config demo`, `mefar sweep loso`.

It lies in experiments/ of a clone and in mefar/experiments of a wheel, which has no clone around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mefar.errors import UserError

PACKAGE = Path(__file__).parents[1]
IN_WHEEL, IN_CLONE = PACKAGE / "experiments", PACKAGE.parent / "experiments"
FOLDER = IN_WHEEL if IN_WHEEL.is_dir() else IN_CLONE


def shipped(kind: Literal["configs", "sweeps", "ablations"], name: str) -> Path:
    """A file of yours, or the shipped one of that name.

    Args:
        kind: subfolder of experiments.
        name: a path, or the bare name of a shipped file, such as `demo`.

    Raises:
        UserError: neither is there.
    """
    if Path(name).is_file():
        return Path(name)
    here = FOLDER / kind / f"{name}.yaml"
    if here.is_file():
        return here
    known = ", ".join(sorted(path.stem for path in (FOLDER / kind).glob("*.yaml")))
    raise UserError(f"{name}: no such file; give a path, or a shipped name: {known}")


def with_shipped_configs(argv: Sequence[str]) -> list[str]:
    """Arguments with the shipped file in place of its name after `--config` or `-c`.

    Raises:
        UserError: a config that is neither a file nor shipped.
    """
    return with_configs(argv, lambda name: str(shipped("configs", name)))


def with_configs(argv: Sequence[str], change: Callable[[str], str]) -> list[str]:
    """Arguments with what `change` makes of every value of `--config` or `-c`."""
    words, before = [], ""
    for word in argv:
        option, equals, value = word.partition("=")
        if before in ("--config", "-c"):
            words.append(change(word))
        elif option == "--config" and equals:
            words.append(f"--config={change(value)}")
        else:
            words.append(word)
        before = word
    return words
