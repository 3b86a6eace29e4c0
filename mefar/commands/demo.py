"""`mefar demo`: the whole road on rendered faces, by the same commands that a user types for real data.

Each stage is a command of its own, printed before it runs, so that what the demo did can be repeated by hand.
Every stage skips what it finds done, and a killed demo goes on where it was; its stage ends with it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from mefar.commands import child_environment
from mefar.commands.shipped import shipped
from mefar.errors import UserError
from mefar.files import fingerprint, lock, write_text

TINY_FIT = ["--trainer.max_epochs", "1", "--data.init_args.pairs_per_epoch", "96",
            "--data.init_args.val_pairs", "16", "--data.init_args.val_fraction", "0.2"]  # fmt: skip
TINY_LOSO = ["--epochs", "3", "--views", "2"]
FEW_VIEWS = ["--views", "8"]  # a quarter of the default's, for time


def demo(*, out: Path = Path("runs/demo"), seed: int = 0, size: Literal["demo", "tiny"] = "demo") -> int:
    """Render faces, pretrain a tokenizer on them, run composite LOSO at two strengths, write report pages.

    First on micro-expressions as weak as real ones, then on the demo's own, three times as strong.
    A quarter of an hour on 2 quick CPU cores, longer on slow ones. What is finished is kept: a second call
    reuses it, and after an interruption the demo goes on.

    Args:
        out: folder for everything the demo makes.
        seed: of the faces and of the training.
        size: tiny goes the same road in two minutes, to see that it is open; its numbers mean nothing.
    """
    began = time.monotonic()
    corpora, micro, cache = out / "corpora", out / "corpora-micro", out / "cache"
    with lock(out / ".demo.lock"):
        faces = ["make-demo", str(corpora), "--seed", str(seed), "--size", size]
        _stage(f"render faces into {corpora}", *faces)
        weak = ["make-demo", str(micro), *faces[2:], "--strength", "micro", "--talking", "false"]
        _stage(f"render expressions as weak as real ones into {micro}", *weak)
        checkpoint = _pretrain(corpora, out / "tokenizer", cache, seed, size)
        for data, folder, title in ((micro, out / "micro", "as weak as real ones"), (corpora, out, "strong")):
            _stage(
                f"composite leave-one-subject-out, micro-expressions {title}",
                "loso", "--dataset", "composite", "--data", str(data), "--tokenizer", str(checkpoint),
                "--out", str(folder), "--cache-dir", str(cache),
                *(("--shuffled-control", "true") if data is micro else ()),  # a minute; once tells
                *(TINY_LOSO if size == "tiny" else FEW_VIEWS),
            )  # fmt: skip
    pages = f"{out / 'micro' / 'report.html'}, {out / 'report.html'}"
    print(f"\n{pages}: the report pages.  {(time.monotonic() - began) / 60:.1f} minutes in all.")
    return 0


def _pretrain(corpora: Path, folder: Path, cache: Path, seed: int, size: str) -> Path:
    """Train the tokenizer unless this very training is finished; returns its last checkpoint."""
    last, told = folder / "checkpoints" / "last.ckpt", folder / "demo.json"
    config = shipped("configs", "demo")
    settings = {"config": fingerprint(config), "seed": seed, "size": size}
    words = ["--config", "demo", "--seed_everything", str(seed)]
    words += ["--trainer.default_root_dir", str(folder), "--data.init_args.data", str(corpora / "voxceleb")]
    words += ["--data.init_args.cache_dir", str(cache), "--data.init_args.seed", str(seed)]
    words += TINY_FIT if size == "tiny" else []
    with lock(folder / ".lock"):  # the training of a demo that was killed a moment ago
        if told.is_file() and json.loads(told.read_text(encoding="utf-8")) != settings:
            raise UserError(
                f"{folder}: trained with other settings than {config} has now; "
                "remove the folder or give another --out"
            )
        write_text(told, json.dumps(settings))
        if last.is_file():
            if _is_finished(last, config, size):
                print(f"\n== pretrain: finished before, {last}")
                return last
            words += ["--ckpt_path", "last"]
    _stage("pretrain the tokenizer", "fit", *words)
    return last


def _is_finished(checkpoint: Path, config: Path, size: str) -> bool:
    import yaml

    from mefar.commands.checkpoints import is_finished
    from mefar.tokenizer.plain import read_checkpoint

    epochs = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]["max_epochs"]
    return is_finished(read_checkpoint(checkpoint), 1 if size == "tiny" else epochs)


def _stage(title: str, *words: str) -> None:
    """Run `mefar words...` in a process of its own; its exit code ends the demo if it is not 0."""
    print(f"\n== {title}\n$ mefar {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "mefar", *words]
    code = subprocess.run(command, env=child_environment(), check=False).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)  # a stage that a signal killed says so as a shell would
