"""AdamW for G models side by side, each with its own learning rate, clipping and step count."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class State(NamedTuple):
    """Values, the two moments and the step counts of some pieces of memory."""

    values: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    steps: list[Tensor]


class GroupedAdamW:
    """torch's fused AdamW over few large pieces of memory instead of many small parameters.

    Parameters whose first dimension is G are moved into the columns of one matrix, a row per model; the
    others, whose first dimension is a multiple of G, stay where they are. Neighbouring models that always
    take their steps together are updated as one.

    Args:
        parameters: all parameters of the models; where they lie is changed, their values are not.
        together: G numbers; models of one number have the same learning rate and activity at every step.
        betas: decay of the two moments.
        weight_decay: decoupled.
        clip_norm: largest gradient norm of a model.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        together: Sequence[int],
        betas: tuple[float, float],
        weight_decay: float,
        clip_norm: float,
    ) -> None:
        G = len(together)
        self.groups, self.parameters, self.clip_norm = G, list(parameters), clip_norm
        self.inside = [parameter.shape[0] == G for parameter in parameters]
        blocks = [p.data.view(G, -1) for p, inside in zip(parameters, self.inside, strict=True) if not inside]
        moved = [p for p, inside in zip(parameters, self.inside, strict=True) if inside]
        if moved:
            matrix = torch.cat([parameter.data.reshape(G, -1) for parameter in moved], 1)
            widths = [parameter.numel() // G for parameter in moved]
            for parameter, piece in zip(moved, torch.split(matrix, widths, 1), strict=True):
                parameter.data = piece.view(parameter.shape)
            blocks.append(matrix)
        self.spans: list[slice] = []
        for _, run in groupby(range(G), key=lambda model: together[model]):
            models = list(run)
            self.spans.append(slice(models[0], models[-1] + 1))
        # Of each span what torch's function wants: values, two moments and step counts of its blocks.
        self.states = [
            State(
                pieces := [block[span] for block in blocks],
                [torch.zeros_like(piece) for piece in pieces],
                [torch.zeros_like(piece) for piece in pieces],
                [torch.zeros((), device=piece.device) for piece in pieces],
            )
            for span in self.spans
        ]
        self.update = partial(
            adamw,
            fused=blocks[0].device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def values(self) -> Tensor:
        """(G, P) a copy of everything, in the order of the parameters."""
        return torch.cat([parameter.detach().reshape(self.groups, -1) for parameter in self.parameters], 1)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: Sequence[float], active: Sequence[bool]) -> None:
        """One update; a resting model keeps every number it has.

        Args:
            gradients: of the parameters, in their order; changed in place.
            rate: G learning rates.
            active: G, which models take part.
        """
        G = self.groups
        blocks = [g.reshape(G, -1) for g, inside in zip(gradients, self.inside, strict=True) if not inside]
        moved = [g.reshape(G, -1) for g, inside in zip(gradients, self.inside, strict=True) if inside]
        if moved:
            blocks.append(torch.cat(moved, 1))
        vector_norm = torch.linalg.vector_norm
        norm = vector_norm(torch.stack([vector_norm(block, dim=1) for block in blocks]), dim=0)
        shrink = (self.clip_norm / (norm + 1e-6)).clamp_(max=1).unsqueeze(1)
        for block in blocks:
            block.mul_(shrink)
        for span, state in zip(self.spans, self.states, strict=True):
            if active[span.start]:
                pieces = [block[span] for block in blocks]
                self.update(
                    state.values, pieces, state.first, state.second, [], state.steps, lr=rate[span.start]
                )
