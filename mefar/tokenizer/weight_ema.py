"""Moving average of a training's weights: validated, saved and loaded in place of the weights themselves."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mefar.errors import UserError


class WeightEMA(WeightAveraging):
    """Exponential moving average of the weights, once per optimisation step.

    Validation, checkpoints and whoever loads them see the average; training goes on with the weights
    themselves, which a checkpoint keeps too (`current_model_state`), so that a resume is exact. Lightning's
    own EMAWeightAveraging differs in two points: it also averages buffers, of which a codebook that has just
    been started or revived, its counts and its reservoir make no average; and it keeps the average where the
    model was built, in the memory of the host.

    Args:
        decay: part of the old average that a step keeps, in (0, 1); 0.999 looks back over 1,000 steps or so.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise UserError(f"WeightEMA: decay {decay} must lie between 0 and 1, such as 0.999")
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model has come to its device by now; the average follows."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)
