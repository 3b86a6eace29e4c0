"""Token-quality gates that every tokenizer run logs as one torchmetrics Metric."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mefar.tokenizer.image_losses import moving_region, psnr
from mefar.tokenizer.quantizer import perplexity


class TokenQuality(Metric):
    """Usage, perplexity, delta PSNR, gain over copy and no-action spread, summed over batches and ranks."""

    full_state_update = False
    counts: Tensor
    still: Tensor
    copied: Tensor
    rebuilt: Tensor
    shuffled: Tensor
    pairs: Tensor

    def __init__(self, num_codes: int, num_tokens: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        for name in ("counts", "still"):
            self.add_state(name, torch.zeros(num_tokens, num_codes), dist_reduce_fx="sum")
        for name in ("copied", "rebuilt", "shuffled", "pairs"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(
        self, indices: Tensor, still: Tensor, onset: Tensor, apex: Tensor, rebuilt: Tensor, shuffled: Tensor
    ) -> None:
        """Add a batch.

        Args:
            indices: (B, L) int64 in [0, K), tokens of (onset, apex).
            still: (B, L) int64 in [0, K), tokens of (onset, onset).
            onset: (B, 3, H, W) float in [0, 1].
            apex: the same.
            rebuilt: the same, decoded from the pair's own tokens.
            shuffled: the same, decoded from another pair's tokens.
        """
        region = moving_region(onset, apex)
        # Not in place: `Trainer.validate` leaves tensors here that a later `fit` may only read.
        self.counts = self.counts + self._histograms(indices)
        self.still = self.still + self._histograms(still)
        self.copied = self.copied + psnr(onset, apex, region).sum()
        self.rebuilt = self.rebuilt + psnr(rebuilt, apex, region).sum()
        self.shuffled = self.shuffled + psnr(shuffled, apex, region).sum()
        self.pairs = self.pairs + len(indices)

    def _histograms(self, indices: Tensor) -> Tensor:
        """(B, L) int64 -> (L, K) float, how often each position chose each code."""
        return torch.stack([torch.bincount(row, minlength=self.num_codes) for row in indices.T]).float()

    def compute(self) -> dict[str, Tensor]:
        """Scalars: code_usage in [0, 1], the two perplexities in [1, K], the PSNRs in dB.

        `no_action_spread` in [0, 1): share of the tokens of (x, x) that are not the most common one of their
        position; 0 is ideal, because no motion is the same action on every face.
        """
        pooled = self.counts.sum(0)
        pairs = self.pairs.clamp_min(1)
        return {
            "code_usage": (pooled > 0).float().mean(),
            "perplexity": perplexity(pooled),
            "perplexity_per_position": perplexity(self.counts).mean(),
            "psnr": self.rebuilt / pairs,
            "delta_psnr": (self.rebuilt - self.shuffled) / pairs,
            "gain_over_copy": (self.rebuilt - self.copied) / pairs,
            "no_action_spread": 1 - self.still.amax(1).sum() / self.still.sum().clamp_min(1),
        }
