"""Which tokens of a clip are kept: those that a run's heads weighed most, on average or of one clip."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import torch

from mefar.errors import UserError
from mefar.files import fingerprint
from mefar.loso.ledger import Ledger
from mefar.loso.results import read_predictions, read_run

ALL = ""
"""Key of the mean over all clips of a run."""


def attention_of(run: Path, tokenizer: str) -> dict[str, torch.Tensor]:
    """How heads that never saw a clip weighed its tokens: clip key -> (L,), and ALL -> their mean.

    `tokenizer` is the fingerprint of the one whose tokens are to be picked.

    Raises:
        UserError: no finished run, of another tokenizer, or of heads without attention.
    """
    summary = read_run(run).summary
    there = (summary.get("tokenizer") or {}).get("sha256")
    if there != tokenizer:
        raise UserError(f"{run}: made with another tokenizer ({str(there)[:12]}); give a run with this one")
    clips = sorted(set(read_predictions(run).clips))
    identity = fingerprint(json.loads((run / "study.json").read_text(encoding="utf-8")))
    weights: dict[str, list[list[float]]] = defaultdict(list)
    for result, _ in Ledger(run, identity).read().values():
        for row, one in zip(result.rows, result.attention, strict=True) if result.attention else ():
            weights[clips[row]].append(one)
    if not weights:
        raise UserError(f"{run}: its heads weighed no tokens; give a run of a head with attention")
    found = {clip: torch.tensor(several).mean(0) for clip, several in weights.items()}
    return found | {ALL: torch.stack(list(found.values())).mean(0)}


def strongest(weights: torch.Tensor, count: int) -> list[int]:
    """The `count` positions of (L,) that weigh most, sorted."""
    return sorted(weights.topk(min(count, len(weights))).indices.tolist())
