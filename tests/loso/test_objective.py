"""The tape and the written-out gradients of the objective against torch's autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from token_sets import anchors, token_set

from mefar.classifier import losses
from mefar.classifier.blocks import Tape
from mefar.classifier.head import HeadOutput, HeadSize
from mefar.classifier.layers import DropoutNoise
from mefar.loso.engine import GroupTrainer, TextAnchors, Training
from mefar.loso.folds import Fold, fold_model

TRAINING = Training(
    batch_size=5, label_smoothing=0.1, entropy_weight=0.3, edclip_weight=0.5, others_weight=0.7
)


def trainer(size: HeadSize, text: TextAnchors | None, **changes: float) -> GroupTrainer:
    """Two models, their values shaken so that nothing is at its start."""
    data = replace(token_set(dtype=torch.float64), anchors=text)
    models = [fold_model(data, Fold(subject, 0)) for subject in (data.subjects[0], data.subjects[-1])]
    made = GroupTrainer(data, models, size, replace(TRAINING, **changes))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.head.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def value(made: GroupTrainer, output: HeadOutput, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The objective in the losses that classifier.py and edclip.py are trained by."""
    training, weights = made.training, made.objective.class_weights
    total = losses.classification_loss(output.logits, labels, weights, mask, training.label_smoothing)
    total = total + training.entropy_weight * losses.attention_entropy(output.attention, mask)
    if made.data.anchors is not None:
        anchors = made.data.anchors
        assert output.text is not None
        terms = losses.alignment_losses(output.text, labels, anchors.vectors, anchors.described, mask)
        aligned = terms["described"] + training.others_weight * terms["others"]
        total = total + training.edclip_weight * aligned
    return total.sum()


def everybody() -> TextAnchors:
    """Texts for all classes."""
    vectors = torch.nn.functional.normalize(torch.randn(3, 8, dtype=torch.float64), dim=-1)
    return TextAnchors(vectors, torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("embedding", ["shared", "per_position"])
@pytest.mark.parametrize("text", ["none", "some", "all"])
def test_a_step_has_the_gradients_of_autograd(depth: int, embedding: str, text: str) -> None:
    size = HeadSize(8, depth, 2, 12, 0.25, embedding)  # type: ignore[arg-type]
    given = {"none": None, "some": anchors(dtype=torch.float64), "all": everybody()}[text]
    made = trainer(size, given)
    G, L, D = 2, 4, 6
    tokens = torch.randn(G, 5, L, D, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 2, 2, 0], [2, 1, 0, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).double()
    targets = made.objective.targets(labels, mask)
    parameters = list(made.head.parameters())
    found = []
    for by_tape in (False, True):
        noise = DropoutNoise([torch.Generator().manual_seed(seed) for seed in range(G)], 0.25)
        if by_tape:
            tape = Tape()
            with torch.no_grad():
                output = made.forward(tokens, noise, tape.apply)
                found.append(tape.gradients(made.objective.gradients(output, targets), parameters))
        else:
            loss = value(made, made.forward(tokens, noise), labels, mask)
            found.append(list(torch.autograd.grad(loss, parameters)))
    for (name, _), ours, theirs in zip(made.head.named_parameters(), found[1], found[0], strict=True):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(ours, theirs, msg=name)


def test_what_has_no_text_is_pushed_away_only_where_it_is_too_near() -> None:
    made = trainer(HeadSize(8, 1, 2, 12), anchors(dtype=torch.float64))
    vectors = anchors(dtype=torch.float64).vectors
    near, far = vectors[0], -vectors[0] - vectors[1]
    text = torch.stack([near, far / far.norm()])[None].expand(2, 2, -1).clone().requires_grad_()
    logits, attention = torch.zeros(2, 2, 3).double(), torch.full((2, 2, 4), 0.25).double()
    output = HeadOutput(logits, attention, text)
    labels, mask = torch.full((2, 2), 2), torch.ones(2, 2).double()  # class 2 has no text
    ours = made.objective.gradients(output, made.objective.targets(labels, mask))[2][1]
    (theirs,) = torch.autograd.grad(value(made, output, labels, mask), text)
    torch.testing.assert_close(ours, theirs)
    assert ours[:, 0].abs().max() > 0 and (ours[:, 1] == 0).all()


def test_weights_of_nothing_give_no_gradient() -> None:
    made = trainer(HeadSize(8, 1, 2, 12), None, entropy_weight=0.0)
    output = made.forward(torch.randn(2, 3, 4, 6, dtype=torch.float64), None)
    targets = made.objective.targets(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3).double())
    assert all((gradient == 0).all() for _, gradient in made.objective.gradients(output, targets))
