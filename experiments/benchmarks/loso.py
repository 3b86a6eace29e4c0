"""Leave-one-subject-out over a composite-sized study: fold after fold in the usual way, against ours.

    python experiments/benchmarks/loso.py

Made-up tokens of 442 clips and 68 subjects, counted as the complete databases are (CASME II 145/24, SMIC
164/16, SAMM 133/28; classes 250/109/83), 16 tokens a clip. Both sides train the same ordinary TokenHead for
the same epochs with the same loss, class weights, clipping and schedule, and predict the held-out subject
after every epoch.

- *loop*: one fold after another, a DataLoader each, autograd and torch's AdamW, with 1 or all of torch's
  threads, whichever is faster here.
- *ours*: what `mefar loso` does on this machine: groups of heads by torch.func, a process per core.

Before anything is timed, both sides train one fold in float64 from the same values in the same order, and
their predictions are compared.

Two heads: our default (32 views, no text) and the published one (512 wide, 3.8 M parameters, batches of
16, 120 epochs, one view, text of 768). Sides take turns; medians of the turns. What a full run would take is
computed from them and marked "extrapolated"; our run with the default head is then made whole, as
`mefar loso` would, from tokens to predictions.csv.

Last line: loop / ours, default head.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mefar.classifier.head import HeadFactory, TokenHead, build_head
from mefar.classifier.losses import TextAnchors, class_weights, head_loss
from mefar.classifier.settings import HeadTraining
from mefar.loso import callback
from mefar.loso.engine import train_group
from mefar.loso.folds import Fold, StudyTokens, fold_view, plan
from mefar.loso.run import CPU_GROUP, GPU_GROUP, Run, Where
from mefar.randomness import epoch_order, seed_of, view_of

DATABASES = {"casme2": (145, 24), "smic": (164, 16), "samm": (133, 28)}  # clips, subjects
CLASSES = {"negative": 250, "positive": 109, "surprise": 83}
TOKENS = 16


@dataclass(frozen=True)
class Case:
    """A head and how it is trained."""

    name: str
    head: HeadFactory
    training: HeadTraining
    token_dim: int
    text_dim: int | None
    views: int


PUBLISHED = Case(
    "published head",
    partial(TokenHead, dim=512, depth=2, heads=8, feedforward=512, embedding="shared", initial="published"),
    HeadTraining(
        epochs=120, batch_size=16, learning_rate=2e-4, betas=(0.85, 0.98), weight_decay=1e-5,
        schedule="constant", label_smoothing=0.0, normalise=False, eval_views=1,
    ),
    512, 768, 1,
)  # fmt: skip
DEFAULT = Case("default head", TokenHead, HeadTraining(), 64, None, 32)


def composite(case: Case, dtype: torch.dtype = torch.float32) -> StudyTokens:
    """442 clips: each class moves its tokens, each subject has its habits, views differ a little."""
    draw = torch.Generator().manual_seed(0)
    owners: list[str] = []
    for name, (clips, subjects) in DATABASES.items():
        # A few subjects with many clips and many with few, at least one each.
        share = torch.rand(subjects, generator=draw).square() + 0.05
        extra = torch.multinomial(share, clips - subjects, replacement=True, generator=draw)
        counts = 1 + torch.bincount(extra, minlength=subjects)
        owners += [f"{name}/{number:02d}" for number in range(subjects) for _ in range(int(counts[number]))]
    labels = torch.repeat_interleave(torch.arange(len(CLASSES)), torch.tensor(list(CLASSES.values())))
    labels = labels[torch.randperm(len(labels), generator=draw)]
    names, shape = sorted(set(owners)), (TOKENS, case.token_dim)
    classes = torch.randn(len(CLASSES), *shape, generator=draw)
    habits = torch.randn(len(names), *shape, generator=draw)
    tokens = 0.3 * classes[labels] + 0.5 * habits[torch.tensor([names.index(owner) for owner in owners])]
    tokens = tokens + torch.randn(len(owners), *shape, generator=draw)
    tokens = tokens[:, None] + 0.2 * torch.randn(len(owners), case.views, *shape, generator=draw)
    anchors = None
    if case.text_dim:
        text = F.normalize(torch.randn(len(CLASSES), case.text_dim, generator=draw), dim=-1)
        anchors = TextAnchors(text, torch.ones(len(CLASSES), dtype=torch.bool))
    clips = tuple(f"{owner}/{row}" for row, owner in enumerate(owners))
    counts = {name: {"clips": clips, "subjects": subjects} for name, (clips, subjects) in DATABASES.items()}
    told = {"sha256": "made up", "checkpoint": ""}
    return StudyTokens("composite", tokens.to(dtype), labels, tuple(owners), clips, tuple(CLASSES), anchors,
                       told, counts)  # fmt: skip


class Clips(Dataset[tuple[Tensor, Tensor]]):
    """Training clips of a fold, one random view of each."""

    def __init__(self, study: StudyTokens, rows: Tensor) -> None:
        self.study, self.rows = study, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        view = int(torch.randint(self.study.tokens.shape[1], ()))
        return self.study.tokens[row, view], self.study.labels[row]


def loop_fold(study: StudyTokens, fold: Fold, case: Case, epochs: int, same: bool = False) -> Tensor:
    """One fold for some epochs: probabilities of its subject after each, (epochs, n, C).

    Args:
        study: tokens, on their device.
        fold: whom to hold out.
        case: head and training.
        epochs: of the training's.
        same: clips and views in our order, instead of a DataLoader's.
    """
    training, view, tokens = case.training, fold_view(study, fold), study.tokens
    torch.manual_seed(seed_of(view.key, "values"))
    head = build_head(case.head, TOKENS, case.token_dim, len(CLASSES), case.text_dim).to(tokens)
    own = tokens[view.train].flatten(0, 2)
    mean, deviation = (own.mean(0), own.std(0, correction=0)) if training.normalise else (0.0, 1.0)
    counts = torch.bincount(study.labels[view.train], minlength=len(CLASSES))
    weights = class_weights(counts, training).to(tokens)
    anchors = None if study.anchors is None else study.anchors.to(tokens)
    loader = DataLoader(Clips(study, view.train), training.batch_size, shuffle=True)
    held_out = DataLoader(TensorDataset(tokens[view.test]), training.batch_size)
    optimiser = training.optimiser(head.parameters())
    schedule = training.scheduler(optimiser, len(loader) * training.epochs)
    seen = []
    for epoch in range(epochs):
        head.train()
        for x, labels in in_our_order(study, view.key, view.train, epoch, training) if same else loader:
            output = head((x - mean) / deviation)
            loss = sum(head_loss(output, labels, weights, training, anchors).values(), torch.zeros(()))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), training.clip_norm)
            optimiser.step()
            schedule.step()
        head.eval()
        with torch.no_grad():
            parts = []
            for (x,) in held_out:
                x = (x[:, : training.views_to_test(case.views)] - mean) / deviation
                parts.append(head(x.flatten(0, 1)).logits.softmax(-1).unflatten(0, (len(x), -1)).mean(1))
        seen.append(torch.cat(parts))
    return torch.stack(seen)


def in_our_order(
    study: StudyTokens, key: str, train: Tensor, epoch: int, training: HeadTraining
) -> list[tuple[Tensor, Tensor]]:
    """The batches of an epoch as our engine makes them."""
    rows = train[epoch_order(key, epoch, len(train))]
    picks = [view_of(key, epoch, study.clips[row], study.tokens.shape[1]) for row in rows.tolist()]
    x, labels = study.tokens[rows, torch.tensor(picks)], study.labels[rows]
    return list(zip(x.split(training.batch_size), labels.split(training.batch_size), strict=True))


def apart(case: Case, epochs: int) -> float:
    """Largest difference of any probability between the sides, in float64, without dropout."""
    study = composite(case, torch.float64)
    case = replace(case, head=partial(case.head, dropout=0.0), training=replace(case.training, epochs=epochs))
    fold = Fold(study.subjects[0], 0)
    (result,), _ = train_group(study, [fold], case.head, case.training)
    theirs = loop_fold(study, fold, case, epochs, same=True)[-1]
    return float((torch.tensor(result.probabilities) - theirs).abs().max())


def seconds(work: Callable[[], object], device: torch.device) -> Tensor:
    """How long something takes by the clock, and of processor time, that of its processes too: (2,)."""
    before = torch.tensor([time.perf_counter(), sum(os.times()[:4])], dtype=torch.float64)
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return torch.tensor([time.perf_counter(), sum(os.times()[:4])], dtype=torch.float64) - before


def in_processes(works: Sequence[Callable[[], object]]) -> None:
    """Do everything at once, each in a fork of this process with one thread, as ranks of `mefar loso` are."""

    def alone(work: Callable[[], object]) -> None:
        torch.set_num_threads(1)
        work()

    children = [get_context("fork").Process(target=alone, args=(work,)) for work in works]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0


def measure(
    case: Case, device: torch.device, turns: int, epochs: int, compiled: bool, group: int | None
) -> float:
    """Print both sides in ms per fold and epoch, by the clock and of processor time; return the ratio."""
    study, cores = composite(case).to(device), callback.cores()
    training = replace(case.training, epochs=epochs)
    group = group or (GPU_GROUP if device.type == "cuda" else CPU_GROUP)
    groups = plan(study.subjects, [0], group, training)
    works = [partial(train_group, study, each, case.head, training, True, compiled) for each in groups]
    ranks = works[: 1 if device.type == "cuda" else cores]
    folds = sum(len(groups[rank]) for rank in range(len(ranks)))
    fold = Fold(study.subjects[0], 0)
    short = replace(case, training=training)
    by_threads = {}
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        by_threads[threads] = float(seconds(lambda: loop_fold(study, fold, short, min(epochs, 3)), device)[0])
    threads = min(by_threads, key=lambda each: by_threads[each])
    loop, ours = [], []
    for _ in range(turns):
        torch.set_num_threads(threads)
        loop.append(seconds(lambda: loop_fold(study, fold, short, epochs), device) / epochs)
        torch.set_num_threads(1)
        work = ranks[0] if len(ranks) == 1 else partial(in_processes, ranks)
        ours.append(seconds(work, device) / epochs / folds)
    (a, c), (b, d) = (1000 * torch.stack(each).median(0).values for each in (loop, ours))
    how = f"{len(ranks)} ranks, groups of {max(map(len, groups))}, {epochs} epochs, {turns} turns"
    print(f"{case.name}, ms per fold and epoch: loop {a:.1f} ({threads} threads), ours {b:.1f} ({how})")
    print(f"  loop / ours {a / b:.2f}; of processor time {c:.1f} / {d:.1f} = {c / d:.2f}")
    total = 68 * case.training.epochs / 1000
    print(
        f"  extrapolated to 68 folds of {case.training.epochs} epochs: {a * total:.0f} s, {b * total:.0f} s"
    )
    return float(a / b)


def whole(case: Case) -> float:
    """Seconds of a whole run as `mefar loso` makes it: tokens to predictions.csv."""
    with tempfile.TemporaryDirectory() as folder:
        began, where = time.perf_counter(), Where()
        callback.train([Run(composite(case), Path(folder), case.head, case.training, where=where)], where)
        return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of the default head, per turn")
    parser.add_argument("--published-epochs", type=int, default=2)
    parser.add_argument("--default-only", action="store_true")
    parser.add_argument("--no-whole", action="store_true")
    parser.add_argument("--group", type=int, help="heads trained at once; as mefar loso does if left out")
    parser.add_argument("--compiled", action="store_true", help="our side's steps fused by torch.compile")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    print(f"{name}, {callback.cores()} cores, torch {torch.__version__}")
    for case in (DEFAULT,) if options.default_only else (DEFAULT, PUBLISHED):
        print(f"{case.name}: both sides agree to {apart(case, 2):.1e}")
    if not options.default_only:
        measure(PUBLISHED, device, options.turns, options.published_epochs, options.compiled, options.group)
    ratio = measure(DEFAULT, device, options.turns, options.epochs, options.compiled, options.group)
    if not options.no_whole:
        print(f"default head, whole run of 68 folds, tokens to predictions.csv: {whole(DEFAULT):.0f} s")
    print(f"ratio {ratio:.1f}")


def cpu_name() -> str:
    """What /proc calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
