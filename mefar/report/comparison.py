"""Many runs as one table for a paper: methods by databases, last beside inner and oracle, with intervals.

Runs of one protocol make a block. The first run of a block is what the others are compared with: `+` and `-`
say that the 95 % interval of the paired difference of UF1 over the same draws of subjects does not hold 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mefar.errors import UserError
from mefar.files import check_ours, csv_text, write_text
from mefar.loso import bootstrap
from mefar.loso.results import FinishedRun, ordered, read_run, title
from mefar.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = (
    "UF1/UAR of the last epoch, fixed in advance; 95 %: of UF1 over draws of the subjects; inner: epoch "
    "chosen by training subjects; oracle* leaks (epoch chosen on the test subject), only to be compared "
    "with published tables. +, -: better, worse than the first row; the paired 95 % interval does not hold 0."
)
_SELECTIONS = ("last", "inner", "oracle")


@dataclass(frozen=True)
class Row:
    """One run of a method; mark: `+` or `-` against the block's first run, `?` if they cannot be paired."""

    name: str
    run: FinishedRun
    mark: str


@dataclass(frozen=True)
class Block:
    """The runs of one protocol, first what the others are compared with; scopes: full, then databases."""

    protocol: str
    scopes: list[str]
    rows: list[Row]


def blocks(folders: Sequence[Path]) -> list[Block]:
    """Read runs and compare them.

    Raises:
        UserError: no finished run in one of the folders, or one of shuffled labels.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if run.shuffled:
            raise UserError(f"{run.folder}: its labels are shuffled, a control; leave it out of the table")
    names = Counter(method_name(run) for run in runs)
    found = []
    for protocol in dict.fromkeys(run.summary["protocol"] for run in runs):
        own = [run for run in runs if run.summary["protocol"] == protocol]
        rows = []
        for run in own:
            name = method_name(run)
            rows.append(
                Row(f"{name} ({run.folder.name})" if names[name] > 1 else name, run, _mark(own[0], run))
            )
        found.append(Block(protocol, ordered({scope for run in own for scope in run.scopes}), rows))
    return found


def method_name(run: FinishedRun) -> str:
    """STSTNet, or the head and what it reads: `TokenHead on tokens`."""
    if method := run.summary.get("method"):
        return str(method).rpartition(".")[2]
    return str((run.summary.get("head") or {}).get("class_path", "head")).rpartition(".")[2] + " on tokens"


def _mark(first: FinishedRun, run: FinishedRun) -> str:
    if run is first:
        return ""
    if first.predictions is None or run.predictions is None:
        return "?"
    try:
        found = bootstrap.compare(first.predictions, run.predictions)["uf1"]
    except UserError:
        return "?"
    return "+" if found.low > 0 else "-" if found.high < 0 else ""


def columns(block: Block) -> list[str]:
    """Titles of the columns of a block."""
    inner = ["inner"] if any("inner" in row.run.summary["scores"] for row in block.rows) else []
    scopes = [block.rows[0].run.row(scope) for scope in block.scopes]
    return ["method", *scopes, "95 %", *inner, "oracle*", "parameters", "seconds"]


def cells(block: Block) -> list[list[str]]:
    """Text of every cell of a block, in the order of `columns`."""
    made = []
    for row in block.rows:
        summary = row.run.summary
        scores, head = summary["scores"], summary.get("head") or {}
        line = [row.name]
        for scope in block.scopes:
            mark = f" {row.mark}" if row.mark and scope == "full" else ""
            line.append(_pair(scores["last"].get(scope)) + mark)
        bounds = summary.get("intervals", {}).get("last", {}).get("full", {}).get("uf1")
        line.append(" to ".join(_short(value) for value in bounds) if bounds else "")
        for selection in ("inner", "oracle"):
            if selection == "oracle" or "inner" in columns(block):
                line.append(_pair(scores.get(selection, {}).get("full")))
        count, seconds = head.get("parameters"), summary.get("training_seconds")
        line += ["" if count is None else f"{count:,}", "" if seconds is None else f"{seconds:,.0f}"]
        made.append(line)
    return made


def _pair(values: dict[str, float] | None) -> str:
    return "" if values is None else "/".join(_short(values[name]) for name in ("uf1", "uar"))


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def heading(block: Block) -> str:
    """What a block is about."""
    clips, subjects = block.rows[0].run.totals
    return f"{title(block.protocol)}: {clips} clips, {subjects} subjects"


def markdown(found: Sequence[Block]) -> str:
    """The table for a README."""
    lines = []
    for block in found:
        names = columns(block)
        lines += [f"{heading(block)}", "", f"| {' | '.join(names)} |", f"|---{'|---:' * (len(names) - 1)}|"]
        lines += [f"| {' | '.join(line)} |" for line in cells(block)] + [""]
    return "\n".join([*lines, NOTE, ""])


def latex(found: Sequence[Block]) -> str:
    """The table for a paper, with booktabs."""
    lines = []
    for block in found:
        names = columns(block)
        lines += [f"% {heading(block)}", rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}", r"\toprule"]
        lines.append(" & ".join(map(_escaped, names)) + r" \\ \midrule")
        lines += [" & ".join(map(_escaped, line)) + r" \\" for line in cells(block)]
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join([*lines, f"% {NOTE}", ""])


def _escaped(text: str) -> str:
    for sign in "&%_#$":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("³", "$^3$")


def long_csv(found: Sequence[Block]) -> str:
    """Every number: one row per run, place and selection."""
    names = ("protocol", "method", "run", "place", "selection", "uf1", "uar", "uf1_low", "uf1_high",
            "parameters", "seconds", "against_first")  # fmt: skip
    rows = []
    for block in found:
        for row in block.rows:
            summary = row.run.summary
            for selection in (each for each in _SELECTIONS if each in summary["scores"]):
                for scope, values in summary["scores"][selection].items():
                    bounds = (
                        summary.get("intervals", {}).get(selection, {}).get(scope, {}).get("uf1", ("", ""))
                    )
                    told = row.mark if (selection, scope) == ("last", "full") else ""
                    rows.append([
                        block.protocol, row.name, row.run.folder.name, scope, selection, values["uf1"],
                        values["uar"], *bounds, (summary.get("head") or {}).get("parameters", ""),
                        summary.get("training_seconds", ""), told,
                    ])  # fmt: skip
    return csv_text(names, rows)


def write(found: Sequence[Block], path: Path) -> None:
    """Write the table: .md, .tex or .csv.

    Raises:
        UserError: another ending, or no table stands there.
    """
    makers = {".md": markdown, ".tex": latex, ".csv": long_csv}
    if path.suffix not in makers:
        raise UserError(f"{path}: a table is .md, .tex or .csv; name it so")
    check_ours(path, "method")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, makers[path.suffix](found))


def charts(found: Sequence[Block]) -> dict[str, Figure]:
    """How much choosing the epoch on the test subject is worth, one chart per protocol."""
    made = {}
    for block in found:
        points = [
            (row.name, *(row.run.summary["scores"][each]["full"]["uf1"] for each in ("last", "oracle")))
            for row in block.rows
            if "oracle" in row.run.summary["scores"]
        ]
        if points:
            made[f"oracle_{block.protocol}"] = figures.last_and_oracle(points)
    return made
