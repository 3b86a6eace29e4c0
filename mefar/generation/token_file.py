"""A clip's tokens as a small JSON file: what a face did, and no face.

{"format": "mefar tokens", "version": 1,
 "tokenizer": "sha256 of its weights",        other tokenizers read other things in the same numbers
 "indices": [30, 11, 3, ...],                 L codes in [0, K)
 "strength": 0.83}                            how much of it, 1 is typical of a talking face; or null
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mefar.errors import UserError
from mefar.files import write_text
from mefar.generation.editing import chosen
from mefar.tokens import ActionTokens, SteerableTokenizer


class TokenFile(BaseModel):
    """Content of a file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["mefar tokens"] = "mefar tokens"
    version: Literal[1] = 1
    tokenizer: str
    indices: list[Annotated[int, Field(ge=0)]]
    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


def write(path: Path, tokens: ActionTokens, fingerprint: str) -> None:
    """Write the tokens of one clip, B = 1; `fingerprint` is the tokenizer's."""
    strength = None if tokens.strength is None else float(tokens.strength[0])
    content = TokenFile(tokenizer=fingerprint, indices=tokens.indices[0].tolist(), strength=strength)
    write_text(path, json.dumps(content.model_dump()) + "\n")


def read(path: Path, tokenizer: SteerableTokenizer, fingerprint: str) -> ActionTokens:
    """Read the tokens of one clip, B = 1.

    Raises:
        UserError: no such file, not a token file, or made by another tokenizer.
    """
    try:
        found = TokenFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise UserError(f"{path}: no token file: {where}: {first['msg']}") from error
    if found.tokenizer != fingerprint:
        raise UserError(
            f"{path}: made by another tokenizer ({found.tokenizer[:12]}, this one is {fingerprint[:12]}); "
            "give that one as --tokenizer"
        )
    if len(found.indices) != tokenizer.num_tokens or max(found.indices) >= tokenizer.num_codes:
        expected = f"{tokenizer.num_tokens} codes below {tokenizer.num_codes}"
        raise UserError(f"{path}: indices: {found.indices}; this tokenizer has {expected}")
    strength = None if found.strength is None else torch.tensor([found.strength])
    return chosen(tokenizer, torch.tensor([found.indices]), strength)
