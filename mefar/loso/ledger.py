"""The ledger of folds: what a leave-one-subject-out run has finished, one JSON line per fold and seed.

A line carries the identity of the study that made it, a hash of everything that determines its
numbers; lines of another identity are left alone and never read. Lines are appended under a lock, in one
write, and flushed to disk, so a run that is killed loses at most the groups it was training. A line that is
torn, damaged or without its check is ignored, and its fold trained again.

The ledger is the only meeting place of ranks: what is in it nobody trains again.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mefar.files import lock
from mefar.loso.folds import Fold, FoldResult

NAME = "folds.jsonl"


class Ledger:
    """Finished folds of one study in one run directory.

    Args:
        folder: the run directory.
        identity: hash of everything that determines the results.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.path, self.identity = Path(folder) / NAME, identity

    def read(self) -> dict[Fold, tuple[FoldResult, float]]:
        """Finished folds of this study: fold -> result and seconds of training it took."""
        finished: dict[Fold, tuple[FoldResult, float]] = {}
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return finished
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                check = entry.pop("check")
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
                continue
            if check != _check(entry) or entry["study"] != self.identity:
                continue
            columns = ("rows", "probabilities", "predictions", "epochs", "attention")
            fold = Fold(entry["subject"], entry["seed"])
            result = FoldResult(fold, *(entry[name] for name in columns))
            finished.setdefault(fold, (result, float(entry["seconds"])))
        return finished

    def append(self, results: Sequence[FoldResult], seconds: float) -> None:
        """Add the folds of one group, and the seconds that it took, shared out evenly."""
        lines = []
        for result in results:
            entry = asdict(result) | asdict(result.fold)
            del entry["fold"]
            entry |= {"study": self.identity, "seconds": round(seconds / len(results), 3)}
            lines.append(json.dumps(entry | {"check": _check(entry)}))
        with lock(self.path.parent / "locks" / "ledger.lock", say=False), self.path.open("ab+") as file:
            torn = False
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"  # a torn line must not swallow ours: end it first
            file.write((("\n" if torn else "") + "\n".join(lines) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _check(entry: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry).encode())
