"""Action units under the folds of emotions: which units does a clip show.

A head that is trained for epochs tells all of them at once, by one loss over all; one that is fitted (a
ridge, a support vector machine) is fitted for every unit by itself.

Scores as in CD6ME (leave one database out, 12 units): per unit and database the macro-F1 over absent and
present and the F1 of `present`, then means over units and databases. A unit that a database never shows has
no F1 there and counts nothing. Databases without action units are left out, and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mefar import files
from mefar.errors import UserError
from mefar.loso.folds import FoldResult, StudyTokens
from mefar.loso.results import Predictions
from mefar.loso.run import Run
from mefar.loso.scores import by_seed, predictions_csv
from mefar.metrics import confusion, f1_per_class

UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17)
"""The units of CD6ME."""
CLASSES = ("absent", "present")


def by_database(study: StudyTokens) -> StudyTokens:
    """The same clips, whose folds leave one database out; a UserError where there is but one."""
    if len(set(study.databases)) < 2:
        raise UserError(
            f"leave_out: {study.protocol} is one database, {study.databases[0]}; it needs 2 or more"
        )
    return replace(study, subjects=study.databases)


def coded_rows(shown: Sequence[Sequence[int]], databases: Sequence[str]) -> tuple[list[int], list[str]]:
    """Rows of clips whose units are annotated (not empty), and databases without any.

    Raises:
        UserError: no clip has any.
    """
    rows = [row for row, units in enumerate(shown) if units]
    if not rows:
        raise UserError(
            f"no clip of {', '.join(sorted(set(databases)))} has action units; take another database"
        )
    return rows, sorted(set(databases) - {databases[row] for row in rows})


def studies(
    study: StudyTokens, shown: Sequence[Sequence[int]], rows: Sequence[int]
) -> tuple[dict[int, StudyTokens], dict[int, str]]:
    """A study of two classes per unit, and why a unit has none.

    Args:
        study: tokens of all clips, with its folds.
        shown: units of every clip.
        rows: of the clips that are coded.
    """
    subjects, clips = (tuple(names[row] for row in rows) for names in (study.subjects, study.clips))
    tokens, every = study.tokens[rows], study.databases
    databases = [every[row] for row in rows]
    found, missing = {}, {}
    for unit in UNITS:
        labels = torch.tensor([int(unit in shown[row]) for row in rows])
        showing = {subject for subject, label in zip(subjects, labels.tolist(), strict=True) if label}
        if labels.all():
            missing[unit] = "shown by every clip"
        elif len(showing) < 2:
            missing[unit] = f"shown in {len(showing)} folds"
        else:
            found[unit] = replace(
                study, tokens=tokens, labels=labels, subjects=subjects, clips=clips, class_names=CLASSES,
                anchors=None, counts=_counts(clips, databases, labels),
            )  # fmt: skip
    if not found:
        raise UserError("no action unit is shown in two folds; add data")
    return found, missing


def together(studies: Mapping[int, StudyTokens]) -> StudyTokens:
    """Studies of single units, on the same clips, as one in which a clip may show several."""
    return replace(
        next(iter(studies.values())),
        labels=torch.stack([each.labels for each in studies.values()], 1),
        class_names=tuple(f"AU{unit}" for unit in studies),
        counts={},
    )


class UnitsRun(Run):
    """A run of `together`; its predictions stand in a folder per unit, like those of a run of that unit.

    Arguments as of Run.
    """

    def pool(self, results: Sequence[FoldResult]) -> dict[str, Any]:
        """Write AU1/predictions.csv, AU2/predictions.csv, ...; a summary over units is not one run's."""
        for column, name in enumerate(self.study.class_names):
            study = replace(self.study, labels=self.study.labels[:, column], class_names=CLASSES)
            rows = predictions_csv(study, [of_unit(result, column) for result in results])
            (self.out / name).mkdir(exist_ok=True)
            files.write_text(self.out / name / "predictions.csv", rows)
        return {}


def of_unit(result: FoldResult, column: int) -> FoldResult:
    """What a fold of several units says of one of them, as a fold of that unit says it."""
    shown = [row[column] for row in result.probabilities]
    return replace(
        result,
        probabilities=[[1 - p, p] for p in shown],
        predictions={name: [row[column] for row in rows] for name, rows in result.predictions.items()},
    )


def _counts(clips: Sequence[str], databases: Sequence[str], labels: Tensor) -> dict[str, Any]:
    counts = {}
    for name in sorted(set(databases)):
        own = [row for row, database in enumerate(databases) if database == name]
        people, shown = {clips[row].rpartition("/")[0] for row in own}, int(labels[own].sum())
        classes = {"absent": len(own) - shown, "present": shown}
        counts[name] = {"clips": len(own), "subjects": len(people), "classes": classes}
    return counts


def unit_scores(rows: Predictions) -> dict[str, dict[str, float]]:
    """Database -> `macro` and `binary` F1, means over seeds; no databases that never show the unit."""

    def both(labels: Tensor, guesses: Tensor) -> dict[str, float]:
        f1 = f1_per_class(confusion(labels, guesses, 2))
        return {"macro": float(f1.mean()), "binary": float(f1[1])}

    showing = {database for database, label in zip(rows.databases, rows.labels, strict=True) if label}
    places = by_seed(rows, "last", both).items()
    return {name: _mean(values) for name, values in places if name in showing}


def summarise(scores: Mapping[int, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over units per database, and `mean` over the databases: {"casme2": {"macro", "binary"}, ...}."""
    made = {}
    for name in sorted({name for each in scores.values() for name in each}):
        made[name] = _mean([each[name] for each in scores.values() if name in each])
    return made | {"mean": _mean(list(made.values()))}


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {kind: fmean(each[kind] for each in values) for kind in ("macro", "binary")}
