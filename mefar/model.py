"""mefar for Python: a tokenizer, and what it was taught besides, behind one object.

>>> import mefar
>>> model = mefar.load("demo")
>>> tokens = model.tokenize(mefar.example("onset"), mefar.example("apex"))
>>> tokens.indices.shape
torch.Size([1, 16])
>>> model.reconstruct(mefar.example("other"), tokens, strength=1.5).shape
(1, 64, 64, 3)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodules.faces.align import FaceMode
from mefar.errors import UserError
from mefar.pictures import AlignedFace, Picture, Pictures, align, arrays, as_uint8, pair
from mefar.tokenizer.plain import PlainTokenizer
from mefar.tokenizer.plain import load as load_tokenizer
from mefar.tokens import ActionTokens, feature_dim

UInt8 = NDArray[np.uint8]
AT_ONCE = 32


class Model(nn.Module):
    """Reads facial actions as tokens, and shows tokens on faces.

    Pictures are given as mefar/pictures.py says: paths, PIL images, arrays, tensors, one or many. Where many
    onsets and one apex are given, or the other way round, the one goes with all.

    Args:
        tokenizer: a finished one.
    """

    def __init__(self, tokenizer: PlainTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.has_strength = feature_dim(tokenizer) > tokenizer.dim

    @property
    def device(self) -> torch.device:
        """Where the model is; `.to(device)` moves it."""
        return next(self.tokenizer.parameters()).device

    @property
    def image_size(self) -> int:
        """Side in pixels of the face crops that it reads and writes."""
        return self.tokenizer.image_size

    def tokenize(
        self, onset: Pictures, apex: Pictures, faces: FaceMode = "align", face: int = 1
    ) -> ActionTokens:
        """What faces did between onset and apex.

        Args:
            onset: B pictures of faces at rest.
            apex: B pictures of the same faces, at the same places, in action.
            faces: `align` finds the faces; `precropped` takes pictures that are aligned crops already.
            face: which one where a picture shows several: 1 the largest.

        Returns:
            Tokens of B pairs, on the model's device.

        Raises:
            UserError: pictures that cannot be read, that show no face, or not as many of one as of the other.
        """
        before, after = _as_many(_one_by_one(onset), _one_by_one(apex), "onsets", "apexes")
        parts = []
        for start in range(0, len(before), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            crops = [self._pair(a, b, faces, face) for a, b in zip(before[some], after[some], strict=True)]
            first, second = (torch.stack(images) for images in zip(*crops, strict=True))
            parts.append(self.tokenizer.tokenize(first.to(self.device), second.to(self.device)))
        return ActionTokens.cat(parts)

    def reconstruct(
        self,
        face: Pictures,
        tokens: ActionTokens,
        strength: float = 1.0,
        head: bool = False,
        faces: FaceMode = "align",
    ) -> UInt8:
        """Show an action on a face.

        Args:
            face: B pictures of faces at rest, of whomever.
            tokens: B of them; one face or one row of tokens goes with all of the other.
            strength: 0 nothing, 1 as it was seen, 2 twice as much.
            head: also move the head as it moved where the tokens come from.
            faces: see `tokenize`.

        Returns:
            (B, S, S, 3) uint8 RGB aligned crops, S = image_size.

        Raises:
            UserError: a strength that is no number from 0 on, tokens of another tokenizer or without
                strength, or pictures as above.
        """
        if not (math.isfinite(strength) and strength >= 0):
            raise UserError(f"strength is {strength}; give a number from 0 on, 1 is as recorded")
        self.refuse_other(tokens)
        pictures = _one_by_one(face)
        if len(pictures) == 1:
            pictures = pictures * len(tokens)
        if len(tokens) == 1:
            tokens = tokens.select(torch.zeros(len(pictures), dtype=torch.int64))
        if len(pictures) != len(tokens):
            raise UserError(f"{len(pictures)} faces and {len(tokens)} tokens; give as many, or one of either")
        tokens = tokens if head else tokens.without_head()
        tokens = tokens.scaled(strength) if strength != 1 else tokens
        made = []
        for start in range(0, len(pictures), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            onset = torch.stack([self._crop(each, faces) for each in pictures[some]])
            image = self.tokenizer.reconstruct(onset.to(self.device), tokens.select(some))
            made.append((image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(made)

    def tokens(self, indices: Any, strength: Any = 1.0) -> ActionTokens:
        """Tokens written by hand.

        Args:
            indices: (L,) or (B, L) codes in [0, K).
            strength: how much of the action, one number or B; a tokenizer without strength takes none.

        Raises:
            UserError: not L codes, or codes that the tokenizer does not have.

        >>> import mefar
        >>> mefar.load("demo").tokens(range(16)).strength
        tensor([1.])
        """
        K, L = self.tokenizer.num_codes, self.tokenizer.num_tokens
        codes = torch.as_tensor(list(indices) if isinstance(indices, range) else indices, device=self.device)
        codes = codes.reshape(1, -1) if codes.ndim == 1 else codes
        if codes.ndim != 2 or codes.shape[1] != L or codes.is_floating_point():
            raise UserError(f"tokens: {tuple(codes.shape)} {codes.dtype}; give {L} whole numbers per action")
        if int(codes.min()) < 0 or int(codes.max()) >= K:
            raise UserError(f"tokens: codes {int(codes.min())} to {int(codes.max())}; there are 0 to {K - 1}")
        codes = codes.long()
        amount = torch.as_tensor(strength, dtype=torch.float32, device=self.device).expand(len(codes))
        if not (amount.isfinite().all() and bool((amount >= 0).all())):
            raise UserError(f"tokens: strength {strength}; give numbers from 0 on")
        return ActionTokens(codes, self.tokenizer.lookup(codes), amount if self.has_strength else None)

    def refuse_other(self, tokens: ActionTokens) -> None:
        """Ask for tokens of this tokenizer.

        Raises:
            UserError: their codes do not stand for the same vectors here, or are not as many.
        """
        K, L, D = self.tokenizer.num_codes, self.tokenizer.num_tokens, self.tokenizer.dim
        other = UserError("these tokens are of another tokenizer; give the model that they were made with")
        if tokens.indices.shape[1] != L or tokens.embeddings.shape[2] != D or int(tokens.indices.max()) >= K:
            raise other
        ours = self.tokenizer.lookup(tokens.indices.to(self.device))
        if not torch.allclose(ours, tokens.embeddings.to(ours), atol=1e-3):
            raise other

    def _pair(self, onset: Picture, apex: Picture, faces: FaceMode, face: int) -> tuple[Tensor, Tensor]:
        if faces == "precropped":
            return self._crop(onset, faces), self._crop(apex, faces)
        first, second = pair(onset, apex, self.image_size, face, faces)
        return _tensor(first), _tensor(second)

    def _crop(self, picture: Picture, faces: FaceMode) -> Tensor:
        """(3, S, S) float in [0, 1]; a crop of the right size is taken to the digit."""
        S = self.image_size
        if faces == "precropped" and not isinstance(picture, AlignedFace):
            (array,) = arrays(picture, "picture", 1)
            if array.shape[:2] == (S, S):
                return _tensor(array)
            picture = as_uint8(array)
        return _tensor(align(picture, faces=faces).crop(S))


def load(name: str | Path = "demo", device: str | torch.device = "cpu") -> Model:
    """A model.

    Args:
        name: `demo`, which comes with mefar, or a tokenizer's checkpoint.
        device: where it computes: cpu, cuda, cuda:1, mps.

    Raises:
        UserError: there is no such model, it cannot be read, or there is no such device.
    """
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device}: {' '.join(str(error).split())[:120]}") from None
    return Model(load_tokenizer(name)).to(where).eval()


def _one_by_one(given: Pictures) -> list[Picture]:
    """Pictures as a list with one each; faces that are found already stay what they are."""
    if isinstance(given, list | tuple):
        return [each for one in given for each in _one_by_one(one)]
    if isinstance(given, AlignedFace | str | Path):
        return [given]
    return list(arrays(given, "picture"))


def _as_many(
    one: list[Picture], other: list[Picture], name: str, others: str
) -> tuple[list[Picture], list[Picture]]:
    one, other = (
        (one * len(other) if len(one) == 1 else one),
        (other * len(one) if len(other) == 1 else other),
    )
    if len(one) != len(other) or not one:
        raise UserError(f"{len(one)} {name} and {len(other)} {others}; give as many, or one of either")
    return one, other


def _tensor(array: NDArray[Any]) -> Tensor:
    """(H, W, 3) uint8 or float -> (3, H, W) float in [0, 1]."""
    made = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    return made.float() / 255 if made.dtype == torch.uint8 else made.float()
