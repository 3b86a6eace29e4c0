"""Heads as a user writes them in a file of their own: torch, and HeadOutput, and nothing else."""

import torch
from torch import nn

from mefar.classifier.head import HeadOutput


class MeanHead(nn.Module):
    """Mean of the tokens, one linear layer.

    Args:
        dropout: probability in [0, 1).
    """

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.dropout, self.classes = nn.Dropout(dropout), nn.Linear(token_dim, num_classes)

    def forward(self, tokens):
        return HeadOutput(self.classes(self.dropout(tokens.mean(1))))


class OneHotHead(nn.Module):
    """An MLP over all positions at once, each written as its nearest of a few learned directions."""

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int, codes: int = 8, width: int = 16):
        super().__init__()
        self.directions = nn.Parameter(torch.randn(codes, token_dim))
        self.layers = nn.Sequential(
            nn.Linear(num_tokens * codes, width), nn.GELU(), nn.Linear(width, num_classes)
        )

    def forward(self, tokens):
        scores = tokens @ self.directions.T
        hard = (scores == scores.amax(-1, keepdim=True)).to(scores.dtype)
        soft = scores.softmax(-1)
        return HeadOutput(self.layers((hard + soft - soft.detach()).flatten(1)))


class ConvolutionHead(nn.Module):
    """A convolution along the tokens, with attention of its own and a word for texts."""

    def __init__(
        self, num_tokens: int, token_dim: int, num_classes: int, text_dim: int | None = None, width: int = 8
    ):
        super().__init__()
        self.convolution, self.look = nn.Conv1d(token_dim, width, 3, padding=1), nn.Linear(width, 1)
        self.classes = nn.Linear(width, num_classes)
        self.speak = None if text_dim is None else nn.Linear(width, text_dim)

    def forward(self, tokens):
        x = self.convolution(tokens.mT).mT.relu()
        attention = self.look(x).squeeze(-1).softmax(-1)
        pooled = (attention.unsqueeze(-1) * x).sum(1)
        text = None if self.speak is None else nn.functional.normalize(self.speak(pooled), dim=-1)
        return HeadOutput(self.classes(pooled), attention, text)


class GRUHead(nn.Module):
    """A recurrent network over the tokens; torch.func cannot map it."""

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int, width: int = 8):
        super().__init__()
        self.network, self.classes = nn.GRU(token_dim, width, batch_first=True), nn.Linear(width, num_classes)

    def forward(self, tokens):
        return HeadOutput(self.classes(self.network(tokens)[0][:, -1]))


class BatchNormHead(nn.Module):
    """Statistics of the batch: clips are mixed."""

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int):
        super().__init__()
        self.norm, self.classes = nn.BatchNorm1d(token_dim), nn.Linear(token_dim, num_classes)

    def forward(self, tokens):
        return HeadOutput(self.classes(self.norm(tokens.mean(1))))


class Bad(nn.Module):
    """Wrong in the way that `how` says."""

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int, how: str = ""):
        super().__init__()
        self.how = how
        if how == "constructor":
            raise ValueError("how could I?")
        self.classes = (
            nn.Linear(token_dim, num_classes + (how == "shape")) if how != "parameters" else nn.Identity()
        )

    def forward(self, tokens):
        logits = self.classes(tokens.mean(1))
        if self.how == "tuple":
            return logits, None
        if self.how == "nan":
            logits = logits / 0
        if self.how == "attention":
            return HeadOutput(logits, tokens.mean(1))
        if self.how == "crash":
            return HeadOutput(logits @ logits)
        return HeadOutput(logits)


class NoModule:
    """Not a module."""

    def __init__(self, num_tokens: int, token_dim: int, num_classes: int):
        pass
