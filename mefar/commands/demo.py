"""`mefar demo`: the whole road on rendered faces, by the same commands that a user types for real data.

Each stage is a command of its own, printed before it runs, so that what the demo did can be repeated by hand.
Every stage skips what it finds done, and a killed demo goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mefar.commands import run_function
from mefar.errors import UserError
from mefar.files import replacing

TRAINING = Path("experiments/configs/demo.yaml")


def demo(*, out: Path = Path("runs/demo"), seed: int = 0) -> int:
    """Render faces, pretrain a tokenizer on them, run composite LOSO, write a report page.

    About 10 minutes on 2 CPU cores. What is finished is kept: a second call reuses it, and after an
    interruption the demo goes on. Run it in the root of a clone: it reads experiments/configs.

    Args:
        out: folder for everything the demo makes.
        seed: of the faces and of the training.
    """
    if not TRAINING.is_file():
        raise UserError(f"{TRAINING}: not found; run `mefar demo` in the root of a clone of mefar")
    began = time.monotonic()
    corpora, tokenizer = out / "corpora", out / "tokenizer"
    _stage(f"render faces into {corpora}", "make-demo", str(corpora), "--seed", str(seed))
    checkpoint = _pretrain(corpora, tokenizer, out / "cache", seed)
    _stage(
        "composite leave-one-subject-out, with both controls",
        "loso", "--dataset", "composite", "--data", str(corpora), "--tokenizer", str(checkpoint),
        "--out", str(out), "--cache-dir", str(out / "cache"), "--shuffled-control", "true",
    )  # fmt: skip
    print(f"\n{out / 'report.html'}: the report page.  {(time.monotonic() - began) / 60:.1f} minutes in all.")
    return 0


def _pretrain(corpora: Path, folder: Path, cache: Path, seed: int) -> Path:
    """Train the tokenizer unless this very training is finished; returns its last checkpoint."""
    last, done = folder / "checkpoints" / "last.ckpt", folder / "finished.json"
    told = {"config": hashlib.sha256(TRAINING.read_bytes()).hexdigest(), "seed": seed}
    if done.is_file() and last.is_file():
        if json.loads(done.read_text()) != told:
            raise UserError(
                f"{folder}: trained with other settings than {TRAINING} has now; "
                "remove the folder or give another --out"
            )
        print(f"\n== pretrain: finished before, {last}")
        return last
    words = ["--config", str(TRAINING), "--seed_everything", str(seed)]
    words += ["--trainer.default_root_dir", str(folder), "--data.init_args.data", str(corpora / "voxceleb")]
    words += ["--data.init_args.cache_dir", str(cache), "--data.init_args.seed", str(seed)]
    if last.is_file():
        words += ["--ckpt_path", "last"]
    _stage("pretrain the tokenizer", "fit", *words)
    with replacing(done) as temporary:
        temporary.write_text(json.dumps(told))
    return last


def _stage(title: str, *words: str) -> None:
    """Run `mefar words...` in a process of its own; its exit code ends the demo if it is not 0."""
    print(f"\n== {title}\n$ mefar {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "mefar", *words], check=False).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)  # a stage that a signal killed says so as a shell would


def main(argv: Sequence[str]) -> int:
    """Run `mefar demo`."""
    return run_function(demo, argv, "mefar demo")
