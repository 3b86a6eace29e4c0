"""What a tokenizer's tokens know, measured with linear probes: pure functions on tensors.

A good action token tells action units and hides who acts. Both are read by the same class-balanced ridge
classifier, always on people or clips that it was not fitted on, and always next to the same probe on aligned
pixel differences: what tokens cannot do better than pixels, they have not earned.

Everywhere `read` are features (N, P), labels (N,) int64 in [0, C), subjects N keys; onset and apex are
(N, 3, H, W) float in [0, 1], tokenizers in eval mode on the images' device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mefar.baselines.pixels import (
    fit_and_predict,
    linear_control,
    pixel_differences,
    single_threaded,
    subject_numbers,
)
from mefar.errors import UserError
from mefar.metrics import scores
from mefar.tokenizer.image_losses import match_light, moving_region, psnr
from mefar.tokenizer.quality import TokenQuality
from mefar.tokenizer.warp_network import LUMINANCE
from mefar.tokens import ActionTokenizer, ActionTokens

FEWEST_POSITIVES = 10  # an action unit shown by fewer clips is not probed
IMAGES_AT_ONCE = 64


@torch.no_grad()
def features(tokenizer: ActionTokenizer, clips: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """What the probes read of N clips; where a clip comes in several views, every reader gets their mean.

    `clips` gives onset and apex of one clip after another, (V, 3, H, W) float in [0, 1] each.

    Returns:
        `tokens` (N, L * K) one-hot codes, `embeddings` (N, L * D), `pixels` (N, P) aligned differences.
    """
    found: dict[str, list[Tensor]] = {"tokens": [], "embeddings": [], "pixels": []}
    for onset, apex in clips:
        made = tokenizer.tokenize(onset, apex)
        codes = functional.one_hot(made.indices, tokenizer.num_codes).float()
        found["tokens"].append(codes.mean(0).flatten())
        found["embeddings"].append(made.features.mean(0).flatten())
        found["pixels"].append(pixel_differences(onset, apex).mean(0))
    return {name: torch.stack(rows) for name, rows in found.items()}


def au_probe(read: Tensor, units: Tensor, subjects: Sequence[str]) -> tuple[float, dict[int, float]]:
    """Action units, (N, U) 0 or 1, from features, leaving one subject out.

    Returns:
        Mean F1 over the units that at least ten clips show, and F1 by column; nan and {} if there is none.
    """
    found: dict[int, float] = {}
    for column in range(units.shape[1]):
        truth = units[:, column].long()
        if FEWEST_POSITIVES <= int(truth.sum()) <= len(truth) - FEWEST_POSITIVES:
            guess = linear_control(read, truth, subjects, 2)
            hits = int(((guess == 1) & (truth == 1)).sum())
            found[column] = 2 * hits / max(1, int(guess.sum()) + int(truth.sum()))
    return (sum(found.values()) / len(found) if found else float("nan")), found


def identity_probe(read: Tensor, subjects: Sequence[str]) -> tuple[float, float]:
    """Whose face it is, from features, on clips the probe was not fitted on; lower is better.

    The clips of each subject are dealt to four parts.

    Returns:
        Accuracy, and the accuracy of chance: always naming the subject with most clips.
    """
    labels, seen = subject_numbers(subjects), Counter[str]()
    parts = []
    for subject in subjects:
        parts.append(f"part {seen[subject] % 4}")
        seen[subject] += 1
    guess = linear_control(read, labels, parts, len(seen))
    return float((guess == labels).float().mean()), max(seen.values()) / len(labels)


def all_clips(read: Tensor, labels: Tensor, subjects: Sequence[str]) -> float:
    """UF1 of the pooled predictions when every subject is left out once."""
    classes = int(labels.max()) + 1
    return scores(labels, linear_control(read, labels, subjects, classes), classes)["uf1"]


@single_threaded()
def few_shot(read: Tensor, labels: Tensor, subjects: Sequence[str], shots: int) -> float:
    """Mean UF1 when every class is learned from a few clips of other people, `shots` of them.

    Clips are drawn anew for each of four parts of the subjects; the rest of the other parts is not used.
    Ten times: a handful of clips alone is luck.
    """
    generator, draws = torch.Generator().manual_seed(0), 10
    number, gram, classes = subject_numbers(subjects), read.double() @ read.double().T, int(labels.max()) + 1
    found = []
    for _ in range(draws):
        guesses = torch.zeros_like(labels)
        for part in torch.unique(number % 4):
            order = torch.randperm(len(labels), generator=generator)
            order = order[number[order] % 4 != part]
            fit = torch.cat([order[labels[order] == label][:shots] for label in torch.unique(labels)])
            test = (number % 4 == part).nonzero()[:, 0]
            guesses[test] = fit_and_predict(gram, labels, number, fit, test, classes)
        found.append(scores(labels, guesses, classes)["uf1"])
    return sum(found) / draws


@single_threaded()
def cross_database(
    read: Tensor, labels: Tensor, subjects: Sequence[str], databases: Sequence[str]
) -> dict[str, float]:
    """UF1 on each database when the others were learned from: database -> UF1; {} for a single database."""
    names = sorted(set(databases))
    if len(names) < 2:
        return {}
    number, gram, classes = subject_numbers(subjects), read.double() @ read.double().T, int(labels.max()) + 1
    found = {}
    for name in names:
        test = torch.tensor([row for row, database in enumerate(databases) if database == name])
        fit = torch.tensor([row for row, database in enumerate(databases) if database != name])
        guess = fit_and_predict(gram, labels, number, fit, test, classes)
        found[name] = scores(labels[test], guess, classes)["uf1"]
    return found


def other_faces(subjects: Sequence[str]) -> Tensor:
    """For every clip another one whose face is somebody else's: (N,) row numbers, each row named once.

    Args:
        subjects: N subject keys of at least two subjects.

    Raises:
        UserError: one subject has more than half of the clips.
    """
    order = sorted(range(len(subjects)), key=lambda row: (subjects[row], row))
    # Sorted by subject, a step as long as the longest block leaves every block.
    step = max(Counter(subjects).values())
    if 2 * step > len(subjects):
        raise UserError("transfer needs clips of other people: one subject has more than half of all clips")
    partner = torch.empty(len(subjects), dtype=torch.int64)
    partner[torch.tensor(order)] = torch.tensor(order[step:] + order[:step])
    return partner


@torch.no_grad()
def reconstruction(
    tokenizer: ActionTokenizer, onset: Tensor, apex: Tensor, subjects: Sequence[str]
) -> dict[str, float]:
    """Usage, perplexity, PSNRs, no-action spread (see TokenQuality) and transfer agreement of N pairs.

    Transfer agreement: every pair's onset is moved by the tokens of somebody else's clip (`other_faces`), and
    the result read back; the share of tokens that are the same. Delta PSNR: those tokens against the own.
    """
    quality = TokenQuality(tokenizer.num_codes, tokenizer.num_tokens).to(onset.device)
    partner = other_faces(subjects).to(onset.device)
    every = tokenize(tokenizer, onset, apex)
    agreed = []
    for rows in torch.split(torch.arange(len(onset), device=onset.device), IMAGES_AT_ONCE):
        a, b, tokens, others = onset[rows], apex[rows], every.select(rows), every.select(partner[rows])
        moved = tokenizer.reconstruct(a, others)
        quality.update(
            tokens.indices, tokenizer.tokenize(a, a).indices, a, match_light(b, a),
            tokenizer.reconstruct(a, tokens), moved,
        )  # fmt: skip
        agreed.append((tokenizer.tokenize(a, moved).indices == others.indices).float().mean(1))
    return {name: float(value) for name, value in quality.compute().items()} | {
        "transfer_agreement": float(torch.cat(agreed).mean())
    }


@torch.no_grad()
def transfer_error(
    tokenizer: ActionTokenizer, onset: Tensor, apex: Tensor, subjects: Sequence[str], truth: Tensor
) -> dict[str, float]:
    """How near an expression carried to another face comes to that face's true frame, where it is known.

    `truth` is (N, 3, H, W) float in [0, 1]; row n shows the face of clip n with the change of clip
    other_faces(subjects)[n].

    Returns:
        `transfer_psnr` in dB inside the region that moves in truth, `transfer_gain_over_copy` the same less
        that of the onset left alone, `transfer_gain_over_own` less that of the onset moved by its own tokens.
    """
    partner = other_faces(subjects).to(onset.device)
    every = tokenize(tokenizer, onset, apex).without_head()
    found: dict[str, list[Tensor]] = {"carried": [], "copied": [], "own": []}
    for rows in torch.split(torch.arange(len(onset), device=onset.device), IMAGES_AT_ONCE):
        a, target = onset[rows], truth[rows]
        region = moving_region(a, target)
        found["carried"].append(psnr(tokenizer.reconstruct(a, every.select(partner[rows])), target, region))
        found["copied"].append(psnr(a, target, region))
        found["own"].append(psnr(tokenizer.reconstruct(a, every.select(rows)), target, region))
    mean = {name: float(torch.cat(values).mean()) for name, values in found.items()}
    return {
        "transfer_psnr": mean["carried"],
        "transfer_gain_over_copy": mean["carried"] - mean["copied"],
        "transfer_gain_over_own": mean["carried"] - mean["own"],
    }


def tokenize(tokenizer: ActionTokenizer, onset: Tensor, apex: Tensor) -> ActionTokens:
    """Tokens of N pairs, some at a time."""
    pairs = zip(torch.split(onset, IMAGES_AT_ONCE), torch.split(apex, IMAGES_AT_ONCE), strict=True)
    return ActionTokens.cat([tokenizer.tokenize(*pair) for pair in pairs])


def gray(images: Tensor) -> Tensor:
    """(N, 3, H, W) as a gray camera sees it, three equal channels."""
    weights = torch.tensor(LUMINANCE, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def low_resolution(images: Tensor) -> Tensor:
    """(N, 3, H, W) at 60 % of the resolution, enlarged back."""
    size = images.shape[-2:]
    small = [max(1, round(0.6 * side)) for side in size]
    shrunk = functional.interpolate(images, small, mode="bilinear", antialias=True)
    return functional.interpolate(shrunk, size, mode="bilinear")
