"""What a tokenizer does to real faces, where nobody knows the action units: gates without any label.

Pairs of frames of people who talk: is the rebuilt apex nearer than the onset, also where little moves; do the
tokens of somebody else do worse; do movements that are carried to another face have their size there.

Everywhere the tokenizer is in eval mode, onset and apex are (N, 3, H, W) float in [0, 1], and subjects are N
keys of the people, none with more than half of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from mefar.probes.tokens import IMAGES_AT_ONCE, other_faces, tokenize
from mefar.tokenizer.image_losses import match_light, moving_region, psnr
from mefar.tokens import ActionTokenizer, ActionTokens

PARTS = 5
"""Pairs are sorted by the size of their motion and shown in this many parts."""
REGIONS: Mapping[str, tuple[int, ...]] = {
    "brows": (70, 63, 105, 66, 107, 300, 293, 334, 296, 336),
    "lids": (159, 158, 160, 386, 385, 387),
    "mouth": (61, 291, 0, 17, 13, 14, 78, 308, 37, 267, 84, 314),
}
"""Points of MediaPipe's face mesh."""
_HEAD = (6, 168, 197, 195, 33, 133, 362, 263, 127, 356)  # bridge of the nose, corners of the eyes, temples
_EYES = (33, 263)


@torch.no_grad()
def gains(
    tokenizer: ActionTokenizer, onset: Tensor, apex: Tensor, subjects: Sequence[str]
) -> dict[str, float]:
    """How much nearer to the apex tokens bring the onset, in dB inside the moving region.

    Returns:
        `copy_psnr` of the onset; `gain_over_copy`, mean over pairs, and `gain_part_1` (least motion) to
        `gain_part_5`; `delta_psnr`, own tokens less those of somebody else's pair; `people_better`, share of
        the people whose mean gain is above 0; `code_usage` in [0, 1]; `no_action_rows`, different rows of
        tokens of (x, x), 1 is ideal; where tokens have a strength, `no_action_share`, pairs said to show
        no action, and `strength`, the median.
    """
    order = other_faces(subjects)
    tokens = tokenize(tokenizer, onset, apex)
    still = tokenize(tokenizer, onset, onset)
    target = match_light(apex, onset)
    region = moving_region(onset, target)
    copied = psnr(onset, target, region)
    own = psnr(_rebuilt(tokenizer, onset, tokens), target, region)
    others = psnr(_rebuilt(tokenizer, onset, tokens.select(order)), target, region)
    gain = own - copied
    found = {"copy_psnr": float(copied.mean()), "gain_over_copy": float(gain.mean())}
    for part, rows in enumerate(copied.argsort(descending=True).tensor_split(PARTS), 1):
        found[f"gain_part_{part}"] = float(gain[rows].mean()) if len(rows) else float("nan")
    people = sorted(set(subjects))
    better = [bool(gain[[one == name for one in subjects]].mean() > 0) for name in people]
    found |= {
        "delta_psnr": float((own - others).mean()),
        "people_better": sum(better) / len(people),
        "code_usage": len(torch.unique(tokens.indices)) / tokenizer.num_codes,
        "no_action_rows": len(torch.unique(still.indices, dim=0)),
    }
    if tokens.strength is not None:
        found["no_action_share"] = float((tokens.strength == 0).float().mean())
        found["strength"] = float(tokens.strength.median())
    return found


@torch.no_grad()
def carried_movements(
    tokenizer: ActionTokenizer,
    onset: Tensor,
    apex: Tensor,
    subjects: Sequence[str],
    landmarks: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Size and direction of movements carried to somebody else's face, by landmarks, per region.

    Every pair's onset is moved by the tokens of another person's pair (`other_faces`). Head motion is taken
    out and the distance of the outer corners of the eyes is the unit. The half of the pairs in which a region
    moves most is asked: where it does not move, landmarks tell their own noise. `landmarks` gives the points
    of MediaPipe's face mesh: (N, 3, H, W) -> (N, 468, 2).

    Returns:
        For `brows`, `lids`, `mouth`: `slope_*`, carried over source by least squares (1 = as large), and
        `correlation_*`; `tokens_kept`, share of the tokens that are read off the moved face again;
        `identity_carried`, distance of a face from itself moved so, and `identity_frames`, from its own other
        frame, 1 - cosine of 16 x 16 gray levels: the first should not be the larger.
    """
    order = other_faces(subjects)
    sent = tokenize(tokenizer, onset, apex).select(order).without_head()
    moved = _rebuilt(tokenizer, onset, sent)
    before = landmarks(onset)
    source = _movement(before, landmarks(apex))[order]
    found = _compared(source, _movement(before, landmarks(moved)))
    kept = tokenize(tokenizer, onset, moved).indices == sent.indices
    own, carried, frames = (_looks(images) for images in (onset, moved, match_light(apex, onset)))
    return found | {
        "tokens_kept": float(kept.float().mean()),
        "identity_carried": float((1 - (own * carried).sum(1)).mean()),
        "identity_frames": float((1 - (own * frames).sum(1)).mean()),
    }


@torch.no_grad()
def against_truth(
    tokenizer: ActionTokenizer,
    onset: Tensor,
    apex: Tensor,
    subjects: Sequence[str],
    truth: Tensor,
    landmarks: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """As `carried_movements`, of the true movements on the other face, where its true frame is known.

    `truth` is (N, 3, H, W) float in [0, 1], see tokens.transfer_error.
    """
    sent = tokenize(tokenizer, onset, apex).select(other_faces(subjects)).without_head()
    before = landmarks(onset)
    true = _movement(before, landmarks(truth))
    return _compared(true, _movement(before, landmarks(_rebuilt(tokenizer, onset, sent))))


def _compared(source: Tensor, carried: Tensor) -> dict[str, float]:
    """Slope and correlation per region, of the half of the rows that move most there."""
    found = {}
    for name, points in REGIONS.items():
        there, here = source[:, points], carried[:, points]
        size = there.square().sum((1, 2))
        rows = size >= size.median()
        x, y = there[rows].flatten(), here[rows].flatten()
        found[f"slope_{name}"] = float((x * y).sum() / x.square().sum().clamp_min(1e-12))
        found[f"correlation_{name}"] = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    return found


def _movement(before: Tensor, after: Tensor) -> Tensor:
    """(N, P, 2) landmarks twice -> (N, P, 2) movement without the head's, in distances of the eyes."""
    source, target = after[:, _HEAD], before[:, _HEAD]
    # The similarity that lays the head of `after` on that of `before`, as complex numbers: target = a z + b.
    z, w = torch.view_as_complex(source.contiguous()), torch.view_as_complex(target.contiguous())
    z_mean, w_mean = z.mean(1, keepdim=True), w.mean(1, keepdim=True)
    turn = ((z - z_mean).conj() * (w - w_mean)).sum(1, keepdim=True)
    turn = turn / (z - z_mean).abs().square().sum(1, keepdim=True).clamp_min(1e-12)
    laid = turn * (torch.view_as_complex(after.contiguous()) - z_mean) + w_mean
    eyes = (before[:, _EYES[0]] - before[:, _EYES[1]]).norm(dim=-1).clamp_min(1e-6)
    moved: Tensor = (torch.view_as_real(laid) - before) / eyes[:, None, None]
    return moved


def _looks(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 256) unit vectors of what a face looks like from afar, whatever the light."""
    gray = adaptive_avg_pool2d(images.mean(1, keepdim=True), 16).flatten(1)
    return normalize(gray - gray.mean(1, keepdim=True))


def _rebuilt(tokenizer: ActionTokenizer, onset: Tensor, tokens: ActionTokens) -> Tensor:
    rows = torch.split(torch.arange(len(onset), device=onset.device), IMAGES_AT_ONCE)
    return torch.cat([tokenizer.reconstruct(onset[some], tokens.select(some)) for some in rows])
