"""Readers trained on all subjects: the head of the folds' recipe, and what action units are read by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from token_sets import anchors, token_set

from mefar.baselines.chance import Majority
from mefar.classifier.head import TokenHead
from mefar.classifier.settings import HeadTraining
from mefar.classifier.text_anchors import Anchors, Description
from mefar.errors import UserError
from mefar.loso import final
from mefar.loso.study import Options, run
from mefar.readers import Readers

TRAINING = HeadTraining(epochs=15, batch_size=8)
STUDY = replace(token_set(clips=(12,) * 6, noise=0.2), anchors=anchors())


def described() -> Anchors:
    vectors = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(2)))
    rows = [Description("any", "negative", f"sentence {n}") for n in range(4)]
    return Anchors(tuple(rows), vectors, "tower")


@pytest.fixture(scope="module")
def made() -> Readers:
    # Unit 12 goes with the second class, unit 4 with nothing, unit 9 is too rare.
    dice = torch.Generator().manual_seed(0)
    chance = torch.rand(len(STUDY.labels), generator=dice) < 0.4
    shown = [
        (1, *((12,) if label == 1 else ()), *((4,) if chance[row] else ()), *((9,) if row < 3 else ()))
        for row, label in enumerate(STUDY.labels.tolist())
    ]
    return final.train(STUDY, shown, TokenHead, TRAINING, 0, "0" * 64, described(), {"protocol": "composite"})


def test_every_subject_is_known_and_units_are_read_where_they_can_be(made: Readers) -> None:
    assert made.about.units == (12,)  # 1 is always shown, 9 hardly ever, 4 cannot be read
    assert made.about.unit_f1["AU12"] > 0.9
    classes, shares = made(STUDY.tokens[:, 0])
    assert (classes.argmax(1) == STUDY.labels).float().mean() > 0.95
    torch.testing.assert_close(classes.sum(1), torch.ones(len(classes)))
    assert ((shares[:, 0] > 0.5) == (STUDY.labels == 1)).float().mean() > 0.95


def test_they_are_written_with_their_sentences_and_read_back(made: Readers, tmp_path: Path) -> None:
    assert made.about.sentences == tuple(f"sentence {n}" for n in range(4))
    assert made.about.text_model == "tower"
    torch.testing.assert_close(made.vectors, described().vectors)
    made.save(tmp_path / "readers.safetensors")
    back = Readers.load(tmp_path / "readers.safetensors")
    assert back.about == made.about
    for one, other in zip(made(STUDY.tokens[:, 0]), back(STUDY.tokens[:, 0]), strict=True):
        assert torch.equal(one, other)


def test_without_units_or_sentences_there_are_none() -> None:
    study = token_set()
    made = final.train(study, [()] * len(study.labels), TokenHead, TRAINING, 0, "", None, {})
    assert made.about.units == () and made.about.sentences == () and made.about.sizes[3] is None
    assert made(study.tokens[:, 0])[1].shape == (len(study.labels), 0)


@pytest.mark.parametrize("wrong", [{"adapt_tokenizer": 0.1}, {"shuffle_labels": True}, {"task": "units"}])
def test_what_it_does_not_go_with_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="final"):
        Options(final=True, **wrong)  # type: ignore[arg-type]


def test_a_baseline_has_no_tokens_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a baseline has none"):
        run(None, Majority(), tmp_path, options=Options(final=True))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
