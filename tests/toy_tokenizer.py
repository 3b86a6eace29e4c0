"""A tokenizer as a user writes it in a file of their own: torch and ActionTokens, and nothing else."""

import torch

from mefar.tokens import ActionTokens


class QuadrantTokenizer:
    """How much brighter each quadrant of the face became, in a few levels.

    Args:
        levels: K, at least 2.
    """

    num_tokens, dim, image_size = 4, 1, 32

    def __init__(self, levels: int = 8):
        self.num_codes = levels

    def tokenize(self, onset: torch.Tensor, apex: torch.Tensor) -> ActionTokens:
        """Four tokens."""
        change = torch.nn.functional.adaptive_avg_pool2d((apex - onset).mean(1, keepdim=True), 2).flatten(1)
        indices = ((change.clamp(-0.1, 0.1) + 0.1) / 0.2 * (self.num_codes - 1)).round().long()
        return ActionTokens(indices, indices[..., None].float() / self.num_codes)

    def reconstruct(self, onset: torch.Tensor, tokens: ActionTokens) -> torch.Tensor:
        """Nothing is moved."""
        return onset
