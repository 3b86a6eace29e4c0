"""Tokens of one's own choosing: kept, replaced, as a file; and which are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sample_runs import write_run
from toy_tokenizer import QuadrantTokenizer

from mefar.errors import UserError
from mefar.files import fingerprint
from mefar.generation import picking, token_file
from mefar.generation.dictionary import fit, showing
from mefar.generation.editing import chosen, each_replaced, kept, resting, steerable
from mefar.loso.folds import Fold, FoldResult
from mefar.loso.ledger import Ledger
from mefar.loso.results import read_predictions
from mefar.tokenizer.plain import PlainTokenizer
from mefar.tokenizer.warp_network import WarpNetwork
from mefar.tokens import ActionTokens


@pytest.fixture(scope="module")
def tokenizer() -> PlainTokenizer:
    torch.manual_seed(0)
    return PlainTokenizer(WarpNetwork(48, dim=8, depth=0, num_codes=6, num_tokens=4, code_dim=4))


def some(tokenizer: PlainTokenizer, rows: int = 1) -> ActionTokens:
    rest = int(resting(tokenizer)[0])
    codes = torch.arange(rows * 4).view(rows, 4) % 6
    codes[codes == rest] = (rest + 1) % 6
    return chosen(tokenizer, codes, torch.full((rows,), 0.7))


def test_other_positions_are_at_rest(tokenizer: PlainTokenizer) -> None:
    tokens = some(tokenizer)
    left = kept(tokenizer, tokens, [2])
    rest = resting(tokenizer)
    assert left.indices[0, 2] == tokens.indices[0, 2]
    assert left.indices[0, [0, 1, 3]].tolist() == rest[[0, 1, 3]].tolist()
    assert torch.equal(left.embeddings[0, 2], tokens.embeddings[0, 2]) and left.strength == tokens.strength


def test_every_position_meets_every_code() -> None:
    sets = each_replaced(torch.tensor([0, 1, 2]), 5)
    assert sets.shape == (3, 5, 3)
    assert sets[1, 4].tolist() == [0, 4, 2] and sets[2, 0].tolist() == [0, 1, 0]


def test_a_token_file_is_read_back_and_belongs_to_its_tokenizer(
    tokenizer: PlainTokenizer, tmp_path: Path
) -> None:
    tokens, path = some(tokenizer), tmp_path / "smile.json"
    token_file.write(path, tokens, "abc")
    back = token_file.read(path, tokenizer, "abc")
    assert torch.equal(back.indices, tokens.indices) and torch.equal(back.embeddings, tokens.embeddings)
    assert back.strength is not None and torch.equal(back.strength, tokens.strength)
    assert set(json.loads(path.read_text())) == {"format", "version", "tokenizer", "indices", "strength"}
    with pytest.raises(UserError, match="made by another tokenizer"):
        token_file.read(path, tokenizer, "abd")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"indices": [0, 1, 2]}, "4 codes below 6"),
        ({"indices": [0, 1, 2, 6]}, "4 codes below 6"),
        ({"indices": []}, "4 codes below 6"),
        ({"indices": [0, 1, 2, -1]}, "indices.3: Input should be greater"),
        ({"strength": -1.0}, "strength: Input should be greater"),
        ({"strength": float("nan")}, "no token file"),
        ({"format": "tokens"}, "format"),
        ({"face": "data:image/png"}, "face: Extra inputs"),
    ],
)
def test_a_wrong_token_file_is_one_line(
    tokenizer: PlainTokenizer, tmp_path: Path, change: dict, said: str
) -> None:
    path = tmp_path / "a.json"
    token_file.write(path, some(tokenizer), "abc")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said) as error:
        token_file.read(path, tokenizer, "abc")
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_tokenizer_that_cannot_be_steered_is_refused() -> None:
    with pytest.raises(UserError, match="QuadrantTokenizer cannot be steered"):
        steerable(QuadrantTokenizer())


def test_the_dictionary_finds_what_codes_add_and_what_they_do_not(tokenizer: PlainTokenizer) -> None:
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(0, 6, (400, 4), generator=generator)
    strength = torch.rand(400, generator=generator) + 0.5
    tokens = chosen(tokenizer, indices, strength)
    truth = torch.zeros(2, 4, 6)
    truth[0, 1] = tokenizer.lookup(each_replaced(resting(tokenizer), 6)[1])[:, 1].sum(-1)
    truth[0, 1] -= truth[0, 1, resting(tokenizer)[1]].clone()
    shown = truth[0, 1][indices[:, 1]] * strength
    chance = torch.randn(400, generator=generator) * shown.std()  # a unit that no code has to do with
    found = fit(tokenizer, tokens, torch.stack([shown, chance], 1), torch.arange(400) // 10, (12, 4))
    clear = truth[0, 1].abs() > 0.2 * truth.abs().max()
    assert clear.any() and found.sure[0, 1][clear].all()
    assert torch.equal(found.effect[0, 1][clear].sign(), truth[0, 1][clear].sign())
    assert found.correlation[0] > 0.95 and abs(found.correlation[1]) < 0.3
    assert found.sure[1].float().mean() < 0.4
    rest = resting(tokenizer)
    assert found.effect[:, torch.arange(4), rest].abs().max() < 1e-5  # no action shows no unit
    adds, sure = found.of(indices[0])
    assert torch.equal(adds[:, 1], found.effect[:, 1, indices[0, 1]]) and sure.shape == (2, 4)


def test_the_dictionary_is_kept(tokenizer: PlainTokenizer, tmp_path: Path) -> None:
    tokens = some(tokenizer, 12)
    found = fit(tokenizer, tokens, torch.rand(12, 1), torch.arange(12) // 2, (12,))
    found.save(tmp_path / "deep" / "words.npz")
    back = found.load(tmp_path / "deep" / "words.npz")
    assert back.units == (12,) and torch.equal(back.effect, found.effect)


def test_attention_is_that_of_the_head_that_never_saw_the_clip(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    clips = sorted(set(read_predictions(run).clips))
    (run / "study.json").write_text('{"study": 1}')
    ledger = Ledger(run, fingerprint({"study": 1}))
    first, second = [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]
    for seed, shares in enumerate((first, second)):
        of_two = FoldResult(Fold("casme2/sub01", seed), [0, 2], [[1.0]], {}, {}, [shares, second])
        ledger.append([of_two], 1.0)
    found = picking.attention_of(run, "9f2c" * 16)
    assert found[clips[0]].tolist() == pytest.approx([0.4, 0.1, 0.4, 0.1])
    assert found[clips[2]].tolist() == pytest.approx(second) and set(found) == {
        clips[0],
        clips[2],
        picking.ALL,
    }
    assert picking.strongest(found[picking.ALL], 1) == [2]
    with pytest.raises(UserError, match="made with another tokenizer"):
        picking.attention_of(run, "another")
    (run / "folds.jsonl").unlink()
    with pytest.raises(UserError, match="weighed no tokens"):
        picking.attention_of(run, "9f2c" * 16)


def test_tokens_are_picked_by_weight_or_by_unit() -> None:
    assert picking.strongest(torch.tensor([0.1, 0.4, 0.2, 0.3]), 2) == [1, 3]
    assert picking.strongest(torch.tensor([0.1, 0.9]), 5) == [0, 1]
    adds = torch.tensor([[0.5, -0.5, 0.4], [0.0, 0.3, 0.3]])
    sure = torch.tensor([[True, True, False], [True, True, False]])
    assert showing(adds, sure, [0]) == [0]
    assert showing(adds, sure, [0, 1]) == [0, 1]
