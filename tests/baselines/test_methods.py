"""Baselines under the folds of tokens: what they read, what they learn, and what they refuse."""

from __future__ import annotations

import builtins
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from token_sets import study, token_set
from torch import Tensor
from torch.nn import functional

from mefar.baselines.chance import Majority, MajorityHead, PriorHead
from mefar.baselines.flow import flow_between, match_files, read_list, strain_of
from mefar.baselines.flow_svm import FlowSVM, histograms
from mefar.baselines.lbp_top import LBPTOP
from mefar.baselines.off_apexnet import OFFApexNet, OFFApexNetHead
from mefar.baselines.pixels import Pixels, RidgeHead, linear_control
from mefar.baselines.resnet import DifferenceCNN, FlowResNet, ResNetHead
from mefar.baselines.ststnet import STREAMS, STSTNet, STSTNetHead
from mefar.baselines.svm import LinearSVM
from mefar.classifier.head import FittedHead, build_head
from mefar.classifier.settings import HeadTraining
from mefar.errors import UserError
from mefar.loso import callback
from mefar.loso.engine import can_map
from mefar.loso.results import read_predictions
from mefar.loso.run import Run, Where
from mefar.tokenizer.warp_network import WarpNetwork

CPU = Where("cpu", 1)


def blob(x: float, y: float, size: int = 64) -> Tensor:
    """A picture of a soft bright spot, in pixels from its middle."""
    grid = torch.arange(size).float() - size / 2
    spot = torch.exp(-((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2) / 200)
    return (0.2 + 0.6 * spot).expand(1, 3, size, size).contiguous()


def test_flow_points_where_things_went() -> None:
    flow = flow_between(blob(0, 0), blob(2, -1))
    u, v = flow[0, :, 24:40, 24:40].mean((1, 2)).tolist()
    assert u == pytest.approx(100 * 2 / 64, rel=0.3)
    assert v == pytest.approx(-100 * 1 / 64, rel=0.3)


def test_strain_is_of_stretching_and_not_of_moving_or_turning() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    moved, turned, stretched = torch.ones(2, 8, 8), torch.stack([-y, x]), torch.stack([x, 0 * y])
    found = strain_of(torch.stack([moved, turned, stretched]))
    torch.testing.assert_close(found[:2], torch.zeros(2, 1, 8, 8))
    torch.testing.assert_close(found[2], torch.ones(1, 8, 8))


def test_histograms_tell_direction_and_cell() -> None:
    flow = torch.zeros(1, 2, 60, 60)
    flow[0, 1, :10, :10] = 2.0  # the first cell goes down
    found = histograms(flow)[0]
    assert found.shape == (36, 9)
    assert found[0, 2] == 2  # a quarter turn from right
    assert found[0, :8].sum() == 2
    assert found[7:, :].abs().sum() == 0


def test_patterns_are_shares_and_tell_texture_from_none() -> None:
    dice = torch.Generator().manual_seed(0)
    flat, noise = torch.full((1, 3, 16, 16), 0.5), torch.rand(1, 3, 16, 16, generator=dice)
    found = LBPTOP().features(torch.cat([flat, noise]), torch.cat([flat, noise]), ["a", "b"])
    assert found.shape == (2, 16, 30)
    torch.testing.assert_close(found.view(2, 16, 3, 10).sum(-1), torch.ones(2, 16, 3))
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize(
    ("head", "parameters"), [(STSTNetHead, 1_651), (OFFApexNetHead, 2_664_475), (ResNetHead, None)]
)
def test_networks_have_the_size_that_is_stated_and_train_in_turns(head: Any, parameters: int | None) -> None:
    made = build_head(head, 3, 784, 3)
    if parameters is not None:
        assert sum(parameter.numel() for parameter in made.parameters()) == parameters
    images = token_set(clips=(2, 2, 3), views=1, L=3, D=784)
    assert not can_map(head, images, HeadTraining())


def test_ststnet_is_three_streams_that_are_joined() -> None:
    head, images = STSTNetHead(3, 784, 3), torch.rand(2, 3, 784) - 0.5
    weights, biases = head.streams.weight.split(STREAMS), head.streams.bias.split(STREAMS)
    streams = []
    for weight, bias in zip(weights, biases, strict=True):
        convolved = functional.conv2d(images.view(2, 3, 28, 28), weight, bias, padding=1)
        streams.append(functional.max_pool2d(convolved.relu(), 3, 3, 1))
    joined = functional.avg_pool2d(torch.cat(streams, 1), 2)
    torch.testing.assert_close(head(images).logits, head.classes(joined.flatten(1)))


@pytest.mark.parametrize("head", [LinearSVM, RidgeHead, MajorityHead, PriorHead])
def test_fitted_heads_go_the_way_of_all_heads(head: Any, tmp_path: Path) -> None:
    made = Run(token_set(), tmp_path, head, where=CPU, keep_heads=True)
    callback.train([made], CPU)
    summary, rows = made.summary(), read_predictions(tmp_path)
    assert summary["scores"]["last"] == summary["scores"]["oracle"]
    assert (rows.probabilities.argmax(1) == rows.chosen["last"]).all()
    assert len(list((tmp_path / "heads").iterdir())) == 6
    learned = head in (LinearSVM, RidgeHead)
    assert (summary["scores"]["last"]["full"]["uf1"] > 0.8) == learned


def test_a_fitted_head_never_sees_the_held_out_subject(tmp_path: Path) -> None:
    base = token_set()
    own = torch.tensor([subject == base.subjects[0] for subject in base.subjects])
    other = study(base.tokens, torch.where(own, (base.labels + 1) % 3, base.labels), base.subjects)
    guesses = []
    for number, each in enumerate((base, other)):
        made = Run(each, tmp_path / str(number), LinearSVM, where=CPU)
        callback.train([made], CPU)
        guesses.append(read_predictions(tmp_path / str(number)).chosen["last"])
    assert (guesses[0] == guesses[1])[own.numpy()].all()


def test_the_ridge_head_is_the_control() -> None:
    some = token_set(noise=2.0)
    flat = some.tokens[:, 0].flatten(1)
    held_out = some.subjects[0]
    train = torch.tensor([subject != held_out for subject in some.subjects])
    head = RidgeHead(4, 6, 3)
    head.fit(some.tokens[train, 0], some.labels[train], [s for s in some.subjects if s != held_out], 0)
    expected = linear_control(flat, some.labels, some.subjects, 3)[~train]
    assert torch.equal(head(some.tokens[~train, 0]).logits.argmax(1), expected)


def test_a_class_that_a_fold_lacks_is_never_answered() -> None:
    head = LinearSVM(1, 2, 3)
    x = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[0.1, 0.9]]])
    head.fit(x, torch.tensor([0, 2, 0]), ["a", "b", "c"], 0)
    assert head(x).logits.argmax(1).tolist() == [0, 2, 0]
    assert head(100 * torch.randn(50, 1, 2)).logits.argmax(1).ne(1).all()


@pytest.mark.parametrize(
    "method", [STSTNet(), OFFApexNet(), FlowResNet(), FlowSVM(), DifferenceCNN(), Pixels(), Majority()]
)
def test_what_is_read_fits_the_head(method: Any) -> None:
    onset, apex = blob(0, 0, method.image_size), blob(2, 1, method.image_size)
    read = method.features(onset, apex, ["db/s/c"])
    assert read.isfinite().all()
    head = build_head(method.head, *read.shape[1:], 3)
    if not isinstance(head, FittedHead):
        assert head(read).logits.shape == (1, 3)


# Ready-made flow images


def test_flow_images_are_matched_as_they_travel(tmp_path: Path) -> None:
    for name in ("sub01_EP02_01f .png", "006_006_1_2.png", "s03_s03_ne_01.png"):
        Image.fromarray(np.full((28, 28, 3), (255, 0, 51), np.uint8)).save(tmp_path / name)
    clips = ["casme2/sub01/EP02_01f", "samm/006/006_1_2", "smic/s3/s3_ne_01"]
    method = STSTNet(flow_dir=tmp_path)
    method.prepare(clips)
    read = method.features(torch.zeros(3, 3, 8, 8), torch.zeros(3, 3, 8, 8), clips)
    torch.testing.assert_close(read[2, :, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert method.fingerprint() != STSTNet().fingerprint()


def test_missing_flow_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        match_files(["a/b/c"], tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"2 of 2 clips have no image .*samm/006/006_1_2"):
        match_files(["samm/006/006_1_2", "samm/007/x"], tmp_path)


def test_a_list_names_the_images_as_public_lists_do(tmp_path: Path) -> None:
    images, listed = tmp_path / "images", tmp_path / "list.csv"
    images.mkdir()
    rows = [("casme2", "sub01", "EP02_01f"), ("samm", "006", "006_1_2"), ("smic", "s03", "s3_ne_01")]
    for _, subject, clip in rows:
        Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(images / f"{subject}_{clip} .png")
    text = "".join(f"{number},{db},{subject},{clip},1,9\n" for number, (db, subject, clip) in enumerate(rows))
    listed.write_text("\ufeff,dataset,sub,filename_o,onset,apex\n" + text, encoding="utf-8")
    clips = ["casme2/sub01/EP02_01f", "samm/006/006_1_2", "smic/s3/s3_ne_01"]
    method = FlowSVM(flow_dir=images, flow_list=listed)
    method.prepare(clips)
    assert method.features(torch.zeros(3, 3, 8, 8), torch.zeros(3, 3, 8, 8), clips).shape == (3, 36, 9)
    with pytest.raises(UserError, match=r"1 of 3 clips are not in it: samm/007/007_1 \(it has 6 1_2"):
        method.prepare([clips[0], "samm/007/007_1", clips[2]])
    (images / "006_006_1_2 .png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 clips have no image .*samm/006/006_1_2"):
        method.prepare(clips)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n", "no column subject or sub"), ("sub,b\n", "no column clip or filename_o"),
     ("sub,clip\n", "lists no clip"), (None, "no such file")],
)  # fmt: skip
def test_what_is_no_list_is_said_in_a_line(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "list.csv")
    with pytest.raises(UserError, match="without a folder"):
        STSTNet(flow_list=tmp_path / "list.csv")


@pytest.mark.parametrize("library", ["sklearn", "skimage"])
def test_an_absent_library_is_said_in_a_line(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith(library):
            raise ImportError(name)
        return real(name, *rest, **more)

    def use() -> None:
        if library == "sklearn":
            LinearSVM(1, 1, 2).fit(torch.randn(4, 1, 1), torch.tensor([0, 1, 0, 1]), ["a"] * 4, 0)
        else:
            LBPTOP().features(blob(0, 0), blob(1, 0), ["a"])

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'mefar\[baselines\]'"):
        use()


def test_tvl1_without_contrib_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("cv2.optflow", raising=False)
    with pytest.raises(UserError, match="contrib"):
        flow_between(blob(0, 0), blob(1, 0), "tvl1")


def test_partials_of_fitted_heads_are_heads(tmp_path: Path) -> None:
    made = Run(token_set(), tmp_path, partial(LinearSVM, cost=0.1), where=CPU)
    assert made.configuration["head"]["init_args"] == {"cost": 0.1}


def test_the_continuous_action_says_what_tokens_say_but_for_the_rounding() -> None:
    for strength in (False, True):
        network = WarpNetwork(48, 16, 1, 8, code_dim=4, strength=strength).eval()
        with torch.no_grad():
            onset, apex = blob(0, 0, 48), blob(2, 1, 48)
            read, tokens = network.continuous(onset, apex), network.tokenize(onset, apex).features
        assert read.shape == tokens.shape
        assert torch.equal(read[..., network.dim :], tokens[..., network.dim :])  # strength, where it has one
        assert not torch.allclose(read, tokens)
