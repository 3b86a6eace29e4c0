"""`mefar score-spotting TRUTH.csv FOUND.csv`: anybody's intervals, scored as the challenges define it."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mefar.files import check_ours, write_text
from mefar.recognition.intervals import read_intervals
from mefar.recognition.scores import GROUPS, elsewhere, score


def score_spotting(truth: Path, found: Path, *, out: Path | None = None) -> None:
    """Score spotted intervals, and say where another evaluator would differ and why.

    Both files are csv with the columns video, kind (micro or macro), onset, offset (frames, both included),
    and, if there are any, subject, database and emotion. The challenges' own names (vid, type, pred_onset,
    pred_offset, me, mae) do as well. Give a video without any expression a row with an empty onset.

    Args:
        truth: csv of the annotated intervals.
        found: csv of the spotted ones.
        out: also write the numbers to this JSON file.
    """
    true, spotted = read_intervals(truth), read_intervals(found)
    scores = score(true.intervals, spotted.intervals)
    emotions = any(interval.emotion for interval in true.intervals)
    title = f"{len(true.videos | spotted.videos)} videos, {len(true.intervals)} truths"
    table = Table(title=f"{title}, {len(spotted.intervals)} detections", title_justify="left")
    names = ["TP", "FP", "FN", "precision", "recall", "F1"]
    names += ["analysis P", "analysis R", "analysis F1", "STRS"] if emotions else []
    for name in ("", *names):
        table.add_column(name, justify="right" if name else "left")
    for group in GROUPS:
        row = scores[group]
        cells = [f"{row[name]:.0f}" for name in ("tp", "fp", "fn")]
        rates = ["precision", "recall", "f1"]
        rates += ["analysis_precision", "analysis_recall", "analysis_f1", "strs"] if emotions else []
        table.add_row(group, *cells, *(f"{row[name]:.4f}" for name in rates))
    Console().print(table)
    unknown = sorted(spotted.videos - true.videos)
    if unknown:
        print(
            f"{len(unknown)} videos of {found} are not in {truth}, such as {unknown[0]}: "
            "all their detections are false positives"
        )
    differences = elsewhere(true, spotted)
    if differences:
        print("Another evaluator would say:")
    for number, reason in differences:
        print(f"  {number}: {reason}")
    if out is not None:
        check_ours(out, '"elsewhere":')
        write_text(out, json.dumps({"scores": scores, "elsewhere": differences}, indent=1) + "\n")
        print(out)
