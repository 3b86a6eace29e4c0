"""The training loop of leave-one-subject-out: a group of heads at once, whatever the head.

With a frozen tokenizer a clip is a handful of vectors, and folds differ only in which clips they may see.
`torch.func` stacks the parameters of the group's heads and maps one head's loss over them: one program with
large pieces of work instead of many with small ones. A head that vmap cannot map (nn.GRU, nn.LSTM, batch
statistics) is trained one fold after another by the same loop.

Each head has its own clips, initial values, data order, views, input scaling, class weights, clipping and
optimiser state; its numbers do not depend on its neighbours but for rounding and dropout, whose masks are
drawn for a group at a time. Groups are fixed by the study, so results are too.

Shapes: N clips, V views, L tokens, D token width, G heads, B batch, C classes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.data import default_collate

from mefar.classifier.head import FittedHead, HeadFactory, HeadOutput, build_head, name_of
from mefar.classifier.losses import head_loss, label_weights, temperature_of, token_statistics
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso.folds import (
    Fold,
    FoldResult,
    StudyTokens,
    View,
    best_epoch,
    decided,
    fold_result,
    fold_view,
    inner_view,
)
from mefar.randomness import epoch_order, seed_of, view_of

State = dict[str, Tensor]


def head_for(study: StudyTokens, factory: HeadFactory, training: HeadTraining | None = None) -> nn.Module:
    """A head for a study's tokens and classes, and for its texts, if a training aligns with them."""
    anchors = study.anchors if training is not None and training.edclip_weight else None
    text = None if anchors is None else anchors.vectors.shape[1]
    L, D = study.tokens.shape[2:]
    return build_head(factory, L, D, len(study.class_names), text)


class Heads:
    """G heads side by side: their values, their outputs, and the gradients of their losses.

    Arguments as of Trainer; `together` maps one program over all heads, otherwise they take turns.
    """

    def __init__(
        self,
        views: Sequence[View],
        factory: HeadFactory,
        study: StudyTokens,
        training: HeadTraining,
        together: bool = True,
    ) -> None:
        tokens, C = study.tokens, len(study.class_names)
        self.training, self.together = training, together
        every = None if study.anchors is None else study.anchors.to(tokens)
        # Text of a class that is left out is nothing to keep away from: trained without, known by it.
        self.anchors, self.by_text = every, None if study.unseen is None else every
        if every is not None and study.unseen is not None:
            seen = torch.arange(C, device=tokens.device) != study.unseen
            self.anchors = replace(every, described=every.described & seen)
        heads = []
        for view in views:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(view.key, "values"))
                heads.append(head_for(study, factory, training).to(tokens))
        self.head = copy.deepcopy(heads[0])  # its values are never used: they are handed in
        stacked, self.buffers = stack_module_state(heads)
        self.values = {name: nn.Parameter(value.detach()) for name, value in stacked.items()}
        statistics = [_statistics(study, view.train, training) for view in views]
        self.mean, self.scale = (torch.stack(each).to(tokens) for each in zip(*statistics, strict=True))
        labels = [study.labels[view.train.to(study.labels.device)] for view in views]
        weights = [label_weights(each, C, training) for each in labels]
        self.several = study.several
        self.weights = torch.stack(weights).to(tokens)

    def _mapped(self, function: Callable[..., Any], *batches: Tensor) -> Any:
        """The results of a function of one head's (values, buffers, mean, scale, *batch), stacked over G."""
        # Detached: grad makes a graph of its own, and torch would record another around it.
        values = {name: value.detach() for name, value in self.values.items()}
        stacked = (values, self.buffers, self.mean, self.scale, *batches)
        if self.together:
            return vmap(function, randomness="different")(*stacked)
        alone = ([_row(each, i) for each in stacked] for i in range(len(self.mean)))
        return default_collate([function(*each) for each in alone])

    def gradients(self, tokens: Tensor, labels: Tensor, mask: Tensor) -> State:
        """Gradient of every head's loss by its values: name -> (G, ...).

        Tokens (G, B, L, D), labels (G, B) or (G, B, C) int64, mask (G, B) of 0 and 1.
        """

        def loss(values: State, buffers: State, mean: Tensor, scale: Tensor, *batch: Tensor) -> Tensor:
            tokens, labels, mask, weights = batch
            if not self.together:  # what fills a batch up may matter to a head that mixes clips
                tokens, labels, mask = (each[: int(mask.sum())] for each in (tokens, labels, mask))
            output = functional_call(self.head, (values, buffers), ((tokens - mean) * scale,))
            terms = head_loss(output, labels, weights, self.training, self.anchors, mask)
            return torch.stack(list(terms.values())).sum()

        self.head.train()
        made: State = self._mapped(grad(loss), tokens, labels, mask, self.weights)
        return made

    def mixes_clips(self, tokens: Tensor) -> bool:
        """Whether what the heads say of a clip in training depends on the rest of its batch (B, L, D)."""
        said = []
        for batch in (tokens, torch.cat([tokens[:-1], tokens[-1:] + 1])):
            torch.manual_seed(0)
            values = _row(dict(self.values), 0), {k: v.clone() for k, v in _row(self.buffers, 0).items()}
            said.append(functional_call(self.head.train(), values, (batch,)).logits[0])
        return not torch.equal(*said)

    @torch.no_grad()
    def predict(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of tokens (G, M, V, L, D) probabilities (G, M, C) and attention (G, M, L), means over the views.

        float32 on the CPU; None for heads without attention.
        """

        def outputs(values: State, buffers: State, mean: Tensor, scale: Tensor, tokens: Tensor) -> Any:
            x = ((tokens - mean) * scale).flatten(0, 1)
            output: HeadOutput = functional_call(self.head, (values, buffers), (x,))
            logits = output.logits
            if self.by_text is not None:
                assert output.text is not None
                cosines = output.text @ self.by_text.vectors.T / temperature_of(output, self.training)
                logits = cosines.masked_fill(~self.by_text.described, -1e4)
            said = logits.sigmoid() if self.several else logits.softmax(-1)
            parts = [said, *([] if output.attention is None else [output.attention])]
            return [part.view(*tokens.shape[:2], -1).mean(1) for part in parts]

        self.head.eval()
        parts = [part.float().cpu() for part in self._mapped(outputs, tokens)]
        return parts[0], parts[1] if len(parts) > 1 else None

    def state(self, number: int) -> State:
        """What one head needs to be used: its values, and mean and scale of its tokens."""
        own = {name: value[number].detach().cpu() for name, value in {**self.values, **self.buffers}.items()}
        return own | {"tokens.mean": self.mean[number].cpu(), "tokens.scale": self.scale[number].cpu()}


def _row(value: Any, number: int) -> Any:
    return {name: each[number] for name, each in value.items()} if isinstance(value, dict) else value[number]


def _statistics(study: StudyTokens, rows: Tensor, training: HeadTraining) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of each token dimension over some clips: two (D,) float64."""
    tokens = study.tokens[rows.to(study.tokens.device)].double().flatten(0, 2)
    return token_statistics(tokens.mean(0), tokens.square().mean(0), training)


def can_map(factory: HeadFactory, study: StudyTokens, training: HeadTraining) -> bool:
    """Whether heads of a kind can be trained side by side, found out on two heads and a tiny batch.

    Raises:
        UserError: what build_head raises, or a head that cannot even be trained by itself.
    """
    head = head_for(study, factory)
    if isinstance(head, FittedHead) or getattr(head, "in_turns", False):
        return False
    view = View("try", torch.arange(2), torch.arange(2))
    tokens, labels = (torch.stack([each, each]) for each in (study.tokens[:2, 0], study.labels[:2]))
    mask = torch.ones(2, 2, dtype=tokens.dtype, device=tokens.device)

    def attempt(together: bool) -> Heads:
        heads = Heads([view, view], factory, study, training, together)
        heads.gradients(tokens, labels, mask)
        heads.predict(tokens.unsqueeze(2))
        return heads

    failures = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)
    name = name_of(factory)
    with torch.random.fork_rng(devices=[]):
        try:
            heads = attempt(together=False)
        except failures as error:
            raise UserError(f"head {name}: cannot be trained: {str(error).splitlines()[0]}") from error
        reason = "clips of a batch are mixed" if heads.mixes_clips(tokens[0]) else ""
        try:
            if not reason:
                attempt(together=True)
        except failures as error:
            reason = str(error).splitlines()[0][:120]
    if reason:
        log = logging.getLogger(__name__)
        log.warning("head %s: torch.func cannot map it (%s); folds train one after another", name, reason)
    return not reason


class Trainer:
    """Trains a group of heads.

    Args:
        study: tokens; device and type of the work are theirs.
        views: what each head may see; all of them take equally many steps per epoch.
        factory: makes a head.
        training: how to train.
        together: side by side, or in turns; see can_map.
        compiled: let torch.compile fuse a step: a minute at the start, then faster steps.
    """

    def __init__(
        self,
        study: StudyTokens,
        views: Sequence[View],
        factory: HeadFactory,
        training: HeadTraining,
        together: bool = True,
        compiled: bool = False,
    ) -> None:
        steps = {training.steps(len(view.train)) for view in views}
        if len(steps) != 1:
            raise ValueError(f"heads of a group must have equally many steps, not {sorted(steps)}")
        (self.steps,) = steps
        self.study, self.views, self.training = study, views, training
        self.heads = Heads(views, factory, study, training, together)
        self.optimiser = training.optimiser(self.heads.values.values(), fused=True)
        for parameter in self.heads.values.values():
            parameter.grad = torch.zeros_like(parameter)
        self.rates = training.scheduler(self.optimiser, self.steps * training.epochs)
        self.gradients = torch.compile(self.heads.gradients) if compiled else self.heads.gradients
        self.attention: Tensor | None = None

    def run(self, each_epoch: Callable[[], None] | None = None) -> list[Tensor]:
        """Train all epochs.

        Returns:
            Per head (epochs, m, C) float32 on the CPU: probabilities of its test clips after each epoch.

        Raises:
            UserError: a head's values are no longer finite.
        """
        paths, device = [], self.study.tokens.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for epoch in range(self.training.epochs):
                torch.manual_seed(seed_of(self.views[0].key, f"dropout {epoch}"))
                self._train_epoch(epoch)
                paths.append(self._predict())
                if each_epoch is not None:
                    each_epoch()
        path = torch.stack(paths, 1)  # (G, epochs, M, C)
        return [path[i, :, : len(view.test)] for i, view in enumerate(self.views)]

    def _batches(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, views and mask of the clips of every head in an epoch, from 0: (G, steps, B) each.

        The last batch of a head is filled up with a clip of its own at mask 0.
        """
        V, device = self.study.tokens.shape[1], self.study.tokens.device
        shape = len(self.views), self.steps * self.training.batch_size
        rows, picks = torch.zeros(2, *shape, dtype=torch.int64)
        mask = torch.zeros(shape, dtype=self.study.tokens.dtype)
        for i, view in enumerate(self.views):
            n = len(view.train)
            shuffled = view.train[epoch_order(view.key, epoch, n)]
            rows[i, :n], rows[i, n:], mask[i, :n] = shuffled, shuffled[0], 1
            if V > 1:
                clips = [self.study.clips[row] for row in shuffled.tolist()]
                picks[i, :n] = torch.tensor([view_of(view.key, epoch, clip, V) for clip in clips])
        rows, picks, mask = (each.unflatten(1, (self.steps, -1)).to(device) for each in (rows, picks, mask))
        return rows, picks, mask

    def _train_epoch(self, epoch: int) -> None:
        rows, picks, mask = self._batches(epoch)
        tokens, labels = self.study.tokens, self.study.labels.to(self.study.tokens.device)
        for step in range(self.steps):
            # The last batch may be short for all.
            part = slice(int(mask[:, step].sum(-1).max())) if step == self.steps - 1 else slice(None)
            row, pick = rows[:, step, part], picks[:, step, part]
            try:
                gradients = self.gradients(tokens[row, pick], labels[row], mask[:, step, part])
            except (RuntimeError, ValueError) as error:
                kind, size = type(self.heads.head).__qualname__, int(mask[:, step, part].sum(-1).min())
                raise UserError(
                    f"fold {self.views[0].key}: head {kind} fails on a batch of {size} clips "
                    f"({str(error).splitlines()[0]}); try another training.batch_size"
                ) from error
            self._step(gradients)
        for name, value in self.heads.values.items():
            broken = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero()
            if len(broken):
                raise UserError(
                    f"fold {self.views[int(broken[0])].key}: training diverged in epoch {epoch + 1}: "
                    f"{name} is not finite; lower training.learning_rate"
                )

    def _step(self, gradients: State) -> None:
        """Clip every head's gradient to its own norm, and move all heads by one step."""
        parts = [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients.values()]
        norms = torch.stack(parts).norm(dim=0)  # (G,)
        shrink = (self.training.clip_norm / (norms + 1e-6)).clamp(max=1)
        for name, parameter in self.heads.values.items():
            factor = shrink.view(-1, *[1] * (parameter.ndim - 1))
            # Mapped gradients may be transposed in memory, which torch's fused step takes for contiguous.
            torch.mul(gradients[name], factor, out=parameter.grad)
        self.optimiser.step()
        self.rates.step()

    def _predict(self) -> Tensor:
        """Probabilities of every head's test clips, padded: (G, M, C)."""
        longest = max(len(view.test) for view in self.views)
        rows = [view.test[torch.arange(longest).clamp(max=len(view.test) - 1)] for view in self.views]
        seen = self.study.tokens[:, : self.training.views_to_test(self.study.tokens.shape[1])]
        index = torch.stack(rows).to(seen.device)
        probabilities, self.attention = self.heads.predict(seen[index])
        return probabilities


def is_fitted(factory: HeadFactory, study: StudyTokens) -> bool:
    """Whether heads of a kind are fitted once instead of trained for epochs."""
    return isinstance(head_for(study, factory), FittedHead)


def fit(study: StudyTokens, factory: HeadFactory, rows: Tensor, seed: int) -> FittedHead:
    """A head without epochs, fitted to the untouched clips of some rows."""
    head = head_for(study, factory)
    assert isinstance(head, FittedHead)
    labels, subjects = study.labels_of(seed).cpu(), [study.subjects[row] for row in rows]
    head.fit(study.tokens[rows, 0].cpu(), labels[rows], subjects, seed)
    return head


def fit_fold(study: StudyTokens, fold: Fold, factory: HeadFactory) -> tuple[FoldResult, State]:
    """Fit a head without epochs, and predict its held-out clips: last and oracle are the same."""
    view, labels = fold_view(study, fold), study.labels_of(fold.seed).cpu()
    head = fit(study, factory, view.train, fold.seed)
    with torch.no_grad():
        path = head(study.tokens[view.test, 0].cpu()).logits.softmax(-1).float()[None]
    return fold_result(fold, view.test, labels[view.test], path, None), head.state_dict()


def train_group(
    study: StudyTokens,
    group: Sequence[Fold],
    factory: HeadFactory,
    training: HeadTraining,
    together: bool = True,
    compiled: bool = False,
    each_epoch: Callable[[], None] | None = None,
) -> tuple[list[FoldResult], list[State]]:
    """Train the folds of one group, of equally many steps, and predict their held-out clips.

    Other arguments as of Trainer; `each_epoch` is called after every epoch.

    Returns:
        A result and a head's state per fold.

    Raises:
        UserError: the values of a fold are no longer finite.
    """
    if is_fitted(factory, study):
        made = [fit_fold(study, fold, factory) for fold in group]
        return [result for result, _ in made], [state for _, state in made]
    study = replace(study, labels=study.labels_of(group[0].seed), control="")  # a group never mixes seeds
    labels = study.labels.cpu()
    inner: dict[Fold, int] = {}
    if training.inner:
        views = {fold: inner_view(study, fold) for fold in group}
        for steps in sorted({training.steps(len(view.train)) for view in views.values()}):
            alike = [fold for fold in group if training.steps(len(views[fold].train)) == steps]
            chosen = [views[fold] for fold in alike]
            paths = Trainer(study, chosen, factory, training, together, compiled).run()
            for fold, view, path in zip(alike, chosen, paths, strict=True):
                inner[fold] = best_epoch(decided(path, study.several), labels[view.test])
    outer = [fold_view(study, fold) for fold in group]
    trainer = Trainer(study, outer, factory, training, together, compiled)
    paths, results = trainer.run(each_epoch), []
    for number, (fold, view, path) in enumerate(zip(group, outer, paths, strict=True)):
        attention = None if trainer.attention is None else trainer.attention[number, : len(view.test)]
        results.append(fold_result(fold, view.test, labels[view.test], path, attention, inner.get(fold)))
    return results, [trainer.heads.state(number) for number in range(len(group))]
