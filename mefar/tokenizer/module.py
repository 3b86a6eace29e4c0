"""LightningModule 1, FacialActionTokenizer: pretrains the codec and is the ActionTokenizer of the rest.

Trained on pairs of frames of talking faces (VoxCelebDataModule), with no label. Every validation logs
the gates of quality.py: a run whose reconstruction does not beat copying the onset, or does not suffer when
tokens are shuffled within the batch, has learned nothing, whatever its loss says.
"""

from __future__ import annotations

import inspect
import math
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from mefar.errors import UserError
from mefar.tokenizer import image_losses as reconstruction
from mefar.tokenizer import ranks
from mefar.tokenizer.published_network import PublishedCodec
from mefar.tokenizer.quality import TokenQuality
from mefar.tokenizer.transformer import TransformerBlock
from mefar.tokenizer.warp_network import Block, WarpCodec
from mefar.tokens import ActionTokens

_IMAGES = ("onset", "apex", "onset_view", "apex_view")
_SLACK = 1e-3  # what a resampled image may leave [0, 1] by


class FacialActionTokenizer(L.LightningModule):
    """Conditional VQ-VAE from (onset, apex) to action tokens and back.

    Args:
        image_size: side of the aligned face crops in pixels; a multiple of 16, at least 48.
        num_codes: K, size of the codebook (published: 32).
        num_tokens: L, tokens per pair (published: 16).
        code_dim: numbers in a code.
        dim: width D of the codec and of the token embeddings.
        depth: residual blocks of encoder and decoder each.
        quantizer: `ema` (moving averages, k-means start, revival) or `nsvq` (published).
        continuous_share: share of the training steps before the codebook starts, in [0, 1).
        learning_rate: peak of AdamW's step size.
        weight_decay: of AdamW, on matrices only.
        lr_warmup_share: share of the steps of linear warm-up before the cosine decay.
        moving_weight: how much more a moving pixel counts in the loss than a resting one; 0: all alike.
        commitment_weight: of the mean squared distance between encoder outputs and their codes.
        smooth_weight: of the flow's total variation, in pixels.
        residual_weight: of the mean absolute residual that is painted over the warped onset.
        network: `warp` (ours) or `published`, the paper's to the last digit, whose loss is the plain mean
            squared error of the apex, without any of the weights above.
        patch_size: published only, side of a patch in pixels; image_size may be any multiple of it.
        temporal_depth: published only, blocks of the temporal encoder; `depth` is the spatial one.
        heads: published only, attention heads.
        head_dim: published only, channels of a head.
        bottleneck_convolutions: published only, from patches to tokens; null for as many as needed.
        compiled: train with blocks that torch.compile has fused: minutes at the start, then faster steps on
            a GPU. The same numbers up to rounding.
    """

    num_codes: int
    num_tokens: int
    dim: int

    def __init__(
        self,
        image_size: int = 256,
        num_codes: int = 32,
        num_tokens: int = 16,
        code_dim: int = 16,
        dim: int = 64,
        depth: int = 2,
        quantizer: Literal["ema", "nsvq"] = "ema",
        continuous_share: float = 0.15,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        lr_warmup_share: float = 0.03,
        moving_weight: float = 2.0,
        commitment_weight: float = 0.05,
        smooth_weight: float = 1e-3,
        residual_weight: float = 1e-2,
        network: Literal["warp", "published"] = "warp",
        patch_size: int = 16,
        temporal_depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        bottleneck_convolutions: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.codec: WarpCodec | PublishedCodec
        try:
            if network == "published":
                self.codec = PublishedCodec(
                    image_size, patch_size, dim, depth, temporal_depth, heads, head_dim, num_codes,
                    num_tokens, code_dim, quantizer, bottleneck_convolutions=bottleneck_convolutions,
                )  # fmt: skip
            else:
                self.codec = WarpCodec(image_size, dim, depth, num_codes, num_tokens, code_dim, quantizer)
        except ValueError as error:
            raise UserError(f"tokenizer: {error}") from error
        self.num_codes, self.num_tokens, self.dim = num_codes, num_tokens, dim
        self.image_size = image_size
        self.quality = TokenQuality(num_codes, num_tokens)
        self._half_step: dict[str, Tensor] = {}

    # ---- the ActionTokenizer interface

    @torch.no_grad()
    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        """(B, 3, H, W) float in [0, 1], H = W = image_size -> tokens.

        Raises:
            UserError: images of another size, number of channels, type or range.
        """
        for name, image in (("onset", onset), ("apex", apex)):
            _refuse_other_images(name, image, self.image_size)
        action = self.codec.encode(onset, apex)
        indices = self.codec.vq.nearest(action)
        return ActionTokens(indices, self.codec.embed(self.codec.vq.lookup(indices)))

    @torch.no_grad()
    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        """Onset (B, 3, H, W) in [0, 1] plus tokens, its own or another face's -> apex in [0, 1]."""
        return self.codec.decode(onset, tokens.embeddings).image.clamp(0, 1)

    def adaptation_error(self, onset: Tensor, apex: Tensor, seeds: Sequence[int]) -> Tensor:
        """Mean squared error of each pair's reconstruction, with gradient: see tokens.AdaptableTokenizer.

        As published for `published`; `warp` is compared with the apex in the light of its onset, as it was
        trained. The codebook: see VectorQuantizer.relaxed.
        """
        codes = self.codec.vq.relaxed(self.codec.encode(onset, apex), seeds)
        image = self.codec.decode(onset, self.codec.embed(codes)).image
        target = apex
        if self.hparams["network"] == "warp":
            target = reconstruction.match_light(apex, onset)
        return (image - target).square().mean((1, 2, 3))

    # ---- training

    def compile_blocks(self) -> None:
        """Let torch.compile fuse every block of the codec; blocks of a kind share what it makes."""
        for module in self.codec.modules():
            if isinstance(module, Block | TransformerBlock):
                module.compile()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """uint8 travels to the device and becomes float in [0, 1] there.

        Raises:
            UserError: images of another size, number of channels, type or range, except values that are not
                finite, which `training_step` lays to a clip.
        """
        made = dict(batch)
        for key, value in batch.items():
            if key in _IMAGES:
                _refuse_other_images(key, value, self.image_size, training=True)
            if isinstance(value, Tensor) and value.dtype == torch.uint8:
                made[key] = value.float() / 255
        return made

    def on_fit_start(self) -> None:
        """The continuous phase is a share of the run, known only now; blocks are compiled on their device."""
        steps = self.trainer.estimated_stepping_batches
        batches = steps * self.trainer.accumulate_grad_batches  # the quantiser counts every batch
        self.codec.vq.warmup_steps = int(self.hparams["continuous_share"] * batches)
        if self.hparams["compiled"]:
            self.compile_blocks()

    def on_train_start(self) -> None:
        """Goes on with the step that a checkpoint has caught half-way."""
        for name, parameter in self.named_parameters():
            if name in self._half_step:
                parameter.grad = self._half_step[name].to(parameter)
        self._half_step = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Between two batches of one step (accumulate_grad_batches) its gradients are part of the state."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        if progress.current.ready % self.trainer.accumulate_grad_batches and not progress.is_last_batch:
            checkpoint["half_step"] = {
                name: ranks.mean(parameter.grad)
                for name, parameter in self.named_parameters()
                if parameter.grad is not None
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the gradients for `on_train_start`."""
        self._half_step = checkpoint.get("half_step", {})

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Named terms of the loss, each already weighted, for float batches.

        The encoder reads `onset`, `apex`; when the loader gives a second view of the pair (`onset_view`,
        `apex_view`: other crop, colour and noise), the decoder must explain that one instead.
        """
        onset, apex = batch["onset"], batch["apex"]
        seen, target = batch.get("onset_view", onset), batch.get("apex_view", apex)
        action = self.codec.encode(onset, apex)
        quantized = self.codec.quantize(action)
        if self.hparams["network"] == "published":
            image = self.codec.decode(onset, self.codec.embed(quantized.values)).image
            return {"reconstruction": F.mse_loss(image, apex)}
        decoded = self.codec.decode(seen, self.codec.embed(quantized.values))
        target = reconstruction.match_light(target, seen)
        weight = reconstruction.moving_weight(seen, target, self.hparams["moving_weight"])
        return {
            "reconstruction": reconstruction.charbonnier(decoded.image, target, weight),
            "commitment": self.hparams["commitment_weight"] * quantized.commitment,
            "smooth": self.hparams["smooth_weight"] * reconstruction.total_variation(decoded.flow),
            "residual": self.hparams["residual_weight"] * decoded.residual.abs().mean(),
        }

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One optimisation step; every rank stops on a loss that is not finite, and the clips are named.

        A rank that stopped alone would leave the others waiting for its gradients.
        """
        terms = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        if ranks.anywhere(~torch.isfinite(loss)):
            blame = _blame(batch) if not torch.isfinite(loss) else ""
            found = "; ".join(line for line in ranks.told_by_all(blame) if line)
            raise UserError(f"the loss is not finite at step {self.global_step}: {found}")
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to the token-quality gates."""
        onset, apex = batch["onset"], batch["apex"]
        tokens = self.tokenize(onset, apex)
        order = torch.roll(torch.arange(len(tokens), device=onset.device), 1)
        self.quality.update(
            tokens.indices, self.tokenize(onset, onset).indices,
            onset, reconstruction.match_light(apex, onset),
            self.reconstruct(onset, tokens), self.reconstruct(onset, tokens.select(order)),
        )  # fmt: skip

    def on_validation_epoch_end(self) -> None:
        """Logs the gates: usage, perplexities, delta PSNR, gain over copying the onset, no-action spread."""
        for name, value in self.quality.compute().items():
            self.log(f"val/{name}", value, prog_bar=name in ("gain_over_copy", "delta_psnr"), sync_dist=True)
        self.quality.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with linear warm-up and cosine decay over the whole run.

        Raises:
            UserError: the run has no end.
        """
        matrices = [p for p in self.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.hparams["weight_decay"]},
             {"params": others, "weight_decay": 0.0}],
            lr=self.hparams["learning_rate"], betas=(0.9, 0.99),
            fused=self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed",
        )  # fmt: skip
        # "I scale gradients back myself", says a fused optimiser, and the Trainer then refuses to clip them.
        # It would only have to in float16, where it is not fused.
        optimizer._step_supports_amp_scaling = False
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise UserError(
                "the learning rate decays over the whole run; give trainer.max_epochs or max_steps"
            )
        total = max(1, int(steps))
        warmup = max(1, int(self.hparams["lr_warmup_share"] * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.01 + 0.99 * 0.5 * (
                1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup)))
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _refuse_other_images(name: str, image: Tensor, size: int, training: bool = False) -> None:
    if image.ndim != 4 or image.shape[1:] != (3, size, size):
        raise UserError(
            f"{name} is {tuple(image.shape)}, expected (B, 3, {size}, {size});"
            " set the data's image_size to the tokenizer's"
        )
    if training and image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise UserError(f"{name} is {image.dtype}, expected float in [0, 1]; divide uint8 images by 255")
    low, high = (float(value) for value in torch.aminmax(image))
    if training and not (math.isfinite(low) and math.isfinite(high)):
        return  # the training step says in which clip
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise UserError(f"{name} holds {low:g} to {high:g}, expected [0, 1]; divide by the largest value")


def _blame(batch: dict[str, Any]) -> str:
    """Which clips of a float batch hold values that are not finite."""
    names = batch.get("clip", [])
    bad = [
        names[row] if row < len(names) else f"row {row}"
        for row in range(len(batch["onset"]))
        if not all(torch.isfinite(batch[key][row]).all() for key in ("onset", "apex"))
    ]
    if not bad:
        return "every image is finite, so training diverged; lower the learning rate"
    return f"pixels that are not finite in {', '.join(bad)}; remove or repair these clips"


def load(path: str | Path, device: str | torch.device = "cpu") -> FacialActionTokenizer:
    """A tokenizer from a checkpoint that `mefar fit` wrote, in eval mode.

    Raises:
        UserError: no such file, not a checkpoint, not a tokenizer's, or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; make one with `make pretrain` or `make demo`")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError):
        raise UserError(f"{path}: not a checkpoint that can be read, or cut short") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a mefar checkpoint (no state_dict); was it written by `mefar fit`?")
    settings = dict(checkpoint.get("hyper_parameters", {}))
    if "num_codes" not in settings:
        raise UserError(f"{path}: a checkpoint, but not a tokenizer's (no num_codes among its settings)")
    known = inspect.signature(FacialActionTokenizer.__init__).parameters
    try:
        model = FacialActionTokenizer(**{name: value for name, value in settings.items() if name in known})
        model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{path}: weights and settings do not fit together ({_first_line(error)})") from None
    return model.to(device).eval()


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
