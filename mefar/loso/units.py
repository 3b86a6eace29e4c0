"""Action units under the folds of emotions: is a unit shown or not, by a head of its own for every unit.

Scores as in CD6ME (leave one database out, 12 units): per unit and database the macro-F1 over absent and
present and the F1 of `present`, then means over units and databases. A unit that a database never shows has
no F1 there and counts nothing. Databases without action units are left out, and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mefar.errors import UserError
from mefar.loso.folds import StudyTokens
from mefar.loso.results import Predictions
from mefar.metrics import confusion, f1_per_class

UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17)
"""The units of CD6ME."""
CLASSES = ("absent", "present")


def by_database(study: StudyTokens) -> StudyTokens:
    """The same clips, whose folds leave one database out.

    Raises:
        UserError: a single database.
    """
    if len(set(study.databases)) < 2:
        raise UserError(
            f"leave_out: {study.protocol} is one database, {study.databases[0]}; it needs 2 or more"
        )
    return replace(study, subjects=study.databases)


def coded_rows(shown: Sequence[Sequence[int]], databases: Sequence[str]) -> tuple[list[int], list[str]]:
    """Rows of clips whose units are annotated, and databases without any.

    Args:
        shown: units of every clip; none are annotated where it is empty.
        databases: of every clip.

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
    index = torch.tensor(rows)
    found, missing = {}, {}
    for unit in UNITS:
        labels = torch.tensor([int(unit in shown[row]) for row in rows])
        subjects = tuple(study.subjects[row] for row in rows)
        showing = {subject for subject, label in zip(subjects, labels.tolist(), strict=True) if label}
        if len(showing) < 2 or bool(labels.all()):
            missing[unit] = f"shown in {len(showing)} folds" if not labels.all() else "shown by every clip"
            continue
        found[unit] = replace(
            study,
            tokens=study.tokens[index],
            labels=labels,
            subjects=subjects,
            clips=tuple(study.clips[row] for row in rows),
            class_names=CLASSES,
            anchors=None,
            counts=_counts(study, rows, labels),
        )
    if not found:
        raise UserError("no action unit is shown in two folds; add data")
    return found, missing


def _counts(study: StudyTokens, rows: Sequence[int], labels: Tensor) -> dict[str, Any]:
    databases = [study.databases[row] for row in rows]
    counts = {}
    for name in sorted(set(databases)):
        own = [i for i, database in enumerate(databases) if database == name]
        shown = int(labels[own].sum())
        counts[name] = {
            "clips": len(own),
            "subjects": len({study.clips[rows[i]].rpartition("/")[0] for i in own}),
            "classes": {"absent": len(own) - shown, "present": shown},
        }
    return counts


def unit_scores(rows: Predictions, selection: str = "last") -> dict[str, dict[str, float]]:
    """Database -> `macro` and `binary` F1, means over seeds; no databases that never show the unit."""
    databases = [clip.split("/", 1)[0] for clip in rows.clips]
    found: dict[str, dict[str, float]] = {}
    for name in sorted(set(databases)):
        values = []
        for seed in sorted(set(rows.seeds)):
            own = [
                i
                for i, (d, s) in enumerate(zip(databases, rows.seeds, strict=True))
                if (d, s) == (name, seed)
            ]
            labels, guesses = (torch.from_numpy(each[own]) for each in (rows.labels, rows.chosen[selection]))
            if labels.any():
                values.append(f1_per_class(confusion(labels, guesses, 2)))
        if values:
            mean = torch.stack(values).mean(0)
            found[name] = {"macro": float(mean.mean()), "binary": float(mean[1])}
    return found


def summarise(scores: Mapping[int, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over units per database, and `mean` over the databases: {"casme2": {"macro", "binary"}, ...}."""
    databases = sorted({name for each in scores.values() for name in each})
    made: dict[str, dict[str, float]] = {}
    for name in databases:
        own = [each[name] for each in scores.values() if name in each]
        made[name] = {kind: sum(each[kind] for each in own) / len(own) for kind in ("macro", "binary")}
    made["mean"] = {
        kind: sum(made[name][kind] for name in databases) / len(databases) for kind in ("macro", "binary")
    }
    return made
