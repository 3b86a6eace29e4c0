"""The ledger of folds: what a leave-one-subject-out run has finished, one JSON line per fold and seed.

A line carries the identity of the study that made it, a hash of everything that determines its
numbers; lines of another identity are left alone and never read. Lines are appended in one write and
flushed to disk, so a run that is killed loses at most the groups it was training. A line that is torn or
damaged is ignored, and its fold trained again.

Rank 0 writes folds.jsonl, every other rank its own folds.rank<r>.jsonl beside it: appends of several
machines to one file are not safe on network disks. `merge` makes one file of them.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mefar.loso.folds import Fold, FoldResult

NAME = "folds.jsonl"


class Ledger:
    """Finished folds of one study in one run directory.

    Args:
        folder: the run directory.
        identity: hash of everything that determines the results.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = Path(folder), identity

    def _lines(self) -> list[str]:
        """Whole lines of all files; what a kill tore off is not JSON and left out."""
        # The ranks' own files first: what another process merges meanwhile is met here or there.
        paths = [*sorted(self.folder.glob("folds.rank*.jsonl")), self.folder / NAME]
        texts = []
        for path in paths:
            with suppress(FileNotFoundError):
                texts.append(path.read_text(encoding="utf-8", errors="replace"))
        lines = []
        for line in "\n".join(reversed(texts)).splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(entry, dict) and "study" in entry and _whole(entry):
                lines.append(line)
        return lines

    def read(self) -> dict[Fold, tuple[FoldResult, float]]:
        """Finished folds of this study: fold -> result and seconds of training it took."""
        finished: dict[Fold, tuple[FoldResult, float]] = {}
        for line in self._lines():
            entry = json.loads(line)
            if entry["study"] != self.identity:
                continue
            columns = ("rows", "probabilities", "predictions", "epochs", "attention")
            try:
                fold = Fold(entry["subject"], entry["seed"])
                result = FoldResult(fold, *(entry[name] for name in columns))
                finished.setdefault(fold, (result, float(entry["seconds"])))
            except (KeyError, TypeError, ValueError):  # not a line of ours: the fold is trained again
                continue
        return finished

    def append(self, results: Sequence[FoldResult], seconds: float, rank: int = 0) -> None:
        """Add the folds of one group.

        Args:
            results: of the group.
            seconds: of training the group; shared out evenly.
            rank: who writes.
        """
        lines = []
        for result in results:
            entry = asdict(result) | asdict(result.fold)
            del entry["fold"]
            entry |= {"study": self.identity, "seconds": round(seconds / len(results), 3)}
            lines.append(json.dumps(entry | {"check": _check(entry)}))
        path = self.folder / (NAME if rank == 0 else f"folds.rank{rank}.jsonl")
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A torn line must not swallow ours: end it first.
                torn = file.read(1) != b"\n"
            else:
                torn = False
            file.write((("\n" if torn else "") + "\n".join(lines) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def merge(self) -> None:
        """Make one file of the ledgers of all ranks."""
        others = list(self.folder.glob("folds.rank*.jsonl"))
        if not others:
            return
        lines = list(dict.fromkeys(self._lines()))
        temporary = self.folder / f"{NAME}.{os.getpid()}.tmp"
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(temporary, self.folder / NAME)
        for path in others:
            path.unlink(missing_ok=True)


def _check(entry: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry).encode())


def _whole(entry: Mapping[str, Any]) -> bool:
    """Whether a line says what was written; a disk may have changed a digit."""
    rest = {name: value for name, value in entry.items() if name != "check"}
    return "check" not in entry or entry["check"] == _check(rest)
