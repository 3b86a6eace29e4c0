"""What a leave-one-subject-out run left in its folder, read back for whoever shows, logs or compares it.

summary.json is needed; predictions.csv, confusion.json, attention.json and pictures.npz are optional. Shape
legend: N rows of predictions.csv (clips x seeds), C classes, L tokens.
"""

from __future__ import annotations

import csv
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mefar.errors import UserError

TITLES = {"full": "Full", "casme2": "CASME II", "smic": "SMIC-HS", "samm": "SAMM", "casme3": "CAS(ME)³"}
"""What papers call the rows of a score table, in their usual order."""

DRAWS = 2000
"""Resamples of the subjects behind every interval."""

_SELECTIONS = ("last", "inner", "oracle")
_OWNERS = ("database", "subject", "clip")

Confusion = dict[str, dict[str, list[list[float]]]]
Attention = dict[str, list[list[float] | None]]
Pairs = list[tuple[str, str]]
T = TypeVar("T")


class Score(TypedDict):
    """UF1 and UAR in [0, 1], with their standard deviations over seeds where there are several."""

    uf1: float
    uar: float
    uf1_std: NotRequired[float]
    uar_std: NotRequired[float]


class Interval(TypedDict):
    """Ends of the intervals of both."""

    uf1: tuple[float, float]
    uar: tuple[float, float]


class Counts(TypedDict):
    """What there is of a database."""

    clips: int
    subjects: int
    classes: NotRequired[dict[str, int]]


class Finding(TypedDict):
    """Something to know about the data; datamodules/findings.py says what its entries mean."""

    level: str
    kind: str
    database: str
    clip: str
    detail: str
    file: NotRequired[str]
    row: NotRequired[int]
    missing: NotRequired[list[list[int]]]
    stops: NotRequired[bool]


class Summary(TypedDict):
    """summary.json, as far as it must have a form: anything else may be in it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    protocol: str
    classes: list[str]
    scores: dict[str, dict[str, Score]]
    counts: dict[str, Counts]
    seeds: NotRequired[list[int]]
    folds: NotRequired[int]
    intervals: NotRequired[dict[str, dict[str, Interval]] | None]
    controls: NotRequired[dict[str, dict[str, Score]] | None]
    tokenizer: NotRequired[dict[str, Any] | None]
    findings: NotRequired[list[Finding]]
    dropped: NotRequired[Pairs | None]
    left_out: NotRequired[Pairs | None]
    notes: NotRequired[Pairs | None]
    wall_seconds: NotRequired[float | None]
    adapt_tokenizer: NotRequired[float | None]


@dataclass(frozen=True)
class Predictions:
    """predictions.csv: one row per held-out clip and seed.

    Attributes:
        clips: N keys "database/subject/clip".
        seeds: N seeds of the heads.
        labels: (N,) int64 in [0, C).
        chosen: selection (last, inner, oracle) -> (N,) int64 in [0, C).
        probabilities: (N, C) float64 in [0, 1], of the last epoch.
        classes: C names.
    """

    clips: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: NDArray[np.int64]
    chosen: dict[str, NDArray[np.int64]]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def subjects(self) -> list[tuple[str, str]]:
        """N of (database, subject): the same name in two databases is two people."""
        return [(key.split("/", 2)[0], key.split("/", 2)[1]) for key in self.clips]

    @property
    def databases(self) -> list[str]:
        """N database ids."""
        return [database for database, _ in self.subjects]


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
class FinishedRun:
    """What a run left in its folder.

    Attributes:
        folder: the run's folder.
        summary: summary.json.
        predictions: predictions.csv, or None.
        confusion: selection -> row of the score table -> (C, C) counts, rows annotated.
        attention: row of the score table -> per class L pooling weights or None, for the last epoch; empty
            where the heads have no attention.
        pictures: content of pictures.npz.
    """

    folder: Path
    summary: dict[str, Any]
    predictions: Predictions | None
    confusion: Confusion
    attention: Attention
    pictures: dict[str, NDArray[np.generic]]

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
    def totals(self) -> tuple[int, int]:
        """Clips and subjects of all databases."""
        counts = [self.summary["counts"][database] for database in self.databases]
        return sum(count["clips"] for count in counts), sum(count["subjects"] for count in counts)

    @property
    def findings(self) -> list[Finding]:
        """What there is to know about the data; version 0.1 kept pairs, which are read until version 0.3."""
        pairs = [("lost", *pair) for pair in self.summary.get("dropped") or ()]
        pairs += [("note", *pair) for pair in self.summary.get("notes") or ()]
        earlier = [
            Finding(level=level, kind="", database=place.partition("/")[0], detail=text,
                    clip=place if "/" in place else "")
            for level, place, text in pairs
        ]  # fmt: skip
        return [*self.summary.get("findings", ()), *earlier]

    @property
    def subjects(self) -> dict[tuple[str, str], Counter[str]]:
        """(database, subject) -> its clips, and how many were right: keys `clips` and the selections."""
        right: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        if self.predictions is not None:
            hits = {name: guess == self.predictions.labels for name, guess in self.predictions.chosen.items()}
            for row, subject in enumerate(self.predictions.subjects):
                right[subject].update(clips=1, **{name: int(hit[row]) for name, hit in hits.items()})
        return dict(right)


def read_run(run: Path) -> FinishedRun:
    """Read a run's folder.

    Raises:
        UserError: no finished run there, or one of its files cannot be read.
    """
    run = Path(run)
    summary: Summary = _json(run / "summary.json", Summary)
    if "full" not in summary["scores"].get("last", {}):
        raise UserError(f"{run / 'summary.json'}: scores.last.full: Field required; run `mefar loso` again")
    confusion: Confusion = _json(run / "confusion.json", Confusion, {})
    attention: Attention = _json(run / "attention.json", Attention, {})
    C = len(summary["classes"])
    squares = [rows for places in confusion.values() for rows in places.values()]
    for name, fits in (
        ("attention.json", all(len(rows) == C for rows in attention.values())),
        ("confusion.json", all([len(row) for row in rows] == [C] * C for rows in squares)),
    ):
        if not fits:
            raise UserError(f"{run / name}: not of the {C} classes of summary.json; run `mefar loso` again")
    predictions = read_predictions(run) if (run / "predictions.csv").is_file() else None
    pictures = read_pictures(run / "pictures.npz")
    return FinishedRun(run, dict(summary), predictions, confusion, attention, pictures)


def read_predictions(run: Path) -> Predictions:
    """Read RUN/predictions.csv.

    Raises:
        UserError: no such file, or not one that `mefar loso` wrote.
    """
    path = Path(run) / "predictions.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), list(reader.fieldnames or ())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give the folder of a run that `mefar loso` finished"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `mefar loso` again") from error
    again = "not the predictions of a `mefar loso` run; run it again"
    missing = [name for name in (*_OWNERS, "seed", "label", "last") if name not in names]
    if missing or not rows:
        raise UserError(f"{path}: no {f'column {missing[0]!r}' if missing else 'rows'}; {again}")
    columns = [name for name in names if name.startswith("p_")]
    selections = [name for name in names if name in _SELECTIONS]
    numbers: dict[str, list[float]] = {name: [] for name in ("seed", "label", *selections, *columns)}
    for line, row in enumerate(rows, 2):
        for name, values in numbers.items():
            try:
                values.append(float(row[name]) if name in columns else int(row[name]))
            except (TypeError, ValueError):
                raise UserError(f"{path}, line {line}: {name} is {row[name]!r}; {again}") from None
            if name in ("label", *selections) and not 0 <= values[-1] < len(columns):
                raise UserError(f"{path}, line {line}: {name} {row[name]} of {len(columns)} classes; {again}")
    return Predictions(
        tuple("/".join(row[name] for name in _OWNERS) for row in rows),
        tuple(int(seed) for seed in numbers["seed"]),
        np.array(numbers["label"], np.int64),
        {name: np.array(numbers[name], np.int64) for name in selections},
        np.array([numbers[name] for name in columns], np.float64).T,
        tuple(name.removeprefix("p_") for name in columns),
    )


def read_pictures(path: Path) -> dict[str, NDArray[np.generic]]:
    """Arrays of an .npz file; none where there is no such file, a UserError where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read; delete it or run again") from error


def worst_mistakes(predictions: Predictions, most: int = 8) -> list[Mistake]:
    """At most `most` clips that were surest to be something else at the last epoch, the surest first."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, clip in enumerate(predictions.clips):
        rows[clip].append(row)
    mistakes, names = [], predictions.classes
    for clip, own in rows.items():
        mean, label = predictions.probabilities[own].mean(0), int(predictions.labels[own[0]])
        highest = int(mean.argmax())
        if highest != label:
            mistakes.append(Mistake(clip, names[label], names[highest], float(mean[highest])))
    return sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.clip))[:most]


def ordered(names: Iterable[str]) -> list[str]:
    """Full, the databases in the order of published tables, then anything else by name."""
    order = list(TITLES)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def title(name: str) -> str:
    """What papers call a database or a row."""
    return TITLES.get(name, name)


def _json(path: Path, kind: type[T] | Any, absent: T | None = None) -> T:
    """A JSON file of a kind: whoever shows a number may format it. `absent`, where there may be none."""
    try:
        return TypeAdapter[T](kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError as error:
        if absent is not None:
            return absent
        raise UserError(f"{path}: no such file; give the folder of a finished `mefar loso` run") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: " if where else ""
        raise UserError(f"{path}: {what}{first['msg']}; run `mefar loso` again") from error
