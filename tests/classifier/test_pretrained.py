"""A head from a file: the published classifier end to end, other classes, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from places import PARITY
from safetensors.torch import load_file, save_file

from mefar.__main__ import main
from mefar.classifier.head import TokenHead
from mefar.classifier.pretrained import PretrainedHead, save_head
from mefar.errors import UserError
from mefar.tokenizer import load


@pytest.fixture
def kept(tmp_path: Path) -> tuple[TokenHead, Path]:
    torch.manual_seed(0)
    head = TokenHead(16, 12, 3, text_dim=6, dim=8, depth=2, heads=2, feedforward=5, embedding="shared").eval()
    save_head(head, tmp_path / "head.safetensors")
    return head, tmp_path / "head.safetensors"


def test_both_published_halves_compute_what_they_computed_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file as the published scripts write it -> a tokenizer and a head, through the command."""
    if not PARITY.exists():
        pytest.skip(f"no parity data at {PARITY}")
    stored = load_file(PARITY)
    halves: dict[str, Any] = {"laq": {}, "model": {}}
    for name, value in stored.items():
        prefix, _, rest = name.partition(".")
        halves.get({"tokenizer": "laq", "classifier": "model"}.get(prefix, ""), {})[rest] = value
    torch.save(halves, tmp_path / "theirs.pt")
    words = ["import-dface", str(tmp_path / "theirs.pt"), str(tmp_path / "ours.ckpt"), "--image-size", "64"]
    assert main([*words, "--heads", "4"]) == 0
    assert "its classifier" in capsys.readouterr().out
    onset, apex = stored["input.frames"].unbind(2)
    assert torch.equal(load(tmp_path / "ours.ckpt").tokenize(onset, apex).indices, stored["expected.indices"])
    tokens = stored["classifier_input.token_embeddings"]
    head = PretrainedHead(16, 512, 4, 768, weights=tmp_path / "ours-head.safetensors").eval()
    output, close = head(tokens), {"atol": 1e-4, "rtol": 0.0}
    torch.testing.assert_close(output.logits, stored["classifier_expected.logits"], **close)
    torch.testing.assert_close(output.text, stored["classifier_expected.text_space_embedding"], **close)
    entropy = -(output.attention * output.attention.log()).sum(-1).mean()
    torch.testing.assert_close(entropy[None], stored["classifier_expected.attention_entropy"], **close)
    assert main([*words, "--heads", "4"]) == 0, "the same file again"
    torch.save(halves | {"epoch": 1}, tmp_path / "theirs.pt")
    assert main([*words, "--heads", "4"]) == 2
    assert "ours-head.safetensors: is there already" in capsys.readouterr().err


def test_a_head_comes_back_as_it_was_and_other_classes_start_anew(kept: tuple[TokenHead, Path]) -> None:
    head, path = kept
    tokens = torch.rand(5, 16, 12)
    again, other = (PretrainedHead(*sizes, weights=path).eval() for sizes in ((16, 12, 3, 6), (16, 12, 5)))
    assert torch.equal(again(tokens).logits, head(tokens).logits)
    assert torch.equal(again(tokens).text, head(tokens).text)
    assert other(tokens).logits.shape == (5, 5) and other(tokens).text is None
    for name, value in head.state_dict().items():
        if name.split(".")[0] not in ("classes", "text"):
            assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("sizes", "changes", "says"),
    [
        ((9, 12, 3), {}, "reads 16 tokens of 12 numbers, this tokenizer makes 9 of 12"),
        ((16, 13, 3), {}, "this tokenizer makes 16 of 13"),
        ((16, 12, 3), {"query": torch.full((8,), torch.inf)}, "query holds values that are not finite"),
        ((16, 12, 3), {"query": torch.zeros(9)}, "query"),
        ((16, 12, 3), {"surplus": torch.zeros(9)}, "surplus"),
        ((16, 12, 3), None, "holds no TokenHead"),
    ],
)
def test_what_does_not_fit_is_refused(
    sizes: tuple[int, int, int], changes: dict[str, Any] | None, says: str, kept: tuple[TokenHead, Path]
) -> None:
    head, path = kept
    state = {"weight": torch.ones(1)} if changes is None else dict(head.state_dict()) | changes
    save_file(state, path, {"heads": "2"})
    with pytest.raises(UserError, match=says) as caught:
        PretrainedHead(*sizes, weights=path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="give its weights"):
        PretrainedHead(*sizes)
