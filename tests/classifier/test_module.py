"""TokenHead, TokenClassifier and EDCLIP: published sizes, training, and the same curve as a LOSO fold."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_heads import ConvolutionHead, GRUHead
from lightning.pytorch import Callback, Trainer
from places import PARITY
from safetensors.torch import load_file
from token_sets import study
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.micro import FoldSampler
from mefar.classifier.edclip import EDCLIP
from mefar.classifier.head import TokenHead, head_from_published
from mefar.classifier.module import TokenClassifier
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso import engine
from mefar.loso.folds import Fold, fold_view
from mefar.tokens import ActionTokens

HEAD = partial(TokenHead, dim=8, heads=2, feedforward=8, dropout=0.1)
TRAINING = HeadTraining(learning_rate=1e-2, schedule="constant")


# The head


def test_a_published_state_is_used_whole_or_refused() -> None:
    if not PARITY.exists():
        pytest.skip(f"no parity data at {PARITY}")
    prefix, stored = "classifier.", load_file(PARITY)
    state = {name.removeprefix(prefix): x for name, x in stored.items() if name.startswith(prefix)}
    head = head_from_published(state, heads=4)
    assert sum(x.numel() for x in head.parameters()) == sum(x.numel() for x in state.values())
    with pytest.raises(UserError, match="'pos_embed' is missing"):
        head_from_published({name: x for name, x in state.items() if name != "pos_embed"})
    with pytest.raises(UserError, match="'surplus' is unknown"):
        head_from_published({**state, "surplus": torch.zeros(1)})
    with pytest.raises(UserError, match=r"published classifier: .*shape"):
        head_from_published({**state, "cls_proj.0.bias": torch.zeros(9)}, heads=4)


def test_the_published_head_has_its_size_and_its_initial_values() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": 512, "depth": 2, "heads": 8, "feedforward": 512, "embedding": "shared"}
    head = TokenHead(16, 512, 4, text_dim=768, initial="published", **sizes)
    assert sum(x.numel() for x in head.parameters()) == pytest.approx(3.8e6, rel=0.01)
    assert float(head.query.std()) == pytest.approx(1, abs=0.1)
    assert head.position is not None and float(head.position.std()) == pytest.approx(1, abs=0.05)
    bound = (6 / (512 + 3 * 512)) ** 0.5  # xavier
    qkv = head.layers[0].qkv.weight
    assert 0.98 * bound < float(qkv.detach().abs().max()) <= bound
    tokens = torch.randn(64, 16, 512)
    entropies = []
    for made in (head, TokenHead(16, 512, 4, text_dim=768, **sizes)):
        attention = made.eval()(tokens).attention
        entropies.append(float(-(attention * attention.log()).sum(-1).mean()))
    # Ours looks everywhere alike at the start (log 16 = 2.7726), the published one at some tokens more.
    assert entropies[1] == pytest.approx(2.7726, abs=2e-3)
    assert entropies[0] < 2.6


@pytest.mark.parametrize("embedding", ["shared", "per_position"])
def test_attention_is_a_distribution_and_position_matters(embedding: Any) -> None:
    head = HEAD(4, 6, 3, embedding=embedding).eval()
    with torch.no_grad():
        head.query.normal_()
        if head.position is not None:
            head.position.normal_()
    tokens = torch.randn(5, 4, 6)
    output = head(tokens)
    torch.testing.assert_close(output.attention.sum(-1), torch.ones(5))
    assert not torch.allclose(output.logits, head(tokens.flip(1)).logits, atol=1e-4)


# The LightningModules


class SignTokenizer(nn.Module):
    """Tokens that say how bright the apex is, place by place."""

    image_size, num_codes, num_tokens, dim = 8, 2, 4, 3

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


def items(views: int = 1, classes: int = 3, size: int = 24) -> list[dict[str, Any]]:
    """Class c brightens quadrant c."""
    generator, made = torch.Generator().manual_seed(0), []
    for i in range(size):
        onset = torch.full((views, 3, 8, 8), 100, dtype=torch.uint8)
        apex = onset + torch.randint(0, 20, onset.shape, generator=generator, dtype=torch.uint8)
        row, column = divmod(i % classes, 2)
        apex[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 40
        item = {"onset": onset, "apex": apex, "label": torch.tensor(i % classes), "clip": f"c/{i % 4}/{i}"}
        if views == 1:
            item |= {"onset": onset[0], "apex": apex[0]}
        made.append(item)
    return made


def batches(*args: int, **kwargs: int) -> DataLoader[dict[str, Any]]:
    return DataLoader(items(*args, **kwargs), batch_size=8)  # type: ignore[arg-type]


def trainer(tmp_path: Path, epochs: int = 30, **more: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        num_sanity_val_steps=0, **more,
    )  # fmt: skip


def classifier(kind: Any = TokenClassifier, head: Any = HEAD, **changes: Any) -> Any:
    settings = {"head": head, "training": TRAINING, **changes}
    if kind is EDCLIP:
        return EDCLIP(SignTokenizer(), "composite", ["negative", "positive", "surprise"], **settings)
    return TokenClassifier(SignTokenizer(), 3, **settings)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(
    ("kind", "head"), [(TokenClassifier, HEAD), (EDCLIP, HEAD), (EDCLIP, ConvolutionHead)]
)
def test_it_trains_and_leaves_the_tokenizer_alone(tmp_path: Path, views: int, kind: Any, head: Any) -> None:
    model = classifier(kind, head)
    run = trainer(tmp_path)
    run.fit(model, batches(views), batches())
    assert float(run.callback_metrics["val/uf1"]) > 0.95
    assert {"val/uar", "val/loss", "train/loss", "train/classification"} <= set(run.callback_metrics)
    assert ("train/described" in run.callback_metrics) == (kind is EDCLIP)
    assert not model.tokenizer.weight.requires_grad
    assert float(model.tokenizer.weight) == 1 and not model.train().tokenizer.training
    assert all(0 <= low <= high <= 1 for low, high in model.tokenizer.seen)


class Curve(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(
    ("kind", "head"),
    [(TokenClassifier, HEAD), (TokenClassifier, GRUHead), (EDCLIP, HEAD), (EDCLIP, ConvolutionHead)],
)
def test_a_fit_is_the_fold_of_loso(
    tmp_path: Path, kind: Any, head: Any, schedule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same held-out subject, seed and settings: the same loss at every step, in float64 to 1e-6."""
    head = partial(head, dropout=0.0) if head is HEAD else head
    training = HeadTraining(epochs=4, batch_size=5, schedule=schedule, clip_norm=0.5)
    model = classifier(kind, head, training=training, held_out="c/1", seed=7).double()
    every, curve = items(3), Curve()
    subjects = tuple(item["clip"].rpartition("/")[0] for item in every)
    kept = [item for item, subject in zip(every, subjects, strict=True) if subject != "c/1"]
    order = FoldSampler("c/1", 7, len(kept))
    loader = DataLoader(kept, batch_size=5, sampler=order)  # type: ignore[arg-type]
    trainer(tmp_path, 4, callbacks=[curve]).fit(model, loader)

    with torch.no_grad():
        batch = next(iter(DataLoader(every, batch_size=len(every))))  # type: ignore[arg-type]
        tokens = model.tokens(batch)
    made = replace(study(tokens, batch["label"], subjects), clips=tuple(batch["clip"]), anchors=model.anchors)
    fold, losses = Fold("c/1", 7), []
    real = engine.grad

    def told(function: Any) -> Any:
        def both(*args: Any) -> Any:
            losses.append(float(function(*args).detach()))
            return real(function)(*args)

        return both

    monkeypatch.setattr(engine, "grad", told)
    engine.train_group(made, [fold], head, training, together=False)
    assert len(losses) == len(curve.losses) == 4 * 4
    assert losses == pytest.approx(curve.losses, abs=1e-6)
    assert losses[0] != pytest.approx(losses[-1], abs=1e-3)
    assert fold_view(made, fold).key == model.key


def test_it_measures_the_training_clips_only(tmp_path: Path) -> None:
    model, loader = classifier(), batches(size=20)  # 7, 7, 6 clips
    trainer(tmp_path, 1).fit(model, loader, batches(classes=2, size=8))
    assert model.class_weights.tolist() == pytest.approx([20 / 21, 20 / 21, 20 / 18], abs=1e-6)
    tokens = torch.cat([model.tokens(batch) for batch in loader]).flatten(0, 2)
    torch.testing.assert_close(model.mean, tokens.mean(0))
    torch.testing.assert_close(model.scale[:2], 1 / tokens.std(0, correction=0)[:2], rtol=1e-4, atol=0)
    equal = classifier(training=replace(TRAINING, class_weights="equal", normalise=False))
    trainer(tmp_path, 1).fit(equal, loader)
    assert equal.class_weights.tolist() == [1, 1, 1]
    assert equal.mean.tolist() == [0, 0, 0]


def test_a_checkpoint_predicts_the_same(tmp_path: Path) -> None:
    model, run = classifier(), trainer(tmp_path, 2)
    run.fit(model, batches())
    run.save_checkpoint(tmp_path / "head.ckpt")
    again = TokenClassifier.load_from_checkpoint(
        tmp_path / "head.ckpt", tokenizer=SignTokenizer(), head=HEAD, training=TRAINING
    )
    outputs = [trainer(tmp_path).predict(each, batches()) for each in (model, again)]
    for one, two in zip(*outputs, strict=True):  # type: ignore[arg-type]
        assert one["clip"] == two["clip"]
        torch.testing.assert_close(one["probabilities"], two["probabilities"])
    # Readable without trusting it: nothing but tensors, numbers and strings inside.
    torch.load(tmp_path / "head.ckpt", weights_only=True)


def test_a_checkpoint_of_the_first_version_is_read(tmp_path: Path) -> None:
    """Its head had a group dimension of 1 everywhere; EDCLIP kept anchors as buffers."""
    model = classifier(EDCLIP)
    state = {f"head.{name}": value[None] for name, value in model.head.state_dict().items()}
    for name in ("weight", "bias"):
        ours = {"weight": "embed", "bias": "embed_bias"}[name]
        state[f"head.embed.{name}"] = state.pop(f"head.{ours}")[0]
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    old = rest | state | {"anchors": torch.zeros(3, 384), "described": torch.ones(3, dtype=torch.bool)}
    other = classifier(EDCLIP, seed=1)
    checkpoint = {"state_dict": old}
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    for name, value in model.head.state_dict().items():
        assert torch.equal(other.head.state_dict()[name], value), name


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_classes is 1"):
        TokenClassifier(SignTokenizer(), 1)
    with pytest.raises(UserError, match=r"foreign_heads\.GRUHead takes no text_dim"):
        classifier(EDCLIP, GRUHead)
    with pytest.raises(UserError, match="dropout 1"):
        classifier(head=partial(HEAD, dropout=1.0))
    with pytest.raises(UserError, match="label 2 in the data, but num_classes is 2"):
        trainer(tmp_path, 1).fit(TokenClassifier(SignTokenizer(), 2, HEAD, TRAINING), batches())
