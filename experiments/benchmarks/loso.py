"""Leave-one-subject-out over a composite-sized study: fold after fold in the usual way, against ours.

    python experiments/benchmarks/loso.py

Made-up tokens of 442 clips and 68 subjects, counted as the complete databases are (CASME II 145/24, SMIC
164/16, SAMM 133/28; classes 250/109/83), 16 tokens a clip. Both sides train the same model for the same
epochs from the same initial values, with the same losses, class weights, clipping and schedule, and predict
the held-out subject after every epoch.

- *loop*: one fold after another, a DataLoader each, an ordinary module of torch's own layers, torch's AdamW,
  with 1 or all of torch's threads, whichever is faster here. Its outputs are compared with ours before
  anything is timed.
- *ours*: what `mefar loso` does on this machine: the same group size, a forked process per core.

Two heads: the published one (512 wide, 3.8 M parameters, batches of 16, 120 epochs, one view, text of 768)
and our default (as `mefar loso` without options: 8 views, text of 384). Sides take turns on some folds,
with our head for all epochs, with the published one for a few; what a full run would take is computed from
their medians and marked "extrapolated". Our run with the default head is then made whole, as `mefar loso`
would, from tokens to predictions.csv; on a GPU the published one too.

That both sides' folds are what they would be alone is equality.py's to show.

Last line: loop / ours, default head.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mefar.classifier import losses
from mefar.classifier.head import HeadSize, TokenHead
from mefar.loso.engine import TextAnchors, TokenSet, Training, random_seed, single_threaded
from mefar.loso.folds import Fold, FoldTrainer, fold_model, plan
from mefar.loso.machine import Machine
from mefar.loso.run import CPU_GROUP, GPU_GROUP, Run
from mefar.loso.scores import StudyTokens

DATABASES = {"casme2": (145, 24), "smic": (164, 16), "samm": (133, 28)}  # clips, subjects
CLASSES = {"negative": 250, "positive": 109, "surprise": 83}
TOKENS = 16


@dataclass(frozen=True)
class Case:
    """A head and how it is trained."""

    name: str
    size: HeadSize
    training: Training
    token_dim: int
    text_dim: int
    views: int


PUBLISHED = Case(
    "published head",
    HeadSize(512, 2, 8, 512, 0.2, "shared"),
    Training(
        epochs=120, batch_size=16, learning_rate=2e-4, betas=(0.85, 0.98), weight_decay=1e-5,
        schedule="constant", label_smoothing=0.0, normalise=False, eval_views=1,
    ),
    512, 768, 1,
)  # fmt: skip
DEFAULT = Case("default head", HeadSize(), Training(), 64, 384, 8)


def composite(case: Case, dtype: torch.dtype = torch.float32) -> TokenSet:
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
    names = sorted(set(owners))
    shape = (TOKENS, case.token_dim)
    classes = torch.randn(len(CLASSES), *shape, generator=draw)
    habits = torch.randn(len(names), *shape, generator=draw)
    tokens = 0.3 * classes[labels] + 0.5 * habits[torch.tensor([names.index(owner) for owner in owners])]
    tokens = tokens + torch.randn(len(owners), *shape, generator=draw)
    tokens = tokens[:, None] + 0.2 * torch.randn(len(owners), case.views, *shape, generator=draw)
    text = F.normalize(torch.randn(len(CLASSES), case.text_dim, generator=draw), dim=-1).to(dtype)
    described = torch.ones(len(CLASSES), dtype=torch.bool)
    return TokenSet(tokens.to(dtype), labels, tuple(owners), tuple(CLASSES), TextAnchors(text, described))


# The loop.


class OrdinaryHead(nn.Module):
    """The head as everybody would write it: (B, L, D) -> logits, pooling weights, unit text vectors."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        size = case.size
        self.own = size.embedding == "per_position"
        if self.own:
            self.weight = nn.Parameter(torch.empty(TOKENS, size.dim, case.token_dim))
            self.position = nn.Parameter(torch.empty(TOKENS, size.dim))
        else:
            self.embed = nn.Linear(case.token_dim, size.dim)
            self.position = nn.Parameter(torch.empty(TOKENS, size.dim))
        layer = nn.TransformerEncoderLayer(
            size.dim, size.heads, size.feedforward, size.dropout, "relu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, size.depth, enable_nested_tensor=False)
        self.pool_norm = nn.LayerNorm(size.dim)
        self.query = nn.Parameter(torch.empty(size.dim))
        self.classes = nn.Linear(size.dim, len(CLASSES))
        self.text = nn.Linear(size.dim, case.text_dim)

    def copy(self, head: TokenHead) -> None:
        """Take the values of our head for one model."""
        ours = {name: value[0] for name, value in head.state_dict().items() if not name.startswith("embed")}
        weight, bias = head.embed.weight.detach(), head.embed.bias.detach()
        if self.own:
            values = {"weight": weight, "position": bias}
        else:
            values = {"embed.weight": weight[0], "embed.bias": bias[0], "position": ours["position"]}
        inside = {"qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias"}
        for name in ("out", "widen", "narrow"):
            theirs = {"out": "self_attn.out_proj", "widen": "linear1", "narrow": "linear2"}[name]
            inside |= {f"{name}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
        for name, value in ours.items():
            if name.startswith("layers."):
                _, number, rest = name.split(".", 2)
                values[f"layers.layers.{number}.{inside.get(rest, rest)}"] = value
            elif name != "position":
                values[name] = value
        self.load_state_dict(values)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.own:
            x = torch.einsum("bld,lwd->blw", tokens, self.weight) + self.position
        else:
            x = self.embed(tokens) + self.position
        x = self.pool_norm(self.layers(x))
        attention = (x @ self.query / x.shape[-1] ** 0.5).softmax(-1)
        pooled = (attention.unsqueeze(1) @ x).squeeze(1)
        return self.classes(pooled), attention, F.normalize(self.text(pooled), dim=-1)


def our_head(case: Case, fold: Fold) -> TokenHead:
    seed = random_seed(fold.key, "values")
    return TokenHead(TOKENS, case.token_dim, len(CLASSES), case.size, case.text_dim, (seed,))


def loop_fold(data: TokenSet, fold: Fold, case: Case, epochs: int) -> Tensor:
    """One fold for some epochs: predictions of its subject after each, (epochs, n)."""
    training, device = case.training, data.tokens.device
    model = fold_model(data, fold)
    head = OrdinaryHead(case)
    head.copy(our_head(case, fold))
    head.to(device)
    own = data.tokens[model.train].flatten(0, 2)
    mean, deviation = (own.mean(0), own.std(0)) if training.normalise else (0.0, 1.0)
    counts = torch.bincount(data.labels[model.train], minlength=len(CLASSES))
    weights = len(model.train) / (len(CLASSES) * counts.to(own))
    train = DataLoader(
        TensorDataset(data.tokens[model.train].cpu(), data.labels[model.train].cpu()),
        training.batch_size,
        True,
    )
    held_out = DataLoader(TensorDataset(data.tokens[model.test].cpu()), training.batch_size)
    optimizer = torch.optim.AdamW(
        head.parameters(), training.learning_rate, training.betas, weight_decay=training.weight_decay
    )
    total = len(train) * training.epochs
    rates = torch.arange(total, dtype=torch.float64)
    rates = torch.minimum((rates + 1) / max(1, 0.05 * total), 0.5 * (1 + torch.cos(torch.pi * rates / total)))
    factors = [1.0] * total if training.schedule == "constant" else rates.tolist()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, total - 1)])
    assert data.anchors is not None
    views, guesses = data.tokens.shape[1], []
    for _ in range(epochs):
        head.train()
        for tokens, labels in train:
            pick = torch.randint(views, (len(tokens),))
            x = (tokens[torch.arange(len(tokens)), pick].to(device) - mean) / deviation
            target = labels.to(device)
            logits, attention, text = head(x)
            loss = F.cross_entropy(logits, target, weights, label_smoothing=training.label_smoothing)
            loss = loss + training.entropy_weight * losses.attention_entropy(attention)
            terms = losses.alignment_losses(text, target, data.anchors.vectors, data.anchors.described)
            aligned = terms["described"] + training.others_weight * terms["others"]
            loss = loss + training.edclip_weight * aligned
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), training.clip_norm)
            optimizer.step()
            schedule.step()
        head.eval()
        with torch.no_grad():
            seen = []
            for (tokens,) in held_out:
                x = (tokens[:, : training.eval_views or views].to(device) - mean) / deviation
                seen.append(head(x.flatten(0, 1))[0].softmax(-1).unflatten(0, (len(tokens), -1)).mean(1))
        guesses.append(torch.cat(seen).argmax(-1).cpu())
    return torch.stack(guesses)


def assert_same_head(case: Case, data: TokenSet) -> float:
    """Largest difference of any output between the ordinary head and ours, from the same values."""
    ours = our_head(case, Fold(data.subjects[0], 0))
    theirs = OrdinaryHead(case)
    theirs.copy(ours)
    theirs.eval()
    x = data.tokens[:32, 0].cpu()
    with torch.no_grad():
        output, (logits, attention, text) = ours(x[None]), theirs(x)
    assert output.text is not None
    apart = (output.logits[0] - logits, output.attention[0] - attention, output.text[0] - text)
    worst = max(float(each.abs().max()) for each in apart)
    assert worst < 1e-4, worst
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    return worst


# Timing.


def seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_processes(works: Sequence[Callable[[], object]]) -> None:
    """Do everything at once, each in a fork of this process, as the ranks of `mefar loso` are."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # the parent's threads are not here
            work()
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), codes


def spread(data: TokenSet, count: int) -> list[Fold]:
    """Some folds, from subjects with few clips to subjects with many."""
    (ordered,) = plan(data.subjects, [0], len(data.subjects))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def whole(data: TokenSet, case: Case, machine: Machine) -> float:
    """Seconds of a whole run, from tokens to predictions.csv."""
    keys = tuple(f"{subject}/{row:03d}" for row, subject in enumerate(data.subjects))
    counts = {name: {"clips": clips, "subjects": who} for name, (clips, who) in DATABASES.items()}
    tokenizer = {"checkpoint": "made up", "sha256": "0" * 64, "pretrained_on": "nothing"}
    study = StudyTokens("composite", data, keys, tokenizer, counts)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        began = time.perf_counter()
        run = Run(study, Path(folder) / "run", case.size, case.training, machine=machine)
        run.execute()
        assert (Path(folder) / "run" / "predictions.csv").exists()
        return time.perf_counter() - began


def compare(case: Case, options: argparse.Namespace, device: torch.device) -> float:
    """Print both sides of a case; returns loop / ours."""
    torch.manual_seed(0)
    here = composite(case)
    data = here.to(device)
    machine = Machine(accelerator="gpu" if device.type == "cuda" else "cpu", group=options.group)
    group = options.group or (GPU_GROUP if machine.on_gpu else CPU_GROUP)
    groups = plan(data.subjects, [0], group)
    machine = machine.spread(len(groups))  # as `mefar loso` does
    count = sum(parameter.numel() for parameter in OrdinaryHead(case).parameters())
    folds = len(set(data.subjects))
    print(
        f"\n{case.name}: {count:,} parameters, {case.training.epochs} epochs, batches of "
        f"{case.training.batch_size}, {case.views} views; outputs {assert_same_head(case, here):.0e} apart"
    )
    some = spread(data, options.folds)
    # All epochs where they take seconds: setting up a fold is a part of what it takes.
    usual = case.training.epochs if case is DEFAULT else 5 if machine.on_gpu else 1
    epochs = min(options.epochs or usual, case.training.epochs)
    workers = machine.devices
    middle = len(groups) // 2
    chosen = list(range(middle - workers // 2, middle - workers // 2 + workers))
    short = replace(case.training, epochs=epochs)

    def loop() -> None:
        for fold in some:
            loop_fold(data, fold, case, epochs)

    def ours() -> None:
        trainer = FoldTrainer(data, groups, case.size, short).to(device)
        if machine.on_gpu:
            trainer.predict_step(chosen, 0)
        else:
            in_processes([lambda number=number: trainer.predict_step([number], 0) for number in chosen])

    threads = torch.get_num_threads()
    loop_fold(data, some[0], case, 1)
    alone = seconds(lambda: loop_fold(data, some[0], case, 1), device)
    with single_threaded():
        if seconds(lambda: loop_fold(data, some[0], case, 1), device) < alone:
            threads = 1
    ours()
    times: dict[str, list[float]] = {"loop": [], "ours": []}
    for _ in range(options.turns):
        with single_threaded():
            torch.set_num_threads(threads)
            times["loop"].append(seconds(loop, device) / len(some))
        times["ours"].append(seconds(ours, device) / sum(len(groups[number]) for number in chosen))
    full = {
        name: statistics.median(each) / epochs * folds * case.training.epochs for name, each in times.items()
    }
    how = {
        "loop": f"{len(some)} folds one by one, {threads} threads",
        "ours": f"{workers} processes, groups of {len(groups[middle])}",
    }
    for name, each in times.items():
        rates = [1000 * value / epochs for value in each]
        print(
            f"  {name}: {statistics.median(rates):8.2f} ms per fold and epoch (turns {min(rates):.2f} to "
            f"{max(rates):.2f}; {how[name]}, {epochs} epochs); all {folds} folds {full[name]:.0f} s, "
            "extrapolated"
        )
    ratio = full["loop"] / full["ours"]
    if options.whole and (case is DEFAULT or machine.on_gpu):
        made = whole(here, case, machine)
        print(f"  ours, all {folds} folds, whole run: {made:.1f} s, {full['loop'] / made:.1f} times as fast")
    print(f"  {case.name}: ratio {ratio:.1f}")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folds", type=int, default=3, help="folds of the loop in each turn")
    parser.add_argument("--epochs", type=int, help="in each turn")
    parser.add_argument("--group", type=int, help="folds side by side; as mefar loso if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--default-only", action="store_true", help="leave the published head out")
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} cores"
    clips, subjects = (sum(each) for each in zip(*DATABASES.values(), strict=True))
    print(f"{clips} clips, {subjects} subjects, {name}, torch {torch.__version__}")
    if not options.default_only:
        compare(PUBLISHED, options, device)
    print(f"ratio {compare(DEFAULT, options, device):.1f}")


if __name__ == "__main__":
    main()
