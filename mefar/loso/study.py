"""The pipeline of a study: clips and a tokenizer in, scores out; README has a notebook cell that calls it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mefar.baselines.method import Method
from mefar.baselines.pixels import linear_control
from mefar.classifier.head import HeadFactory, TokenHead, takes_text
from mefar.classifier.settings import HeadTraining
from mefar.classifier.text_anchors import SHIPPED_ANCHORS, Anchors
from mefar.errors import UserError
from mefar.files import code_fingerprint, fingerprint, lock, replacing, write_text
from mefar.loso import adapting, callback, final, token_table, units
from mefar.loso.engine import is_fitted
from mefar.loso.folds import StudyTokens
from mefar.loso.results import read_predictions, worst_mistakes
from mefar.loso.run import Run, Where
from mefar.loso.scores import by_place
from mefar.loso.token_table import TokenTable
from mefar.metrics import scores
from mefar.progress import shown
from mefar.readers import weights_of
from mefar.tokens import ActionTokenizer, AdaptableTokenizer


class Clips(Protocol):
    """The clips of a study, as datamodules.micro.MicroExpressionDataset gives them.

    An item is a dict with `onset`, `apex`, (3, H, W) or (V, 3, H, W) uint8, and `clip`, its key. `study` has
    `protocol`, `class_names`, `clips` (each with `key`, `label`, `subject_key`, `aus`), `counts()`,
    `findings` (dataclasses) and `excluded`. `fingerprint()` tells whether the pictures are the same.
    """

    study: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def fingerprint(self) -> str:
        """Hash of the pictures."""


@dataclass(frozen=True)
class Options:
    """What a study does besides training heads: the options of `mefar loso` of the same names.

    What each means and may be is said there (mefar.commands.loso.loso).

    Raises:
        UserError: options that do not go together, or no seed.
    """

    seeds: int = 1
    seed: int = 0
    edclip: bool = False
    anchors: Path = SHIPPED_ANCHORS
    pixels: bool = True
    shuffled_control: bool = False
    shuffle_labels: bool = False
    adapt_tokenizer: float = 0.0
    keep_models: bool = False
    cache_dir: Path = Path("runs/cache")
    centred: bool = False
    shuffle_sentences: bool = False
    shuffle_slots: bool = False
    zero_shot: str = ""
    task: Literal["emotions", "units"] = "emotions"
    leave_out: Literal["subject", "database"] = "subject"
    final: bool = False

    def __post_init__(self) -> None:
        if self.zero_shot and (self.shuffled_control or self.shuffle_labels or self.adapt_tokenizer):
            raise UserError("zero_shot goes with neither shuffled labels nor adapt_tokenizer; leave one out")
        sentences = {
            "anchors": self.anchors != SHIPPED_ANCHORS, "centred": self.centred,
            "shuffle_sentences": self.shuffle_sentences, "zero_shot": bool(self.zero_shot),
        }  # fmt: skip
        for name, asked in sentences.items():
            if asked and not self.edclip:
                raise UserError(f"{name} is about the emotions' sentences; add edclip true, or leave it out")
        if self.seeds < 1:
            raise UserError(f"seeds is {self.seeds}; give at least 1")
        wrong = ("zero_shot", "adapt_tokenizer", "shuffle_labels", "shuffle_sentences", "shuffle_slots")
        for name in wrong if self.final else ():
            if getattr(self, name):
                raise UserError(f"final goes without {name}; leave one of them out")
        if self.final and self.task == "units":
            raise UserError("final trains a head for emotions, and for units besides; leave task out")


def run(
    clips: Clips,
    tokenizer: ActionTokenizer | Method,
    out: Path | str,
    head: HeadFactory | None = None,
    training: HeadTraining | None = None,
    options: Options | None = None,
    where: Where | None = None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Leave-one-subject-out: every subject is tested once by a head that never saw it.

    Writes study.json, folds.jsonl (the ledger), predictions.csv, confusion.json, attention.json,
    pictures.npz and summary.json into `out`. What is finished there is kept: the same call goes on after an
    interruption, and several processes may make it at once.

    Args:
        clips: of the study.
        tokenizer: makes tokens of them, once; or a baseline, which reads something else.
        out: run directory.
        head: its class, or functools.partial of it with options; default: TokenHead, or the baseline's.
        training: how every fold is trained; default: HeadTraining(), or the baseline's.
        options: seeds, controls, what is kept.
        where: devices.
        notes: further entries of summary.json, for example the command; `tokenizer` may hold `checkpoint`
            and `pretrained_on`.

    Returns:
        summary.json; empty on ranks that do not lead.

    Raises:
        UserError: `out` holds another run; a head that is none; a fold diverged.
    """
    method = tokenizer if isinstance(tokenizer, Method) else None
    head = head or (method.head if method else TokenHead)
    training = training or (method.training if method else HeadTraining())
    out, options, where, notes = Path(out), options or Options(), where or Where(), dict(notes or {})
    if options.final and method is not None:
        raise UserError("final trains what reads tokens; a baseline has none, leave method or final out")
    adapting.check(options.adapt_tokenizer, training, where.group)
    aligned = options.edclip and options.task == "emotions" and takes_text(head)
    described = Anchors.load(options.anchors) if aligned else None
    if method is not None:
        method.prepare([clip.key for clip in clips.study.clips])
    identity = token_table.identity_of(tokenizer)
    key = fingerprint([identity, clips.fingerprint(), code_fingerprint(*token_table.MADE_BY)])
    table = tokens_of(clips, tokenizer, options.cache_dir / "tokens", key)
    told = {"checkpoint": "", "pretrained_on": "unknown", **notes.pop("tokenizer", {}), "sha256": identity}
    study = material(clips, table, told, described, options.centred)
    if options.shuffle_sentences and study.anchors is not None:
        study = replace(study, anchors=study.anchors.shuffled())
        notes["shuffle_sentences"] = True
    if options.shuffle_slots:
        if options.adapt_tokenizer:
            raise UserError("shuffle_slots is of tokens made once; leave it or adapt_tokenizer out")
        study = study.without_order()
        notes["shuffle_slots"] = True
    if options.leave_out == "database":
        study = units.by_database(study)
        notes["leave_out"] = "database"
    if options.zero_shot:
        study = without_class(study, options.zero_shot, training)
        notes["zero_shot"] = options.zero_shot
    notes = {
        "findings": [asdict(finding) for finding in clips.study.findings],
        "left_out": [list(pair) for pair in clips.study.excluded],
        "views": study.tokens.shape[1],
        "edclip": described.text_model if described else None,
        **notes,
    }
    if isinstance(tokenizer, Method):
        notes["method"] = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    else:
        notes |= {"num_codes": tokenizer.num_codes, "num_tokens": tokenizer.num_tokens}
    adaptation, decides = None, None
    if options.adapt_tokenizer:
        if not isinstance(tokenizer, AdaptableTokenizer):
            raise UserError(f"{type(tokenizer).__qualname__}: cannot be adapted; leave adapt_tokenizer out")
        weight = options.adapt_tokenizer
        adaptation = adapting.Adaptation(tokenizer, clips, weight)  # type: ignore[arg-type]
        code = code_fingerprint("mefar.loso.adapting", *token_table.MADE_BY)
        decides = {"adapt_tokenizer": weight, "pairs": clips.fingerprint(), "adapting": code}
        notes["adapt_tokenizer"] = weight

    seeds = range(options.seed, options.seed + options.seeds)

    def one(study: StudyTokens, out: Path, kind: type[Run] = Run) -> Run:
        return kind(study, out, head, training, seeds, where, notes, decides, options.keep_models)

    if options.task == "units":
        if decides or options.zero_shot or options.shuffle_labels or options.shuffled_control:
            raise UserError(
                "task units goes without adapt_tokenizer, zero_shot and shuffled labels; leave them out"
            )
        return run_units(clips, study, out, one, where, is_fitted(head, study))
    main = study.shuffled() if options.shuffle_labels else study
    runs = [one(main, out)]
    if options.shuffled_control and not options.shuffle_labels:
        runs.append(one(study.shuffled(), out / "shuffled"))
    if adaptation is None:
        leads = callback.train(runs, where)
    else:
        for each in runs:
            leads = adapting.train(each, where, adaptation)
    if not leads:
        return {}
    summary = finish(runs, clips, tokenizer, table, options)
    if options.final:
        about = {name: summary[name] for name in ("protocol", "clips", "counts", "scores", "tokenizer")}
        about |= {name: notes[name] for name in ("command", "commit") if name in notes}
        weights = weights_of(tokenizer)
        made = final.train(study, units_of(clips), head, training, options.seed, weights, described, about)
        made.save(out / final.FILE)
    return summary


def run_units(
    clips: Clips,
    study: StudyTokens,
    out: Path,
    one: Callable[[StudyTokens, Path, type[Run]], Run],
    where: Where,
    fitted: bool,
) -> dict[str, Any]:
    """Action units: a run of all, or for heads that are `fitted` one of each, made by `one`; units.json."""
    shown = units_of(clips)
    rows, uncoded = units.coded_rows(shown, study.databases)
    found, missing = units.studies(study, shown, rows)
    if fitted:
        runs = [one(each, out / f"AU{unit}", Run) for unit, each in found.items()]
    else:
        runs = [one(units.together(found), out, units.UnitsRun)]
    if not callback.train(runs, where):
        return {}
    scores = {unit: units.unit_scores(read_predictions(out / f"AU{unit}")) for unit in found}
    first = runs[0]
    summary = {
        "protocol": study.protocol,
        "task": "units",
        "clips": len(rows),
        "seeds": list(first.seeds),
        "scores": units.summarise(scores),
        "units": {f"AU{unit}": each for unit, each in scores.items()},
        "not_tested": {f"AU{unit}": why for unit, why in missing.items()},
        "databases_without_units": uncoded,
        "head": first.configuration["head"],
        "training_seconds": round(sum(run.seconds() for run in runs), 1),
        **first.notes,
    }
    write_text(out / "units.json", json.dumps(summary, indent=1))
    return summary


def finish(
    runs: list[Run], clips: Clips, tokenizer: ActionTokenizer | Method, table: TokenTable, options: Options
) -> dict[str, Any]:
    """Add controls and pictures to a complete run: summary.json."""
    out, study, summary = runs[0].out, runs[0].study, runs[0].summary()
    controls: dict[str, Any] = {}
    if options.pixels:
        labels, C = study.labels_of(options.seed), len(study.class_names)
        guesses = linear_control(table.pixels, labels, study.subjects, C)
        places = by_place(study.databases).items()
        controls["pixels"] = {place: scores(labels[inside], guesses[inside], C) for place, inside in places}
    for shuffled in runs[1:]:
        controls["shuffled"] = shuffled.summary()["scores"]["last"]
    summary["controls"] = controls
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    if isinstance(tokenizer, Method):
        return summary
    # Of shuffled labels a mistake is no mistake.
    wrong = [] if study.control else worst_mistakes(read_predictions(out))

    def pair(row: int) -> tuple[Tensor, Tensor]:
        return adapting.pair_of(clips[row], 0)

    pictures = token_table.pictures(tokenizer, table, pair, _device(tokenizer), [each.clip for each in wrong])
    with replacing(out / "pictures.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **pictures)  # type: ignore[arg-type]
    return summary


def units_of(clips: Clips) -> list[tuple[int, ...]]:
    """Numbers of the action units of every clip."""
    return [tuple({unit.number for unit in clip.aus}) for clip in clips.study.clips]


def tokens_of(clips: Clips, tokenizer: ActionTokenizer | Method, folder: Path, key: str) -> TokenTable:
    """The token table of a key: from the cache, or made and kept there.

    Of all ranks and runs that share the disk one makes it while the others wait.
    """
    path = folder / f"{key[:32]}.npz"
    if (found := TokenTable.load(path, key)) is not None:
        return found
    with lock(path.with_suffix(".lock")), shown("tokenizing", "clips") as progress:
        if (found := TokenTable.load(path, key)) is not None:
            return found  # made by somebody else, while this process waited
        began = time.monotonic()

        def tell(done: int) -> None:
            progress(done, len(clips), done / (time.monotonic() - began))

        loader: DataLoader[Any] = DataLoader(clips, batch_size=8)  # type: ignore[arg-type]
        found = token_table.tokenize(tokenizer, loader, _device(tokenizer), tell)
        found.save(path, key)
        return found


def _device(tokenizer: ActionTokenizer | Method) -> torch.device:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a baseline may hold one
    if isinstance(tokenizer, nn.Module):
        for value in tokenizer.parameters():
            return value.device
    return torch.device("cpu")


def without_class(study: StudyTokens, name: str, training: HeadTraining) -> StudyTokens:
    """The study whose heads never train on a class, and know it by its text; a UserError if it has none."""
    if name not in study.class_names:
        raise UserError(f"zero_shot: no class {name!r} in {study.protocol}: {', '.join(study.class_names)}")
    label = study.class_names.index(name)
    if study.anchors is None or not training.edclip_weight or not study.anchors.described[label]:
        raise UserError(f"zero_shot: {name} is known by its text; it needs one, edclip, and a head with text")
    return replace(study, unseen=label)


def material(
    clips: Clips,
    tokens: TokenTable,
    tokenizer: Mapping[str, Any],
    described: Anchors | None,
    centred: bool = False,
) -> StudyTokens:
    """A study's tokens with its labels, subjects and texts."""
    study = clips.study
    keys = tuple(clip.key for clip in study.clips)
    if tokens.clips != keys:
        raise RuntimeError("the token table and the study do not list the same clips")
    return StudyTokens(
        protocol=study.protocol,
        tokens=tokens.embeddings,
        labels=torch.tensor([clip.label for clip in study.clips]),
        subjects=tuple(clip.subject_key for clip in study.clips),
        clips=keys,
        class_names=tuple(study.class_names),
        anchors=None if described is None else described.select(study.protocol, study.class_names, centred),
        tokenizer=tokenizer,
        counts=study.counts(),
    )
