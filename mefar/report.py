"""The page of a run: one self-contained HTML file from what `mefar loso` left in its folder.

Reads summary.json (needed), predictions.csv, confusion.json and pictures.npz (each optional: its
section is then left out). Nothing here computes a score; the numbers are the summary's.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from mefar import figures
from mefar.record import Run, ordered, read_run, title
from mefar.tokens import InputError

ASSETS = Path(__file__).parent / "assets"
PICTURE_TITLES = ("onset", "apex", "reconstruction", "change", "rebuilt change")
OFFICIAL = {"composite": (442, 68), "smic": (164, 16)}
"""Clips and subjects of a protocol on the real databases, where published papers agree on them."""


def write_report(run: Path) -> Path:
    """Write RUN/report.html: scores, published numbers, confusions, pictures, codes, subjects, provenance.

    Args:
        run: folder of a finished run.

    Returns:
        The page's path.

    Raises:
        InputError: no finished run there, or one of its files cannot be read.
    """
    content = read_run(run)
    sections = [
        _scores(content),
        _peers(content),
        _confusions(content),
        _pictures(content),
        _codes(content),
        _subjects(content),
        _dropped(content),
        _protocol(content),
        _provenance(content),
    ]
    template = Template((ASSETS / "report.html").read_text(encoding="utf-8"))
    page = template.substitute(title=escape(_title(content)), lead=_lead(content), body="\n".join(sections))
    path = content.folder / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def write_figure(run: Path, path: Path) -> Path:
    """Write the rows of pictures of a run, one per database, as one PNG.

    Args:
        run: folder of a finished run.
        path: file to write.

    Returns:
        The file's path.

    Raises:
        InputError: the run has no pictures.
    """
    content = read_run(run)
    rows = []
    for database in content.databases:
        found = figures.row_of(content.pictures, database)
        if found is not None:
            rows.append((title(database), found[0]))
    if not rows:
        raise InputError(f"{content.folder}: no pictures.npz with pictures in it; run `mefar loso` again")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figures.sheet(rows, PICTURE_TITLES).save(temporary, "PNG")
    os.replace(temporary, path)
    return path


def _number(cell: Mapping[str, float] | None, key: str) -> str:
    value = (cell or {}).get(key)
    if value is None:
        return ""
    spread = (cell or {}).get(f"{key}_std")
    return f"{value:.3f}" + (f'<small class="sd"> ± {spread:.3f}</small>' if spread else "")


def _title(run: Run) -> str:
    protocol = run.summary["protocol"]
    return f"Leave one subject out: {title(protocol)}"


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else ending)


def _lead(run: Run) -> str:
    cell = run.summary["scores"]["last"]["full"]
    clips, subjects = run.totals
    seeds = run.summary.get("seeds", [0])
    control = ""
    if run.summary.get("control") == "shuffled":
        control = (
            '<p class="warning">A control: the labels of this run were shuffled. It must score at chance.</p>'
        )
    return control + (
        f'<p class="lead"><b>UF1 {cell["uf1"]:.3f}</b>, <b>UAR {cell["uar"]:.3f}</b> at the last epoch, over '
        f"{_plural(clips, 'clip')} of {_plural(subjects, 'subject')}, "
        f"{_plural(len(run.summary['classes']), 'class', 'es')}, {_plural(len(seeds), 'seed')}."
        f"{run.interval}</p>"
    )


def _section(name: str, *content: str) -> str:
    return f"<section><h2>{name}</h2>\n" + "\n".join(content) + "\n</section>"


def _scores(run: Run) -> str:
    scores, controls = run.summary["scores"], run.summary.get("controls") or {}
    columns: list[tuple[str, str, str, Mapping[str, Any]]] = [
        ("last", "last epoch", "our score", scores["last"])
    ]
    if "inner" in scores:
        columns.append(("inner", "inner", "epoch by training subjects", scores["inner"]))
    if "oracle" in scores:
        columns.append(("oracle", "oracle", "leaks: epoch by test subject", scores["oracle"]))
    names = {"pixels": ("pixel control", "linear on differences"), "shuffled": ("shuffled labels", "chance")}
    for key, cells in controls.items():
        name, note = names.get(key, (key, "control"))
        columns.append(("control", name, note, cells))
    head = "".join(
        f'<th colspan="2" class="{kind}">{escape(name)}<small>{escape(note)}</small></th>'
        for kind, name, note, _ in columns
    )
    under = "".join(f'<th class="{kind}">UF1</th><th class="{kind}">UAR</th>' for kind, *_ in columns)
    counts = run.summary["counts"]
    body = []
    for scope in run.scopes:
        clips = run.totals[0] if scope == "full" else int(counts.get(scope, {}).get("clips", 0))
        cells = "".join(
            f'<td class="{kind}">{_number(column.get(scope), key)}</td>'
            for kind, _, _, column in columns
            for key in ("uf1", "uar")
        )
        name = escape(title(scope))
        body.append(f'<tr class="{scope}"><th>{name}</th><td class="n">{clips}</td>{cells}</tr>')
    note = (
        '<p class="note"><b>last</b> is the last epoch, its number fixed before training: the only column '
        'we call our score. <b class="oracle">oracle</b> keeps, for each held-out subject, the epoch that '
        "is best on that very subject. That is selection on the test data; it stands here because most "
        "published tables are made this way and can be compared with nothing else.</p>"
    )
    return _section(
        "Scores",
        f'<div class="wide"><table class="scores"><thead><tr><th></th><th></th>{head}</tr>'
        f'<tr><th></th><th class="n">clips</th>{under}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>",
        note,
    )


def _peers(run: Run) -> str:
    if run.summary["protocol"] != "composite":
        return ""
    scopes = ("full", "casme2", "smic", "samm")
    with (ASSETS / "peers_composite.csv").open(newline="", encoding="utf-8") as file:
        peers = list(csv.DictReader(file))

    def row(kind: str, name: str, year: str, cells: Sequence[tuple[str, str]], epoch: str) -> str:
        numbers = "".join(f"<td>{uf1}</td><td>{uar}</td>" for uf1, uar in cells)
        label = f'<span class="oracle">{epoch}</span>' if epoch == "oracle" else epoch
        return f'<tr class="{kind}"><th>{escape(name)}</th><td>{year}</td>{numbers}<td>{label}</td></tr>'

    rows = []
    for peer in peers:
        cells = [(peer[f"{scope}_uf1"], peer[f"{scope}_uar"]) for scope in scopes]
        tidy = [(_decimals(uf1), _decimals(uar)) for uf1, uar in cells]
        rows.append(row("", peer["method"], peer["year"], tidy, escape(peer["epoch"])))
    for selection in ("last", "oracle"):
        scores = run.summary["scores"].get(selection)
        if scores:
            found = [scores.get(scope) for scope in scopes]
            ours = [(_number(cell, "uf1"), _number(cell, "uar")) for cell in found]
            kind = "ours headline" if selection == "last" else "ours"
            rows.append(row(kind, "this run", "", ours, selection))
    heads = "".join(f'<th colspan="2">{title(scope)}</th>' for scope in scopes)
    clips, subjects = run.totals
    official = OFFICIAL["composite"]
    warning = ""
    if (clips, subjects) != official:
        warning = (
            f'<p class="warning">Not comparable: this run has {clips} clips of {subjects} subjects, the '
            f"published protocol has {official[0]} of {official[1]}.</p>"
        )
    return _section(
        "Next to published numbers",
        warning,
        '<div class="wide"><table class="scores peers"><thead>'
        f"<tr><th></th><th></th>{heads}<th></th></tr>"
        f"<tr><th></th><th>year</th>{'<th>UF1</th><th>UAR</th>' * len(scopes)}<th>epoch</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>",
        '<p class="note">As printed in the papers; compare like with like in the column <i>epoch</i>.</p>',
    )


def _decimals(text: str) -> str:
    return f"{float(text):.3f}" if text else ""


def _confusions(run: Run) -> str:
    if not run.confusion:
        return ""
    drawn = [
        f"<figure><figcaption>{escape(title(scope))}</figcaption>"
        f"{figures.confusion_svg(run.confusion[scope], run.summary['classes'])}</figure>"
        for scope in ordered(run.confusion)
    ]
    seeds = len(run.summary.get("seeds", [0]))
    pooled = f" Counts are pooled over {seeds} seeds." if seeds > 1 else ""
    note = f'<p class="note">Last epoch. Rows are annotated, columns predicted.{pooled}</p>'
    return _section("Confusion", f'<div class="figures">{"".join(drawn)}</div>', note)


def _pictures(run: Run) -> str:
    rows = []
    for database in run.databases:
        found = figures.row_of(run.pictures, database)
        if found is not None:
            images = "".join(
                f'<td><img src="{figures.png_uri(picture, 150)}" width="150" alt="{part}"></td>'
                for picture, part in zip(found[0], PICTURE_TITLES, strict=True)
            )
            name = escape(title(database))
            rows.append(f"<tr><th>{name}<small>changes × {found[1]:.0f}</small></th>{images}</tr>")
    if not rows:
        return ""
    head = "".join(f"<th>{part}</th>" for part in PICTURE_TITLES)
    return _section(
        "What the tokens say",
        f'<div class="wide"><table class="pictures"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
        '<p class="note">One clip per database, whose pixels move as much as the median of its database; '
        "neither the best nor the worst. Reconstruction: the onset, moved by the tokens alone. The two maps "
        "show what became "
        '<span class="lighter">lighter</span> and <span class="darker">darker</span> since the onset, '
        "amplified alike: in the recording, and in what the tokens brought back of it.</p>",
    )


def _codes(run: Run) -> str:
    if "usage" not in run.pictures:
        return ""
    usage = [int(count) for count in run.pictures["usage"]]
    total = sum(usage)
    shares = [count / total for count in usage if count] if total else []
    perplexity = math.exp(-sum(share * math.log(share) for share in shares))
    used = sum(count > 0 for count in usage)
    return _section(
        "Codes",
        f"<p><b>{used} of {len(usage)}</b> codes are used on these clips; perplexity <b>{perplexity:.1f}</b> "
        f"of {len(usage)} over {total:,} tokens.</p>",
        f'<div class="wide">{figures.usage_svg(usage)}</div>',
        '<p class="note">Times each code was chosen; dashed: the uniform share.</p>',
    )


def _subjects(run: Run) -> str:
    if not run.predictions:
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
    return _section(
        "Subjects",
        f'<div class="figures">{"".join(blocks)}</div>',
        '<p class="note">One bar per subject, as wide as it has clips, filled by the share that was right '
        "(last epoch).</p>",
        "<details><summary>All subjects</summary><table><thead><tr><th>database</th><th>subject</th>"
        '<th>clips × seeds</th><th>right, last</th><th class="oracle">right, oracle</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></details>",
    )


def _dropped(run: Run) -> str:
    dropped = run.summary.get("dropped") or []
    excluded = run.summary.get("excluded")
    rule = (
        f"<p>{_plural(excluded, 'annotated clip')} left out by the protocol's rule.</p>" if excluded else ""
    )
    remarks = [pair for pair in run.summary.get("notes") or [] if "/" in str(pair[0])]
    if not dropped:
        return _section("Dropped clips", "<p>None.</p>", rule, _listed("remark", remarks))
    reasons = Counter(str(reason) for _, reason in dropped)
    totals = "".join(f"<li>{count} × {escape(reason)}</li>" for reason, count in reasons.most_common())
    return _section(
        "Dropped clips",
        f"<ul>{totals}</ul>",
        rule,
        _listed("dropped clip", dropped),
        _listed("remark", remarks),
    )


def _listed(noun: str, pairs: Sequence[Sequence[Any]]) -> str:
    if not pairs:
        return ""
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(text))}</td></tr>" for k, text in pairs)
    name = _plural(len(pairs), noun)
    return f"<details><summary>{name}</summary><table><tbody>{rows}</tbody></table></details>"


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
    tokenizer = summary.get("tokenizer") or {}
    origin = str(tokenizer.get("pretrained_on") or "")
    seen = [title(database) for database in run.databases if database in origin.lower()]
    leak = ""
    if seen:
        leak = (
            f'<p class="warning">The tokenizer was pretrained on {escape(origin)}, which holds faces of the '
            f"subjects tested here ({escape(', '.join(seen))}).</p>"
        )
    remarks = [
        f"<li>{escape(title(str(key)))}: {escape(str(text))}</li>"
        for key, text in summary.get("notes") or []
        if "/" not in str(key)
    ]
    return _section(
        "Protocol",
        f"<p>Every subject is held out once; {_plural(int(summary.get('folds', 0)), 'fold')}. A subject is a "
        "pair (database, subject). Training is over all databases of the protocol, and class weights come "
        "from the training subjects of each fold. Predictions of all folds are pooled before scoring; UF1 "
        "and UAR are means over <i>all</i> classes, and a class that nobody predicts counts 0. The rows of "
        "single databases are the same predictions, restricted.</p>",
        f'<div class="wide"><table><thead><tr><th></th><th>clips</th><th>subjects</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
        f"<ul>{''.join(remarks)}</ul>",
        f"<p>Tokenizer pretrained on: {escape(origin) or 'not recorded'}.</p>",
        leak,
    )


def _provenance(run: Run) -> str:
    summary = run.summary
    tokenizer = summary.get("tokenizer") or {}
    seconds = summary.get("wall_seconds")
    facts = {
        "command": summary.get("command"),
        "commit": summary.get("commit"),
        "tokenizer": tokenizer.get("checkpoint"),
        "sha256": tokenizer.get("sha256"),
        "apex": summary.get("apex"),
        "views": summary.get("views"),
        "text anchors": summary.get("edclip"),
        "seeds": ", ".join(str(seed) for seed in summary.get("seeds", [])),
        "training": ", ".join(f"{name} {value}" for name, value in (summary.get("training") or {}).items()),
        "head": ", ".join(f"{name} {value}" for name, value in (summary.get("head") or {}).items()),
        "wall time": f"{float(seconds):,.0f} s" if seconds is not None else None,
        "mefar": summary.get("mefar"),
    }
    rows = "".join(
        f"<tr><th>{name}</th><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in facts.items()
        if value
    )
    return _section("How this was made", f'<div class="wide"><table class="facts">{rows}</table></div>')
