"""`mefar explore`, and the read-out of action units that `mefar transfer --units` goes by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.demo.unit_pairs import UNITS, unit_pairs
from mefar.__main__ import main
from mefar.commands import explore
from mefar.tokenizer.plain import PlainTokenizer
from mefar.tokenizer.warp_network import WarpNetwork


@pytest.fixture
def tiny(monkeypatch) -> None:
    """A tokenizer that paints, and few people."""
    network = WarpNetwork(48, dim=8, depth=0, num_codes=4, num_tokens=4, code_dim=4)
    torch.nn.init.normal_(network.paint.weight, std=0.3)
    monkeypatch.setattr(explore, "load", lambda _: PlainTokenizer(network))
    monkeypatch.setattr(explore, "PEOPLE", 4)
    monkeypatch.setattr(explore, "PAIRS", 3)


def test_rendered_people_show_the_units_they_are_said_to(tmp_path: Path) -> None:
    [one] = unit_pairs(48, people=1, pairs=3)
    assert one.onset.shape == one.apex.shape == (3, 48, 48, 3) and one.intensity.shape == (3, len(UNITS))
    shown = one.intensity > 0
    assert ((shown.sum(1) >= 1) & (shown.sum(1) <= 3)).all() and one.intensity[shown].min() >= 0.2
    moved = np.abs(one.apex.astype(int) - one.onset).max((1, 2, 3))
    assert (moved > 15).all()
    [again] = unit_pairs(48, people=1, pairs=3)
    assert np.array_equal(again.apex, one.apex)


def test_a_page_and_its_numbers_are_written_people_are_read_once(tiny, tmp_path: Path, monkeypatch) -> None:
    words = ["explore", "any.ckpt", "--cache-dir", str(tmp_path / "cache"), "--out"]
    assert main([*words, str(tmp_path / "explore.html")]) == 0
    numbers = json.loads((tmp_path / "explore.json").read_text())
    assert numbers["units"] == list(UNITS) and len(numbers["rest"]) == 4
    assert "AU12" in (tmp_path / "explore.html").read_text()
    rendered = []

    def counted(size: int, people: int, pairs: int, seed: int = 0):
        rendered.append(people)
        return unit_pairs(size, people, pairs, seed)

    monkeypatch.setattr(explore, "unit_pairs", counted)
    assert main([*words, str(tmp_path / "again.html")]) == 0
    assert rendered == [explore.FACES]


@pytest.mark.parametrize(
    ("words", "said"), [(("--strength", "0"), "--strength is 0"), (("--out", "page.pdf"), "ends with .html")]
)
def test_what_cannot_be_is_one_line(words: tuple[str, str], said: str, capsys) -> None:
    assert main(["explore", "demo", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
