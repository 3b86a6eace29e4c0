"""`mefar loso`: a database folder and a tokenizer in, an honest table out."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from datamodules.clips import Study
from datamodules.faces.align import FaceMode
from datamodules.faces.apex import ApexRule
from datamodules.micro import MicroExpressionDataset
from datamodules.protocols import load as load_study
from mefar import sweeps
from mefar.baselines.pixels import linear_control
from mefar.classifier.edclip import SHIPPED_ANCHORS, Anchors
from mefar.classifier.head import HeadSize
from mefar.commands import run_function
from mefar.errors import UserError
from mefar.files import code_fingerprint, commit, lock, replacing, write_text
from mefar.loso import adapting, token_table
from mefar.loso import tracker as run_log
from mefar.loso.engine import TextAnchors, TokenSet, Training
from mefar.loso.folds import plan
from mefar.loso.machine import Machine
from mefar.loso.results import read_predictions, worst_mistakes
from mefar.loso.run import CPU_GROUP, Run
from mefar.loso.scores import StudyTokens, place_scores, table
from mefar.loso.token_table import TokenTable, pictures
from mefar.progress import shown
from mefar.report.loso_page import write_report
from mefar.tokenizer.module import load as load_tokenizer
from mefar.tokens import ActionTokenizer, AdaptableTokenizer

SHORT = {"--epochs": "--training.epochs"}
HEAD, TRAINING = HeadSize(), Training()
COMMAND: ContextVar[str] = ContextVar("COMMAND", default="mefar loso")


def loso(
    *,
    dataset: str,
    data: Path,
    tokenizer: Path,
    num_codes: int | None = None,
    num_tokens: int | None = None,
    out: Path | None = None,
    classes: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    views: int = 8,
    faces: FaceMode = "align",
    apex: ApexRule = "annotated",
    errata: bool = True,
    stabilise: bool = True,
    edclip: bool = True,
    anchors: Path = SHIPPED_ANCHORS,
    pixels: bool = True,
    shuffled_control: bool = False,
    shuffle_labels: bool = False,
    adapt_tokenizer: float = 0.0,
    head: HeadSize = HEAD,
    training: Training = TRAINING,
    accelerator: str = "auto",
    devices: int | None = None,
    num_nodes: int = 1,
    group: int | None = None,
    workers: int | None = None,
    cache_dir: Path = Path("runs/cache"),
    wandb: str | None = None,
    wandb_group: str | None = None,
) -> None:
    """Leave-one-subject-out over action tokens: every subject is tested once by a head that never saw it.

    Prints pooled UF1 / UAR of the last epoch (the score) beside the oracle epoch (which leaks), and
    writes predictions.csv, summary.json, confusion.json and report.html. A run that was interrupted is
    continued by the same command. `--epochs N` is short for `--training.epochs N`.

    Args:
        dataset: composite, a database's name (`mefar databases` lists them), or the path of a file that
            describes one.
        data: for composite the folder with one folder per database, else the database's own folder.
        tokenizer: checkpoint of a tokenizer; {num_codes} and {num_tokens} in it are filled in.
        num_codes: K that the tokenizer must have.
        num_tokens: L that the tokenizer must have.
        out: run directory; default runs/loso-DATASET. {run} in it is the name of a sweep's run.
        classes: 3 for the 3-class variant of casme2 and samm; default: the protocol's own classes.
        seeds: heads per fold; scores are then means over seeds, with their deviation.
        seed: the first of them.
        views: slightly different copies of each clip to train on; 1 = published.
        faces: `align` finds the face; `precropped` takes frames that are face crops already.
        apex: `annotated` (the middle where there is none), `middle` or `spotted`.
        errata: correct annotations that are known to be wrong.
        stabilise: take out the head's own motion between onset and apex.
        edclip: align features with the emotion descriptions.
        anchors: anchors file made by `mefar anchors`.
        pixels: also test a linear classifier on pixel differences under the same folds.
        shuffled_control: also train on shuffled labels, which must come out near chance.
        shuffle_labels: run on shuffled labels only; everything written is marked.
        adapt_tokenizer: weight of the squared error of rebuilding the fold's training pairs, by which every
            fold adapts a copy of the tokenizer (published: 0.1); folds then run one after another, each on
            all ranks. 0 = the same tokens for all folds, which run side by side.
        head: size of the head.
        training: how every fold is trained.
        accelerator: auto, cpu or gpu.
        devices: ranks on this machine; default: one per core on CPUs, else 1.
        num_nodes: machines, each started by torchrun or SLURM.
        group: folds trained side by side in one program; default by device.
        workers: groups a rank trains at a time; default the cores it has.
        cache_dir: folder for face crops and tokens; made once, used by every later run.
        wandb: log the finished run to this W&B project; WANDB_MODE=offline needs no account.
        wandb_group: group of the W&B run; default: the protocol and the tokenizer.
    """
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; give at least 1")
    adapting.check(adapt_tokenizer, training, group, workers)
    machine = Machine(accelerator, 1 if devices is None else devices, num_nodes, group, workers)
    every_seed = range(seed, seed + seeds)
    out = sweeps.fill(
        out or Path("runs") / f"loso-{Path(dataset).stem}{'-shuffled' if shuffle_labels else ''}"
    )
    tokenizer = sweeps.fill(tokenizer, num_codes=num_codes, num_tokens=num_tokens)
    device = _device(machine)
    model = load_tokenizer(tokenizer, device)
    for name, asked in (("num_codes", num_codes), ("num_tokens", num_tokens)):
        if asked not in (None, getattr(model, name)):
            raise UserError(f"{tokenizer}: {name} is {getattr(model, name)}, not {asked}; give another")
    described = Anchors.load(anchors) if edclip else None
    prefer: Literal["raw", "cropped"] = "raw" if faces == "align" else "cropped"
    study = load_study(dataset, data, classes, errata, prefer)
    with shown("aligning faces", "clips") as progress:
        clips = MicroExpressionDataset(
            study, model.image_size, faces, apex, views, 0, cache_dir, stabilise, progress=progress
        )
    key = json.dumps([_sha256(tokenizer), clips.fingerprint(), code_fingerprint(*token_table.MADE_BY)])
    tokens = _tokens(cache_dir / "tokens", key, lambda: _tokenize(model, clips, device))
    material = _material(clips.study, tokens, tokenizer, described)
    notes: dict[str, Any] = {
        "notes": [list(note) for note in clips.study.notes],
        "left_out": [list(pair) for pair in clips.study.excluded],
        "num_codes": model.num_codes,
        "num_tokens": model.num_tokens,
        "views": views,
        "apex": apex,
        "edclip": described.text_model if described else None,
        "command": COMMAND.get(),
        "commit": commit(),
    }
    adaptation = None
    if adapt_tokenizer:
        if not isinstance(model, AdaptableTokenizer):
            raise UserError(f"{tokenizer}: {type(model).__name__} cannot adapt; leave adapt_tokenizer at 0")
        adaptation = adapting.Adaptation(model, clips, clips.fingerprint(), adapt_tokenizer)
    elif devices is None:
        machine = machine.spread(len(plan(material.data.subjects, every_seed, group or CPU_GROUP)))
    main_material = material.shuffled() if shuffle_labels else material
    run = Run(main_material, out, head, training, every_seed, machine, notes, adaptation)
    if run.leads:
        print(*_remarks(clips.study), sep="\n")
    summary = run.execute()
    controls: dict[str, Any] = {}
    if pixels and run.leads:
        controls["pixels"] = place_scores(main_material, _linear(main_material, tokens))
    if shuffled_control and not shuffle_labels:
        control = Run(
            material.shuffled(), out / "shuffled", head, training, every_seed, machine, notes, adaptation
        )
        shuffled = control.execute()
        controls["shuffled"] = shuffled["scores"]["last"] if run.leads else {}
    if not run.leads:
        return
    summary["controls"] = controls
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    # Of shuffled labels a mistake is no mistake.
    wrong = [] if shuffle_labels else worst_mistakes(read_predictions(out))
    shown_clips = [mistake.clip for mistake in wrong]
    _save_pictures(
        out / "pictures.npz", pictures(model, tokens, lambda row: _pair(clips, row), device, shown_clips)
    )
    page = write_report(out)
    Console().print(table(summary))
    if summary["dropped"]:
        key, reason = summary["dropped"][0]
        print(f"{len(summary['dropped'])} clips of the protocol are not in it, such as {key}: {reason}")
    print(page)
    if wandb is not None:  # the last thing: where it fails, the run is complete and the command logs it again
        _log_to_wandb(out, summary, wandb, wandb_group)


def main(argv: Sequence[str]) -> int:
    """Run `mefar loso`."""
    named, words = sweeps.name_run(argv), []
    COMMAND.set(shlex.join(["mefar", "loso", *named]))
    for word in named:
        option, equals, value = word.partition("=")
        words.append(SHORT.get(option, option) + equals + value)
    return run_function(loso, words, "mefar loso")


def _remarks(study: Study) -> list[str]:
    """What to know about the data at hand: all that is about a database, and how much about single clips."""
    lines = [f"{where}: {text}" for where, text in study.notes if "/" not in where]
    single = [f"{where}: {text}" for where, text in study.notes if "/" in where]
    if single:
        lines.append(f"{len(single)} remarks on single clips (summary.json has all), such as {single[0]}")
    return lines


def _log_to_wandb(out: Path, summary: Mapping[str, Any], project: str, group: str | None) -> None:
    """One W&B run for the whole study, after it: folds are trained in forks and threads, which W&B minds."""
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(
        name=out.name,
        project=project,
        save_dir=os.environ.get("WANDB_DIR", str(out)),
        # The same study again is the same W&B run; an agent has chosen another name for it.
        id=os.environ.get(sweeps.RUN_ID, summary["identity"][:16]),
        group=group or run_log.group(summary),
        tags=run_log.tags(summary),
        job_type="loso",
    )
    run_log.write(logger, out)
    logger.experiment.finish()


def _device(machine: Machine) -> torch.device:
    if not machine.on_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"accelerator {machine.accelerator!r}: torch finds no GPU; use auto or cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))))


def _tokens(folder: Path, key: str, make: Callable[[], TokenTable]) -> TokenTable:
    """The table of a key: from the cache, or made and kept there.

    Of all ranks and runs that share the disk one makes it while the others wait, so it does not matter
    whether the disk is the machine's own; where a rank that makes it dies, the next one takes over.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    found = TokenTable.load(path, key)
    if found is not None:
        return found
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(folder / f"{path.stem}.lock"))
        except OSError as error:
            raise _unwritable(folder, error) from error
        found = TokenTable.load(path, key)
        if found is None:
            found = make()
            try:
                found.save(path, key)
            except OSError as error:
                raise _unwritable(folder, error) from error
    return found


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({error.strerror}); free space or set another cache_dir")


def _tokenize(model: ActionTokenizer, clips: MicroExpressionDataset, device: torch.device) -> TokenTable:
    with shown("tokenizing", "clips") as progress:
        began, done = time.monotonic(), 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            progress(done, len(clips), done / (time.monotonic() - began))

        return token_table.tokenize(model, DataLoader(clips, batch_size=8), device, tell)


def _material(study: Study, tokens: TokenTable, checkpoint: Path, described: Anchors | None) -> StudyTokens:
    if tokens.clips != tuple(clip.key for clip in study.clips):
        raise RuntimeError("the token table and the study do not list the same clips")
    text = TextAnchors(*described.select(study.protocol, study.class_names)) if described else None
    labels = torch.tensor([clip.label for clip in study.clips])
    subjects = tuple(clip.subject_key for clip in study.clips)
    return StudyTokens(
        study.protocol,
        TokenSet(tokens.embeddings, labels, subjects, study.class_names, text),
        tokens.clips,
        {
            "checkpoint": str(checkpoint),
            "sha256": _sha256(checkpoint),
            "pretrained_on": _pretrained_on(checkpoint),
        },
        study.counts(),
        study.dropped,
    )


def _linear(material: StudyTokens, tokens: TokenTable) -> torch.Tensor:
    data = material.data
    return linear_control(tokens.pixels, data.labels, data.subjects, len(data.class_names))


def _pair(clips: MicroExpressionDataset, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    item = clips[row]
    onset, apex = item["onset"], item["apex"]
    return (onset, apex) if onset.ndim == 3 else (onset[0], apex[0])


def _save_pictures(path: Path, arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pretrained_on(checkpoint: Path) -> str:
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    settings = content.get("datamodule_hyper_parameters", {})
    return str(settings.get("data", "unknown"))
