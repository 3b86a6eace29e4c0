"""The `mefar` command: a table of verbs, each imported only when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, util
from pathlib import Path
from typing import NoReturn

from mefar import __version__
from mefar.commands import USER_ERROR, follow_parent, guard, run_function

TRAINER_VERBS = {
    "fit": "train a model: mefar fit --config pretrain",
    "validate": "one pass over the validation data",
    "test": "one pass over the test data",
    "predict": "write a trained classifier's answers for all clips as csv",
}
"""Verbs of LightningCLI; `mefar.commands.train` runs all four."""

VERBS = {
    "demo": "from nothing to a composite table on rendered faces",
    "make-demo": "render the demo corpora into a folder",
    "loso": "leave-one-subject-out over action tokens",
    "databases": "list databases: clips, classes, where to apply, what a folder has",
    "doctor": "check a database folder against what the protocol needs",
    "cache": "decode a video tree once into aligned face shards",
    "import-dface": "published tokenizer checkpoint -> mefar checkpoint",
    "anchors": "encode the emotion descriptions with a text tower",
    "probe": "what the tokens know: action units, identity, few clips",
    "transfer": "carry what one face did to other faces",
    "explore": "what every token does: a page to click through",
    "recognise": "find and read the expressions in your own video",
    "spot": "leave-one-subject-out spotting in a database of long videos",
    "score-spotting": "score intervals spotted in long videos",
    "export": "a finished run as a model to hand on, with its card",
    "app": "a page on this machine to play with tokens",
    "compare": "paired bootstrap of two finished LOSO runs",
    "table": "finished LOSO runs as one table, and last against oracle",
    "ablate": "LOSO with one thing changed at a time, as one table",
    "report": "write the report page of a finished run",
    "sweep": "check a W&B sweep file, or run it here, without an account",
}
"""Our own verbs: a module of this name in mefar/commands has a function of this name, or a `main`."""


def usage() -> str:
    """The table that `mefar --help` prints."""
    lines = ["usage: mefar VERB [options]      mefar VERB --help explains one verb", ""]
    lines += ["training (LightningCLI, configured by YAML):"]
    lines += [f"  {verb:<14} {phrase}" for verb, phrase in TRAINER_VERBS.items()]
    lines += ["", "everything else:"]
    lines += [f"  {verb:<14} {phrase}" for verb, phrase in VERBS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb, by default the command line's -> exit code: 0, or 2 after what the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    verb, rest = words[0], words[1:]
    if verb in ("--version", "-V"):
        print(f"mefar {__version__}")
        return 0
    if verb not in TRAINER_VERBS | VERBS:
        known = ", ".join([*TRAINER_VERBS, *VERBS])
        print(f"mefar: error: no verb {verb!r}; choose from {known}", file=sys.stderr)
        return USER_ERROR
    if (stranger := _stranger()) is not None:
        line = f"{stranger} hides mefar's own datamodules; work in another folder, or type `mefar` alone"
        print(f"mefar {verb}: error: {line}", file=sys.stderr)
        return USER_ERROR
    return guard(f"mefar {verb}", lambda: _run(verb, rest), rest)


def _run(verb: str, words: Sequence[str]) -> int:
    name = verb.replace("-", "_")
    if verb in TRAINER_VERBS:
        name, words = "train", [verb, *words]
    module = import_module(f"mefar.commands.{name}")
    if hasattr(module, "main"):
        return int(module.main(words))
    return run_function(getattr(module, name), words, f"mefar {verb}")


def _stranger() -> Path | None:
    """A `datamodules` that is not ours but would be imported: `python -m` looks into this folder first."""
    found = util.find_spec("datamodules")
    if found is None or found.origin is None:
        return None
    origin, ours = Path(found.origin).resolve(), Path(__file__).resolve().parents[1]
    return None if origin.parents[1] == ours else origin


def run() -> NoReturn:
    """Console entry."""
    ours = follow_parent()
    if ours or not sys.flags.safe_path:
        sys.path.append(str(Path.cwd()))  # a network or head of the user's; last, where it hides nothing
    sys.exit(main())


if __name__ == "__main__":
    run()
