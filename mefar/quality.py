"""Token-quality gates that every tokenizer run logs as one torchmetrics Metric."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mefar.quantizer import perplexity
from mefar.reconstruction import moving_region, psnr


class TokenQuality(Metric):
    """Usage, perplexity, delta PSNR and gain over copy, summed over batches and ranks.

    Args:
        num_codes: K.
        num_tokens: L.
    """

    full_state_update = False
    counts: Tensor
    copied: Tensor
    rebuilt: Tensor
    shuffled: Tensor
    pairs: Tensor

    def __init__(self, num_codes: int, num_tokens: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.add_state("counts", torch.zeros(num_tokens, num_codes), dist_reduce_fx="sum")
        for name in ("copied", "rebuilt", "shuffled", "pairs"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, indices: Tensor, onset: Tensor, apex: Tensor, rebuilt: Tensor, shuffled: Tensor) -> None:
        """Indices (B, L) int64; images (B, 3, H, W) in [0, 1]; shuffled: decoded from other pairs' tokens."""
        for position in range(indices.shape[1]):
            self.counts[position] += torch.bincount(indices[:, position], minlength=self.num_codes)
        region = moving_region(onset, apex)
        self.copied += psnr(onset, apex, region).sum()
        self.rebuilt += psnr(rebuilt, apex, region).sum()
        self.shuffled += psnr(shuffled, apex, region).sum()
        self.pairs += len(indices)

    def compute(self) -> dict[str, Tensor]:
        """Scalars: code_usage in [0, 1], the two perplexities in [1, K], the PSNRs in dB."""
        pooled = self.counts.sum(0)
        pairs = self.pairs.clamp_min(1)
        return {
            "code_usage": (pooled > 0).float().mean(),
            "perplexity": perplexity(pooled),
            "perplexity_per_position": perplexity(self.counts).mean(),
            "psnr": self.rebuilt / pairs,
            "delta_psnr": (self.rebuilt - self.shuffled) / pairs,
            "gain_over_copy": (self.rebuilt - self.copied) / pairs,
        }
