"""Readers of tokens trained on all subjects of a study, by the recipe of its folds: to be used, not scored.

The read-out of action units is a logistic regression on the tokens' features, on the clips whose units are
annotated; its F1 comes from others like it that left a fifth of the subjects out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mefar.classifier.head import HeadFactory
from mefar.classifier.settings import HeadTraining
from mefar.classifier.text_anchors import Anchors
from mefar.loso.engine import Trainer, fit, is_fitted
from mefar.loso.folds import StudyTokens, View
from mefar.loso.run import describe_head
from mefar.randomness import fold_key
from mefar.readers import About, Readers

FILE = "final.safetensors"
"""Name in a run directory."""
FEWEST = 10
"""Clips that must show a unit, and must not, for it to be read."""
LEAST_F1 = 0.3
"""On people left out, for a unit to be read, and more than naming it always: guesses would mislead."""
PENALTY = 3e-2
"""Of the squared weights of a unit's read-out, of standardised features; from 1e-3 to 0.3 the F1 on rendered
faces is the same to 0.015."""
PARTS = 5


def train(
    study: StudyTokens,
    shown: Sequence[Sequence[int]],
    head: HeadFactory,
    training: HeadTraining,
    seed: int,
    tokenizer: str,
    described: Anchors | None,
    notes: Mapping[str, Any],
) -> Readers:
    """Train readers on every clip of a study.

    Args:
        study: all clips.
        shown: action units of every clip; none are annotated where it is empty.
        head: its class or a partial.
        training: as in the folds.
        seed: of the head.
        tokenizer: `readers.weights_of` it.
        described: the anchors that `study.anchors` are of.
        notes: About.trained_on.
    """
    state = _head(study, head, training, seed)
    L, D = study.tokens.shape[2:]
    text = None
    if study.anchors is not None and "text.weight" in state:
        text = study.anchors.vectors.shape[1]
    weight, bias, units, f1 = _units(study, shown)
    sentences = {} if described is None or text is None else {
        each.sentence: row for row, each in enumerate(described.descriptions)
    }  # fmt: skip
    told = describe_head(head, study, training)
    about = About(
        tokenizer=tokenizer,
        classes=study.class_names,
        head={name: told[name] for name in ("class_path", "init_args")},
        sizes=(L, D, len(study.class_names), text),
        units=units,
        sentences=tuple(sentences),
        text_model=described.text_model if sentences and described else "",
        unit_f1=f1,
        trained_on=notes,
    )
    made = Readers(about)
    mean = state.pop("tokens.mean", made.mean)
    scale = state.pop("tokens.scale", made.scale)
    made.head.load_state_dict(state)
    made.mean.copy_(mean)
    made.scale.copy_(scale)
    made.units.load_state_dict({"weight": weight, "bias": bias})
    if sentences and described is not None:
        made.vectors.copy_(described.vectors[list(sentences.values())])
    return made


def _head(study: StudyTokens, head: HeadFactory, training: HeadTraining, seed: int) -> dict[str, Tensor]:
    rows = torch.arange(len(study.labels))
    if is_fitted(head, study):
        return dict(fit(study, head, rows, seed).state_dict())
    trainer = Trainer(study, [View(fold_key(None, seed), rows, rows[:1])], head, training, together=False)
    trainer.run()
    return trainer.heads.state(0)


def _units(
    study: StudyTokens, shown: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, tuple[int, ...], dict[str, float]]:
    """Weights (U, L D) and bias (U,) of the read-out, its units, and their F1 on people left out."""
    rows = [row for row, units in enumerate(shown) if units]
    counts = {unit: sum(unit in shown[row] for row in rows) for units in shown for unit in units}
    units = tuple(sorted(u for u, n in counts.items() if FEWEST <= n <= len(rows) - FEWEST))
    if not units:
        return torch.zeros(0, study.tokens[0, 0].numel()), torch.zeros(0), (), {}
    truth = torch.tensor([[float(unit in shown[row]) for unit in units] for row in rows])
    features = study.tokens[rows].cpu().float().flatten(2)  # (n, V, L D)
    names = sorted({study.subjects[row] for row in rows})
    part = torch.tensor([names.index(study.subjects[row]) % PARTS for row in rows])
    guesses = torch.zeros_like(truth)
    for number in range(PARTS):
        train, test = (part != number).nonzero()[:, 0], (part == number).nonzero()[:, 0]
        weight, bias = fit_units(features[train], truth[train])
        guesses[test] = (features[test, 0] @ weight.T + bias > 0).float()
    hits = (guesses * truth).sum(0)
    f1 = 2 * hits / (guesses.sum(0) + truth.sum(0)).clamp_min(1)
    share = truth.mean(0)
    kept = ((f1 >= LEAST_F1) & (f1 > 2 * share / (1 + share))).nonzero()[:, 0]
    weight, bias = fit_units(features, truth[:, kept])
    units = tuple(units[column] for column in kept.tolist())
    return weight, bias, units, {f"AU{u}": round(float(v), 4) for u, v in zip(units, f1[kept], strict=True)}


def fit_units(features: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression of every unit, shown and not shown counting alike.

    Args:
        features: (n, V, P) float of all views.
        truth: (n, U) of 0 and 1.

    Returns:
        (U, P) and (U,), to be applied to features as they are.
    """
    V = features.shape[1]
    mean, spread = features.mean((0, 1)), features.std((0, 1)).clamp_min(1e-3)
    x, y = ((features - mean) / spread).flatten(0, 1), truth.repeat_interleave(V, 0)
    weight = torch.zeros(x.shape[1], y.shape[1], requires_grad=True)
    bias = torch.zeros(y.shape[1], requires_grad=True)
    balance = (1 - y).sum(0) / y.sum(0).clamp_min(1)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        error = F.binary_cross_entropy_with_logits(x @ weight + bias, y, pos_weight=balance, reduction="none")
        total = error.mean(0).sum() + PENALTY * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    found = (weight.detach() / spread[:, None]).T.contiguous()
    return found, bias.detach() - found @ mean
