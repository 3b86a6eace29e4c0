"""LightningModule 1, FacialActionTokenizer: pretrains any network and is the ActionTokenizer of the rest.

Trained on pairs of frames of talking faces (VoxCelebDataModule), with no label. The network brings its own
loss (network.py). Every validation logs the gates of quality.py: a run whose reconstruction does not beat
copying the onset, or does not suffer when tokens are shuffled within the batch, has learned nothing, whatever
its loss says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import instantiate_module
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from mefar.errors import UserError, one_line
from mefar.files import class_at
from mefar.tokenizer import earlier, ranks
from mefar.tokenizer.image_losses import match_light
from mefar.tokenizer.network import ActionNetwork, describe
from mefar.tokenizer.plain import (
    TokenInterface,
    located,
    read_checkpoint,
    refuse_not_finite,
    refuse_other_images,
    refuse_unfinished,
    under,
)
from mefar.tokenizer.quality import TokenQuality
from mefar.tokens import ActionTokenizer

_IMAGES = ("onset", "apex", "onset_view", "apex_view")


class FacialActionTokenizer(TokenInterface, L.LightningModule):
    """Conditional VQ-VAE from (onset, apex) to action tokens and back.

    Args:
        network: what makes and reads tokens, with its own loss: a class path and its arguments. `WarpNetwork`
            (ours), `PublishedNetwork` (the paper's), or any ActionNetwork of yours.
        learning_rate: peak of AdamW's step size.
        weight_decay: of AdamW, on matrices only.
        lr_warmup_share: share of the steps of linear warm-up before the cosine decay.
        weights: checkpoint, or demo, whose network this training starts from: with another corpus, learning
            rate or image size. To go on with an interrupted training give `--ckpt_path` instead.
        compiled: train with blocks that torch.compile has fused: minutes at the start, then faster steps on
            a GPU. The same numbers up to rounding.
    """

    def __init__(
        self,
        network: ActionNetwork,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        lr_warmup_share: float = 0.03,
        weights: Path | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        refuse_unfinished(network)
        settings = {
            "network": describe(network),
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "lr_warmup_share": lr_warmup_share,
            "compiled": compiled,
        }
        # As LightningCLI would write them, so that the class is made again from a checkpoint the same way
        # whoever has made it.
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        made_by = "lightning.pytorch.cli.instantiate_module"
        self.save_hyperparameters(settings | {"_class_path": kind, "_instantiator": made_by})
        self.stand_on(network)
        self.quality = TokenQuality(network.num_codes, network.num_tokens)
        self._half_step: dict[str, Tensor] = {}
        if weights is not None:  # no hyperparameter: a checkpoint of this training holds what came of them
            rank_zero_info(start_from(network, Path(weights)))

    # ---- beside the ActionTokenizer interface, which TokenInterface brings

    def adaptation_error(self, onset: Tensor, apex: Tensor, seeds: Sequence[int]) -> Tensor:
        """Mean squared error of each pair's reconstruction, with gradient: see tokens.AdaptableTokenizer."""
        return self.network.adaptation_error(onset, apex, seeds)

    # ---- training

    def compile_blocks(self) -> None:
        """Let torch.compile fuse every block of the network; blocks of a kind share what it makes."""
        for block in self.network.blocks():
            block.compile()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """uint8 travels to the device and becomes float in [0, 1] there.

        Raises:
            UserError: images of another size, number of channels, type or range, except values that are not
                finite, which `training_step` lays to a clip.
        """
        made = dict(batch)
        for key, value in batch.items():
            if key in _IMAGES:
                refuse_other_images(key, value, self.image_size, training=True)
            if isinstance(value, Tensor) and value.dtype == torch.uint8:
                made[key] = value.float() / 255
        return made

    def on_fit_start(self) -> None:
        """The length of the run is known only now; blocks are compiled on their device."""
        steps = self.trainer.estimated_stepping_batches
        self.network.prepare(int(steps * self.trainer.accumulate_grad_batches))
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
        earlier.translate_checkpoint(checkpoint)
        self._half_step = checkpoint.get("half_step", {})

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One optimisation step; every rank stops on a loss that is not finite, and the clips are named.

        A rank that stopped alone would leave the others waiting for its gradients.
        """
        terms = self.network.losses(batch)
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
            onset, match_light(apex, onset),
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


def start_from(network: ActionNetwork, path: Path) -> str:
    """Give a network the weights of a checkpoint, of another image size where no weight depends on it.

    Returns:
        What was loaded, in one line.

    Raises:
        UserError: no such checkpoint, damaged, or of a network whose weights have other names or shapes.
    """
    path = located(path)
    checkpoint = read_checkpoint(path)
    state = under(checkpoint["state_dict"], "network.")
    told = checkpoint.get("hyper_parameters", {}).get("network", {})
    there, here = str(told.get("class_path", "another class")).rpartition(".")[2], type(network).__name__
    own = network.state_dict()
    odd = sorted(set(state) ^ set(own))
    if odd:
        where = "the file lacks" if odd[0] in own else "only the file has"
        raise UserError(f"{path}: weights of {there} do not fit {here}: {where} {odd[0]}")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise UserError(
                f"{path}: {name} is {list(state[name].shape)} in the file and {list(value.shape)} in the "
                "network; give the network the sizes that the file was trained with"
            )
    network.load_state_dict(state)
    refuse_not_finite(network, path)
    size = told.get("init_args", {}).get("image_size", network.image_size)
    corpus = (checkpoint.get("datamodule_hyper_parameters") or {}).get("data", "an unknown corpus")
    count = sum(weight.numel() for weight in network.parameters())
    grown = "" if size == network.image_size else f"; images are now {network.image_size} px"
    return (
        f"{path}: {here} starts from these weights, {len(state)} tensors, {count:,} parameters, "
        f"{checkpoint.get('global_step', 0):,} steps on {corpus} at {size} px{grown}"
    )


def load(path: str | Path, device: str | torch.device = "cpu") -> ActionTokenizer:
    """The tokenizer of a checkpoint that `mefar fit` wrote, of the class that it names, in eval mode.

    `demo` is the one that comes with mefar, trained on rendered faces alone. The class may be anybody's, as
    long as Python finds it; no code is read from the file itself.

    Raises:
        UserError: no such file, not a checkpoint, damaged, not a tokenizer's, of a class that is not found,
            of another shape, or with weights that are not finite.
    """
    path = located(path)
    checkpoint = read_checkpoint(path)
    settings = dict(checkpoint.get("hyper_parameters", {}))
    settings.pop("_instantiator", None)
    class_path = settings.pop("_class_path", None)
    if class_path is None and "network" not in settings:
        raise UserError(f"{path}: a checkpoint, but not a tokenizer's (it names neither class nor network)")
    kind = FacialActionTokenizer if class_path is None else _tokenizer_class(str(class_path), path)
    try:
        model = instantiate_module(kind, settings)
        model.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # of a class that may be anybody's
        raise UserError(f"{path}: weights and settings do not fit together ({one_line(error)})") from None
    refuse_not_finite(model, path)
    model = model.to(device).eval()
    if not isinstance(model, ActionTokenizer):
        raise UserError(f"{path}: {kind.__name__} is no ActionTokenizer, see mefar/tokens.py")
    return model


def _tokenizer_class(class_path: str, path: Path) -> type[nn.Module]:
    """The class that a checkpoint names; nothing but a tokenizer's class is ever called."""
    kind = class_at(class_path, f"{path}: its class")
    methods = ("tokenize", "reconstruct")
    if not (
        isinstance(kind, type) and issubclass(kind, nn.Module) and all(hasattr(kind, m) for m in methods)
    ):
        raise UserError(f"{path}: is of class {class_path}, which is no tokenizer (tokenize, reconstruct)")
    return kind
