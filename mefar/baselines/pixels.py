"""A control for every LOSO run: what would a linear classifier on plain pixels have scored?

Ridge regression from pixel differences (apex - onset, aligned crops) to one-hot labels, under the same
folds. It has no epochs to choose; its penalty is chosen inside the training subjects only. If tokens do
not beat this, they have not earned their place; on rendered faces, whose pixels are cleaner than any
camera's, they may well not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from mefar.baselines.method import Method
from mefar.classifier.head import FittedHead, HeadOutput
from mefar.classifier.losses import balanced
from mefar.metrics import scores

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Ridge penalties, in units of the mean squared length of a difference image."""


@contextmanager
def single_threaded() -> Iterator[None]:
    """Switch torch's own threads off for a while.

    Operations of this size spend more time waiting for each other's threads than computing; where other
    programs run on the same cores that costs a factor of ten and more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def pixel_differences(onset: Tensor, apex: Tensor) -> Tensor:
    """What the control sees of onset and apex (B, 3, H, W) float in [0, 1]: (B, P) float in [-1, 1].

    Differences are averaged down to at most 64 x 64, which also averages camera noise.
    """
    difference = apex - onset
    if difference.shape[-1] > 64:
        difference = functional.adaptive_avg_pool2d(difference, 64)
    return difference.flatten(1)


def _predict(gram: Tensor, labels: Tensor, train: Tensor, test: Tensor, penalty: float, C: int) -> Tensor:
    """Class indices of the test rows of a ridge fitted on the training rows."""
    weights = balanced(torch.bincount(labels[train], minlength=C))[labels[train]].to(gram)
    # Centring by the weighted mean of training rows stands for an intercept.
    share = weights / weights.sum()
    inner, cross = gram[train][:, train], gram[test][:, train]
    mean = inner @ share  # (n,) inner products with the mean
    inner_c = inner - mean[:, None] - mean[None] + share @ mean
    cross_c = cross - (cross @ share)[:, None] - mean[None] + share @ mean
    targets = functional.one_hot(labels[train], C).to(gram)
    offset = share @ targets
    # A floor, because differences may all be 0: apex frames that are the onset.
    scale = max(float(inner_c.diagonal().mean()), 1e-12)
    # Dual coefficients (n, C) of weighted kernel ridge: (K + penalty / w) a = y.
    coefficients = torch.linalg.solve(inner_c + torch.diag(penalty * scale / weights), targets - offset)
    predictions: Tensor = (cross_c @ coefficients + offset).argmax(1)
    return predictions


@single_threaded()
def linear_control(features: Tensor, labels: Tensor, subjects: Sequence[str], num_classes: int) -> Tensor:
    """Leave-one-subject-out predictions of a class-balanced ridge classifier.

    Features (N, P) float, not scaled, labels (N,) int64 in [0, C) and N subject keys -> (N,) int64, each clip
    by the fold that never saw its subject.
    """
    # Folds share all inner products; a fold sees only the rows and columns of its own clips.
    gram = features.double() @ features.double().T
    number = subject_numbers(subjects)
    predictions = torch.empty_like(labels)
    for held_out in torch.unique(number):
        test, train = (number == held_out).nonzero()[:, 0], (number != held_out).nonzero()[:, 0]
        predictions[test] = fit_and_predict(gram, labels, number, train, test, num_classes)
    return predictions


def subject_numbers(subjects: Sequence[str]) -> Tensor:
    """(N,) int64, the place of each clip's subject among the sorted subject keys."""
    names = {name: place for place, name in enumerate(sorted(set(subjects)))}
    return torch.tensor([names[subject] for subject in subjects])


def fit_and_predict(
    gram: Tensor, labels: Tensor, number: Tensor, train: Tensor, test: Tensor, num_classes: int
) -> Tensor:
    """Ridge fitted on some rows; its penalty is the one with the best UF1 over four parts of their subjects.

    Args:
        gram: (N, N) inner products of all rows.
        labels: (N,) int64 in [0, C).
        number: (N,) subject numbers.
        train: rows to fit on, and to choose the penalty on.
        test: rows to predict.
        num_classes: C.

    Returns:
        (len(test),) int64 predictions.
    """
    part = torch.unique(number[train], return_inverse=True)[1] % 4
    best, penalty = -1.0, PENALTIES[-1]
    for candidate in PENALTIES:
        guesses = torch.empty_like(train)
        for inside in torch.unique(part):
            fit, check = train[part != inside], train[part == inside]
            if not len(fit):  # a single subject to fit on
                fit = check
            guesses[part == inside] = _predict(gram, labels, fit, check, candidate, num_classes)
        value = scores(labels[train], guesses, num_classes)["uf1"]
        if value > best:
            best, penalty = value, candidate
    return _predict(gram, labels, train, test, penalty, num_classes)


class RidgeHead(FittedHead):
    """The control's classifier on any features, as a head."""

    seen: Tensor
    labels: Tensor
    number: Tensor

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("seen", torch.zeros(0, num_tokens * token_dim))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("number", torch.zeros(0, dtype=torch.int64))

    def fit(self, features: Tensor, labels: Tensor, subjects: Sequence[str], seed: int) -> None:
        """Keep the training clips: a ridge is solved in their inner products."""
        self.seen, self.labels, self.number = features.flatten(1), labels, subject_numbers(subjects)

    @single_threaded()
    def forward(self, features: Tensor) -> HeadOutput:
        """Logits that are sure of one class."""
        n, m = len(self.seen), len(features)
        rows = torch.cat([self.seen, features.flatten(1)]).double()
        labels = torch.cat([self.labels, torch.zeros(m, dtype=torch.int64)])
        number = torch.cat([self.number, torch.full((m,), -1)])
        train, test = torch.arange(n), torch.arange(n, n + m)
        guesses = fit_and_predict(rows @ rows.T, labels, number, train, test, self.num_classes)
        return HeadOutput(10 * functional.one_hot(guesses, self.num_classes).float())


class Pixels(Method):
    """Pixel differences, apex - onset, and a ridge: what every run has as a control."""

    head = RidgeHead

    def features(self, onset: Tensor, apex: Tensor, clips: Sequence[str]) -> Tensor:
        """(B, 1, 3 * 64 * 64)."""
        return pixel_differences(onset, apex)[:, None]
