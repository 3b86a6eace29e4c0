"""Made-up token sets: classes move their own token positions, subjects differ in size and habit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mefar.loso.engine import TextAnchors, TokenSet
from mefar.loso.scores import StudyTokens

CLASSES = ("negative", "positive", "surprise")
DATABASES = ("casme2", "samm", "smic")


def token_set(
    clips: tuple[int, ...] = (5, 3, 9, 4, 7, 6),
    views: int = 2,
    L: int = 4,
    D: int = 6,
    dtype: torch.dtype = torch.float32,
    noise: float = 0.4,
    seed: int = 0,
    subjects: tuple[str, ...] | None = None,
) -> TokenSet:
    """Subjects of unequal size; label i % 3, so no class is ever absent from a training set."""
    generator = torch.Generator().manual_seed(seed)
    N = sum(clips)
    labels = torch.arange(N) % len(CLASSES)
    names = subjects or tuple(f"{DATABASES[i % 3]}/{i // 3:02d}" for i in range(len(clips)))
    patterns = torch.randn(len(CLASSES), L, D, generator=generator, dtype=torch.float64)
    habits = torch.randn(len(clips), L, D, generator=generator, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(len(clips)), torch.tensor(clips))
    tokens = patterns[labels] + 0.3 * habits[owner]
    tokens = tokens[:, None] + noise * torch.randn(N, views, L, D, generator=generator, dtype=torch.float64)
    keys = tuple(names[int(i)] for i in owner)
    return TokenSet(tokens.to(dtype), labels, keys, CLASSES)


def anchors(E: int = 8, dtype: torch.dtype = torch.float32) -> TextAnchors:
    """Unit vectors for the first two classes; the third has no text."""
    generator = torch.Generator().manual_seed(1)
    vectors: Tensor = functional.normalize(torch.randn(3, E, generator=generator, dtype=dtype), dim=-1)
    vectors[2] = 0
    return TextAnchors(vectors, torch.tensor([True, True, False]))


def study(data: TokenSet) -> StudyTokens:
    """A composite study around a token set."""
    keys = tuple(f"{subject}/clip{row:03d}" for row, subject in enumerate(data.subjects))
    databases = [key.split("/")[0] for key in keys]
    counts = {
        name: {
            "clips": databases.count(name),
            "subjects": len({s for s in data.subjects if s.startswith(name)}),
        }
        for name in sorted(set(databases))
    }
    tokenizer = {"checkpoint": "toy.ckpt", "sha256": "0" * 64, "pretrained_on": "nothing"}
    return StudyTokens("composite", data, keys, tokenizer, counts)
