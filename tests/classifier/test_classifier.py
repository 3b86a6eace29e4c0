"""TokenHead and TokenClassifier: published numbers, models that ignore their neighbours, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer, seed_everything
from places import PARITY
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mefar.classifier import losses
from mefar.classifier.edclip import EDCLIP
from mefar.classifier.head import HeadSize, TokenHead, head_from_published
from mefar.classifier.layers import DropoutNoise
from mefar.classifier.module import TokenClassifier
from mefar.errors import UserError
from mefar.tokens import ActionTokens

SIZE = HeadSize(dim=8, depth=2, heads=2, feedforward=12, dropout=0.25)


def parity() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The published classifier's state and everything else in the parity file."""
    if not PARITY.exists():
        pytest.skip(f"no parity data at {PARITY}")
    from safetensors.torch import load_file

    stored = load_file(PARITY)
    state = {
        name.removeprefix("classifier."): x for name, x in stored.items() if name.startswith("classifier.")
    }
    return state, stored


# The published head


def test_published_weights_give_published_outputs() -> None:
    state, stored = parity()
    head = head_from_published(state, heads=4)
    output = head(stored["classifier_input.token_embeddings"][None])
    assert output.text is not None
    close: dict[str, Any] = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(output.logits[0], stored["classifier_expected.logits"], **close)
    torch.testing.assert_close(output.text[0], stored["classifier_expected.text_space_embedding"], **close)
    entropy = losses.attention_entropy(output.attention)
    torch.testing.assert_close(entropy, stored["classifier_expected.attention_entropy"], **close)


def test_every_published_name_is_accounted_for() -> None:
    state, _ = parity()
    head = head_from_published(state, heads=4)
    assert sum(x.numel() for x in head.parameters()) == sum(x.numel() for x in state.values())
    with pytest.raises(UserError, match="'pos_embed' is missing"):
        head_from_published({name: x for name, x in state.items() if name != "pos_embed"})
    with pytest.raises(UserError, match="'surplus' is unknown"):
        head_from_published({**state, "surplus": torch.zeros(1)})
    with pytest.raises(UserError, match=r"published classifier: .*classes\.bias"):
        head_from_published({**state, "cls_proj.0.bias": torch.zeros(9)}, heads=4)


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    size = HeadSize(dim=512, depth=2, heads=8, feedforward=512, embedding="shared")
    head = TokenHead(16, 512, 4, size, text_dim=768)
    assert sum(x.numel() for x in head.parameters()) == pytest.approx(3.8e6, rel=0.01)


# Models side by side


@pytest.mark.parametrize("embedding", ["shared", "per_position"])
def test_models_ignore_their_neighbours(embedding: Any) -> None:
    size = HeadSize(dim=8, depth=2, heads=2, feedforward=12, embedding=embedding)
    head = TokenHead(4, 6, 3, size, text_dim=5, seeds=(7, 8, 9))
    tokens = torch.randn(3, 10, 4, 6, generator=torch.Generator().manual_seed(0))
    together = head(tokens)
    for index, seed in enumerate((7, 8, 9)):
        alone = TokenHead(4, 6, 3, size, text_dim=5, seeds=(seed,))
        state = head.model_state(index)
        assert state.keys() == alone.state_dict().keys()
        for name, value in alone.state_dict().items():
            assert torch.equal(value, state[name]), name
        alone.load_state_dict(state)
        single = alone(tokens[index : index + 1])
        for name in ("logits", "attention", "text"):
            torch.testing.assert_close(getattr(single, name)[0], getattr(together, name)[index])


def test_gradients_do_not_cross_over() -> None:
    head = TokenHead(4, 6, 3, SIZE, seeds=(0, 1))
    tokens = torch.randn(2, 5, 4, 6)
    head(tokens).logits[0].square().sum().backward()
    for name, parameter in head.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad.unflatten(0, (2, -1))[1] == 0).all(), name


@given(st.integers(0, 2**62), st.sampled_from([0.1, 0.25, 0.5, 0.9]), st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_dropout_follows_the_models_own_stream(seed: int, probability: float, length: int) -> None:
    def masks(*seeds: int) -> Tensor:
        noise = DropoutNoise([torch.Generator().manual_seed(each) for each in seeds], probability)
        drawn = [noise.keep(1, entries, torch.device("cpu")) for entries in (length, 3)]
        return torch.cat([mask for mask in drawn if mask is not None], 2)

    assert masks(seed).shape == (1, 1, length + 3)
    assert torch.equal(masks(seed)[0], masks(5, seed, 6)[1])


def test_dropout_keeps_the_mean_and_the_share() -> None:
    noise = DropoutNoise([torch.Generator().manual_seed(0)], 0.2)
    kept = noise.keep(100, 2000, torch.device("cpu"))
    assert kept is not None and set(kept.unique().tolist()) == {0, 1}
    assert float(kept.float().mean()) == pytest.approx(0.8, abs=0.005)
    assert float(kept.float().mean()) * noise.scale == pytest.approx(1, abs=0.01)
    assert DropoutNoise([None], 0.0).keep(1, 5, torch.device("cpu")) is None


def test_a_short_batch_leaves_the_stream_where_a_full_one_would() -> None:
    def noise(batch: int | None) -> DropoutNoise:
        return DropoutNoise([torch.Generator().manual_seed(each) for each in (0, 1)], 0.5, batch)

    cpu, full, short = torch.device("cpu"), noise(8), noise(8)
    first, cut = full.keep(8, 5, cpu), short.keep(3, 5, cpu)
    assert first is not None and cut is not None and torch.equal(first[:, :3], cut)
    again, other = full.keep(8, 5, cpu), short.keep(8, 5, cpu)
    assert again is not None and other is not None and torch.equal(again, other)
    assert not torch.equal(again, first)


def test_attention_is_a_distribution_and_position_matters() -> None:
    for embedding in ("shared", "per_position"):
        head = TokenHead(4, 6, 3, HeadSize(8, 1, 2, 12, embedding=embedding))  # type: ignore[arg-type]
        with torch.no_grad():
            head.query.normal_()
        tokens = torch.randn(1, 5, 4, 6)
        output = head(tokens)
        torch.testing.assert_close(output.attention.sum(-1), torch.ones(1, 5))
        assert not torch.allclose(output.logits, head(tokens.flip(2)).logits, atol=1e-4)


# The LightningModule


class SignTokenizer(nn.Module):
    """Tokens that say how bright the apex is, place by place."""

    num_codes, num_tokens, dim = 2, 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[float, float]] = []

    def tokenize(self, onset: Tensor, apex: Tensor) -> ActionTokens:
        assert onset.ndim == 4
        assert not self.training
        self.seen.append((float(apex.min()), float(apex.max())))
        cells = torch.nn.functional.adaptive_avg_pool2d((apex - onset).mean(1), 2).flatten(1)
        embeddings = (self.weight * cells)[..., None] * torch.tensor([1.0, -1.0, 0.0])
        return ActionTokens((cells > 0).long(), embeddings)

    def reconstruct(self, onset: Tensor, tokens: ActionTokens) -> Tensor:
        return onset


def batches(views: int = 1, classes: int = 3, size: int = 24) -> DataLoader[dict[str, Any]]:
    """Class c brightens quadrant c."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for i in range(size):
        onset = torch.full((views, 3, 8, 8), 100, dtype=torch.uint8)
        apex = onset + torch.randint(0, 20, onset.shape, generator=generator, dtype=torch.uint8)
        row, column = divmod(i % classes, 2)
        apex[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 40
        item = {"onset": onset, "apex": apex, "label": torch.tensor(i % classes), "clip": f"c/{i}"}
        if views == 1:
            item |= {"onset": onset[0], "apex": apex[0]}
        items.append(item)
    return DataLoader(items, batch_size=8)  # type: ignore[arg-type]


def trainer(tmp_path: Path, epochs: int = 30) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )  # fmt: skip


SMALL: dict[str, Any] = {"dim": 8, "heads": 2, "feedforward": 8, "learning_rate": 1e-2, "dropout": 0.1}


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("kind", [TokenClassifier, EDCLIP])
def test_it_trains_and_leaves_the_tokenizer_alone(tmp_path: Path, views: int, kind: Any) -> None:
    seed_everything(0)
    tokenizer = SignTokenizer()
    if kind is EDCLIP:
        model = EDCLIP(tokenizer, "composite", ["negative", "positive", "surprise"], **SMALL)
    else:
        model = TokenClassifier(tokenizer, 3, **SMALL)
    run = trainer(tmp_path)
    run.fit(model, batches(views), batches())
    assert float(run.callback_metrics["val/uf1"]) > 0.95
    assert {"val/uar", "val/loss", "train/loss", "train/classification"} <= set(run.callback_metrics)
    assert ("train/described" in run.callback_metrics) == (kind is EDCLIP)
    assert not tokenizer.weight.requires_grad
    assert float(tokenizer.weight) == 1
    assert all(0 <= low <= high <= 1 for low, high in tokenizer.seen)


def test_it_measures_the_training_clips_only(tmp_path: Path) -> None:
    model = TokenClassifier(SignTokenizer(), 3, **SMALL)
    loader = batches(size=20)  # 7, 7, 6 clips
    trainer(tmp_path, 1).fit(model, loader, batches(classes=2, size=8))
    expected = [20 / 21, 20 / 21, 20 / 18]
    assert model.class_weights.tolist() == pytest.approx(expected, abs=1e-6)
    tokens = torch.cat([model.tokens(batch) for batch in loader]).flatten(0, 1)
    torch.testing.assert_close(model.mean, tokens.mean(0))
    torch.testing.assert_close(model.scale[:2], 1 / tokens.std(0, correction=0)[:2], rtol=1e-4, atol=0)
    equal = TokenClassifier(SignTokenizer(), 3, class_weights="equal", normalise=False, **SMALL)
    trainer(tmp_path, 1).fit(equal, loader)
    assert equal.class_weights.tolist() == [1, 1, 1]
    assert equal.mean.tolist() == [0, 0, 0]


def test_a_checkpoint_predicts_the_same(tmp_path: Path) -> None:
    model = TokenClassifier(SignTokenizer(), 3, **SMALL)
    run = trainer(tmp_path, 2)
    run.fit(model, batches())
    run.save_checkpoint(tmp_path / "head.ckpt")
    again = TokenClassifier.load_from_checkpoint(tmp_path / "head.ckpt", tokenizer=SignTokenizer())
    outputs = [trainer(tmp_path).predict(each, batches()) for each in (model, again)]
    for one, two in zip(*outputs, strict=True):  # type: ignore[arg-type]
        assert one["clip"] == two["clip"]
        torch.testing.assert_close(one["probabilities"], two["probabilities"])
    # Readable without trusting it: nothing but tensors, numbers and strings inside.
    torch.load(tmp_path / "head.ckpt", weights_only=True)


def test_in_training_views_vary_and_in_evaluation_they_do_not() -> None:
    model = TokenClassifier(SignTokenizer(), 3, **SMALL)
    batch = next(iter(batches(views=4)))
    model.eval()
    plain = {name: batch[name][:, 0] for name in ("onset", "apex")}
    assert torch.equal(model.tokens(batch), model.tokens(plain))
    model.train()
    assert not torch.equal(model.tokens(batch), model.tokens(batch))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_classes is 1"):
        TokenClassifier(SignTokenizer(), 1)
    with pytest.raises(UserError, match="dim 9 is not a multiple of heads 2"):
        TokenClassifier(SignTokenizer(), 3, dim=9, heads=2)
    with pytest.raises(UserError, match="dropout 1"):
        TokenClassifier(SignTokenizer(), 3, dropout=1.0)
    with pytest.raises(UserError, match="label 2 in the data, but num_classes is 2"):
        trainer(tmp_path, 1).fit(TokenClassifier(SignTokenizer(), 2, **SMALL), batches())
