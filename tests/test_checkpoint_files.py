"""Reading checkpoints: every byte is checked, no code is run, and the line says what is wrong."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mefar.errors import UserError
from mefar.files import read_checkpoint

CONTENT = {"state_dict": {"weight": torch.arange(600.0), "bias": torch.ones(3)}, "epoch": 3}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for new in (True, False):
        torch.save(CONTENT, path, _use_new_zipfile_serialization=new)
        read = read_checkpoint(path)
        assert read["epoch"] == 3 and torch.equal(read["state_dict"]["weight"], torch.arange(600.0))
    save_file({"weight": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "x.safetensors")["weight"], torch.ones(2))
    torch.save([1, 2], path)
    assert read_checkpoint(path) == {"": [1, 2]}


def test_no_flipped_bit_changes_a_weight_without_a_word(tmp_path: Path) -> None:
    """torch alone reads past most of them."""
    path, draw, told = tmp_path / "x.ckpt", random.Random(0), set()
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    weight = whole.index(torch.arange(100.0, 110.0).numpy().tobytes())
    for place in [weight, *(draw.randrange(len(whole)) for _ in range(150))]:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << draw.randrange(8)
        path.write_bytes(spoilt)
        try:
            read = read_checkpoint(path)
        except UserError as error:
            told.add(str(error))
            continue
        assert place != weight
        assert read.keys() == CONTENT.keys() and read["epoch"] == 3
        assert all(
            torch.equal(read["state_dict"][name], CONTENT["state_dict"][name]) for name in ("weight", "bias")
        )
    assert any("its entry 'x/data/0' is damaged" in line for line in told)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_damaged_files_of_both_formats_end_in_one_line(new: bool, tmp_path: Path) -> None:
    path, draw = tmp_path / "x.ckpt", random.Random(1)
    torch.save(CONTENT, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    told = []
    for _ in range(60):
        spoilt = bytearray(whole)
        for _ in range(3):
            spoilt[draw.randrange(min(len(whole), 700))] = draw.randrange(256)
        path.write_bytes(spoilt[: draw.choice([len(whole), draw.randrange(1, len(whole))])])
        try:
            read_checkpoint(path)
        except UserError as error:
            told.append(str(error))
    assert len(told) > 30 and all("\n" not in line for line in told)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was_here",)


def test_each_mistake_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("x.ckpt")
    assert "no such checkpoint" in refusal(path)
    assert "is a folder" in refusal(tmp_path)
    for content, says in (
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"just text", "not a checkpoint that can be read"),
        (b"trainer: {max_epochs: 3}", "not a checkpoint that can be read"),
        (pickle.dumps({"a": Hostile()}), "could run code"),
    ):
        path.write_bytes(content)
        assert says in refusal(path)
    torch.save({"state_dict": Hostile()}, path)
    assert "refused, it holds posix.mkdir" in refusal(path)
    assert not Path("was_here").exists()
    torch.save(CONTENT, path)
    path.write_bytes(path.read_bytes()[:-40])
    assert "damaged or cut short" in refusal(path)
