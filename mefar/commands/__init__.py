"""One short file per verb of the `mefar` command: parse, call, print.

What the verbs share lives here: a typed function becomes a command line (`run_function`), and a
mistake of the user's becomes one line and exit code 2 (`guard`). Nothing heavy is imported before
a verb needs it: `mefar --help` must answer at once.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from mefar.commands.shipped import with_shipped_configs
from mefar.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

USER_ERROR = 2
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
TERMINATED = 143  # and by SIGTERM
READER_GONE = 141  # and by a pipe that nobody reads any more
RUN_ID = "WANDB_RUN_ID"
"""Where a run of a sweep finds its name."""
_PARENT = "MEFAR_PARENT"
_OURS = ("mefar", "datamodules")

# What a disk answers that its owner can mend, and how.
_DISKS = {
    errno.EACCES: "give a place that you may read and write",
    errno.EPERM: "give a place that you may read and write",
    errno.EROFS: "give a place that can be written",
    errno.ENOSPC: "make room, or give another place",
    errno.EDQUOT: "make room, or give another place",
    errno.ENOTDIR: "a file stands where a folder is meant; give another path",
    errno.EEXIST: "a file stands where a folder is meant; give another path",
    errno.EISDIR: "a folder stands where a file is meant; give another path",
    errno.ELOOP: "a link that leads to itself; remove it",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOENT: "give a path that exists",
    errno.EIO: "the disk fails",
    errno.ESTALE: "the network disk is gone; mount it again",
}

# Lines of Lightning that tell our users nothing: hardware inventories, advertisements, advice
# about loaders that are small on purpose. Warnings about data or numbers stay.
_CHATTER = (
    r"GPU available|TPU available|HPU available|IPU available",
    r"💡|litlogger|litmodels|Tip:|lightning\.ai",
    r"does not have many workers",
    r"module\(s\) in eval mode at the start of training",
    r"The number of training batches .* is smaller than the logging interval",
    r"Seed set to",
    r"LightningCLI's args parameter is intended",
    r"Experiment logs directory .* exists and is not empty",
    r"Checkpoint directory .* exists and is not empty",
    r"isinstance\(treespec, LeafSpec\)",
    r"instantiate_classes. was deprecated|JsonargparseDeprecationWarning",
    r"`srun` command is available",
    r"tensorboardX",
    r"Loading `train_dataloader` to estimate",
    r"Detected KeyboardInterrupt",  # guard says it in one line
    r"You have overridden `\w+` in `LightningModule` but have passed in a `LightningDataModule`",
)
_TALKERS = (
    "lightning.pytorch",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)


def run_function(function: Callable[..., int | None], argv: Sequence[str], prog: str) -> int:
    """Run a function as a command; its signature and Google docstring are the command line.

    A required `Path` or `str` that may be given by position becomes a positional argument; every other
    parameter becomes `--name`, keyword-only ones always (`def loso(*, dataset: str, data: Path)`). One more
    before the `*` may be given either way (`def table(runs: list[Path], *, ...)`: `mefar table A B`).
    Types may be what YAML can say: numbers, strings, bool, Path, Literal, lists, unions of these, and
    dataclasses of them (`--training.epochs 50`).
    `--config FILE` reads any of the options from YAML, `--config NAME` from a shipped one; `--text-model`
    and `--text_model` are the same, `--download` alone means `--download true`, and an option that is a list
    takes the words up to the next one: `--units 12 4`.

    Args:
        function: what to run; returns an exit code, or None for success.
        argv: arguments after the verb.
        prog: what the user typed so far, for example `mefar loso`.

    Returns:
        Exit code: the function's own, 2 after a user's mistake (one line on stderr).
    """

    def call() -> int:
        parser = _parser(function, prog)
        parsed = parser.parse_args(_spelled(function, with_shipped_configs(argv)))
        # Renamed by the parser's authors; the old name still exists but complains.
        build = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
        namespace = build(parsed)
        return function(**{name: namespace[name] for name in inspect.signature(function).parameters}) or 0

    return guard(prog, call, argv)


def _parser(function: Callable[..., Any], prog: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    positional: set[str | int] = {*_by_place(function)[0]}
    text = inspect.getdoc(function) or ""
    description = re.split(r"\n(?:Args|Returns|Raises):", text)[0].strip()
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parameters = inspect.signature(function).parameters
    options: set[str | int] = {name for name in parameters if name not in positional}
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=options)
    parser.add_function_arguments(function, as_group=False, as_positional=False, skip=positional)
    return parser


def _by_place(function: Callable[..., Any]) -> tuple[list[str], str]:
    """Parameters that are given by place alone, and the one that may be, or nothing."""
    hints, parameters = get_type_hints(function), inspect.signature(function).parameters
    before = [one for one in parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    needed = [one.name for one in before if one.default is one.empty and hints.get(one.name) in (str, Path)]
    return needed, next((one.name for one in before if one.name not in needed), "")


def _spelled(function: Callable[..., Any], argv: Sequence[str]) -> list[str]:
    # The parser knows options by the parameter's name, every option by name and value, a list's by `+`.
    hints, (needed, spare) = get_type_hints(function), _by_place(function)
    words: list[str] = []
    listing, awaited, placed = "", False, 0
    for word, following in pairwise([*argv, "--"]):
        option, equals, value = word.partition("=")
        name = option[2:].replace("-", "_")
        known = option.startswith("--") and name.split(".")[0] in hints
        if listing and not word.startswith("--"):
            words.append(f"--{listing}+={word}")
            continue
        if spare and not awaited and not word.startswith("-"):
            many = "+" if get_origin(hints[spare]) is list else ""
            words.append(word if placed < len(needed) else f"--{spare}{many}={word}")
            placed += 1
            continue
        listing = name if known and not equals and get_origin(hints.get(name)) is list else ""
        if listing:
            continue
        words.append(f"--{name}{equals}{value}" if known else word)
        alone = known and hints.get(name) is bool and not equals and following not in ("true", "false")
        if alone:
            words.append("true")
        awaited = option.startswith("--") and not equals and not alone
    return words


def guard(prog: str, call: Callable[[], int], argv: Sequence[str] = ()) -> int:
    """Call, and turn what the user can mend into one line on stderr and exit code 2.

    Ctrl-C gives 130, SIGTERM 143, a reader that has closed our output (`| head`) 141. Anything else is a bug
    and keeps its traceback.

    Args:
        prog: what the user typed so far; opens the line.
        call: the command; returns an exit code.
        argv: its arguments; `--config` files among them are named in the line.
    """
    try:
        with quiet():
            code = call()
            sys.stdout.flush()  # here, where a closed pipe is still told to us
            return code
    except KeyboardInterrupt:
        return _interrupted(prog)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning shuts down, then exits with 1
            return _interrupted(prog)
        if type(stop).__name__ == "SIGTERMException":  # Lightning's, after the step; it would exit with 0
            print(f"{prog}: ended by SIGTERM", file=sys.stderr)
            return TERMINATED
        if isinstance(stop.code, str):
            return _complain(prog, stop.code)
        return stop.code or 0
    except argparse.ArgumentError as error:
        read = _configs(argv)
        where = f" (config {', '.join(read)})" if read else ""
        return _complain(prog, f"{plain(str(error))}{where}; see `{prog} --help`")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it ends
        return READER_GONE
    except Exception as error:
        line = _mendable(error)
        if line is None:
            if isinstance(error.__context__, KeyboardInterrupt):  # loader workers, ended by the same Ctrl-C
                return _interrupted(prog)
            raise
        return _complain(prog, line)


def _interrupted(prog: str) -> int:
    print(f"{prog}: interrupted", file=sys.stderr)
    return INTERRUPTED


def _complain(prog: str, line: str) -> int:
    rank = os.environ.get("LOCAL_RANK", "0")
    print(f"{prog}{f' (rank {rank})' if rank != '0' else ''}: error: {line}", file=sys.stderr)
    return USER_ERROR


def _mendable(error: BaseException | None) -> str | None:
    """One line for an error that the user can mend; None for a bug. Parsers wrap what constructors raise."""
    while error is not None:
        if isinstance(error, UserError):
            return plain(str(error))
        if isinstance(error, OSError) and error.errno in _DISKS:
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{(error.strerror or str(error)).lower()}; {_DISKS[error.errno]}"
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in _OURS:
            return f"{plain(str(error))}; install that package, or do without what needs it"
        if library == "wandb":  # imported by nobody here: its logger brought it
            return f"W&B: {plain(str(error))} (WANDB_MODE=offline needs no account)"
        if library in ("safetensors", "safetensors_rust"):
            return plain(str(error))
        error = error.__cause__
    return None


def _configs(argv: Sequence[str]) -> list[str]:
    found = []
    for word, following in pairwise([*argv, ""]):
        if word in ("-c", "--config"):
            found.append(following)
        elif word.startswith("--config="):
            found.append(word.removeprefix("--config="))
    return found


def plain(message: str) -> str:
    """An error message as one line.

    Undoes the wrapping of loader workers ("Caught UserError in DataLoader worker process 0...") and of the
    option parser, which lists every type that would have done.
    """
    if "Original Traceback" in message:
        last = message.strip().splitlines()[-1]
        message = re.sub(r"^[\w.]*(?:Error|Exception): ", "", last)
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(message.split()))
    # A class that was found: what is wrong inside it.  Otherwise: the types that would have done.
    line = re.sub(
        r"Does not validate.*? Problem with given (.*?)(?: - Expected an? NoneType)? Given value type: .*",
        r"\1",
        line,
    )
    line = re.sub(r"- Expected a path but \S+ either not accessible or invalid (?:- )?", "", line)
    return re.sub(
        r"(?:- .*? - )?Does not validate .*? Subtypes: (.*?) Errors: .* Given value: ",
        r"expected one of \1; got ",
        line,
    )


def follow_parent() -> bool:
    """End this process soon after the one that started it, where that one asked for it (`child_environment`).

    A killed parent cannot tell its children; a process whose parent is gone has another one.

    Returns:
        Whether a `mefar` has started this process.
    """
    parent = os.environ.pop(_PARENT, None)  # not for this one's own children: their parent is another
    if parent is None or os.name != "posix":
        return parent is not None

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        # As Ctrl-C does: pools and loaders are ended in good order, and a main thread that waits is woken.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(20)
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()
    return True


def name_run(words: Sequence[str]) -> list[str]:
    """In a run of a sweep, W&B's or ours, put its name where `{run}` stands, and null where W&B says None."""
    name = os.environ.get(RUN_ID)
    return [re.sub(r"=None$", "=null", word.replace("{run}", name)) if name else word for word in words]


def fill(path: Path, **values: int | None) -> Path:
    """Put values where their names stand in braces: `K{num_codes}/last.ckpt` -> `K32/last.ckpt`."""
    for name in re.findall(r"\{(\w+)\}", str(path)):
        if values.get(name) is None:
            hint = f"it is {RUN_ID}, which a sweep sets" if name == "run" else f"give --{name}"
            raise UserError(f"{path}: nothing to put for {{{name}}}; {hint}")
    return Path(str(path).format(**values))


def child_environment() -> dict[str, str]:
    """The environment for a `python -m mefar` of our own that shall not outlive us."""
    told = {_PARENT: str(os.getpid())}
    if Path.cwd() != Path(__file__).parents[2]:  # nothing that lies here by chance is imported
        told["PYTHONSAFEPATH"] = "1"
    return os.environ | told


class _Chatter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not re.search("|".join(_CHATTER), record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from talking over our output; undone on the way out."""
    chatter = _Chatter()
    loggers = [logging.getLogger(name) for name in _TALKERS]
    with warnings.catch_warnings():
        for pattern in _CHATTER:
            warnings.filterwarnings("ignore", message=f"(?s).*(?:{pattern})")
        for logger in loggers:
            logger.addFilter(chatter)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(chatter)
