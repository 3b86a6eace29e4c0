"""LightningModule 2, TokenClassifier: a head on the tokens of a frozen tokenizer.

For training on one split, with images coming from a DataModule: the same recipe (settings.py, losses.py),
initial values, order of clips and views as the fold of the same held-out subject and seed in `mefar loso`,
which trains all folds at once on tokens made beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from mefar.classifier.head import HeadFactory, HeadOutput, TokenHead, build_head
from mefar.classifier.losses import TextAnchors, class_weights, head_loss, token_statistics
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.metrics import UAR, UF1
from mefar.randomness import fold_key, seed_of, view_of
from mefar.tokens import ActionTokenizer, feature_dim


class TokenClassifier(LightningModule):
    """Classifies (onset, apex) pairs by their action tokens.

    What it needs to know of the training clips (class weights, scale of the tokens) it measures in one
    pass over the training loader when training starts; nothing else is ever looked at.

    Args:
        tokenizer: anything that makes action tokens; frozen. In YAML `class_path: mefar.tokenizer.load`
            with the checkpoint as `path`.
        num_classes: C.
        head: class of the head and its options; see mefar.classifier.head.
        training: how to train it; `epochs` are the Trainer's max_epochs.
        held_out: who is held out; with the seed it names the fold that this training is.
        seed: of initial values, views and order.
    """

    class_weights: Tensor
    mean: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(
        self,
        tokenizer: ActionTokenizer,
        num_classes: int,
        head: HeadFactory = TokenHead,
        training: HeadTraining = HeadTraining(),  # noqa: B008  frozen
        held_out: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["tokenizer", "head", "training"])
        if num_classes < 2:
            raise UserError(f"num_classes is {num_classes}; give at least 2")
        self.tokenizer, self.settings, self.key = tokenizer, training, fold_key(held_out, seed)
        if isinstance(tokenizer, nn.Module):
            tokenizer.requires_grad_(False).eval()
        self.factory, width = head, feature_dim(tokenizer)
        self.sizes = tokenizer.num_tokens, width, num_classes
        self.align(None)
        self.register_buffer("class_weights", torch.ones(num_classes))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("measured", torch.tensor(False))
        self.scores = nn.ModuleDict(
            {f"{stage}_{name}": metric(num_classes)
             for stage in ("val", "test") for name, metric in (("uf1", UF1), ("uar", UAR))}
        )  # fmt: skip

    def align(self, anchors: TextAnchors | None) -> None:
        """Make the head anew, and align its features to texts, if there are any."""
        self.anchors: TextAnchors | None = anchors
        text_dim = None if anchors is None else anchors.vectors.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.key, "values"))
            self.head = build_head(self.factory, *self.sizes, text_dim)

    @property
    def image_size(self) -> int:
        """Side in pixels of the face crops that the tokenizer takes."""
        return int(self.tokenizer.image_size)

    def train(self, mode: bool = True) -> TokenClassifier:
        """As ever, but the tokenizer stays in eval mode."""
        super().train(mode)
        if isinstance(self.tokenizer, nn.Module):
            self.tokenizer.eval()
        return self

    @torch.no_grad()
    def tokens(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, V, L, D) token embeddings of all views of a batch.

        Args:
            batch: onset, apex (B, 3, H, W) or (B, V, 3, H, W), uint8 or float in [0, 1].
        """
        pair = [x if x.ndim == 5 else x.unsqueeze(1) for x in (batch["onset"], batch["apex"])]
        flat = [rearrange(x, "b v c h w -> (b v) c h w") for x in pair]
        onset, apex = (x.float() / 255 if x.dtype == torch.uint8 else x for x in flat)
        made = self.tokenizer.tokenize(onset, apex).features
        return rearrange(made, "(b v) l d -> b v l d", v=pair[0].shape[1]).to(self.mean.dtype)

    def forward(self, tokens: Tensor) -> HeadOutput:
        """(B, L, D) token embeddings -> output of the head."""
        output: HeadOutput = self.head((tokens - self.mean) * self.scale)
        return output

    def on_train_start(self) -> None:
        """Measure the training clips, once."""
        if self.measured:
            return
        C, D = len(self.class_weights), len(self.mean)
        counts = torch.zeros(C, device=self.device, dtype=torch.float64)
        sums = torch.zeros(3, D, device=self.device, dtype=torch.float64)
        loader = self.trainer.train_dataloader
        assert loader is not None
        for batch in loader:
            moved = self.trainer.strategy.batch_to_device(batch, self.device)
            labels = moved["label"]
            if int(labels.min()) < 0 or int(labels.max()) >= C:
                raise UserError(f"label {int(labels.max())} in the data, but num_classes is {C}; correct it")
            counts += torch.bincount(labels, minlength=C)
            tokens = self.tokens(moved).double().flatten(0, 2)
            number = torch.full_like(tokens[0], len(tokens))
            sums += torch.stack([tokens.sum(0), tokens.square().sum(0), number])
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.measure(counts, sums[0] / sums[2], sums[1] / sums[2])

    def measure(self, counts: Tensor, mean: Tensor, square: Tensor) -> None:
        """Keep what the training clips are: number per class (C,), mean and mean square of tokens (D,)."""
        self.class_weights.copy_(class_weights(counts, self.settings))
        mean, scale = token_statistics(mean, square, self.settings)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.measured.fill_(True)

    def losses(self, output: HeadOutput, labels: Tensor, *part: Tensor) -> dict[str, Tensor]:
        """Named terms of the loss, each already weighted; see mefar.classifier.losses.head_loss."""
        anchors = None if self.anchors is None else self.anchors.to(output.logits)
        return head_loss(output, labels, self.class_weights, self.settings, anchors, *part)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One optimisation step, on one view of each clip."""
        every = self.tokens(batch)
        size, V = every.shape[:2]
        picks = torch.zeros(size, dtype=torch.int64)
        if V > 1:
            picks = torch.tensor([view_of(self.key, self.current_epoch, clip, V) for clip in batch["clip"]])
        terms = self.losses(self(every[torch.arange(size), picks]), batch["label"])
        loss = torch.stack(list(terms.values())).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=size)
        return loss

    def predicted(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Probabilities (B, C) and attention (B, L), where the head has it: means over the views to test."""
        every = self.tokens(batch)
        V = self.settings.views_to_test(every.shape[1])
        output = self(every[:, :V].flatten(0, 1))
        attention = None if output.attention is None else output.attention.unflatten(0, (-1, V)).mean(1)
        return output.logits.softmax(-1).unflatten(0, (-1, V)).mean(1), attention

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        labels, output = batch["label"], self(self.tokens(batch)[:, 0])
        loss = torch.stack(list(self.losses(output, labels).values())).sum()
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)
        probabilities, _ = self.predicted(batch)
        for name in ("uf1", "uar"):
            metric = self.scores[f"{stage}_{name}"]
            assert isinstance(metric, UF1 | UAR)
            metric.update(probabilities, labels)
            self.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=len(labels))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to val/loss (of the untouched view), val/uf1 and val/uar, pooled over the epoch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to test/loss, test/uf1 and test/uar."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Probabilities (B, C), attention over tokens (B, L) or None, and the clip keys of a batch."""
        probabilities, attention = self.predicted(batch)
        return {"clip": batch.get("clip"), "probabilities": probabilities, "attention": attention}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the head; its rate follows the training's schedule over the Trainer's steps."""
        optimiser = self.settings.optimiser(self.head.parameters())
        total = int(min(self.trainer.estimated_stepping_batches, 2**31))
        schedule = self.settings.scheduler(optimiser, total)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips to the recipe's norm; the Trainer's own gradient_clip_val comes on top."""
        nn.utils.clip_grad_norm_(self.head.parameters(), self.settings.clip_norm)
        if gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Heads of version 0.1 carried a group dimension of 1; read until version 0.3."""
        checkpoint["state_dict"] = ungrouped(checkpoint["state_dict"])


def ungrouped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of a TokenClassifier with its TokenHead under today's names and shapes."""
    if "head.embed.weight" not in state:
        return dict(state)
    whole = {"head.embed.weight": "head.embed", "head.embed.bias": "head.embed_bias"}  # (G * positions, ...)
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        if name not in ("anchors", "described"):
            grouped = name.startswith("head.") and name not in whole
            made[whole.get(name, name)] = value[0] if grouped else value
    return made
