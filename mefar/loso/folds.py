"""Who may see what: the tokens of a study, its folds, which clips a fold trains and is tested on.

Groups of folds are fixed by the study before anything runs: no result depends on how many ranks there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mefar.classifier.losses import TextAnchors
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.files import fingerprint
from mefar.randomness import fold_key, seed_of

FULL, SHUFFLED = "full", "shuffled"


@dataclass(frozen=True)
class StudyTokens:
    """A study as leave-one-subject-out needs it: the tokens of every clip, and whose they are.

    Attributes:
        protocol: composite, casme2, samm, smic, ...
        tokens: (N, V, L, D) float, view 0 of the untouched clip.
        labels: (N,) int64 in [0, C); or (N, C) of 0 and 1, where a clip may have several of the classes.
        subjects: N subject keys; a subject is (database, number), so keys never collide.
        clips: N clip keys "database/subject/clip".
        class_names: C names.
        anchors: text anchors of the classes, or None.
        tokenizer: what made the tokens: checkpoint, sha256, pretrained_on.
        counts: per database and in all: clips, subjects, clips per class.
        control: "shuffled" where the labels are not the true ones; marks all that is written.
        unseen: class that no head is trained on, to be known by its text alone; None = all are.

    Raises:
        UserError: fewer than two subjects, or a class without clips.
    """

    protocol: str
    tokens: Tensor
    labels: Tensor
    subjects: tuple[str, ...]
    clips: tuple[str, ...]
    class_names: tuple[str, ...]
    anchors: TextAnchors | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    control: str = ""
    unseen: int | None = None

    def __post_init__(self) -> None:
        N, C = len(self.labels), len(self.class_names)
        if self.tokens.ndim != 4 or {len(self.tokens), len(self.subjects), len(self.clips)} != {N}:
            raise ValueError(
                f"tokens {tuple(self.tokens.shape)}, {N} labels, {len(self.subjects)} subjects, "
                f"{len(self.clips)} clips do not match"
            )
        if len(set(self.subjects)) < 2:
            raise UserError(
                f"leave-one-subject-out needs at least 2 subjects, found {len(set(self.subjects))}; add data"
            )
        counts = self.labels.sum(0) if self.several else torch.bincount(self.labels, minlength=C)
        if len(counts) > C:
            raise ValueError(f"label {len(counts) - 1} but only {C} classes")
        if not counts.all():
            absent = self.class_names[int(counts.argmin())]
            raise UserError(f"no clip of class {absent!r} in the study; add data or take another protocol")

    @property
    def several(self) -> bool:
        """Whether a clip may have several of the classes."""
        return self.labels.ndim == 2

    def fingerprint(self) -> str:
        """Hash of everything the training sees."""
        anchors = [] if self.anchors is None else [self.anchors.vectors, self.anchors.described]
        unseen = [] if self.unseen is None else [self.unseen]
        about = [self.subjects, self.class_names, self.clips, *unseen]
        return fingerprint(about, self.tokens, self.labels, *anchors)

    def shuffled(self) -> StudyTokens:
        """The control: the same clips, whose labels are permuted over all of them, anew for every seed."""
        return replace(self, control=SHUFFLED)

    def without_order(self) -> StudyTokens:
        """The same tokens, those of every clip in an order of their own: a control of what order is worth."""
        orders = [
            torch.randperm(
                self.tokens.shape[2], generator=torch.Generator().manual_seed(seed_of(clip, "slots"))
            )
            for clip in self.clips
        ]
        index = torch.stack(orders)[:, None, :, None].to(self.tokens.device)
        return replace(self, tokens=self.tokens.gather(2, index.expand_as(self.tokens)))

    def labels_of(self, seed: int) -> Tensor:
        """(N,) or (N, C) int64: the labels that heads of a seed are trained and tested on."""
        if self.control != SHUFFLED:
            return self.labels
        order = torch.randperm(len(self.clips), generator=torch.Generator().manual_seed(seed))
        return self.labels[order.to(self.labels.device)]

    def to(self, device: torch.device) -> StudyTokens:
        """The same study with its tokens and labels on another device."""
        return replace(self, tokens=self.tokens.to(device), labels=self.labels.to(device))

    @property
    def learnable(self) -> Tensor:
        """(N,) bool: clips that heads may be trained on, but for who is held out."""
        if self.unseen is None:
            return torch.ones(len(self.labels), dtype=torch.bool)
        return self.labels != self.unseen

    @property
    def databases(self) -> tuple[str, ...]:
        """N database ids, one per clip."""
        return tuple(clip.split("/", 1)[0] for clip in self.clips)


@dataclass(frozen=True, order=True)
class Fold:
    """One head of a study: the subject it never sees, and its seed."""

    subject: str
    seed: int

    @property
    def key(self) -> str:
        """Name of the fold, the source of its random numbers."""
        return fold_key(self.subject, self.seed)


@dataclass(frozen=True)
class FoldResult:
    """Held-out predictions of one fold.

    Attributes:
        fold: subject and seed.
        rows: n row numbers of the subject's clips in the study.
        probabilities: n x C, of the last epoch.
        predictions: selection -> n class indices, or n x C of 0 and 1 where a clip may have several classes;
            `last`, `oracle` and, when asked for, `inner`.
        epochs: selection -> the epoch it took, counted from 1.
        attention: n x L weights of the last epoch, to 4 digits; no rows for heads without attention.
    """

    fold: Fold
    rows: list[int]
    probabilities: list[list[float]]
    predictions: dict[str, list[Any]]
    epochs: dict[str, int]
    attention: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """What one head may see.

    Attributes:
        key: its name; every random number of the head follows from it.
        train: (n,) int64 rows it learns from.
        test: (m,) int64 rows it is evaluated on after every epoch.
    """

    key: str
    train: Tensor
    test: Tensor


def plan(
    subjects: Sequence[str],
    seeds: Sequence[int],
    group: int,
    training: HeadTraining,
    learnable: Sequence[bool] | None = None,
) -> list[tuple[Fold, ...]]:
    """Split all folds x seeds into groups of at most `group` heads, always in the same way.

    The heads of a group have equally many training steps, so they share one schedule. Subjects with equally
    many clips sit together, because held-out batches are padded to the largest.

    Args:
        subjects: subject key of every clip.
        seeds: one head per subject and seed.
        group: most heads per group.
        training: whose batch size tells the steps.
        learnable: whether each clip may be trained on; default: all.
    """
    clips = Counter(subjects)
    trained = Counter(s for s, may in zip(subjects, learnable or [True] * len(subjects), strict=True) if may)
    by_steps: dict[int, list[str]] = {}
    for subject in sorted(clips, key=lambda subject: (clips[subject], subject)):
        by_steps.setdefault(training.steps(trained.total() - trained[subject]), []).append(subject)
    chunks: list[list[str]] = []
    for alike in by_steps.values():
        parts = -(-len(alike) // group)  # as many groups as it takes, as equal as they can be
        bounds = [len(alike) * part // parts for part in range(parts + 1)]
        chunks += [alike[start:end] for start, end in pairwise(bounds)]
    # A group never mixes seeds: more seeds later add groups and leave the old ones as they are.
    return [tuple(Fold(subject, seed) for subject in chunk) for seed in seeds for chunk in chunks]


def fold_view(study: StudyTokens, fold: Fold) -> View:
    """A fold learns from everybody but the subject, and is tested on the subject."""
    held_out = torch.tensor([subject == fold.subject for subject in study.subjects])
    if not held_out.any():
        raise ValueError(f"no clip of subject {fold.subject!r}")
    seen = ~held_out & study.learnable.cpu()
    return View(fold.key, seen.nonzero()[:, 0], held_out.nonzero()[:, 0])


def inner_view(study: StudyTokens, fold: Fold) -> View:
    """The companion that selects an epoch: tested on a fifth of the fold's training subjects."""
    others = sorted(set(study.subjects) - {fold.subject})
    if len(others) < 2:
        raise UserError("inner selection needs at least 3 subjects; switch training.inner off")
    generator = torch.Generator().manual_seed(seed_of(fold.key, "inner"))
    order = torch.randperm(len(others), generator=generator).tolist()
    inside = {others[i] for i in order[: max(1, len(others) // 5)]}
    test = torch.tensor([subject in inside for subject in study.subjects])
    outer = fold_view(study, fold).train
    return View(fold.key, outer[~test[outer]], test.nonzero()[:, 0])


def fold_result(
    fold: Fold, rows: Tensor, labels: Tensor, path: Tensor, attention: Tensor | None, inner: int | None = None
) -> FoldResult:
    """Choose the epochs of a fold.

    Args:
        fold: subject and seed.
        rows: (n,) int64 rows of its held-out clips.
        labels: (n,) or (n, C) int64, theirs.
        path: (epochs, n, C) probabilities after each epoch.
        attention: (n, L) weights of the last epoch, where the head has them.
        inner: epoch chosen by training subjects, from 1, where asked for.
    """
    guesses = decided(path, labels.ndim == 2)
    # Ties go to the earliest epoch, as in published scripts, which keep strict improvements.
    epochs = {"last": len(path), "oracle": best_epoch(guesses, labels)}
    if inner is not None:
        epochs["inner"] = inner
    chosen = {selection: guesses[epoch - 1].tolist() for selection, epoch in epochs.items()}
    # The ledger keeps them as text; nothing is decided by them, and a heat map needs no more digits.
    weights = [] if attention is None else [[round(w, 4) for w in clip] for clip in attention.tolist()]
    return FoldResult(fold, rows.tolist(), path[-1].tolist(), chosen, epochs, weights)


def decided(probabilities: Tensor, several: bool) -> Tensor:
    """What is answered: (..., C) -> the likeliest class (...), or each that is likelier than not (..., C)."""
    return (probabilities > 0.5).long() if several else probabilities.argmax(-1)


def best_epoch(guesses: Tensor, labels: Tensor) -> int:
    """First epoch, from 1, with the most right guesses: (epochs, n), (n,), or both with C more."""
    right = (guesses == labels).flatten(1).sum(1)
    return int((right == right.max()).nonzero()[0]) + 1
