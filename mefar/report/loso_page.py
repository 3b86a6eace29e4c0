"""The page of a leave-one-subject-out run: one self-contained HTML file from what `mefar loso` left.

Reads summary.json (needed), predictions.csv, confusion.json, attention.json and pictures.npz (each
optional: its section is then left out). Nothing here computes a score; the numbers are the summary's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mefar.errors import UserError
from mefar.loso.results import FinishedRun as Run
from mefar.loso.results import read_run, title
from mefar.report import figures
from mefar.report.loso_scores import confusions, peers, scores, subjects
from mefar.report.loso_tokens import PICTURE_TITLES, attention, codes, mistakes, pictures
from mefar.report.page import facts, listed, plural, section, table, warning, write_page


def write_report(run: Path) -> Path:
    """Write RUN/report.html: scores, published numbers, confusions, pictures, tokens, subjects, provenance.

    Args:
        run: folder of a finished run.

    Returns:
        The page's path.

    Raises:
        UserError: no finished run there, or one of its files cannot be read.
    """
    content = read_run(run)
    makers = (
        scores, peers, confusions, pictures, mistakes, attention, codes, subjects, _dropped, _protocol,
        _provenance,
    )  # fmt: skip
    name = f"Leave one subject out: {title(content.summary['protocol'])}"
    return write_page(
        content.folder / "report.html", name, _lead(content), [make(content) for make in makers]
    )


def write_figure(run: Path, path: Path) -> Path:
    """Write the rows of pictures of a run, one per database, as one PNG.

    Args:
        run: folder of a finished run.
        path: file to write.

    Returns:
        The file's path.

    Raises:
        UserError: the run has no pictures.
    """
    content = read_run(run)
    rows = []
    for database in content.databases:
        found = figures.row_of(content.pictures, database)
        if found is not None:
            rows.append((title(database), found[0]))
    if not rows:
        raise UserError(f"{content.folder}: no pictures.npz with pictures in it; run `mefar loso` again")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figures.sheet(rows, PICTURE_TITLES).save(temporary, "PNG")
    os.replace(temporary, path)
    return path


def _lead(run: Run) -> str:
    cell = run.summary["scores"]["last"]["full"]
    clips, people = run.totals
    control = "A control: the labels of this run were shuffled. It must score at chance."
    return warning(control if run.shuffled else "") + (
        f'<p class="lead"><b>UF1 {cell["uf1"]:.3f}</b>, <b>UAR {cell["uar"]:.3f}</b> at the last epoch, over '
        f"{plural(clips, 'clip')} of {plural(people, 'subject')}, "
        f"{plural(len(run.summary['classes']), 'class', 'es')}, {plural(len(run.seeds), 'seed')}."
        f"{_interval(run)}</p>"
    )


def _interval(run: Run) -> str:
    bounds = run.summary.get("intervals", {}).get("last", {}).get("full")
    if bounds is None:
        return ""
    low, high = bounds["uf1"]
    return f" With other subjects: UF1 {low:.3f} to {high:.3f} (95 % of draws)."


def _dropped(run: Run) -> str:
    dropped = run.summary.get("dropped") or []
    left_out = run.summary.get("left_out") or []
    count = plural(len(left_out), "annotated clip")
    rule = f"<p>{count} left out by the protocol's rule.</p>" if left_out else ""
    remarks = [pair for pair in run.summary.get("notes") or [] if "/" in str(pair[0])]
    return section(
        "Dropped clips",
        _reasons(dropped) or "<p>None.</p>",
        listed("dropped clip", dropped),
        rule,
        _reasons(left_out),
        listed("clip left out", left_out, "clips left out"),
        listed("remark", remarks),
    )


def _reasons(pairs: Sequence[Sequence[object]]) -> str:
    """How many clips for which reason, the most first."""
    counts = Counter(str(reason) for _, reason in pairs)
    lines = "".join(f"<li>{count} × {escape(reason)}</li>" for reason, count in counts.most_common())
    return f"<ul>{lines}</ul>" if lines else ""


def _protocol(run: Run) -> str:
    summary = run.summary
    rows = []
    for database in run.databases:
        counts = summary["counts"][database]
        classes = "".join(f"<td>{int(counts.get('classes', {}).get(c, 0))}</td>" for c in summary["classes"])
        rows.append(
            f"<tr><th>{escape(title(database))}</th><td>{int(counts['clips'])}</td>"
            f"<td>{int(counts['subjects'])}</td>{classes}</tr>"
        )
    heads = "".join(f"<th>{escape(name)}</th>" for name in summary["classes"])
    origin = str((summary.get("tokenizer") or {}).get("pretrained_on") or "")
    seen = [title(database) for database in run.databases if database in origin.lower()]
    leak = ""
    if seen:
        leak = (
            f"The tokenizer was pretrained on {escape(origin)}, which holds faces of the "
            f"subjects tested here ({escape(', '.join(seen))})."
        )
    remarks = [
        f"<li>{escape(title(str(key)))}: {escape(str(text))}</li>"
        for key, text in summary.get("notes") or []
        if "/" not in str(key)
    ]
    several = len(run.databases) > 1
    return section(
        "Protocol",
        f"<p>Every subject is held out once; {plural(int(summary.get('folds', 0)), 'fold')}"
        f"{f' for each of {len(run.seeds)} seeds' if len(run.seeds) > 1 else ''}. A subject is a "
        "pair (database, subject). "
        f"{'Training is over all databases of the protocol, and class' if several else 'Class'} weights come "
        "from the training subjects of each fold. Predictions of all folds are pooled before scoring; UF1 "
        "and UAR are means over <i>all</i> classes, and a class that nobody predicts counts 0."
        f"{' The rows of single databases are the same predictions, restricted.' if several else ''}</p>",
        table(f"<tr><th></th><th>clips</th><th>subjects</th>{heads}</tr>", rows),
        f"<ul>{''.join(remarks)}</ul>" if remarks else "",
        f"<p>Tokenizer pretrained on: {escape(origin) or 'not recorded'}.</p>",
        warning(leak),
    )


def _provenance(run: Run) -> str:
    summary = run.summary
    tokenizer = summary.get("tokenizer") or {}
    seconds = summary.get("wall_seconds")
    return section(
        "How this was made",
        facts(
            {
                "command": summary.get("command"),
                "commit": summary.get("commit"),
                "tokenizer": tokenizer.get("checkpoint"),
                "sha256": tokenizer.get("sha256"),
                "apex": summary.get("apex"),
                "views": summary.get("views"),
                "text anchors": summary.get("edclip"),
                "seeds": ", ".join(str(seed) for seed in run.seeds),
                "training": _settings(summary.get("training") or {}),
                "adapted": _adapted(summary.get("adapt_tokenizer", 0.0)),
                "head": _settings(summary.get("head") or {}),
                "wall time": f"{float(seconds):,.0f} s" if seconds is not None else None,
                "mefar": summary.get("mefar"),
            }
        ),
    )


def _adapted(weight: float) -> str:
    if not weight:
        return ""
    return (
        "every fold went on training a copy of the tokenizer on its own training pairs (squared error, "
        f"weight {weight}); pictures and codes above are of the tokenizer that all folds started from"
    )


def _settings(entries: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in entries.items())
