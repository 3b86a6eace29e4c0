"""`mefar ablate FILE`: leave-one-subject-out with one thing changed at a time, and one table over all.

A file names what all runs share and what each arm changes, in the options of `mefar loso`; the first arm is
what the others are paired with:

    common: {dataset: composite, data: DIR, tokenizer: CKPT, seeds: 5}
    arms:
      ours: {}
      edclip: {edclip: true}
      other sentences: {edclip: true, shuffle_sentences: true}
      mean pooling: {head.pooling: mean}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mefar.commands import loso
from mefar.commands.shipped import shipped
from mefar.errors import UserError
from mefar.files import write_text
from mefar.report import comparison

FEWEST_SEEDS = 5


def ablate(file: Path, *, out: Path | None = None) -> int:
    """Run every arm of an ablation and write one table: OUT/table.md and OUT/table.csv.

    Finished arms are kept: the same call goes on after an interruption.

    Args:
        file: YAML with `common` and `arms`, or the name of a shipped one: head, tokenizer.
        out: folder for the runs and the table; default runs/ablate-NAME.
    """
    path = shipped("ablations", str(file))
    common, arms = read(path)
    folder = out or Path("runs") / f"ablate-{path.stem}"
    if int(common.get("seeds", 1)) < FEWEST_SEEDS:
        print(f"{path}: fewer than {FEWEST_SEEDS} seeds; differences may be those of single heads")
    runs = []
    for name, changes in arms.items():
        runs.append(folder / slug(name))
        print(f"arm {name}", flush=True)
        code = loso.main(words(common | changes | {"out": str(runs[-1])}))
        if code:
            return code
    found = comparison.blocks(runs)
    write_text(folder / "table.md", comparison.markdown(found))
    write_text(folder / "table.csv", comparison.long_csv(found))
    print(comparison.markdown(found))
    print(folder / "table.md")
    return 0


def read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What all runs share, and what every arm changes.

    Raises:
        UserError: not such a file, or two arms whose folders would be the same.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        common = dict(content.get("common") or {})
        arms = {str(name): dict(changes or {}) for name, changes in content["arms"].items()}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: no ablation; it needs `arms`, each a mapping of options") from None
    if len(arms) < 2:
        raise UserError(f"{path}: {len(arms)} arms; it takes 2 to compare")
    if len({slug(name) for name in arms}) < len(arms):
        raise UserError(f"{path}: two arms have the same letters in their names; rename one")
    for where in (common, *arms.values()):
        if "out" in where:
            raise UserError(f"{path}: `out` is every arm's own folder; leave it out")
    return common, arms


def words(options: Mapping[str, Any]) -> list[str]:
    """Options of `mefar loso` as its command line, a class before its options."""
    ordered = sorted(options.items(), key=lambda pair: pair[0].count("."))
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in ordered]


def slug(name: str) -> str:
    """A folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "arm"
