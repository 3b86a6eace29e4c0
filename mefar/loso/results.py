"""What a leave-one-subject-out run left in its folder, read back for whoever shows it.

summary.json is needed; predictions.csv, confusion.json, attention.json and pictures.npz are optional.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mefar.errors import UserError

TITLES = {"full": "Full", "casme2": "CASME II", "smic": "SMIC-HS", "samm": "SAMM", "casme3": "CAS(ME)³"}
"""What papers call the rows of a score table, in their usual order."""


@dataclass(frozen=True)
class Mistake:
    """A clip that was held to be something else.

    Attributes:
        clip: key "database/subject/clip".
        annotated: name of its class.
        predicted: name of the class with the highest probability.
        probability: of that class, in [0, 1], mean over the seeds.
    """

    clip: str
    annotated: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Run:
    """What a run left in its folder.

    Attributes:
        folder: the run's folder.
        summary: summary.json.
        predictions: rows of predictions.csv.
        confusion: rows of scores -> (C, C) counts, for the last epoch.
        attention: rows of scores -> per class L pooling weights or None, for the last epoch.
        pictures: content of pictures.npz.
    """

    folder: Path
    summary: dict[str, Any]
    predictions: tuple[dict[str, str], ...]
    confusion: dict[str, list[list[float]]]
    attention: dict[str, list[list[float] | None]]
    pictures: dict[str, NDArray[np.generic]]

    @property
    def interval(self) -> str:
        """How far the score would move with other subjects, a sentence; empty without intervals."""
        bounds = self.summary.get("intervals", {}).get("last", {}).get("full")
        if bounds is None:
            return ""
        low, high = bounds["uf1"]
        return f" With other subjects: UF1 {low:.3f} to {high:.3f} (95 % of draws)."

    @property
    def scopes(self) -> list[str]:
        """Rows of the score table: full, then the databases; one row where there is one database."""
        return ["full"] if len(self.databases) == 1 else ordered(self.summary["scores"]["last"])

    def row(self, scope: str) -> str:
        """What a row of the score table is called."""
        return title(self.databases[0] if scope == "full" and len(self.databases) == 1 else scope)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the heads."""
        return list(self.summary.get("seeds", [0]))

    @property
    def shuffled(self) -> bool:
        """Whether the labels are not the true ones."""
        return self.summary.get("control") == "shuffled"

    @property
    def databases(self) -> list[str]:
        """Databases of the run, in the usual order."""
        return [scope for scope in ordered(self.summary["counts"]) if scope not in ("all", "full")]

    @property
    def subjects(self) -> dict[tuple[str, str], Counter[str]]:
        """(database, subject) -> its clips, and how many were right: keys `clips`, `last`, `oracle`."""
        right: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for row in self.predictions:
            counter = right[row["database"], row["subject"]]
            counter["clips"] += 1
            for selection in ("last", "oracle"):
                counter[selection] += row.get(selection) == row["label"]
        return dict(right)

    @property
    def totals(self) -> tuple[int, int]:
        """Clips and subjects of all databases."""
        counts = [self.summary["counts"][database] for database in self.databases]
        return sum(int(count["clips"]) for count in counts), sum(int(count["subjects"]) for count in counts)


def read_run(run: Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: no finished run there, or one of its files cannot be read.
    """
    run = Path(run)
    summary = _json(run / "summary.json")
    missing = [key for key in ("protocol", "classes", "scores", "counts") if key not in summary]
    if missing:
        raise UserError(f"{run / 'summary.json'}: no {missing[0]!r}; run `mefar loso` again")
    confusion = _json(run / "confusion.json").get("last", {}) if (run / "confusion.json").is_file() else {}
    attention = _json(run / "attention.json") if (run / "attention.json").is_file() else {}
    return Run(run, summary, read_predictions(run), confusion, attention, read_pictures(run / "pictures.npz"))


def read_predictions(run: Path) -> tuple[dict[str, str], ...]:
    """Rows of a run's predictions.csv; none where there is no such file."""
    path = Path(run) / "predictions.csv"
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def read_pictures(path: Path) -> dict[str, NDArray[np.generic]]:
    """Arrays of an .npz file; none where there is no such file.

    Raises:
        UserError: the file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read; delete it or run again") from error


def worst_mistakes(
    predictions: Iterable[Mapping[str, str]], classes: Sequence[str], most: int = 8
) -> list[Mistake]:
    """The clips that were surest to be something else at the last epoch, the surest first.

    Args:
        predictions: rows of predictions.csv.
        classes: C names, in the order of the labels.
        most: how many to name.
    """
    labels: dict[str, int] = {}
    found: dict[str, list[list[float]]] = defaultdict(list)
    for row in predictions:
        key = "/".join((row["database"], row["subject"], row["clip"]))
        labels[key] = int(row["label"])
        found[key].append([float(row[f"p_{name}"]) for name in classes])
    mistakes = []
    for key, each in found.items():
        mean = [sum(column) / len(each) for column in zip(*each, strict=True)]
        highest = max(range(len(classes)), key=mean.__getitem__)
        if highest != labels[key]:
            mistakes.append(Mistake(key, classes[labels[key]], classes[highest], mean[highest]))
    return sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.clip))[:most]


def ordered(names: Iterable[str]) -> list[str]:
    """Full, the databases in the order of published tables, then anything else by name."""
    order = list(TITLES)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def title(name: str) -> str:
    """What papers call a database or a row."""
    return TITLES.get(name, name)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the folder of a finished `mefar loso` run") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); run `mefar loso` again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object at its top; run `mefar loso` again")
    return content
