"""`mefar loso`: a database folder and a tokenizer, or a baseline, in; an honest table out."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any, Literal

import torch
import yaml
from rich.console import Console

from datamodules.clips import Study
from datamodules.faces.align import FaceMode
from datamodules.faces.apex import ApexRule
from datamodules.micro import MicroExpressionDataset
from datamodules.protocols import load as load_study
from mefar.baselines import chance, flow_svm, lbp_top, off_apexnet, resnet, ststnet
from mefar.baselines import pixels as pixel_baseline
from mefar.baselines.continuous import Continuous
from mefar.baselines.method import Method
from mefar.classifier.head import HeadFactory, TokenHead, name_of, options_of
from mefar.classifier.settings import HeadTraining
from mefar.classifier.text_anchors import SHIPPED_ANCHORS
from mefar.commands import RUN_ID, fill, name_run, run_function
from mefar.errors import UserError
from mefar.files import commit
from mefar.loso import study as loso_study
from mefar.loso import tracker
from mefar.loso.run import Where
from mefar.loso.scores import table, units_table
from mefar.loso.token_table import identity_of
from mefar.progress import shown
from mefar.report.loso_page import write_report
from mefar.tokenizer.module import load as load_tokenizer
from mefar.tokenizer.plain import SHIPPED, located
from mefar.tokens import ActionTokenizer

SHORT = {
    "--epochs": "--training.epochs",
    "--flow": "--method.flow_dir",
    "--flow-list": "--method.flow_list",
}
TRAINING = HeadTraining()
BASELINES = (
    chance.Majority, chance.Prior, pixel_baseline.Pixels, lbp_top.LBPTOP, flow_svm.FlowSVM, ststnet.STSTNet,
    off_apexnet.OFFApexNet, resnet.FlowResNet, resnet.DifferenceCNN,
)  # fmt: skip
"""What --method knows by its name alone; any other class is named with its module."""
COMMAND: ContextVar[str] = ContextVar("COMMAND", default="mefar loso")


def loso(
    *,
    dataset: str,
    data: Path,
    tokenizer: ActionTokenizer | str | None = None,
    method: Method | None = None,
    continuous: bool = False,
    num_codes: int | None = None,
    num_tokens: int | None = None,
    out: Path | None = None,
    classes: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    views: int = 32,
    faces: FaceMode = "align",
    stretch: bool = False,
    apex: ApexRule = "annotated",
    errata: bool = True,
    stabilise: bool = True,
    edclip: bool = False,
    anchors: Path = SHIPPED_ANCHORS,
    centred: bool = False,
    shuffle_sentences: bool = False,
    shuffle_slots: bool = False,
    zero_shot: str = "",
    task: Literal["emotions", "units"] = "emotions",
    leave_out: Literal["subject", "database"] = "subject",
    final: bool = False,
    pixels: bool = True,
    shuffled_control: bool = False,
    shuffle_labels: bool = False,
    adapt_tokenizer: float = 0.0,
    keep_models: bool = False,
    head: HeadFactory = TokenHead,
    training: HeadTraining = TRAINING,
    accelerator: str = "auto",
    devices: int | None = None,
    num_nodes: int = 1,
    group: int | None = None,
    compiled: bool = False,
    cache_dir: Path = Path("runs/cache"),
    wandb: str | None = None,
    wandb_group: str | None = None,
) -> None:
    """Leave-one-subject-out over action tokens: every subject is tested once by a head that never saw it.

    Prints pooled UF1 / UAR of the last epoch (the score) beside the oracle epoch (which leaks), and
    writes predictions.csv, summary.json, confusion.json and report.html. A run that was interrupted is
    continued by the same command. `--epochs N` is short for `--training.epochs N`, `--flow DIR` for
    `--method.flow_dir DIR`: ready-made images `<subject>_<clip>.png` (u, v, strain as red, green, blue), and
    `--flow-list CSV` for `--method.flow_list CSV`, their list (columns subject or sub, clip or filename_o).

    Args:
        dataset: composite, a database's name (`mefar databases` lists them), or the path of a file that
            describes one.
        data: for composite the folder with one folder per database, else the database's own folder.
        tokenizer: checkpoint of a tokenizer, in which {num_codes} and {num_tokens} are filled in; or a
            class of your own (--tokenizer my_file.MyTokenizer --tokenizer.option ...).
        method: a baseline instead of a tokenizer, with its own head and published training, which --head and
            --training change: Majority, Prior, Pixels, LBPTOP, FlowSVM, STSTNet, OFFApexNet, FlowResNet,
            DifferenceCNN, or a class of your own (--method my_file.MyMethod --method.option ...).
        continuous: classify the tokenizer's action before its codebook: the ceiling of its tokens.
        num_codes: K that the tokenizer must have.
        num_tokens: L that the tokenizer must have.
        out: run directory; default runs/loso-DATASET. {run} in it is the name of a sweep's run.
        classes: 3 for the 3-class variant of casme2 and samm; default: the protocol's own classes.
        seeds: heads per fold; scores are then means over seeds, with their deviation.
        seed: the first of them.
        views: slightly different copies of each clip to train on, and to take the mean over; 1 = published.
        faces: `align` finds the face; `precropped` takes frames that are face crops already.
        stretch: fill the square with a precropped frame, as published code does, not keeping its aspect.
        apex: `annotated` (the middle where there is none), `middle` or `spotted`.
        errata: correct annotations that are known to be wrong.
        stabilise: take out the head's own motion between onset and apex.
        edclip: align features with the emotion descriptions, where the head takes text_dim. Published, and no
            gain that we could measure (experiments/RESULTS.md); zero_shot and `Model.describe` need it.
        anchors: anchors file made by `mefar anchors`.
        centred: take out of the anchors what all emotions have in common.
        shuffle_sentences: give every class the sentences of another: EDCLIP without their meaning.
        shuffle_slots: give the tokens of every clip an order of their own: what order is worth.
        zero_shot: class to leave out of all training: clips are then recognised by the nearest text, so that
            classes without text are never answered.
        task: emotions, the classes of the protocol, or units: per action unit of CD6ME whether it is shown,
            by one head over all (a fitted one, such as a ridge, per unit); predictions in a folder per unit
            in OUT, and OUT/units.json over all.
        leave_out: of every fold one subject, or one database.
        final: afterwards train a head and a read-out of action units on all subjects, for `mefar export`; no
            score is theirs.
        pixels: also test a linear classifier on pixel differences under the same folds.
        shuffled_control: also train on shuffled labels, which must come out near chance.
        shuffle_labels: run on shuffled labels only; everything written is marked.
        adapt_tokenizer: weight of the squared error of rebuilding the fold's training pairs, by which every
            fold adapts a copy of the tokenizer (published: 0.1); folds then run one after another, each on
            all ranks. 0 = the same tokens for all folds, which run side by side.
        keep_models: write the head of every fold, with its adapted tokenizer if it has one, into OUT/heads.
        head: class of the head, also one in a file of yours (--head my_file.MyHead), and its options
            (--head.dropout 0.3); mefar/classifier/head.py says what a head is.
        training: how every fold is trained.
        accelerator: auto, cpu or gpu.
        devices: ranks on this machine; default: one per core on CPUs, else 1.
        num_nodes: machines, each started by torchrun or SLURM.
        group: heads trained at once; default by device.
        compiled: let torch.compile fuse a training step: a minute at the start, then faster steps.
        cache_dir: folder for face crops and tokens; made once, used by every later run.
        wandb: log the finished run to this W&B project; WANDB_MODE=offline needs no account.
        wandb_group: group of the W&B run; default: the protocol and the tokenizer.
    """
    if (tokenizer is None) == (method is None):
        raise UserError("give either --tokenizer or --method (a baseline)")
    where = Where(accelerator, devices, num_nodes, group, compiled)
    options = loso_study.Options(
        seeds, seed, edclip, anchors, pixels, shuffled_control, shuffle_labels, adapt_tokenizer, keep_models,
        cache_dir, centred, shuffle_sentences, shuffle_slots, zero_shot, task, leave_out, final,
    )  # fmt: skip
    out = fill(out or Path("runs") / f"loso-{Path(dataset).stem}{'-shuffled' if shuffle_labels else ''}")
    prefer: Literal["raw", "cropped"] = "raw" if faces == "align" else "cropped"
    found = load_study(dataset, data, classes, errata, prefer)
    checkpoint = ""
    if isinstance(tokenizer, str):
        path = located(fill(Path(tokenizer), num_codes=num_codes, num_tokens=num_tokens))
        checkpoint, tokenizer = str(path), load_tokenizer(path, _device(where))
    for name, asked in (("num_codes", num_codes), ("num_tokens", num_tokens)):
        if asked not in (None, getattr(tokenizer, name, None)):
            raise UserError(
                f"{checkpoint or 'tokenizer'}: {name} is {getattr(tokenizer, name, 'absent')}, not {asked}; "
                "give another"
            )
    source = method or tokenizer
    assert source is not None
    if continuous:
        if isinstance(source, Method):
            raise UserError("--continuous is about a tokenizer; leave it or --method out")
        source = Continuous(source, identity_of(source))
    with shown("aligning faces", "clips") as progress:
        clips = MicroExpressionDataset(
            found, source.image_size, faces, apex, views, 0, cache_dir, stabilise, progress=progress,
            stretch=stretch,
        )  # fmt: skip
    notes: dict[str, Any] = {
        "apex": apex,
        "command": COMMAND.get(),
        "commit": commit(),
        "tokenizer": {"checkpoint": checkpoint, "pretrained_on": _pretrained_on(checkpoint)},
    }
    summary = loso_study.run(clips, source, out, head, training, options, where, notes)
    if not summary:
        return
    print(*_remarks(clips.study), sep="\n")
    if task == "units":
        Console().print(units_table(summary))
        for name, why in summary["not_tested"].items():
            print(f"{name}: not tested, {why}")
        if summary["databases_without_units"]:
            print(f"without action units, left out: {', '.join(summary['databases_without_units'])}")
        print(out / "units.json")
        return
    page = write_report(out)
    Console().print(table(summary))
    if lost := [found for found in clips.study.findings if found.level == "lost" and found.clip]:
        print(f"{len(lost)} clips of the protocol are not in it, such as {lost[0].clip}: {lost[0].detail}")
    print(page)
    if wandb is not None:  # the last thing: where it fails, the run is complete and the command logs it again
        _log_to_wandb(out, summary, wandb, wandb_group)


def main(argv: Sequence[str]) -> int:
    """Run `mefar loso`."""
    named, words = name_run(argv), []
    COMMAND.set(shlex.join(["mefar", "loso", *named]))
    for word in named:
        option, equals, value = word.partition("=")
        words.append(SHORT.get(option, option) + equals + value)
    return run_function(loso, [*_published(words), *words], "mefar loso")


def _published(words: Sequence[str]) -> list[str]:
    """Options that the baseline of a command line was published with; what the user says comes later."""
    said = {w.partition("=")[0]: w.partition("=")[2] or after for w, after in pairwise([*words, ""])}
    name = said.get("--method") or _method_in(said.get("--config", ""))
    kind: object = next((each for each in BASELINES if name.rpartition(".")[2] == each.__name__), None)
    if kind is None and "." in name:
        try:
            kind = locate(name)
        except ErrorDuringImport:
            return []  # the parser says what is wrong
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        return []
    made = [f"--training.{key}={_yaml(value)}" for key, value in asdict(kind.training).items()]
    options = [f"--head.{key}={_yaml(value)}" for key, value in options_of(kind.head).items()]
    return [f"--views={kind.views}", *made, f"--head={name_of(kind.head)}", *options]


def _method_in(config: str) -> str:
    """The baseline that a YAML file names."""
    try:
        method = (yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}).get("method", "")
    except (OSError, UnicodeDecodeError, AttributeError, yaml.YAMLError):
        return ""  # none, or one that the parser complains about
    return str(method.get("class_path", "") if isinstance(method, dict) else method)


def _yaml(value: object) -> str:
    if value == float("inf"):
        return ".inf"
    return value if isinstance(value, str) else json.dumps(value)


def _remarks(study: Study) -> list[str]:
    """What to know about the data at hand: all that is about a database, and how much about single clips."""
    lines = [f"{found.database}: {found.detail}" for found in study.findings if not found.clip]
    for label, name in enumerate(study.class_names):
        people = {clip.subject_key for clip in study.clips if clip.label == label}
        if len(people) == 1:
            lines.append(
                f"class {name}: one subject has all its clips, {people.pop()}; no head knows it there"
            )
    single = [f"{f.clip}: {f.detail}" for f in study.findings if f.clip and f.level != "lost"]
    if single:
        lines.append(f"{len(single)} remarks on single clips (summary.json has all), such as {single[0]}")
    return lines


def _log_to_wandb(out: Path, summary: Mapping[str, Any], project: str, group: str | None) -> None:
    """One W&B run for the whole study, after it: folds are trained in forks, which W&B minds."""
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(
        name=out.name,
        project=project,
        save_dir=os.environ.get("WANDB_DIR", str(out)),
        # The same study again is the same W&B run; an agent has chosen another name for it.
        id=os.environ.get(RUN_ID, summary["identity"][:16]),
        group=group or tracker.group(summary),
        tags=tracker.tags(summary),
        job_type="loso",
    )
    tracker.write(logger, out)
    logger.experiment.finish()


def _device(where: Where) -> torch.device:
    if not where.on_gpu:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))))


def _pretrained_on(checkpoint: str) -> str:
    if not checkpoint:
        return "unknown"
    if Path(checkpoint).is_relative_to(SHIPPED):
        return "rendered faces that talk"
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return str(content.get("datamodule_hyper_parameters", {}).get("data", "unknown"))
