"""`mefar sweep`: a W&B sweep file checked, or drawn from and run here, without an account.

With an account W&B's own engine runs the same file: `wandb sweep FILE`, then `wandb agent`.
"""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonargparse import get_loader

from mefar.commands import RUN_ID, child_environment
from mefar.commands.shipped import shipped
from mefar.errors import UserError
from mefar.files import fingerprint, lock, write_text
from mefar.report.training_results import metric_rows

METHODS, GOALS = ("grid", "random", "bayes"), ("maximize", "minimize")
KINDS = "uniform, int_uniform or log_uniform_values; W&B's server knows more"


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
    asked = read(shipped("sweeps", str(file)))
    folder, metric = out or Path("runs/sweeps") / asked["path"].stem, asked["metric"]
    how = "at random" if local > 0 and asked["method"] == "bayes" else asked["method"]
    print(f"{asked['path']}: {how} over {', '.join(asked['parameters'])} for {metric['name']}")
    if local < 1:
        return 0
    with lock(folder / ".lock"):
        found = [row for settings in draws(asked, local, seed) if (row := run(asked, settings, folder))]
    for row in sorted(found, key=lambda row: row["value"], reverse=metric["goal"] == "maximize"):
        print(f"{row['value']:.4f}  {row['run']}  {json.dumps(row['settings'])}")
    return 0 if found else 1


def read(path: Path) -> dict[str, Any]:
    """Read a sweep file; refuse one that tunes on tested subjects, or whose runs share a folder."""
    wrong = "no sweep of W&B's"
    try:
        asked = dict(get_loader("yaml")(path.read_text(encoding="utf-8", errors="replace")))
        command, metric = [str(word) for word in asked["command"]], str(asked["metric"]["name"])
        if not (asked["method"] in METHODS and asked["metric"]["goal"] in GOALS and asked["parameters"]):
            raise ValueError(f"method is one of {METHODS}, goal of {GOALS}; parameters vary")
        for name, entry in asked["parameters"].items():
            wrong = f"parameters.{name}: give value, values (a grid needs them), or min and max of {KINDS}"
            if "value" in entry:
                entry["values"] = [entry["value"]]
            draw(entry if asked["method"] != "grid" else {"values": entry["values"]}, np.random.default_rng())
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {wrong} ({' '.join(str(error).split())})") from None
    verb = next((word for before, word in itertools.pairwise(command) if before == "mefar"), "")
    folder = next((word.rpartition("=")[2] for word in command if "{run}" in word), "")
    if verb not in ("loso", "fit") or not folder or "${args}" not in command:
        wrong = "command must run `mefar loso` or `mefar fit` with ${args}, and {run} in its folder's name"
        raise UserError(f"{path}: {wrong}, or its runs overwrite each other")
    if "oracle" in metric or (verb == "loso" and not re.match(r"loso/(inner|last)/", metric)):
        wrong = f"metric {metric} is none to tune by: the oracle is chosen on the tested subjects"
        raise UserError(f"{path}: {wrong}; take loso/inner/uf1, or say loso/last/uf1 if you mean it")
    return asked | {"path": path, "command": command, "verb": verb, "folder": folder}


def draws(asked: dict[str, Any], count: int, seed: int) -> list[dict[str, Any]]:
    """Different settings to try, fewer than `count` if there are no more."""
    entries, generator = asked["parameters"], np.random.default_rng(seed)
    rows = [tuple(draw(e, generator) for e in entries.values()) for _ in range(100 * count)]
    if asked["method"] == "grid":
        rows = list(itertools.product(*(entry["values"] for entry in entries.values())))
    different = {json.dumps(row): dict(zip(entries, row, strict=True)) for row in rows}
    return list(different.values())[:count]


def draw(entry: dict[str, Any], generator: np.random.Generator) -> Any:
    """One value of a parameter; numbers of a continuum keep 6 digits."""
    if values := entry.get("values"):
        return values[generator.choice(len(values), p=entry.get("probabilities"))]
    low, high = entry["min"], entry["max"]
    kind = entry.get("distribution", "int_uniform" if isinstance(low + high, int) else "uniform")
    if kind == "int_uniform":
        return int(generator.integers(low, high, endpoint=True))
    if kind == "log_uniform_values":
        return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.6g}")
    return float(f"{generator.uniform(*{'uniform': (low, high)}[kind]):.6g}")


def run(asked: dict[str, Any], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a draw came to, in an earlier call or in a process that ends with this one; empty if it failed."""
    command = words(asked, settings)
    name = fingerprint(command, asked["metric"])[:10]
    if (kept := folder / f"{name}.json").exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    command = [word.replace("{run}", name) for word in command]
    start = [sys.executable, "-m", *command] if command[0] == "mefar" else command
    told = child_environment() | {"WANDB_MODE": "offline", RUN_ID: name}
    with (log := kept.with_suffix(".log")).open("w", encoding="utf-8") as file:
        print("$", *command, file=file, flush=True)
        code = subprocess.run(start, stdout=file, stderr=file, env=told, check=False).returncode
    out, metric = Path(asked["folder"].replace("{run}", name)), asked["metric"]["name"]
    found = {} if code else scores(asked["verb"], out)
    if not code and metric not in found:  # no other draw will have it
        raise UserError(f"{out}: no {metric} there; set training.inner, or correct the metric")
    value = found.get(metric, math.nan)
    failed = f"failed: {log.read_text(errors='replace').strip().splitlines()[-1]}"
    print(f"{name}: {failed if code else value}  {json.dumps(settings)}", flush=True)
    if not math.isfinite(value):
        return {}
    write_text(kept, json.dumps(made := {"run": name, "value": value, "settings": settings}))
    return made


def words(asked: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """The command of one draw, with `{run}` still in it; what is no text is written as YAML reads it."""
    options = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()]
    made: list[str] = []
    for word in asked["command"]:
        filled = re.sub(r"\$\{envvar:(\w+)\}", lambda hit: os.environ.get(hit[1]) or hit[0], word)
        if word != "${args}" and (missing := re.search(r"\$\{(?:envvar:)?(\w+)\}", filled)):
            raise UserError(f"{missing[1]} is missing; {asked['path']} opens with the whole command")
        made += options if word == "${args}" else [filled]
    return made


def scores(verb: str, folder: Path) -> dict[str, float]:
    """What a finished run came to, by W&B's names."""
    if verb == "loso":
        from mefar.loso import results, tracker

        return tracker.metrics(results.read_run(folder).summary)
    return {name: value for _, row in metric_rows(folder / "metrics.csv") for name, value in row.items()}
