"""`mefar sweep`: a W&B sweep file without an account, run after run on this machine."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mefar import sweeps
from mefar.commands import run_function
from mefar.errors import UserError
from mefar.files import lock, replacing
from mefar.sweeps import Settings, Sweep

RESULTS = "results.jsonl"


def sweep(file: Path, *, local: int = 0, seed: int = 0, out: Path | None = None) -> int:
    """Check a W&B sweep file; with `--local N` also run N of its draws here, one after another.

    A grid is taken in order, anything else at random: bayes needs W&B's server. W&B itself is offline. Every
    finished draw is a line of results.jsonl; a second call goes on, with what failed or is new. What a run
    printed is in its .log beside that.

    Args:
        file: such as experiments/sweeps/loso.yaml.
        local: number of draws; 0 only checks the file.
        seed: of the draws.
        out: folder for results and logs; default runs/sweeps/NAME.
    """
    plan = sweeps.read(file)
    if local < 0:
        raise UserError(f"local is {local}; give a number of runs, or 0 to check the file")
    if not local:
        print(f"{file}: {plan.method} over {len(plan.parameters)} parameters for {plan.metric}")
        return 0
    draws = plan.draws(local, seed)
    names = [plan.name(settings) for settings in draws]
    if plan.method == "bayes":
        print(f"bayes needs W&B's server: {len(draws)} draws at random instead, seed {seed}")
    elif len(draws) < local:
        print(f"{file} has {len(draws)} different draws, not {local}")
    folder = out or Path("runs/sweeps") / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock"):
        results = _Results(folder / RESULTS, plan.metric)
        _run_all(plan, dict(zip(names, draws, strict=True)), results, folder)
    rows = [results.entries[name] for name in names]
    finished = [row for row in rows if row["value"] is not None]
    Console(width=None if sys.stdout.isatty() else 160).print(_table(plan, rows))
    print(results.path)
    return 0 if finished else 1


class _Results:
    """results.jsonl: the newest line of a draw for this metric counts.

    The file is small and written anew each time: whole, or not at all.
    """

    def __init__(self, path: Path, metric: str) -> None:
        self.path, self.metric = path, metric
        self.lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        try:
            entries = [json.loads(line) for line in self.lines]
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not JSON lines; delete it or give another --out") from error
        self.entries = {entry["run"]: entry for entry in entries if entry["metric"] == metric}

    def add(self, entry: dict[str, Any]) -> None:
        self.entries[entry["run"]] = entry
        self.lines.append(json.dumps(entry))
        with replacing(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")


def _run_all(plan: Sweep, draws: dict[str, Settings], results: _Results, folder: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("sweep", total=len(draws))
        for name, settings in draws.items():
            varied = _varied(plan, settings)
            bar.update(task, description=f"{name}: {varied}")
            if results.entries.get(name, {}).get("value") is None:
                entry = _run(plan, name, settings, folder / f"{name}.log")
                results.add(entry)
                said = f"{entry['value']:.4f}" if entry["value"] is not None else entry["error"]
                bar.console.print(f"{name}: {said}   {varied}", highlight=False, markup=False, soft_wrap=True)
            bar.advance(task)


def _varied(plan: Sweep, settings: Settings) -> str:
    """The settings that differ between draws, by the last part of their names."""
    varied = {name: value for name, value in settings.items() if plan.parameters[name].kind != "constant"}
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in varied.items())


def _run(plan: Sweep, name: str, settings: Settings, log: Path) -> dict[str, Any]:
    """Run one draw in a process of its own; returns its line of the results.

    The draw holds the sweep's lock too: where it outlives a killed sweep, the next call waits for its end
    instead of starting the same draw beside it.

    Raises:
        UserError: it went well but left no such metric, so no other draw will.
    """
    words = plan.words(settings)
    if words[0] == "mefar":  # this one, whatever PATH says
        words[:1] = [sys.executable, "-m", "mefar"]
    filled = [word.replace("{run}", name) for word in words]
    environment = os.environ | {"WANDB_MODE": "offline", sweeps.RUN_ID: name}
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(filled)}\n")
        file.flush()
        try:
            code = subprocess.run(
                filled,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
            ).returncode
        except OSError as error:
            raise UserError(f"{plan.path}: command cannot be started: {error}") from error
    seconds = round(time.monotonic() - began, 1)
    entry = {"run": name, "settings": settings, "metric": plan.metric, "value": None, "seconds": seconds}
    place = Path(plan.folder.replace("{run}", name))
    entry |= {"folder": str(place), "command": shlex.join(filled)}
    if code:
        last = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        return entry | {"error": f"exit code {code}: {last[-1]}"}
    value = plan.score(place)
    return entry | ({"value": value} if math.isfinite(value) else {"error": f"{plan.metric} is {value}"})


def _table(plan: Sweep, rows: Sequence[dict[str, Any]]) -> Table:
    """Draws, best first, failed ones last."""
    table = Table(title=f"{plan.metric}, {len(rows)} draws", title_justify="left")
    names = [name for name, parameter in plan.parameters.items() if parameter.kind != "constant"]
    for title in (plan.metric, *(name.rpartition(".")[2] for name in names), "s", "run"):
        table.add_column(title, justify="right", overflow="fold")
    sign = -1 if plan.maximize else 1
    for row in sorted(rows, key=lambda row: math.inf if row["value"] is None else sign * row["value"]):
        shown = "failed" if row["value"] is None else f"{row['value']:.4f}"
        cells = [f"{row['settings'][name]}" for name in names]
        table.add_row(shown, *cells, f"{row['seconds']:.0f}", row["run"])
    return table


def main(argv: Sequence[str]) -> int:
    """Run `mefar sweep`."""
    return run_function(sweep, argv, "mefar sweep")
