"""The page of a leave-one-subject-out run: one self-contained HTML file from what `mefar loso` left.

Reads summary.json (needed), predictions.csv, confusion.json, attention.json and pictures.npz (each
optional: its section is then left out). Nothing here computes a score; the numbers are the summary's.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mefar.loso.results import DRAWS, FinishedRun, Mistake, ordered, read_run, title, worst_mistakes
from mefar.report import figures
from mefar.report.page import ASSETS, code_usage, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OFFICIAL_COMPOSITE = (442, 68)
"""Clips and subjects of the composite protocol on the real databases, as published papers have them."""

EVEN = 1.1
"""Pooling weights within this factor of the uniform share are as good as uniform."""

PICTURE_TITLES = ("onset", "apex", "reconstruction", "change", "rebuilt change")

_SELECTIONS = {
    "last": ("last epoch", "our score"),
    "inner": ("inner", "epoch by training subjects"),
    "oracle": ("oracle", "leaks: epoch by test subject"),
}
_CONTROLS = {"pixels": ("pixel control", "linear on differences"), "shuffled": ("shuffled labels", "chance")}


def write_report(run: Path) -> Path:
    """Write RUN/report.html: scores, published numbers, confusions, pictures, tokens, subjects, provenance.

    Raises:
        UserError: no finished run there, or one of its files cannot be read.
    """
    content = read_run(run)
    summary = content.summary
    peers: list[dict[str, str]] = []
    if summary["protocol"] == "composite":
        with (ASSETS / "peers_composite.csv").open(newline="", encoding="utf-8") as file:
            peers = list(csv.DictReader(file))
    origin = str((summary.get("tokenizer") or {}).get("pretrained_on") or "")
    return write_page(
        content.folder / "report.html",
        "loso.html",
        title=f"Leave one subject out: {title(summary['protocol'])}",
        run=content,
        summary=summary,
        charts={name: figures.svg(chart, name) for name, chart in charts(content).items()},
        columns=_columns(summary),
        intervals=summary.get("intervals") or {},
        draws=DRAWS,
        peers=peers,
        official=OFFICIAL_COMPOSITE,
        picture_titles=PICTURE_TITLES,
        pictures=_pictures(content),
        mistakes=_mistakes(content),
        attention=attention_scale(content) | {"even": EVEN},
        usage=code_usage(content.pictures.get("usage")),
        subjects=by_subject(content),
        dropped=[f for f in content.findings if f["clip"] and f["level"] == "lost"],
        left_out=summary.get("left_out") or [],
        remarks=[f for f in content.findings if f["clip"] and f["level"] != "lost"],
        about_databases=[(title(f["database"]), f["detail"]) for f in content.findings if not f["clip"]],
        origin=origin,
        seen=[title(database) for database in content.databases if database in origin.lower()],
        facts=_facts(content),
    )


def write_figures(run: Path, folder: Path) -> list[Path]:
    """Write every chart of a run, and its rows of pictures, for a paper: each as PDF and as PNG.

    Raises:
        UserError: no finished run there, or one of its files cannot be read.
    """
    content = read_run(run)
    drawn = charts(content, paper=True)
    if rows := [(name, row) for name, row, _ in _pictures(content)]:
        drawn["pictures"] = figures.sheet(rows, PICTURE_TITLES)
    return figures.save(drawn, Path(folder))


def charts(run: FinishedRun, paper: bool = False) -> dict[str, Figure]:
    """Every chart of a run by its name: confusion_full, attention_full, codes, subjects_samm, ...

    For a `paper` they fit into a column.
    """
    narrow = {"width": figures.COLUMN} if paper else {}
    drawn, classes = {}, run.summary["classes"]
    counts, factor = run.confusion.get("last", {}), attention_scale(run)["factor"]
    rows = "shuffled labels" if run.shuffled else "annotated"
    for scope in run.scopes:
        if scope in counts:
            drawn[f"confusion_{scope}"] = figures.confusion(counts[scope], classes, rows)
        if any(run.attention.get(scope, ())):
            drawn[f"attention_{scope}"] = figures.attention(run.attention[scope], classes, factor, **narrow)
    if "usage" in run.pictures:
        drawn["codes"] = figures.code_usage(run.pictures["usage"].tolist(), **narrow)
    for database, each in by_subject(run).items():
        bars = [
            (name, count["last"] / len(run.seeds), count["clips"] / len(run.seeds)) for name, count in each
        ]
        drawn[f"subjects_{database}"] = figures.subjects(bars, **narrow)
    return drawn


def by_subject(run: FinishedRun) -> dict[str, list[tuple[str, Counter[str]]]]:
    """Database -> its subjects with their counts, the best share of right clips first."""
    found: dict[str, list[tuple[str, Counter[str]]]] = {}
    for (database, subject), count in run.subjects.items():
        found.setdefault(database, []).append((subject, count))
    for each in found.values():
        each.sort(key=lambda pair: (-pair[1]["last"] / pair[1]["clips"], -pair[1]["clips"], pair[0]))
    return {database: found[database] for database in ordered(found)}


def attention_scale(run: FinishedRun) -> dict[str, float]:
    """How far the furthest pooling weight is from the uniform share, a factor, and what is full colour."""
    rows = [row for scope in run.scopes for row in run.attention.get(scope, ()) if row]
    shares = [share * len(row) for row in rows for share in row]
    furthest = max((max(share, 1 / max(share, 1e-6)) for share in shares), default=1.0)
    return {"furthest": furthest, "factor": min(4.0, max(EVEN, furthest))}


def _columns(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Columns of the score table: selections, then controls."""
    found = [
        {"key": key, "kind": key, "name": name, "about": about, "cells": summary["scores"][key]}
        for key, (name, about) in _SELECTIONS.items()
        if key in summary["scores"]
    ]
    for key, cells in (summary.get("controls") or {}).items():
        name, about = _CONTROLS.get(key, (key, "control"))
        found.append(
            {"key": f"control {key}", "kind": "control", "name": name, "about": about, "cells": cells}
        )
    return found


def _pictures(run: FinishedRun) -> list[tuple[str, list[figures.Picture], float]]:
    """One clip per database: its title, onset, apex, reconstruction and both changes, amplification."""
    found = []
    for database in run.databases:
        names = [f"{database}_{part}" for part in PICTURE_TITLES[:3]]
        if all(name in run.pictures for name in names):
            found.append((title(database), *figures.with_changes(*(run.pictures[name] for name in names))))
    return found


def _mistakes(run: FinishedRun) -> list[tuple[Mistake, list[figures.Picture], float]]:
    """The worst, with their pictures where there are any; none of shuffled labels, which tell nothing."""
    if run.shuffled or run.predictions is None:
        return []
    shown = {str(clip): row for row, clip in enumerate(run.pictures.get("mistakes_clips", ()))}
    found = []
    for mistake in worst_mistakes(run.predictions):
        row: list[figures.Picture] = []
        gain = 0.0
        if mistake.clip in shown:
            parts = [run.pictures[f"mistakes_{part}"][shown[mistake.clip]] for part in PICTURE_TITLES[:3]]
            row, gain = figures.with_changes(*parts)
        found.append((mistake, row, gain))
    return found


def _facts(run: FinishedRun) -> dict[str, Any]:
    summary = run.summary
    tokenizer, seconds = summary.get("tokenizer") or {}, summary.get("wall_seconds")
    adapted = summary.get("adapt_tokenizer")
    return {
        "command": summary.get("command"),
        "commit": summary.get("commit"),
        "tokenizer": tokenizer.get("checkpoint"),
        "sha256": tokenizer.get("sha256"),
        "apex": summary.get("apex"),
        "views": summary.get("views"),
        "text anchors": summary.get("edclip"),
        "seeds": ", ".join(str(seed) for seed in run.seeds),
        "training": _settings(summary.get("training")),
        "adapted": adapted
        and "every fold went on training a copy of the tokenizer on its own training pairs (squared error, "
        f"weight {adapted}); pictures and codes above are of the tokenizer that all folds started from",
        "head": _settings(summary.get("head")),
        "wall time": None if seconds is None else f"{seconds:,.0f} s",
        "mefar": summary.get("mefar"),
    }


def _settings(entries: Any) -> str:
    if not isinstance(entries, dict):
        return str(entries or "")
    return ", ".join(f"{name} {value}" for name, value in entries.items())
