"""Made-up studies of tokens: classes move their own token positions, subjects differ in size and habit."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mefar.classifier.head import TokenHead
from mefar.classifier.losses import TextAnchors
from mefar.loso.folds import StudyTokens

CLASSES = ("negative", "positive", "surprise")
DATABASES = ("casme2", "samm", "smic")
SMALL = partial(TokenHead, dim=8, depth=1, heads=2, feedforward=12, dropout=0.0)


def rows_of(out: Path) -> list[dict[str, str]]:
    """Predictions of the run in a folder."""
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def token_set(
    clips: tuple[int, ...] = (5, 3, 9, 4, 7, 6),
    views: int = 2,
    L: int = 4,
    D: int = 6,
    dtype: torch.dtype = torch.float32,
    noise: float = 0.4,
    subjects: tuple[str, ...] | None = None,
) -> StudyTokens:
    """A composite study, subjects of unequal size; label i % 3, so no class is absent from a training set."""
    generator, N = torch.Generator().manual_seed(0), sum(clips)
    labels = torch.arange(N) % len(CLASSES)
    names = subjects or tuple(f"{DATABASES[i % 3]}/{i // 3:02d}" for i in range(len(clips)))
    patterns = torch.randn(len(CLASSES), L, D, generator=generator, dtype=torch.float64)
    habits = torch.randn(len(clips), L, D, generator=generator, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(len(clips)), torch.tensor(clips))
    tokens = patterns[labels] + 0.3 * habits[owner]
    tokens = tokens[:, None] + noise * torch.randn(N, views, L, D, generator=generator, dtype=torch.float64)
    return study(tokens.to(dtype), labels, tuple(names[int(i)] for i in owner))


def study(tokens: Tensor, labels: Tensor, subjects: tuple[str, ...]) -> StudyTokens:
    """A composite study of these tokens (N, V, L, D)."""
    databases = [subject.split("/")[0] for subject in subjects]
    counts = {
        name: {"clips": databases.count(name), "subjects": len({s for s in subjects if s.startswith(name)})}
        for name in sorted(set(databases))
    }
    return StudyTokens(
        "composite",
        tokens,
        labels,
        subjects,
        tuple(f"{subject}/clip{row:03d}" for row, subject in enumerate(subjects)),
        CLASSES,
        tokenizer={"checkpoint": "toy.ckpt", "sha256": "0" * 64, "pretrained_on": "nothing"},
        counts=counts,
    )


def anchors(dtype: torch.dtype = torch.float32) -> TextAnchors:
    """Unit vectors of 8 numbers for the first two classes; the third has no text."""
    generator = torch.Generator().manual_seed(1)
    vectors: Tensor = functional.normalize(torch.randn(3, 8, generator=generator, dtype=dtype), dim=-1)
    vectors[2] = 0
    return TextAnchors(vectors, torch.tensor([True, True, False]))
