"""G models trained side by side on one set of tokens, as one batched program.

Each model has its own clips, initial values, data order, views, dropout stream, input scaling, class
weights, optimiser state, learning-rate schedule and gradient clipping (head.TokenHead holds the
parameters). A model's numbers depend on itself alone: trained by itself it gives the same result up to
rounding (tests/test_folds.py).

Models may have unequal numbers of clips: batches are padded with clips of the model itself at weight 0,
and a model whose epoch is over rests, untouched, until the last one is done.

Shapes: N clips, V views, L tokens, D token width, G models, B batch, C classes, P parameters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mefar.classifier import losses
from mefar.classifier.blocks import Apply, Tape, through_autograd
from mefar.classifier.head import HeadOutput, HeadSize, TokenHead
from mefar.classifier.layers import DropoutNoise
from mefar.errors import UserError
from mefar.loso.grouped_adamw import GroupedAdamW
from mefar.loso.objective import Objective


@dataclass(frozen=True)
class TextAnchors:
    """What EDCLIP aligns to.

    Attributes:
        vectors: (C, E) unit vectors, zero for classes without text.
        described: (C,) bool, which classes have text.
    """

    vectors: Tensor
    described: Tensor


@dataclass(frozen=True)
class TokenSet:
    """The tokens of every clip of a study.

    Attributes:
        tokens: (N, V, L, D) float, view 0 of the untouched clip.
        labels: (N,) int64 in [0, C).
        subjects: N subject keys; a subject is (database, number), so keys never collide.
        class_names: C names.
        anchors: text anchors of the classes, or None.
    """

    tokens: Tensor
    labels: Tensor
    subjects: tuple[str, ...]
    class_names: tuple[str, ...]
    anchors: TextAnchors | None = None

    def __post_init__(self) -> None:
        N, C = len(self.labels), len(self.class_names)
        if self.tokens.ndim != 4 or len(self.tokens) != N or len(self.subjects) != N:
            raise ValueError(
                f"tokens {tuple(self.tokens.shape)}, {N} labels, {len(self.subjects)} subjects do not match"
            )
        if len(set(self.subjects)) < 2:
            raise UserError(
                f"leave-one-subject-out needs at least 2 subjects, found {len(set(self.subjects))}; add data"
            )
        counts = torch.bincount(self.labels, minlength=C)
        if len(counts) > C:
            raise ValueError(f"label {len(counts) - 1} but only {C} classes")
        if absent := [name for name, count in zip(self.class_names, counts, strict=True) if not count]:
            raise UserError(f"no clip of class {absent[0]!r} in the study; add data or take another protocol")

    def to(self, device: torch.device) -> TokenSet:
        """The same set on another device."""
        anchors = self.anchors
        if anchors is not None:
            anchors = TextAnchors(anchors.vectors.to(device), anchors.described.to(device))
        return replace(self, tokens=self.tokens.to(device), labels=self.labels.to(device), anchors=anchors)

    def fingerprint(self) -> str:
        """Hash of everything the training sees."""
        digest = hashlib.sha256(repr((tuple(self.tokens.shape), self.subjects, self.class_names)).encode())
        parts = [self.tokens, self.labels]
        if self.anchors is not None:
            parts += [self.anchors.vectors, self.anchors.described]
        for part in parts:
            digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Training:
    """How every model of a study is trained.

    Attributes:
        epochs: fixed number of epochs (published: at most 120, stopped on the test subject).
        batch_size: clips per step (published: 16).
        learning_rate: peak of AdamW's (published: 2e-4).
        betas: of AdamW (published: 0.85, 0.98).
        weight_decay: of AdamW (published: 1e-5).
        schedule: `cosine` falls to 0 over the epochs after 5 % warm-up; `constant` as published.
        clip_norm: largest gradient norm of a model.
        label_smoothing: probability in [0, 1) spread over all classes.
        entropy_weight: of the pooling entropy (published: 1e-3).
        edclip_weight: of the alignment with text, where anchors are given (published: 0.3).
        others_weight: of classes without text inside the alignment (published: 0.2).
        normalise: scale token dimensions to mean 0 and deviation 1 over the fold's training clips.
        eval_views: a held-out clip is predicted from the mean probability over this many of its views;
            0 = all of them, 1 = the untouched one alone (published).
        inner: also select the epoch on a fifth of the training subjects, held out from a second
            model of the fold; doubles the time.
    """

    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    entropy_weight: float = 1e-3
    edclip_weight: float = 0.3
    others_weight: float = 0.2
    normalise: bool = True
    eval_views: int = 0
    inner: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("eval_views", 0)):
            if getattr(self, name) < least:
                raise UserError(f"training: {name} is {getattr(self, name)}; give at least {least}")

    def views_to_test(self, views: int) -> int:
        """How many of `views` views a held-out clip is predicted from.

        Raises:
            UserError: more are asked for than there are.
        """
        if self.eval_views > views:
            raise UserError(
                f"training: eval_views is {self.eval_views} but there are {views} views; lower it"
            )
        return self.eval_views or views


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


def random_seed(key: str, purpose: str) -> int:
    """A seed in [0, 2**63) that depends on a model's key and the purpose, not on its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{key}\n{purpose}".encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Model:
    """What one model of a group may see.

    Attributes:
        key: its name; every random number of the model follows from it.
        train: (n,) int64 rows it learns from.
        test: (m,) int64 rows it is evaluated on after every epoch.
    """

    key: str
    train: Tensor
    test: Tensor


class GroupTrainer:
    """Trains models side by side on one token set.

    Args:
        data: tokens; device and dtype of the work are theirs.
        models: G models.
        size: of the head.
        training: how to train.
    """

    def __init__(self, data: TokenSet, models: Sequence[Model], size: HeadSize, training: Training) -> None:
        _, self.views, L, D = data.tokens.shape
        data = replace(data, tokens=data.tokens.contiguous())
        self.data, self.models, self.training = data, models, training
        self.device, dtype = data.tokens.device, data.tokens.dtype
        self.test_views = training.views_to_test(self.views)
        anchors = data.anchors if training.edclip_weight > 0 else None
        text_dim = None if anchors is None else anchors.vectors.shape[1]
        seeds = [random_seed(model.key, "values") for model in models]
        C = len(data.class_names)
        self.head = TokenHead(L, D, C, size, text_dim, seeds).to(self.device, dtype)
        labels = data.labels.cpu()
        weights = [losses.balanced(torch.bincount(labels[model.train], minlength=C)) for model in models]
        self.objective = Objective(
            torch.stack(weights).to(self.device, dtype),
            None if anchors is None else anchors.vectors.to(self.device, dtype),
            None if anchors is None else anchors.described,
            training.label_smoothing,
            training.entropy_weight,
            training.edclip_weight,
            training.others_weight,
        )
        self.mean, self.scale = self._statistics(dtype)
        self.shift = -self.mean * self.scale
        steps = [math.ceil(len(model.train) / training.batch_size) for model in models]
        self.steps = torch.tensor(steps)
        self.optimiser = GroupedAdamW(
            list(self.head.parameters()), steps, training.betas, training.weight_decay, training.clip_norm
        )
        streams = [torch.Generator(self.device) for _ in models]
        self.streams, self.noise = streams, DropoutNoise(streams, size.dropout, training.batch_size)

    def _statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and 1 / deviation of each token dimension over each model's training clips: (G, 1, 1, D)."""
        G, D = len(self.models), self.data.tokens.shape[-1]
        if not self.training.normalise:
            neutral = torch.zeros(G, 1, 1, D, device=self.device, dtype=dtype)
            return neutral, neutral + 1
        # Per clip first: the clips are few, the models many.
        tokens = self.data.tokens.double().flatten(1, 2)
        means, squares = tokens.mean(1), tokens.square().mean(1)  # (N, D)
        rows = [model.train.to(self.device) for model in self.models]
        mean = torch.stack([means[each].mean(0) for each in rows])
        square = torch.stack([squares[each].mean(0) for each in rows])
        scale = losses.inverse_deviation(mean, square)
        return mean.to(dtype).view(G, 1, 1, D), scale.to(dtype).view(G, 1, 1, D)

    def run(self, each_epoch: Callable[[], None] | None = None) -> list[Tensor]:
        """Train all epochs.

        Returns:
            Per model (epochs, m, C) float32 on the CPU: probabilities of its test clips after each epoch.
        """
        paths = []
        for epoch in range(self.training.epochs):
            self._train_epoch(epoch)
            paths.append(self._predict())
            if each_epoch is not None:
                each_epoch()
        path = torch.stack(paths, 1)  # (G, epochs, M, C)
        return [path[i, :, : len(model.test)] for i, model in enumerate(self.models)]

    def forward(
        self, tokens: Tensor, noise: DropoutNoise | None, apply: Apply = through_autograd
    ) -> HeadOutput:
        """The heads with the current values on (G, B, L, D) tokens."""
        output: HeadOutput = self.head(torch.addcmul(self.shift, tokens, self.scale), noise, apply)
        return output

    def order(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clips, views and mask of an epoch: each (G, steps * B); padding repeats a model's own clip."""
        length = int(self.steps.max()) * self.training.batch_size
        rows, views = torch.empty(2, len(self.models), length, dtype=torch.int64)
        mask = torch.zeros(len(self.models), length)
        for i, model in enumerate(self.models):
            n = len(model.train)
            generator = torch.Generator().manual_seed(random_seed(model.key, f"order {epoch}"))
            shuffled = model.train[torch.randperm(n, generator=generator)]
            rows[i, :n], rows[i, n:] = shuffled, shuffled[0]
            views[i, :n], views[i, n:] = torch.randint(self.views, (n,), generator=generator), 0
            mask[i, :n] = 1
        return rows.to(self.device), views.to(self.device), mask.to(self.device, self.data.tokens.dtype)

    @torch.inference_mode()
    def _train_epoch(self, epoch: int) -> None:
        G, B, steps = len(self.models), self.training.batch_size, int(self.steps.max())
        rows, views, mask = (each.view(G, steps, B).transpose(0, 1) for each in self.order(epoch))
        places, targets = self._places(rows, views), self.objective.targets(self.data.labels[rows], mask)
        for model, stream in zip(self.models, self.streams, strict=True):
            stream.manual_seed(random_seed(model.key, f"dropout {epoch}"))
        number = torch.arange(steps)[:, None]  # (steps, 1)
        rates, active = self.rate(epoch * self.steps + number).tolist(), (number < self.steps).tolist()
        parameters, longest = self.optimiser.parameters, mask.sum(-1).amax(1).int().tolist()
        for step in range(steps):
            tape, part = Tape(), slice(longest[step])  # the last batch may be short for all
            output = self.forward(self._gather(places[step, ..., part]), self.noise, tape.apply)
            ends = self.objective.gradients(output, targets.at((step, slice(None), part)))
            self.optimiser.step(tape.gradients(ends, parameters), rates[step], active[step])
        values = self.optimiser.values()
        if not torch.isfinite(values).all():
            broken = int((~torch.isfinite(values)).any(1).nonzero()[0])
            raise UserError(
                f"model {self.models[broken].key}: training diverged in epoch {epoch + 1}; "
                "lower training.learning_rate"
            )

    def _places(self, rows: Tensor, views: Tensor) -> Tensor:
        """Where the tokens of clips and views (steps, G, B) lie among all: (steps, G, L, B)."""
        L = self.data.tokens.shape[2]
        first = (rows * self.views + views) * L
        places = first.unsqueeze(2) + torch.arange(L, device=self.device)[:, None]
        return places.contiguous()  # or every step would put its own in order

    def _gather(self, places: Tensor) -> Tensor:
        """Tokens at places (G, L, B): (G, B, L, D), in memory (G, L, B, D)."""
        D = self.data.tokens.shape[3]
        found = self.data.tokens.view(-1, D).index_select(0, places.flatten())
        return found.view(*places.shape, D).transpose(1, 2)

    def rate(self, step: Tensor) -> Tensor:
        """Learning rate of each model at its own step: (..., G) -> (..., G)."""
        peak = self.training.learning_rate
        if self.training.schedule == "constant":
            return torch.full(step.shape, peak, dtype=torch.float64)
        total = self.steps * self.training.epochs
        warmup = (0.05 * total).clamp(min=1)
        falling = 0.5 * (1 + torch.cos(math.pi * step.double() / total))
        return peak * torch.minimum((step + 1) / warmup, falling)

    def attention(self) -> list[Tensor]:
        """Per model (m, L) float32 on the CPU: pooling weights on its test clips, at the current values."""
        weights = self._test(lambda output: output.attention)
        return [weights[i, : len(model.test)] for i, model in enumerate(self.models)]

    def _predict(self) -> Tensor:
        """Probabilities of every model's test clips, padded: (G, M, C) float32 on the CPU."""
        return self._test(lambda output: output.logits.softmax(-1))

    @torch.inference_mode()
    def _test(self, part: Callable[[HeadOutput], Tensor]) -> Tensor:
        """A part of the output on every model's test clips, mean over the views: (G, M, ...) float32."""
        longest = max(len(model.test) for model in self.models)
        rows = [model.test[torch.arange(longest).clamp(max=len(model.test) - 1)] for model in self.models]
        index = torch.stack(rows).to(self.device)
        tokens = self.data.tokens[:, : self.test_views][index]  # (G, M, V, L, D)
        every = part(self.forward(tokens.flatten(1, 2), None))
        G, wide = every.shape[0], every.shape[2:]
        return every.view(G, longest, self.test_views, *wide).mean(2).float().cpu()
