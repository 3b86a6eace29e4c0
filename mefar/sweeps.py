"""W&B sweep files, read, drawn and expanded as W&B does it: a sweep also runs where there is no account.

Refused: a sweep for the oracle (it would tune on the tested subjects), for the last epoch unless the file
says `last`, and one whose runs would write into one folder.

A run knows its name from WANDB_RUN_ID, which `wandb agent` sets for every run and `mefar sweep --local` too;
`{run}` in a folder stands for it. Source of names and macros: docs.wandb.ai, sweep configuration.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mefar.errors import UserError
from mefar.loso import results as record
from mefar.loso import tracker as run_log

RUN_ID = "WANDB_RUN_ID"
FOLDER = {"loso": "--out", "fit": "--trainer.default_root_dir"}
"""Verbs that a sweep may run, and the option that says where the run goes."""
METHODS = ("grid", "random", "bayes")
CONTINUOUS = ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal")
DISTRIBUTIONS = ("constant", "categorical", "int_uniform", *CONTINUOUS, *(f"q_{name}" for name in CONTINUOUS))

Settings = dict[str, Any]
"""Option -> value, one draw of a sweep."""


def name_run(words: Sequence[str]) -> list[str]:
    """Put the run's name where `{run}` stands; without a name the words stay as they are."""
    name = os.environ.get(RUN_ID)
    return [word.replace("{run}", name) if name else word for word in words]


def fill(path: Path, **values: int | None) -> Path:
    """Put values where their names stand in braces: `K{num_codes}/last.ckpt` -> `K32/last.ckpt`.

    Raises:
        UserError: a name without a value.
    """
    text = str(path)
    for name in re.findall(r"\{(\w+)\}", text):
        if values.get(name) is None:
            hint = f"it is {RUN_ID}, which a sweep sets" if name == "run" else f"give --{name}"
            raise UserError(f"{path}: nothing to put for {{{name}}}; {hint}")
        text = text.replace(f"{{{name}}}", str(values[name]))
    return Path(text)


@dataclass(frozen=True)
class Parameter:
    """One entry of `parameters`.

    Attributes:
        kind: one of DISTRIBUTIONS.
        values: of a constant or categorical.
        shares: probabilities of the values, or empty for equal ones.
        low: `min`, or `mu` of the normal kinds.
        high: `max`, or `sigma` of the normal kinds.
        step: of the q_ kinds.
    """

    kind: str
    values: tuple[Any, ...] = ()
    shares: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float = 1.0

    def draw(self, generator: np.random.Generator) -> Any:
        """One value; numbers that are not stepped keep 6 digits."""
        if self.kind in ("constant", "categorical"):
            return self.values[generator.choice(len(self.values), p=self.shares or None)]
        if self.kind == "int_uniform":
            return int(generator.integers(int(self.low), int(self.high), endpoint=True))
        kind = self.kind.removeprefix("q_")
        if kind.endswith("normal"):
            number = generator.normal(self.low, self.high)
        elif kind == "log_uniform_values":
            number = generator.uniform(math.log(self.low), math.log(self.high))
        else:
            number = generator.uniform(self.low, self.high)
        number = math.exp(number) if kind.startswith("log_") else number
        return self._stepped(number) if self.kind.startswith("q_") else float(f"{number:.6g}")

    def levels(self) -> list[Any] | None:
        """All values in order; None where there is a continuum of them."""
        if self.kind in ("constant", "categorical"):
            return list(self.values)
        if self.kind == "int_uniform":
            return list(range(int(self.low), int(self.high) + 1))
        if self.kind == "q_uniform":
            first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
            return [self._stepped(number * self.step) for number in range(first, last + 1)]
        return None

    def _stepped(self, number: float) -> float:
        whole = round(number / self.step)
        return whole * self.step if isinstance(self.step, int) else float(f"{whole * self.step:.12g}")


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        path: the file.
        method: grid, random or bayes.
        metric: what is optimised, as W&B would see it.
        maximize: whether more is better.
        command: words with macros.
        program: what `${program}` stands for, or empty.
        parameters: option -> how it is drawn.
    """

    path: Path
    method: str
    metric: str
    maximize: bool
    command: tuple[str, ...]
    program: str
    parameters: dict[str, Parameter]

    @property
    def verb(self) -> str:
        """The verb of mefar that the command runs."""
        where = [i for i, word in enumerate(self.command[:-1]) if Path(word).name == "mefar"]
        verb = self.command[where[0] + 1] if where else ""
        if verb not in FOLDER:
            raise UserError(f"{self.path}: command must run `mefar loso` or `mefar fit`")
        return verb

    @property
    def folder(self) -> str:
        """Where a run goes, with `{run}` in it.

        Raises:
            UserError: all runs would go to one folder.
        """
        option, found = FOLDER[self.verb], ""
        for word, following in zip(self.command, [*self.command[1:], ""], strict=True):
            if word == option or word.startswith(f"{option}="):
                found = following if word == option else word.partition("=")[2]
        if "{run}" not in found:
            raise UserError(
                f"{self.path}: command needs {option} with {{run}} in it, or its runs overwrite each other"
            )
        return found

    def draws(self, count: int, seed: int) -> list[Settings]:
        """Different settings to try, fewer than `count` if there are no more.

        A grid is taken in order; anything else is drawn at random, and the first draws are the same for
        any count.

        Raises:
            UserError: a grid over a continuum.
        """
        if self.method == "grid":
            levels = {name: parameter.levels() for name, parameter in self.parameters.items()}
            if endless := [name for name, values in levels.items() if values is None]:
                raise UserError(f"{self.path}: parameters.{endless[0]}: a grid needs values; list them")
            rows = itertools.product(*(values or () for values in levels.values()))
            return [dict(zip(levels, row, strict=True)) for row in itertools.islice(rows, count)]
        generator = np.random.default_rng(seed)
        found: dict[str, Settings] = {}
        for _ in range(100 * count):
            settings = {name: parameter.draw(generator) for name, parameter in self.parameters.items()}
            found.setdefault(json.dumps(settings), settings)
            if len(found) == count:
                break
        return list(found.values())

    def words(self, settings: Settings) -> list[str]:
        """The command of one draw, macros expanded, `{run}` not yet.

        Raises:
            UserError: a macro that is not known, or without a value.
        """
        words: list[str] = []
        for word in self.command:
            filled = re.sub(r"\$\{envvar:(\w*)\}", self._variable, word)
            macro = re.fullmatch(r"\$\{(\w+)\}", filled)
            if macro is None:
                words.append(filled)
            elif macro[1] == "args":
                words += [f"--{name}={value}" for name, value in settings.items()]
            elif macro[1] == "args_no_hyphens":
                words += [f"{name}={value}" for name, value in settings.items()]
            elif macro[1] == "interpreter":
                words.append(sys.executable)
            elif macro[1] == "env":
                words += ["/usr/bin/env"] if os.name == "posix" else []
            elif macro[1] == "program" and self.program:
                words.append(self.program)
            else:
                raise UserError(
                    f"{self.path}: command: nothing to put for {filled}; known are ${{env}}, "
                    "${interpreter}, ${program} (key program), ${args}, ${args_no_hyphens}, ${envvar:NAME}"
                )
        return words

    def _variable(self, found: re.Match[str]) -> str:
        value = os.environ.get(found[1], "")
        if not value:
            raise UserError(f"{found[1]} is missing; {self.path} opens with the whole command")
        return value

    def name(self, settings: Settings) -> str:
        """Name of a draw, a hash of its command: the same draw on other data is another run."""
        text = json.dumps([word for word in self.words(settings) if word != sys.executable])
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def score(self, folder: Path) -> float:
        """The metric of a finished run, from the files that it left.

        Raises:
            UserError: no such metric there.
        """
        if self.verb == "loso":
            there: Mapping[str, float] = run_log.metrics(record.read_run(folder).summary)
            source = folder / "summary.json"
        else:
            source = folder / "metrics.csv"
            there = _last_values(source)
        if self.metric not in there:
            more = "; set training.inner" if "/inner/" in self.metric else f"; there are {', '.join(there)}"
            raise UserError(f"{source}: no {self.metric}, which {self.path} optimises{more}")
        return there[self.metric]


def _last_values(path: Path) -> dict[str, float]:
    """Column -> its last number, as W&B summarises a run."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        raise UserError(f"{path}: no such file; leave trainer.logger on") from None
    return {name: float(value) for row in rows for name, value in row.items() if value}


def read(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: no such file, not YAML, or not a sweep that we would run.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: no such file; those of ours are in experiments/sweeps") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    content = content if isinstance(content, dict) else {}
    entries, metric = content.get("parameters"), content.get("metric")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: no parameters to vary")
    if content.get("method") not in METHODS:
        raise UserError(f"{path}: method is {content.get('method')!r}; give one of {', '.join(METHODS)}")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError(f"{path}: metric.name is missing, such as loso/inner/uf1")
    if metric.get("goal") not in ("maximize", "minimize"):
        raise UserError(f"{path}: metric.goal is {metric.get('goal')!r}; give maximize or minimize")
    if not isinstance(content.get("command"), list):
        raise UserError(f"{path}: command is missing, a list of words that runs mefar with ${{args}}")
    sweep = Sweep(
        path,
        content["method"],
        metric["name"],
        metric["goal"] == "maximize",
        tuple(str(word) for word in content["command"]),
        str(content.get("program", "")),
        {str(name): _parameter(f"{path}: parameters.{name}", entry) for name, entry in entries.items()},
    )
    _check_metric(sweep)
    sweep.folder  # noqa: B018  refuses runs that would share a folder
    return sweep


def _check_metric(sweep: Sweep) -> None:
    if "oracle" in sweep.metric:
        raise UserError(
            f"{sweep.path}: metric {sweep.metric} is chosen on the tested subjects; take loso/inner/uf1"
        )
    if sweep.verb != "loso":
        return
    if sweep.metric in ("loso/uf1", "loso/uar"):
        explicit = sweep.metric.replace("loso/", "loso/last/")
        raise UserError(
            f"{sweep.path}: metric {sweep.metric} is that of the last epoch, which is our score; "
            f"take {sweep.metric.replace('loso/', 'loso/inner/')}, or say {explicit} if you mean it"
        )
    if not re.fullmatch(r"loso/(inner|last)/(\w+/)?(uf1|uar)", sweep.metric):
        raise UserError(
            f"{sweep.path}: metric {sweep.metric} is unknown; give loso/inner/uf1, loso/inner/uar, or of one "
            "database, such as loso/inner/samm/uf1"
        )


def _parameter(where: str, entry: Any) -> Parameter:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: give value, values, or min and max")
    if "parameters" in entry:
        raise UserError(f"{where}: is nested; write each option with its dots, such as head.depth")
    values = [entry["value"]] if "value" in entry else entry.get("values")
    if values is not None:
        if not isinstance(values, list) or not values or any(isinstance(value, dict) for value in values):
            raise UserError(f"{where}: values is not a list of numbers and words")
        shares = tuple(entry.get("probabilities", ()))
        if shares and (len(shares) != len(values) or abs(sum(shares) - 1) > 1e-6):
            raise UserError(f"{where}: probabilities do not fit the values or do not sum to 1")
        return Parameter("constant" if "value" in entry else "categorical", tuple(values), shares)
    ends = ("mu", "sigma") if "normal" in str(entry.get("distribution")) else ("min", "max")
    given = {**{end: entry.get(end) for end in ends}, "q": entry.get("q", 1)}
    for name, number in given.items():
        if not isinstance(number, int | float) or isinstance(number, bool):
            # 1e-4 without a point is a word in YAML 1.1.
            raise UserError(f"{where}: {name} is {number!r}; give a number, such as 0.001 or 1.0e-3")
    low, high, step = given.values()
    whole = isinstance(low, int) and isinstance(high, int)
    kind = entry.get("distribution", "int_uniform" if whole else "uniform")
    if kind not in DISTRIBUTIONS:
        raise UserError(f"{where}: distribution {kind} is unknown; give one of {', '.join(DISTRIBUTIONS)}")
    positive = (step, *((low, high) if kind.endswith("log_uniform_values") else ()))
    if min(positive) <= 0 or (ends[0] == "min" and low > high):
        raise UserError(f"{where}: {ends[0]} {low}, {ends[1]} {high}, q {step} are no range of {kind}")
    return Parameter(kind, (), (), low, high, step)
