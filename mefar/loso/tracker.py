"""A finished leave-one-subject-out run as any experiment tracker sees it: configuration, tables, summary.

Names are those of the command's own table. `loso/uf1` and `loso/uar` are of the last epoch, our score.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mefar.loso.folds import FULL
from mefar.loso.ledger import Ledger
from mefar.loso.results import FinishedRun, read_predictions, read_run
from mefar.loso.scores import ORACLE_WARNING

CONFIGURATION = (
    "protocol", "classes", "seeds", "folds", "clips", "counts", "head", "training", "tokenizer",
    "num_codes", "num_tokens", "views", "apex", "edclip", "control", "identity", "command", "commit", "mefar",
)  # fmt: skip
"""Entries of summary.json that say what was run; the rest is what came out."""


def metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Every score of a run by its name.

    `loso/uf1`, `loso/last/uf1`, `loso/inner/samm/uf1`, `loso/oracle/uf1` (leaks), `control/pixels/uf1`, and
    the ends of the 95 % interval of the last epoch, `loso/last/uf1_low` and `loso/last/uf1_high`.
    """
    found = {f"loso/{name}": float(summary["scores"]["last"][FULL][name]) for name in ("uf1", "uar")}
    groups = [(f"loso/{name}", places) for name, places in summary["scores"].items()]
    groups += [(f"control/{name}", places) for name, places in summary.get("controls", {}).items()]
    for prefix, places in groups:
        for place, values in places.items():
            inside = prefix if place == FULL else f"{prefix}/{place}"
            found.update({f"{inside}/{name}": float(value) for name, value in values.items()})
    for name, (low, high) in summary.get("intervals", {}).get("last", {}).get(FULL, {}).items():
        found.update({f"loso/last/{name}_low": float(low), f"loso/last/{name}_high": float(high)})
    return found


def group(summary: Mapping[str, Any]) -> str:
    """Runs that may be compared: the same protocol on the same tokenizer."""
    return f"{summary['protocol']}-{summary['tokenizer']['sha256'][:8]}"


def tags(summary: Mapping[str, Any]) -> list[str]:
    """Protocol, tokenizer, how epochs were selected (never by the oracle), and whether it is a control."""
    selections = [f"selection-{name}" for name in summary["scores"] if name != "oracle"]
    control = [f"control-{summary['control']}"] if summary.get("control") else []
    return [summary["protocol"], f"tokenizer-{summary['tokenizer']['sha256'][:8]}", *selections, *control]


def fold_table(run: FinishedRun) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: one row per held-out subject and seed, with the epochs that were taken."""
    selections = list(run.summary["scores"])
    predictions = run.predictions or read_predictions(run.folder)  # says what is missing
    marks = {"oracle": " (leaks)"}
    columns = ["database", "subject", "seed", "clips"]
    columns += [f"{what} {name}{marks.get(name, '')}" for name in selections for what in ("right", "epoch")]
    rows: list[list[Any]] = []
    for fold, (result, _) in sorted(Ledger(run.folder, run.summary["identity"]).read().items()):
        keys = zip(predictions.clips, predictions.seeds, strict=True)
        own = [clip.startswith(f"{fold.subject}/") and seed == fold.seed for clip, seed in keys]
        database, _, subject = fold.subject.partition("/")
        row: list[Any] = [database, subject, fold.seed, sum(own)]
        for name in selections:
            right = predictions.chosen[name][own] == predictions.labels[own]
            row += [int(right.sum()), result.epochs[name]]
        rows.append(row)
    return columns, rows


def write(logger: Any, folder: Path) -> None:
    """Log the finished run in a folder: configuration, fold table, confusion matrices, scores.

    Any of Lightning's loggers that has log_table will do, WandbLogger for one.
    """
    run = read_run(folder)
    summary = run.summary
    logger.log_hyperparams({name: summary[name] for name in CONFIGURATION if name in summary})
    columns, rows = fold_table(run)
    logger.log_table("loso/folds", columns, rows)
    classes = list(summary["classes"])
    for selection, places in run.confusion.items():
        for place, counts in places.items() if selection != "oracle" else ():
            body = [[name, *line] for name, line in zip(classes, counts, strict=True)]
            logger.log_table(f"loso/confusion/{selection}/{place}", ["truth", *classes], body)
    logger.log_metrics(metrics(summary))
    logger.experiment.summary.update({"loso/oracle/warning": ORACLE_WARNING})
