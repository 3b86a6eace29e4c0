"""Vector quantiser of action codes: one codebook, two ways of training it.

`nsvq` is the published way (Vali & Backstrom, "NSVQ", 2022): the codebook is an ordinary
parameter and training replaces the quantisation error by noise of the same length. `ema` is ours:
codes are exponential moving averages of the encoder outputs that chose them (van den Oord et al.,
2017, appendix A), started by k-means after a short continuous phase, and codes that nobody chooses are
revived from the vectors that the book serves worst. Three public reports of collapse of the published
rule are the reason.

All statistics are float32 and reduced over ranks by collectives that are asked for at run time, so
that a quantiser built before the process group exists still trains on every rank's vectors, and every
rank ends each step with the same book.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mefar.errors import UserError
from mefar.tokenizer import ranks

DECAY = 0.99  # of the moving averages, per step
REVIVAL_SHARE = 0.15  # a code used less than this part of the uniform share is revived
PUBLISHED_SHARE, PUBLISHED_NOISE = 0.1, 1e-12  # see VectorQuantizer.revive

Revival = Literal["published", "unused"]


@dataclass(frozen=True)
class Quantized:
    """What the quantiser says of a batch of vectors.

    Attributes:
        values: (B, L, d) float, the vectors handed to the decoder; gradients reach the encoder.
        indices: (B, L) int64 in [0, K), nearest codes.
        commitment: () float >= 0, mean squared distance of the encoder's vectors to their codes.
    """

    values: Tensor
    indices: Tensor
    commitment: Tensor


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of a histogram: (..., K) counts -> (...) float in [1, K]; 1 for an empty histogram."""
    share = counts.float() / counts.float().sum(-1, keepdim=True).clamp_min(1)
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum(-1))


class VectorQuantizer(nn.Module):
    """Nearest-code quantiser with K codes of d numbers.

    Args:
        num_codes: K >= 2.
        code_dim: d >= 1.
        method: `ema` (ours) or `nsvq` (published).
        warmup_steps: training steps during which `ema` passes vectors through unquantised and only
            collects them; then k-means makes the first book. 0 starts k-means on the first batch.
        revive_every: steps between revivals of the codes of `ema`; 0 switches them off.
        revival: which codes `nsvq` replaces at the steps of its schedule, and by what: see `revive`.
    """

    codebook: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    started: Tensor
    step: Tensor
    reservoir: Tensor

    def __init__(
        self,
        num_codes: int = 32,
        code_dim: int = 32,
        method: Literal["ema", "nsvq"] = "ema",
        warmup_steps: int = 0,
        revive_every: int = 50,
        revival: Revival = "published",
    ) -> None:
        super().__init__()
        if num_codes < 2 or code_dim < 1:
            raise UserError(f"needs num_codes >= 2, code_dim >= 1: {num_codes}, {code_dim}")
        self.num_codes, self.code_dim, self.method = num_codes, code_dim, method
        self.warmup_steps, self.revive_every = warmup_steps, revive_every
        self.revival = revival
        book = torch.randn(num_codes, code_dim)
        if method == "nsvq":
            self.codebook = nn.Parameter(book)
        else:
            self.register_buffer("codebook", book)
        self.register_buffer("cluster_size", torch.zeros(num_codes))
        self.register_buffer("cluster_sum", torch.zeros(num_codes, code_dim))
        self.register_buffer("started", torch.tensor(method == "nsvq"))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        # Recent vectors of all ranks: k-means starts from them, revived codes are drawn from them.
        self.register_buffer("reservoir", torch.zeros(64 * num_codes, code_dim))
        # What `step` and `started` hold, so that training need not wait for the device to tell; None: ask it.
        self._progress: tuple[int, bool] | None = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._progress = None
        super()._load_from_state_dict(*args, **kwargs)

    def nearest(self, vectors: Tensor) -> Tensor:
        """(..., d) -> (...) int64, nearest code by squared Euclidean distance, in float32."""
        with torch.autocast(vectors.device.type, enabled=False):  # which would multiply in bfloat16
            flat, book = vectors.float(), self.codebook.float()
            return torch.argmin(book.square().sum(-1) - 2 * flat @ book.T, dim=-1)

    def lookup(self, indices: Tensor) -> Tensor:
        """(...) int64 in [0, K) -> (..., d), the codes themselves."""
        return F.embedding(indices, self.codebook)

    def forward(self, vectors: Tensor) -> Quantized:
        """(B, L, d) -> Quantized. In training mode the book learns; in eval mode nothing changes."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self._quantize(vectors.float())

    def _quantize(self, vectors: Tensor) -> Quantized:
        learning = self.training and torch.is_grad_enabled()
        if learning:
            step, started = self._collect(vectors.detach())
            if not started:
                if step <= self.warmup_steps:
                    return Quantized(vectors, self.nearest(vectors), vectors.new_zeros(()))
                self._start()
        indices = self.nearest(vectors)
        codes = self.lookup(indices)
        commitment = F.mse_loss(vectors, codes.detach())
        if self.method == "nsvq":
            values = codes
            if learning:
                dice = self.dice(1 + ranks.rank())  # every rank its own noise
                noise = torch.randn(vectors.shape, device=vectors.device, generator=dice)
                values = noisy(vectors, codes, noise)
                self._count(indices, len(vectors))
            return Quantized(values, indices, commitment)
        if learning:
            self._update(vectors.detach(), indices)
        return Quantized(vectors + (codes - vectors).detach(), indices, commitment)

    def relaxed(self, vectors: Tensor, seeds: Sequence[int]) -> Tensor:
        """What the decoder reads while a finished tokenizer is adapted: (B, L, d) -> (B, L, d).

        `ema`: the nearest codes, their gradient handed to the vectors; the book stays as it is. `nsvq`: noise
        in place of the error, as published; the book follows its gradient. Neither counts nor revives codes.
        Of B seeds each is the source of one pair's noise, so that a batch may be cut anywhere.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            codes = self.lookup(self.nearest(vectors))
            if self.method == "ema":
                return vectors + (codes - vectors).detach()
            dice = [torch.Generator().manual_seed(seed) for seed in seeds]
            noise = torch.stack([torch.randn(vectors.shape[1:], generator=each) for each in dice])
            return noisy(vectors, codes, noise.to(vectors))

    @torch.no_grad()
    def _collect(self, vectors: Tensor) -> tuple[int, bool]:
        """Count the step and roll the newest vectors of every rank into the reservoir: step, started."""
        before, started = self._told()
        self._progress = before + 1, started
        self.step += 1
        flat = vectors.reshape(-1, self.code_dim)
        room = len(self.reservoir)
        per_rank = max(1, min(len(flat), room // (8 * ranks.world())))
        chosen = flat[torch.randint(len(flat), (per_rank,), device=flat.device, generator=self.dice())]
        pooled = ranks.gather(chosen)
        self.reservoir.copy_(torch.cat([self.reservoir, pooled])[-room:])
        return self._progress

    def _told(self) -> tuple[int, bool]:
        """Steps done and whether the book has started, asked of the device at most once."""
        if self._progress is None:
            self._progress = int(self.step), bool(self.started)
        return self._progress

    def dice(self, stream: int = 0) -> torch.Generator:
        """Random numbers that depend on the step alone, so that a resumed training is the unbroken one."""
        return torch.Generator(self.step.device).manual_seed(self._told()[0] + (stream << 32))

    @torch.no_grad()
    def _start(self) -> None:
        """K-means over the reservoir makes the first book (rank 0 decides, all ranks receive)."""
        pool = self.reservoir[self.reservoir.abs().sum(-1) > 0]
        if len(pool) == 0:
            pool = self.reservoir[-1:]
        book = kmeans(pool, self.num_codes, self.dice())
        ranks.copy_from_first(book)
        self.codebook.copy_(book)
        self.cluster_size.fill_(1.0)
        self.cluster_sum.copy_(book)
        self.started.fill_(True)
        self._progress = self._told()[0], True

    @torch.no_grad()
    def _update(self, vectors: Tensor, indices: Tensor) -> None:
        codes = torch.arange(self.num_codes, device=indices.device)
        onehot = (indices.reshape(-1, 1) == codes).float()
        sums = onehot.T @ vectors.reshape(-1, self.code_dim)
        statistics = torch.cat([onehot.sum(0, keepdim=True).T, sums], dim=1)
        ranks.add_up(statistics)
        share = statistics[:, 0] / statistics[:, 0].sum().clamp_min(1) * self.num_codes
        scale = self.num_codes / statistics[:, 0].sum().clamp_min(1)
        self.cluster_size.lerp_(share, 1 - DECAY)
        self.cluster_sum.lerp_(statistics[:, 1:] * scale, 1 - DECAY)
        used = self.cluster_size > 1e-4
        means = self.cluster_sum / self.cluster_size.clamp_min(1e-4).unsqueeze(-1)
        self.codebook.copy_(torch.where(used.unsqueeze(-1), means, self.codebook))
        if self.revive_every and self._told()[0] % self.revive_every == 0:
            self.revive()

    @torch.no_grad()
    def _count(self, indices: Tensor, pairs: int) -> None:
        chosen = indices.reshape(-1)
        # torch.bincount would make a GPU wait for its largest entry.
        ones = self.cluster_size.new_ones(len(chosen))
        counts = torch.zeros_like(self.cluster_size).index_add_(0, chosen, ones)
        ranks.add_up(counts)
        self.cluster_size += counts > 0  # in how many batches a code was chosen since the last revival
        if published_revival(self._told()[0] - 1):
            self.revive(pairs * ranks.world())
            self.cluster_size.zero_()

    @torch.no_grad()
    def revive(self, pairs: int = 0) -> int:
        """Replace codes that are hardly used; returns how many were replaced.

        `ema`: codes below 15 % of the uniform share, by the reservoir's vectors that lie farthest from every
        code, spread out over what the book serves worst. `nsvq`: by used codes. As published, these are the
        codes chosen in fewer batches than a tenth of the *pairs* of a batch, and the noise on their copies is
        too small for float32: of a large batch nearly every code must be in use, and a copy comes to life
        only where its original moves away. With `revival: unused` the codes that no batch chose are replaced,
        by copies that lie beside their originals. `pairs` are those of a batch, over all ranks.
        """
        if self.method == "ema":
            least, noise = REVIVAL_SHARE, 0.0
        elif self.revival == "published":
            least, noise = PUBLISHED_SHARE * pairs, PUBLISHED_NOISE
        else:
            least, noise = 0.5, 0.01
        dead, alive = (self.cluster_size < least).nonzero(), (self.cluster_size >= least).nonzero()
        dead, alive = dead.squeeze(-1), alive.squeeze(-1)
        if len(dead) == 0 or len(alive) == 0:
            return 0
        if self.method == "ema":
            fresh = self._worst_served(len(dead))
        else:
            dice = self.dice()
            pick = torch.randint(len(alive), (len(dead),), device=alive.device, generator=dice)
            fresh = self.codebook[alive[pick]]
            fresh = fresh + noise * torch.randn(fresh.shape, device=fresh.device, generator=dice)
        ranks.copy_from_first(fresh)
        self.codebook.data[dead] = fresh
        self.cluster_size[dead] = 0.5
        self.cluster_sum[dead] = 0.5 * fresh
        return len(dead)

    def _worst_served(self, count: int) -> Tensor:
        distance = torch.cdist(self.reservoir, self.codebook).min(1).values.square()
        weight = distance.clamp_min(1e-12)
        pick = torch.multinomial(weight, count, count > len(weight), generator=self.dice())
        return self.reservoir[pick].clone()


def noisy(vectors: Tensor, codes: Tensor, noise: Tensor) -> Tensor:
    """NSVQ: vectors plus noise as long as their distance to the codes; all (B, L, d)."""
    error: Tensor = (vectors - codes).norm(dim=-1, keepdim=True)
    length: Tensor = noise.norm(dim=-1, keepdim=True)
    return vectors + error / length.clamp_min(1e-12) * noise


def published_revival(step: int) -> bool:
    """The published schedule, steps counted from 0: 10, 20 to 90, 100, 200 to 900, 1000, 1500 to 4500."""
    if step <= 0 or step >= 5000:
        return False
    return step % (10 if step < 100 else 100 if step < 1000 else 500) == 0


def kmeans(
    points: Tensor, clusters: int, dice: torch.Generator | None = None, iterations: int = 20
) -> Tensor:
    """Lloyd's algorithm from a k-means++ start: (N, d) float -> (clusters, d); N may be below clusters."""
    chosen = points[torch.randint(len(points), (1,), device=points.device, generator=dice)]
    start, distance = [chosen], torch.full((len(points),), torch.inf, device=points.device)
    while len(start) < clusters:  # the distance to the nearest centre changes by the newest alone
        distance = torch.minimum(distance, (points - chosen).square().sum(-1))
        chosen = points[torch.multinomial(distance + 1e-12, 1, generator=dice)]
        start.append(chosen)
    centres, numbers = torch.cat(start), torch.arange(clusters, device=points.device)
    for _ in range(iterations):
        onehot = (torch.cdist(points, centres).argmin(1, keepdim=True) == numbers).to(points.dtype)
        size = onehot.sum(0).unsqueeze(-1)
        centres = torch.where(size > 0, onehot.T @ points / size.clamp_min(1), centres)
    return centres
