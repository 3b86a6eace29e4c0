"""LightningModule 2, TokenClassifier: one TokenHead on the tokens of a frozen tokenizer.

For training on one split, with images coming from a DataModule. A leave-one-subject-out study does not
go this way: there all folds train at once on tokens made beforehand (`mefar loso`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mefar.classifier import losses
from mefar.classifier.head import HeadOutput, HeadSize, Reading, TokenHead
from mefar.classifier.layers import DropoutNoise
from mefar.errors import UserError
from mefar.metrics import UAR, UF1
from mefar.tokens import ActionTokenizer


class TokenClassifier(LightningModule):
    """Classifies (onset, apex) pairs by their action tokens.

    What it needs to know of the training clips (class weights, scale of the tokens) it measures in one
    pass over the training loader when training starts; nothing else is ever looked at.

    Args:
        tokenizer: anything that makes action tokens; frozen. In YAML `class_path: mefar.tokenizer.load`
            with the checkpoint as `path`.
        num_classes: C.
        dim: width of the head, a multiple of `heads` (published: 512).
        depth: Transformer layers (published: 2).
        heads: attention heads (published: 8).
        feedforward: width inside the feed-forward blocks (published: 512).
        dropout: probability in [0, 1) (published: 0.2).
        embedding: how codes are read: `per_position` or `shared` (published).
        normalise: scale token dimensions to mean 0 and deviation 1 over the training clips.
        learning_rate: of AdamW (published: 2e-4).
        betas: of AdamW (published: 0.85, 0.98).
        weight_decay: of AdamW (published: 1e-5).
        label_smoothing: probability in [0, 1) spread over all classes.
        entropy_weight: of the pooling entropy (published: 1e-3).
        class_weights: `balanced`, N / (C n_c) over the training clips, or `equal`.
    """

    class_weights: Tensor
    mean: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(
        self,
        tokenizer: ActionTokenizer,
        num_classes: int,
        dim: int = 64,
        depth: int = 1,
        heads: int = 4,
        feedforward: int = 128,
        dropout: float = 0.2,
        embedding: Reading = "per_position",
        normalise: bool = True,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.05,
        label_smoothing: float = 0.1,
        entropy_weight: float = 1e-3,
        class_weights: Literal["balanced", "equal"] = "balanced",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["tokenizer"])
        if num_classes < 2:
            raise UserError(f"num_classes is {num_classes}; give at least 2")
        self.tokenizer = tokenizer
        if isinstance(tokenizer, nn.Module):
            tokenizer.requires_grad_(False).eval()
        size = HeadSize(dim, depth, heads, feedforward, dropout, embedding)
        self.head = self.make_head(size, num_classes)
        self.noise = DropoutNoise((None,), dropout)
        self.register_buffer("class_weights", torch.ones(num_classes))
        self.register_buffer("mean", torch.zeros(tokenizer.dim))
        self.register_buffer("scale", torch.ones(tokenizer.dim))
        self.register_buffer("measured", torch.tensor(False))
        self.scores = nn.ModuleDict(
            {f"{stage}_{name}": metric(num_classes)
             for stage in ("val", "test") for name, metric in (("uf1", UF1), ("uar", UAR))}
        )  # fmt: skip

    def make_head(self, size: HeadSize, num_classes: int, text_dim: int | None = None) -> TokenHead:
        """The head to train; its initial values follow torch's global seed."""
        seed = int(torch.randint(2**31, ()))
        return TokenHead(self.tokenizer.num_tokens, self.tokenizer.dim, num_classes, size, text_dim, (seed,))

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
        """(B, L, D) token embeddings of a batch: of one random view in training, else of view 0.

        Args:
            batch: onset, apex (B, 3, H, W) or (B, V, 3, H, W), uint8 or float in [0, 1].
        """
        pair = batch["onset"], batch["apex"]
        if pair[0].ndim == 5:
            B, V = pair[0].shape[:2]
            rows = torch.arange(B, device=pair[0].device)
            views = torch.randint(V, (B,), device=rows.device) if self.training else torch.zeros_like(rows)
            pair = pair[0][rows, views], pair[1][rows, views]
        onset, apex = (x.float() / 255 if x.dtype == torch.uint8 else x for x in pair)
        return self.tokenizer.tokenize(onset, apex).embeddings

    def forward(self, tokens: Tensor) -> HeadOutput:
        """(B, L, D) token embeddings -> output of the head, with a group dimension of 1."""
        noise = self.noise if self.training else None
        output: HeadOutput = self.head(((tokens - self.mean) * self.scale).unsqueeze(0), noise)
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
            tokens = self.tokens(moved).double().flatten(0, 1)
            sums += torch.stack(
                [tokens.sum(0), tokens.square().sum(0), torch.full_like(tokens[0], len(tokens))]
            )
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        if self.hparams["class_weights"] == "balanced":
            self.class_weights.copy_(losses.balanced(counts))
        if self.hparams["normalise"]:
            mean, square = sums[0] / sums[2], sums[1] / sums[2]
            self.mean.copy_(mean)
            self.scale.copy_(losses.inverse_deviation(mean, square))
        self.measured.fill_(True)

    def losses(self, output: HeadOutput, labels: Tensor) -> dict[str, Tensor]:
        """Named terms of the loss, each already weighted.

        Args:
            output: of the head, with its group dimension of 1.
            labels: (B,) int64.
        """
        settings = self.hparams
        smoothing = settings["label_smoothing"] if self.training else 0.0
        classification = losses.classification_loss(
            output.logits[0], labels, self.class_weights, label_smoothing=smoothing
        )
        entropy = losses.attention_entropy(output.attention[0])
        return {"classification": classification, "entropy": settings["entropy_weight"] * entropy}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One optimisation step."""
        terms = self.losses(self(self.tokens(batch)), batch["label"])
        loss = torch.stack(list(terms.values())).sum()
        size = len(batch["label"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=size)
        return loss

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        output, labels = self(self.tokens(batch)), batch["label"]
        loss = torch.stack(list(self.losses(output, labels).values())).sum()
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)
        for name in ("uf1", "uar"):
            metric = self.scores[f"{stage}_{name}"]
            assert isinstance(metric, UF1 | UAR)
            metric.update(output.logits[0], labels)
            self.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=len(labels))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to val/loss, val/uf1 and val/uar, pooled over the epoch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to test/loss, test/uf1 and test/uar."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Probabilities (B, C), attention over tokens (B, L) and the clip keys of a batch."""
        output = self(self.tokens(batch))
        return {
            "clip": batch.get("clip"),
            "probabilities": output.logits[0].softmax(-1),
            "attention": output.attention[0],
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the head."""
        settings = self.hparams
        return torch.optim.AdamW(
            self.head.parameters(),
            lr=settings["learning_rate"],
            betas=tuple(settings["betas"]),
            weight_decay=settings["weight_decay"],
        )
