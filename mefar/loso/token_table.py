"""Tokens of every clip and view of a study, made once and kept: a clip is never decoded twice.

What a baseline reads stands in the same table, without indices. The file remembers what it was made from
(tokenizer or baseline, data, views, code); asked for with anything else, or damaged, it is made anew.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mefar.baselines.method import Method
from mefar.baselines.pixels import pixel_differences
from mefar.files import code_fingerprint, code_of, fingerprint, replacing
from mefar.readers import weights_of
from mefar.tokens import ActionTokenizer

MADE_BY = ("mefar.tokenizer", "mefar.loso.token_table")
"""Whose code decides what the tokens of a checkpoint are."""
_IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class TokenTable:
    """Tokens of N clips.

    Attributes:
        clips: N clip keys.
        embeddings: (N, V, L, D) float32, the tokens' features.
        indices: (N, V, L) int64; (N, V, 0) where nothing is quantised.
        pixels: (N, P) float32, pixel differences of view 0 for the control.
    """

    clips: tuple[str, ...]
    embeddings: Tensor
    indices: Tensor
    pixels: Tensor

    def save(self, path: Path, key: str) -> None:
        """Write the table and what it was made from."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                key=np.array(key),
                clips=np.array(self.clips),
                embeddings=self.embeddings.numpy(),
                indices=self.indices.numpy().astype(np.int16),
                pixels=self.pixels.numpy().astype(np.float16),
            )

    @classmethod
    def load(cls, path: Path, key: str) -> TokenTable | None:
        """Read a table back; None where there is none, or one made from something else."""
        try:
            with np.load(path) as file:
                if str(file["key"]) != key:
                    return None
                return cls(
                    tuple(str(clip) for clip in file["clips"]),
                    torch.from_numpy(file["embeddings"]),
                    torch.from_numpy(file["indices"].astype(np.int64)),
                    torch.from_numpy(file["pixels"].astype(np.float32)),
                )
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
            return None  # RuntimeError: a damaged zip entry can claim to be encrypted


def identity_of(source: ActionTokenizer | Method) -> str:
    """Hash of what decides the tokens: class, sizes, weights, and the code of a class that is not ours.

    Of a baseline, what it says that it is, and its code.
    """
    kind = type(source)
    if isinstance(source, Method):
        return fingerprint([source.fingerprint(), code_of(kind), code_fingerprint("mefar.baselines")])
    name = getattr(kind, "known_as", kind.__qualname__)
    parts: list[Any] = [name, source.num_codes, source.num_tokens, source.dim]
    if not kind.__module__.startswith("mefar."):
        parts.append(code_of(kind))
    if isinstance(source, nn.Module):
        parts.append(weights_of(source))
    else:
        parts.append({name: repr(value) for name, value in sorted(vars(source).items())})
    return fingerprint(parts)


def tokenize(
    source: ActionTokenizer | Method,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> TokenTable:
    """Read every clip and view.

    Args:
        source: a tokenizer on `device`, or a baseline.
        batches: onset, apex (B, 3, H, W) or (B, V, 3, H, W) uint8; clip, list of B keys.
        device: to work on.
        progress: told after every batch how many clips are read.
    """
    clips: list[str] = []
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        onset, apex = (x if x.ndim == 5 else x[:, None] for x in (batch["onset"], batch["apex"]))
        B, V = onset.shape[:2]
        keys, read = [clip for clip in batch["clip"] for _ in range(V)], []
        for start in range(0, B * V, _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            before, after = (x.flatten(0, 1)[part].to(device).float() / 255 for x in (onset, apex))
            if isinstance(source, Method):
                features = source.features(before, after, keys[part])
                indices = torch.zeros(len(features), 0, dtype=torch.int64)
            else:
                tokens = source.tokenize(before, after)
                features, indices = tokens.features, tokens.indices
            read.append((features.float().cpu(), indices.cpu()))
        columns = (torch.cat(column) for column in zip(*read, strict=True))
        embeddings, indices = (column.view(B, V, *column.shape[1:]) for column in columns)
        pixels = pixel_differences(onset[:, 0].float() / 255, apex[:, 0].float() / 255)
        # Through float16 as in the file: a run on stored tokens must see the same numbers.
        parts.append((embeddings, indices, pixels.half().float()))
        clips += batch["clip"]
        if progress is not None:
            progress(len(clips))
    return TokenTable(tuple(clips), *(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def pictures(
    tokenizer: ActionTokenizer,
    table: TokenTable,
    pair: Callable[[int], tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    mistakes: Sequence[str] = (),
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """What a report shows: one clip per database, the worst mistakes, and how often each code is used.

    The clip is the one whose pixels move as much as the median of its database: neither the best nor the
    worst.

    Args:
        tokenizer: on `device`.
        table: of the study.
        pair: row -> onset, apex, (3, H, W) uint8.
        device: to work on.
        mistakes: keys of further clips to show.

    Returns:
        `<database>_onset`, `_apex`, `_reconstruction` (H, W, 3) uint8; `usage` (K,) int64; where there are
        mistakes, M of them, `mistakes_clips` (M,) str and `mistakes_onset`, ... (M, H, W, 3) uint8.
    """
    shown: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
    databases = [clip.split("/", 1)[0] for clip in table.clips]
    energy = table.pixels.square().sum(1)
    for database in sorted(set(databases)):
        rows = torch.tensor([row for row, name in enumerate(databases) if name == database])
        row = int(rows[energy[rows].argsort()[len(rows) // 2]])
        made = rebuilt(tokenizer, *pair(row), device)
        shown |= {f"{database}_{name}": picture for name, picture in made.items()}
    if mistakes:
        rows_of_clips = {clip: row for row, clip in enumerate(table.clips)}
        several = [rebuilt(tokenizer, *pair(rows_of_clips[clip]), device) for clip in mistakes]
        shown |= {f"mistakes_{name}": np.stack([made[name] for made in several]) for name in several[0]}
        shown["mistakes_clips"] = np.array(mistakes)
    usage = torch.bincount(table.indices[:, 0].flatten(), minlength=tokenizer.num_codes)
    return shown | {"usage": usage.numpy()}


@torch.no_grad()
def rebuilt(
    tokenizer: ActionTokenizer, onset: Tensor, apex: Tensor, device: torch.device | str
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """What a pair's tokens make of its onset.

    Two (3, H, W) uint8 -> `onset`, `apex`, `reconstruction`, each (H, W, 3) uint8.
    """
    before, after = (image[None].to(device).float() / 255 for image in (onset, apex))
    again = tokenizer.reconstruct(before, tokenizer.tokenize(before, after))
    images = {"onset": before, "apex": after, "reconstruction": again}
    levels = {name: (image[0] * 255).round().clamp(0, 255) for name, image in images.items()}
    return {name: image.to(torch.uint8).permute(1, 2, 0).cpu().numpy() for name, image in levels.items()}
