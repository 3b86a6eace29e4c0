"""The numbers of a leave-one-subject-out page: scores with intervals, published ones, who was mistaken."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mefar.loso.results import DRAWS, ordered, title
from mefar.loso.results import FinishedRun as Run
from mefar.report import figures
from mefar.report.page import ASSETS, note, section, table, warning

OFFICIAL_COMPOSITE = (442, 68)
"""Clips and subjects of the composite protocol on the real databases, as published papers have them."""

_SCORES = ("uf1", "uar")
_CONTROLS = {"pixels": ("pixel control", "linear on differences"), "shuffled": ("shuffled labels", "chance")}
_SELECTIONS = {
    "last": ("last epoch", "our score"),
    "inner": ("inner", "epoch by training subjects"),
    "oracle": ("oracle", "leaks: epoch by test subject"),
}
_MEANINGS = {
    "last": "<b>last</b> is the last epoch, its number fixed before training: the only column we call our "
    "score.",
    "inner": "<b>inner</b> takes, in each fold, the epoch that is best on a fifth of the fold's training "
    "subjects, held out from a second model.",
    "oracle": '<b class="oracle">oracle</b> keeps, for each held-out subject, the epoch that is best on that '
    "very subject. That is selection on the test data; it stands here because most published tables are "
    "made this way and can be compared with nothing else.",
}


def scores(run: Run) -> str:
    """The table of scores: selections with their intervals, then the controls."""
    kinds = [kind for kind in _SELECTIONS if kind in run.summary["scores"]]
    columns: list[tuple[str, str, str, Mapping[str, Any]]] = [
        (kind, *_SELECTIONS[kind], run.summary["scores"][kind]) for kind in kinds
    ]
    for key, cells in (run.summary.get("controls") or {}).items():
        columns.append(("control", *_CONTROLS.get(key, (key, "control")), cells))
    head = "".join(
        f'<th colspan="2" class="{kind}">{escape(name)}<small>{escape(about)}</small></th>'
        for kind, name, about, _ in columns
    )
    under = "".join(f'<th class="{kind}">UF1</th><th class="{kind}">UAR</th>' for kind, *_ in columns)
    body = []
    for scope in run.scopes:
        clips = run.totals[0] if scope == "full" else int(run.summary["counts"].get(scope, {})["clips"])
        cells = "".join(
            f'<td class="{kind}">{_number(column.get(scope), key)}{_bounds(run, kind, scope, key)}</td>'
            for kind, _, _, column in columns
            for key in _SCORES
        )
        body.append(
            f'<tr class="{scope}"><th>{escape(run.row(scope))}</th><td class="n">{clips}</td>{cells}</tr>'
        )
    meanings = [_MEANINGS[kind] for kind in kinds]
    if len(run.seeds) > 1:
        meanings.append(f"Scores are means over {len(run.seeds)} seeds, ± their standard deviation.")
    meanings.append(_intervals(run))
    return section(
        "Scores",
        table(
            f'<tr><th></th><th></th>{head}</tr><tr><th></th><th class="n">clips</th>{under}</tr>',
            body,
            "scores",
        ),
        note(" ".join(meanings)),
    )


def peers(run: Run) -> str:
    """The composite beside what papers printed; nothing for other protocols."""
    if run.summary["protocol"] != "composite":
        return ""
    scopes = ("full", "casme2", "smic", "samm")
    with (ASSETS / "peers_composite.csv").open(newline="", encoding="utf-8") as file:
        published = list(csv.DictReader(file))

    def row(kind: str, name: str, year: str, cells: Sequence[str], epoch: str) -> str:
        label = f'<span class="oracle">{epoch}</span>' if epoch == "oracle" else escape(epoch)
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        return f'<tr class="{kind}"><th>{escape(name)}</th><td>{year}</td>{numbers}<td>{label}</td></tr>'

    places = [(scope, key) for scope in scopes for key in _SCORES]
    rows = [
        row("", peer["method"], peer["year"], [_decimals(peer["_".join(p)]) for p in places], peer["epoch"])
        for peer in published
    ]
    name = "this run, shuffled labels" if run.shuffled else "this run"
    for selection in _SELECTIONS:
        found = run.summary["scores"].get(selection)
        if found:
            ours = [_number(found.get(s), key) + _bounds(run, selection, s, key) for s, key in places]
            rows.append(row("ours headline" if selection == "last" else "ours", name, "", ours, selection))
    heads = "".join(f'<th colspan="2">{title(scope)}</th>' for scope in scopes)
    clips, people = run.totals
    other = ""
    if (clips, people) != OFFICIAL_COMPOSITE:
        other = (
            f"Not comparable: this run has {clips} clips of {people} subjects, the "
            f"published protocol has {OFFICIAL_COMPOSITE[0]} of {OFFICIAL_COMPOSITE[1]}."
        )
    under = "<th>UF1</th><th>UAR</th>" * len(scopes)
    return section(
        "Next to published numbers",
        warning(other),
        table(
            f"<tr><th></th><th></th>{heads}<th></th></tr><tr><th></th><th>year</th>{under}<th>epoch</th></tr>",
            rows,
            "scores peers",
        ),
        note(
            "As printed in the papers; compare like with like in the column <i>epoch</i>. " + _intervals(run)
        ),
    )


def confusions(run: Run) -> str:
    """One confusion matrix per database and one of all."""
    last = run.confusion.get("last", {})
    shown = [scope for scope in run.scopes if scope in last]
    if not shown:
        return ""
    drawn = [
        f"<figure><figcaption>{escape(run.row(scope))}</figcaption>"
        f"{figures.confusion_svg(last[scope], run.summary['classes'])}</figure>"
        for scope in shown
    ]
    rows = "shuffled labels" if run.shuffled else "annotated"
    pooled = f" Counts are pooled over {len(run.seeds)} seeds." if len(run.seeds) > 1 else ""
    return section(
        "Confusion",
        f'<div class="figures">{"".join(drawn)}</div>',
        note(f"Last epoch. Rows are {rows}, columns predicted.{pooled}"),
    )


def subjects(run: Run) -> str:
    """One bar per subject, and all of them as a table to unfold."""
    if run.predictions is None:
        return ""
    right = run.subjects
    blocks, lines = [], []
    for database in ordered(dict.fromkeys(database for database, _ in right)):
        mine = [(subject, count) for (where, subject), count in right.items() if where == database]
        mine.sort(key=lambda pair: (-pair[1]["last"] / pair[1]["clips"], -pair[1]["clips"], pair[0]))
        name = escape(title(database))
        drawing = figures.subjects_svg([(s, c["last"], c["clips"]) for s, c in mine])
        blocks.append(f"<figure><figcaption>{name}</figcaption>{drawing}</figure>")
        lines += [
            f"<tr><td>{name}</td><td>{escape(subject)}</td><td>{count['clips']}</td>"
            f"<td>{count['last'] / count['clips']:.2f}</td>"
            f'<td class="oracle">{count["oracle"] / count["clips"]:.2f}</td></tr>'
            for subject, count in mine
        ]
    many = f", counted once for each of {len(run.seeds)} seeds" if len(run.seeds) > 1 else ""
    head = (
        f"<tr><th>database</th><th>subject</th><th>clips{' × seeds' if many else ''}</th>"
        '<th>right, last</th><th class="oracle">right, oracle</th></tr>'
    )
    return section(
        "Subjects",
        f'<div class="figures">{"".join(blocks)}</div>',
        note(
            f"One bar per subject, as wide as it has clips{many}, filled by the share that was right "
            "(last epoch)."
        ),
        f"<details><summary>All subjects</summary>{table(head, lines)}</details>",
    )


def _number(cell: Mapping[str, float] | None, key: str) -> str:
    value = (cell or {}).get(key)
    if value is None:
        return ""
    spread = (cell or {}).get(f"{key}_std")
    return f"{value:.3f}" + (f'<small class="sd"> ± {spread:.3f}</small>' if spread else "")


def _bounds(run: Run, selection: str, scope: str, key: str) -> str:
    """The interval of a score as a small second line; controls and older runs have none."""
    found = run.summary.get("intervals", {}).get(selection, {}).get(scope)
    if found is None:
        return ""
    low, high = (f"{value:.3f}".removeprefix("0") for value in found[key])
    return f'<small class="bounds">{low}–{high}</small>'


def _intervals(run: Run) -> str:
    if not run.summary.get("intervals"):
        return ""
    together = " A drawn subject brings its predictions of all seeds." if len(run.seeds) > 1 else ""
    draws = f"Small: 95 % of {DRAWS:,} draws of the subjects, each database keeping its number."
    return draws + together


def _decimals(text: str) -> str:
    return f"{float(text):.3f}" if text else ""
