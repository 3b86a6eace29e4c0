"""What the training of a tokenizer left in its folder, read back for its report page.

metrics.csv is the newest start's curve, metrics-1.csv, metrics-2.csv, ... those of earlier starts, oldest
first. starts.jsonl, samples/first.npz, samples/newest.npz (samples.py) and config.yaml are optional.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mefar.errors import UserError
from mefar.loso.results import read_pictures

Curve = list[tuple[int, float]]
"""(step, value), by step."""


@dataclass(frozen=True)
class FinishedTraining:
    """What a training left.

    Attributes:
        folder: of the training.
        curves: column of metrics.csv -> its values over the steps; what a later start did again counts once.
        resumed: first step that each later start logged.
        starts: lines of starts.jsonl.
        first: content of samples/first.npz.
        newest: content of samples/newest.npz.
        config: text of config.yaml.
    """

    folder: Path
    curves: dict[str, Curve]
    resumed: list[int]
    starts: list[dict[str, Any]]
    first: dict[str, NDArray[np.generic]]
    newest: dict[str, NDArray[np.generic]]
    config: str


def is_training(folder: Path) -> bool:
    """Whether a folder holds the training of a tokenizer."""
    if (Path(folder) / "samples" / "newest.npz").is_file():
        return True
    return any(
        _columns(path) & {"val/gain_over_copy", "train/reconstruction"} for path in _metrics(Path(folder))
    )


def read_training(folder: Path) -> FinishedTraining:
    """Read a training's folder.

    Raises:
        UserError: no training of a tokenizer there, or its samples cannot be read.
    """
    folder = Path(folder)
    if not is_training(folder):
        raise UserError(f"{folder}: no training of a tokenizer (no metrics.csv with its columns)")
    curves: dict[str, dict[int, float]] = {}
    resumed: list[int] = []
    for number, path in enumerate(_metrics(folder)):
        rows = metric_rows(path)
        if not rows:
            continue
        begin = min(step for step, _ in rows)
        if number:
            resumed.append(begin)
        for values in curves.values():  # a resumed training makes the steps after its checkpoint again
            for step in [step for step in values if step >= begin]:
                del values[step]
        for step, entries in rows:
            for name, value in entries.items():
                curves.setdefault(name, {})[step] = value
    config = folder / "config.yaml"
    return FinishedTraining(
        folder,
        {name: sorted(values.items()) for name, values in curves.items() if values},
        [step for step in resumed if step > min((min(v) for v in curves.values() if v), default=0)],
        _starts(folder / "starts.jsonl"),
        read_pictures(folder / "samples" / "first.npz"),
        read_pictures(folder / "samples" / "newest.npz"),
        config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def _metrics(folder: Path) -> list[Path]:
    """Curves of all starts, oldest first."""
    older = [path for path in folder.glob("metrics-*.csv") if re.fullmatch(r"metrics-\d+", path.stem)]
    older.sort(key=lambda path: int(path.stem.split("-")[1]))
    return [path for path in (*older, folder / "metrics.csv") if path.is_file()]


def _columns(path: Path) -> set[str]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return set(next(csv.reader(file), ()))


def metric_rows(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and values of each row; what a kill tore off is left out."""
    rows = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            if None in row.values():
                continue
            try:
                step = int(row["step"])
                values = {
                    str(name): float(value)
                    for name, value in row.items()
                    if value and name not in ("step", "epoch")
                }
            except (KeyError, TypeError, ValueError):
                continue
            rows.append((step, values))
    return rows


def _starts(path: Path) -> list[dict[str, Any]]:
    starts = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            starts.append(dict(json.loads(line)))
        except (json.JSONDecodeError, TypeError, ValueError):
            continue
    return starts
