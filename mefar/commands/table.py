"""`mefar table RUN ...`: finished runs as one table for a README or a paper, and last against oracle."""

from __future__ import annotations

from pathlib import Path

from mefar.report import comparison, figures


def table(runs: list[Path], *, out: Path | None = None, chart: Path | None = None) -> None:
    """Methods by databases: last, inner, oracle, parameters, seconds, intervals, paired comparisons.

    `mefar table RUN_A RUN_B ...`; the first run of a protocol is what the others are compared with.

    Args:
        runs: folders of finished `mefar loso` runs.
        out: also write the table: .md, .tex (booktabs), or .csv with every number there is.
        chart: also draw last against oracle into this folder, PDF and PNG, one chart per protocol.
    """
    found = comparison.blocks(runs)
    print(comparison.markdown(found))
    if out is not None:
        comparison.write(found, out)
        print(out)
    if chart is not None:
        print(*figures.save(comparison.charts(found), chart), sep="\n")
