"""How a head is trained: one recipe for `mefar fit`, leave-one-subject-out and adapting folds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mefar.errors import UserError


@dataclass(frozen=True)
class HeadTraining:
    """How a head is trained.

    Attributes:
        epochs: fixed number of epochs (published: at most 120, stopped on the test subject).
        batch_size: clips per step (published: 16).
        learning_rate: peak of AdamW's (published: 2e-4).
        betas: of AdamW (published: 0.85, 0.98).
        weight_decay: of AdamW (published: 1e-5).
        schedule: `cosine` falls to 0 over the epochs after 5 % warm-up; `constant` as published.
        clip_norm: largest gradient norm of a head; `inf` clips nothing (published).
        class_weights: `balanced`, N / (C n_c) over the training clips (published), or `equal`.
        label_smoothing: probability in [0, 1) spread over all classes.
        entropy_weight: of the entropy of the attention over tokens, where a head has one (published: 1e-3).
        edclip_weight: of the alignment with text, where anchors are given (published: 0.3).
        others_weight: of classes without text inside the alignment (published: 0.2).
        temperature: of the softmax over cosines with the texts (published: 0.07); fixed, or where a head
            learns a factor of it (TokenHead's learn_temperature) the one it begins with.
        margin: cosine in [-1, 1] that clips of classes without text must stay under (published: 0.2).
        normalise: scale token dimensions to mean 0 and deviation 1 over the training clips.
        eval_views: a held-out clip is predicted from the mean probability over this many of its views;
            0 = all of them, 1 = the untouched one alone (published).
        inner: also select the epoch on a fifth of the training subjects, held out from a second
            head of the fold; doubles the time.

    Raises:
        UserError: a value out of its range.
    """

    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float = 1.0
    class_weights: Literal["balanced", "equal"] = "balanced"
    label_smoothing: float = 0.1
    entropy_weight: float = 1e-3
    edclip_weight: float = 0.3
    others_weight: float = 0.2
    temperature: float = 0.07
    margin: float = 0.2
    normalise: bool = True
    eval_views: int = 0
    inner: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("eval_views", 0)):
            if getattr(self, name) < least:
                raise UserError(f"training: {name} is {getattr(self, name)}; give at least {least}")
        for name in ("learning_rate", "clip_norm", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"training: {name} is {getattr(self, name)}; give a number above 0")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"training: label_smoothing is {self.label_smoothing}; give a number in [0, 1)")

    def views_to_test(self, views: int) -> int:
        """How many of `views` views a held-out clip is predicted from; a UserError where there are fewer."""
        if self.eval_views > views:
            raise UserError(
                f"training: eval_views is {self.eval_views} but there are {views} views; lower it"
            )
        return self.eval_views or views

    def steps(self, clips: int) -> int:
        """Steps of an epoch over so many clips."""
        return math.ceil(clips / self.batch_size)

    def optimiser(
        self, parameters: Iterable[nn.Parameter] | Iterable[Tensor], fused: bool | None = None
    ) -> torch.optim.AdamW:
        """AdamW at its peak rate; `fused`, in one pass over memory, is for contiguous gradients alone."""
        return torch.optim.AdamW(
            list(parameters), self.learning_rate, self.betas, weight_decay=self.weight_decay, fused=fused
        )

    def rate(self, step: int, total: int) -> float:
        """What the learning rate of a step, from 0, of `total` is multiplied by."""
        if self.schedule == "constant":
            return 1.0
        return min((step + 1) / max(1.0, 0.05 * total), 0.5 * (1 + math.cos(math.pi * step / total)))

    def scheduler(self, optimiser: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LambdaLR:
        """Sets the rate of every one of `total` steps."""
        return torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: self.rate(min(step, total - 1), total)
        )
