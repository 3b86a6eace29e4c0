"""`mefar sweep`: a W&B sweep file checked, or drawn from and run here, without an account.

With an account W&B's own engine runs the same file: `wandb sweep FILE`, then `wandb agent`.
"""

import csv
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mefar.commands import child_environment, run_function
from mefar.commands.shipped import shipped
from mefar.errors import UserError
from mefar.files import fingerprint, lock, write_text
from mefar.sweeps import RUN_ID

FOLDER = {"loso": "--out", "fit": "--trainer.default_root_dir"}  # where a verb's run goes


def sweep(file: Path, *, local: int = 0, seed: int = 0, out: Path | None = None) -> int:
    """Check a W&B sweep file; with `--local N` also run N of its draws here, one after another.

    A grid is taken in order, anything else at random: bayes needs W&B's server. A finished draw is kept as
    NAME.json beside what it said, NAME.log; a second call goes on with what failed or is new.

    Args:
        file: a sweep file, or the name of a shipped one: loso or pretrain.
        local: number of draws; 0 only checks the file.
        seed: of the draws.
        out: folder for results and logs; default runs/sweeps/NAME.
    """
    plan = read(shipped("sweeps", str(file)))
    folder, metric, found = out or Path("runs/sweeps") / plan["path"].stem, plan["metric"], []
    how = "at random" if local > 0 and plan["method"] == "bayes" else plan["method"]
    print(f"{plan['path']}: {how} over {', '.join(plan['parameters'])} for {metric['name']}")
    with lock(folder / ".lock") if local > 0 else nullcontext():
        for settings in draws(plan, local, seed):
            name = fingerprint(words(plan, settings), metric)[:10]
            kept = folder / f"{name}.json"
            if not kept.exists() and (value := run(plan, name, settings, folder / f"{name}.log")) is not None:
                write_text(kept, json.dumps({"run": name, "value": value, "settings": settings}))
            found += [json.loads(kept.read_text(encoding="utf-8"))] if kept.exists() else []
    for row in sorted(found, key=lambda row: row["value"], reverse=metric["goal"] == "maximize"):
        print(f"{row['value']:.4f}  {row['run']}  {json.dumps(row['settings'])}")
    return 0 if found or local < 1 else 1


def read(path: Path) -> dict[str, Any]:
    """Read a sweep file; refuse one that tunes on tested subjects, or whose runs share a folder."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:  # 1e-4 without a point is a word in YAML 1.1
        plan = dict(yaml.safe_load(re.sub(r"(?<![\w.-])(\d+)[eE]([-+]\d+)\b", r"\1.0e\2", text)))
        command, metric, goal = " ".join(plan["command"]), plan["metric"]["name"], plan["metric"]["goal"]
        good = plan["method"] in ("grid", "random", "bayes") and goal in ("maximize", "minimize")
        if not good or not dict(plan["parameters"]):
            raise ValueError("method is grid, random or bayes; goal is maximize or minimize; parameters vary")
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no sweep of W&B's ({' '.join(str(error).split())})") from None
    verb = next((verb for verb in FOLDER if f"mefar {verb} " in command), "")
    place = re.search(rf" {FOLDER.get(verb)}[ =](\S*{{run}}\S*)", command)
    if place is None or "${args}" not in command:
        raise UserError(
            f"{path}: command must run `mefar loso` or `mefar fit` with ${{args}}, and --out or "
            "--trainer.default_root_dir with {run} in it, or its runs overwrite each other"
        )
    if "oracle" in metric or (verb == "loso" and not re.match(r"loso/(inner|last)/", metric)):
        raise UserError(
            f"{path}: metric {metric} is none to tune by: the oracle is chosen on the tested subjects; take "
            "loso/inner/uf1, or say loso/last/uf1 if you mean it"
        )
    for name, entry in plan["parameters"].items():
        try:
            draw(entry, np.random.default_rng(0))
            drawn = plan["method"] != "grid" or "min" not in entry
        except (KeyError, TypeError, ValueError):
            drawn = False
        if not drawn:
            raise UserError(
                f"{path}: parameters.{name}: give value, values (a grid needs them), or min and max of "
                "uniform, int_uniform or log_uniform_values; W&B's server knows more"
            )
    return plan | {"path": path, "verb": verb, "folder": place[1]}


def draws(plan: dict[str, Any], count: int, seed: int) -> list[dict[str, Any]]:
    """Different settings to try, fewer than `count` if there are no more."""
    entries, generator = plan["parameters"], np.random.default_rng(seed)
    if plan["method"] == "grid":
        levels = [entry["values"] if "values" in entry else [entry["value"]] for entry in entries.values()]
        rows = [dict(zip(entries, row, strict=True)) for row in itertools.product(*levels)]
    else:
        rows = [{name: draw(entries[name], generator) for name in entries} for _ in range(100 * count)]
    return list({json.dumps(row): row for row in rows}.values())[:count]


def draw(entry: dict[str, Any], generator: np.random.Generator) -> Any:
    """One value of a parameter; numbers of a continuum keep 6 digits."""
    if "min" not in entry:
        values = entry["values"] if "values" in entry else [entry["value"]]
        return values[generator.choice(len(values), p=entry.get("probabilities"))]
    low, high = entry["min"], entry["max"]
    kind = entry.get("distribution", "int_uniform" if isinstance(low + high, int) else "uniform")
    if kind == "int_uniform":
        return int(generator.integers(low, high, endpoint=True))
    if kind == "log_uniform_values":
        return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.6g}")
    return float(f"{generator.uniform(*{'uniform': (low, high)}[kind]):.6g}")


def words(plan: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """The command of one draw, with `{run}` still in it; what is no text is written as YAML reads it."""
    options = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()]
    made: list[str] = []
    for word in map(str, plan["command"]):
        filled = re.sub(r"\$\{envvar:(\w+)\}", lambda hit: os.environ.get(hit[1]) or hit[0], word)
        if word != "${args}" and (missing := re.search(r"\$\{(?:envvar:)?(\w+)\}", filled)):
            raise UserError(f"{missing[1]} is missing; {plan['path']} opens with the whole command")
        made += options if word == "${args}" else [filled]
    return made


def run(plan: dict[str, Any], name: str, settings: dict[str, Any], log: Path) -> float | None:
    """Run one draw in a process of its own, which ends with this one; its metric, None if it failed."""
    command = [word.replace("{run}", name) for word in words(plan, settings)]
    with log.open("w", encoding="utf-8") as file:
        print(f"$ {shlex.join(command)}", file=file, flush=True)
        told = child_environment() | {"WANDB_MODE": "offline", RUN_ID: name}
        start = [sys.executable, "-m", *command] if command[0] == "mefar" else command
        code = subprocess.run(start, stdout=file, stderr=file, env=told, check=False).returncode
    folder, metric = Path(plan["folder"].replace("{run}", name)), plan["metric"]["name"]
    found = {} if code else scores(plan["verb"], folder)
    if not code and metric not in found:  # no other draw will have it
        raise UserError(f"{folder}: no {metric} there; set training.inner, or correct the metric")
    said = found.get(metric, f"failed: {log.read_text(errors='replace').strip().splitlines()[-1]}")
    print(f"{name}: {said}  {json.dumps(settings)}", flush=True)
    return found[metric] if math.isfinite(found.get(metric, math.nan)) else None


def scores(verb: str, folder: Path) -> dict[str, float]:
    """What a finished run came to, by W&B's names."""
    if verb == "loso":
        from mefar.loso import results, tracker

        return tracker.metrics(results.read_run(folder).summary)
    rows = csv.DictReader((folder / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return {name: float(value) for row in rows for name, value in row.items() if value}


def main(argv: Sequence[str]) -> int:
    """Run `mefar sweep`."""
    return run_function(sweep, argv, "mefar sweep")
