"""The `mefar` command: a table of verbs, each imported only when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, util
from pathlib import Path
from typing import NoReturn

from mefar import __version__
from mefar.commands import INTERRUPTED, USER_ERROR, follow_parent, guard

TRAINER_VERBS = {
    "fit": "train a model: mefar fit --config pretrain",
    "validate": "one pass over the validation data",
    "test": "one pass over the test data",
    "predict": "write a trained classifier's answers for all clips as csv",
}
"""Verbs of LightningCLI; `mefar.commands.train` runs all four."""

VERBS = {
    "demo": ("mefar.commands.demo", "from nothing to a composite table on rendered faces"),
    "make-demo": ("mefar.commands.make_demo", "render the demo corpora into a folder"),
    "loso": ("mefar.commands.loso", "leave-one-subject-out over action tokens"),
    "databases": (
        "mefar.commands.databases",
        "list databases: clips, classes, where to apply, what a folder has",
    ),
    "doctor": ("mefar.commands.doctor", "check a database folder against what the protocol needs"),
    "cache": ("mefar.commands.cache", "decode a video tree once into aligned face shards"),
    "import-dface": ("mefar.commands.import_dface", "published tokenizer checkpoint -> mefar checkpoint"),
    "anchors": ("mefar.commands.anchors", "encode the emotion descriptions with a text tower"),
    "probe": ("mefar.commands.probe", "what the tokens know: action units, identity, few clips"),
    "transfer": ("mefar.commands.transfer", "carry what one face did to other faces"),
    "explore": ("mefar.commands.explore", "what every token does: a page to click through"),
    "recognise": ("mefar.commands.recognise", "find and read the expressions in your own video"),
    "spot": ("mefar.commands.spot", "leave-one-subject-out spotting in a database of long videos"),
    "score-spotting": ("mefar.commands.score_spotting", "score intervals spotted in long videos"),
    "export": ("mefar.commands.export", "a finished run as a model to hand on, with its card"),
    "app": ("mefar.commands.app", "a page on this machine to play with tokens"),
    "compare": ("mefar.commands.compare", "paired bootstrap of two finished LOSO runs"),
    "table": ("mefar.commands.table", "finished LOSO runs as one table, and last against oracle"),
    "ablate": ("mefar.commands.ablate", "LOSO with one thing changed at a time, as one table"),
    "report": ("mefar.commands.report", "write the report page of a finished run"),
    "sweep": ("mefar.commands.sweep", "check a W&B sweep file, or run it here, without an account"),
}
"""Our own verbs: name -> (module with `main(argv) -> int`, one line of help)."""


def usage() -> str:
    """The table that `mefar --help` prints."""
    lines = ["usage: mefar VERB [options]      mefar VERB --help explains one verb", ""]
    lines += ["training (LightningCLI, configured by YAML):"]
    lines += [f"  {verb:<14} {phrase}" for verb, phrase in TRAINER_VERBS.items()]
    lines += ["", "everything else:"]
    lines += [f"  {verb:<14} {phrase}" for verb, (_, phrase) in VERBS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments after `mefar`; None takes them from the command line.

    Returns:
        Exit code: 0, or 2 after a mistake the user can mend.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    verb, rest = words[0], words[1:]
    if verb in ("--version", "-V"):
        print(f"mefar {__version__}")
        return 0
    if verb in TRAINER_VERBS:
        module, rest = "mefar.commands.train", words
    elif verb in VERBS:
        module = VERBS[verb][0]
    else:
        known = ", ".join([*TRAINER_VERBS, *VERBS])
        print(f"mefar: error: no verb {verb!r}; choose from {known}", file=sys.stderr)
        return USER_ERROR
    if (stranger := _stranger()) is not None:
        line = f"{stranger} hides mefar's own datamodules; work in another folder, or type `mefar` alone"
        print(f"mefar {verb}: error: {line}", file=sys.stderr)
        return USER_ERROR
    return guard(f"mefar {verb}", lambda: int(import_module(module).main(rest)), rest)


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
    code = main()
    if code == INTERRUPTED:
        sys.unraisablehook = lambda _: None  # of loaders that were ended while they began
    sys.exit(code)


if __name__ == "__main__":
    run()
