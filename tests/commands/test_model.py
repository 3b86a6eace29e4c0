"""mefar.load: pictures of any kind in, tokens out, and shown on other faces."""

from __future__ import annotations

import doctest
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from rendering import face as rendered

import mefar
from datamodules.demo.render import Pose
from mefar.commands.model import Model
from mefar.errors import UserError
from mefar.readers import weights_of

ONSET, APEX, OTHER = (mefar.example(name) for name in ("onset", "apex", "other"))


@pytest.fixture(scope="module")
def model() -> Model:
    return mefar.load("demo")


@pytest.mark.parametrize("name", ["mefar.commands.model", "mefar.commands.pictures"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    found = doctest.testmod(import_module(name))
    assert found.attempted and not found.failed


def test_no_lightning_and_a_quick_import() -> None:
    code = (
        "import sys, time; began = time.process_time(); import mefar; spent = time.process_time() - began\n"
        "model = mefar.load('demo'); tokens = model.tokenize(mefar.example('onset'), mefar.example('apex'))\n"
        "assert len(tokens) == 1 and 'torch' in sys.modules\n"
        "print(spent, *[name for name in sys.modules if 'lightning.' in name and 'utilities' not in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spent, *lightning = done.stdout.split()
    assert float(spent) < 0.3 and not lightning, done.stdout


def kinds() -> dict[str, Any]:
    image = Image.open(ONSET)
    array = np.asarray(image.convert("RGB"))
    return {
        "text": str(ONSET),
        "path": ONSET,
        "pil": image,
        "numpy": array,
        "floats": array / 255,
        "channels first": array.transpose(2, 0, 1),
        "alpha": np.dstack([array, array[..., :1]]),
        "torch": torch.from_numpy(array).permute(2, 0, 1).float() / 255,
        "list": [array],
        "batch": array[None],
        "found": mefar.align(ONSET),
    }


def test_every_kind_of_picture_gives_the_same_tokens(model: Model) -> None:
    given = kinds()
    tokens = [model.tokenize(each, APEX) for each in given.values()]
    for name, each in zip(given, tokens, strict=True):
        assert torch.equal(each.indices, tokens[0].indices), name
        assert torch.equal(each.strength, tokens[0].strength), name
    assert float(tokens[0].strength) > 0.1


def test_gray_pictures_read_alike(model: Model) -> None:
    gray = [np.asarray(Image.open(path).convert("L")) for path in (ONSET, APEX)]
    one, other = model.tokenize(*gray), model.tokenize(ONSET, APEX)
    assert (one.indices == other.indices).float().mean() > 0.7


@pytest.mark.parametrize(("name", "size"), [("demo", 64), ("demo128", 128)])
def test_models_that_ship_have_readers_of_their_own_tokens(name: str, size: int) -> None:
    made = mefar.load(name)
    assert made.image_size == size and made.readers is not None
    assert made.readers.about.tokenizer == weights_of(made.tokenizer)


def test_many_at_once_are_as_one_by_one(model: Model) -> None:
    pairs = [(ONSET, APEX), (APEX, ONSET), (OTHER, OTHER)]
    together = model.tokenize(*(list(each) for each in zip(*pairs, strict=True)))
    alone = [model.tokenize(*each) for each in pairs]
    assert torch.equal(together.indices, torch.cat([each.indices for each in alone]))
    assert float(together.strength[2]) == 0  # the same picture twice is no action
    assert len(model.tokenize(ONSET, [APEX, ONSET])) == 2


def test_crops_are_taken_to_the_digit(model: Model) -> None:
    onset, apex = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
    ours = model.tokenize(onset, apex, faces="precropped")
    theirs = model.tokenizer.tokenize(onset, apex)
    assert torch.equal(ours.indices, theirs.indices) and torch.equal(ours.strength, theirs.strength)


def test_strength_is_how_far_a_face_moves(model: Model) -> None:
    tokens = model.tokenize(ONSET, APEX)
    still = mefar.align(OTHER).crop(64).astype(int)
    moved = [model.reconstruct(OTHER, tokens, strength)[0].astype(int) for strength in (0.0, 1.0, 2.0)]
    far = [np.abs(each - still).mean() for each in moved]
    assert far[0] < 0.6 < far[1] < far[2]  # levels of 255; at 0 a resampled copy
    assert model.reconstruct([ONSET, OTHER], tokens).shape == (2, 64, 64, 3)


def test_transfer_moves_the_face_in_the_whole_picture(model: Model) -> None:
    tokens, still = model.tokenize(ONSET, APEX), np.asarray(Image.open(OTHER).convert("RGB")).astype(int)
    moved = [model.transfer(OTHER, tokens, strength)[0].astype(int) for strength in (0.0, 1.0, 2.0)]
    assert [each.shape for each in moved] == [(224, 224, 3)] * 3
    far = [np.abs(each - still).mean() for each in moved]
    assert far[0] < 0.1 < far[1] < far[2]
    assert np.array_equal(moved[2][:5], still[:5])  # far from the face nothing is touched


def test_tokens_by_hand(model: Model) -> None:
    read = model.tokenize(ONSET, APEX)
    written = model.tokens(read.indices[0].tolist(), float(read.strength))
    assert torch.allclose(written.embeddings, read.embeddings, atol=1e-5)
    assert np.array_equal(model.reconstruct(OTHER, written), model.reconstruct(OTHER, read))


def test_a_device_is_taken_or_refused() -> None:
    assert mefar.load("demo", device="cpu").device == torch.device("cpu")
    with pytest.raises(UserError, match="device cuda:9"):
        mefar.load("demo", device="cuda:9")


def crowd() -> np.ndarray:
    large, small = rendered(2, pixels=200), rendered(3, pixels=120)
    filled = np.zeros((200, 120, 3), np.uint8)
    filled[40:160] = small
    return np.concatenate([filled, large], 1)


def test_of_two_faces_the_larger_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    found = mefar.align(crowd())
    assert found.faces == 2 and "2 faces" in caplog.text
    assert found.points is not None and found.points[:, 0].min() > 120
    assert mefar.align(crowd(), face=2).points[:, 0].max() < 120
    with pytest.raises(UserError, match=r"face 3 is asked for, it shows 2"):
        mefar.align(crowd(), face=3)


def cartoon() -> np.ndarray:
    picture = np.full((240, 240, 3), 255, np.uint8)
    cv2.circle(picture, (120, 120), 90, (255, 220, 60), -1)
    for x in (85, 155):
        cv2.circle(picture, (x, 95), 14, (0, 0, 0), 2)
        cv2.circle(picture, (x, 97), 6, (0, 0, 0), -1)
    cv2.ellipse(picture, (120, 140), (50, 30), 0, 10, 170, (0, 0, 0), 4)
    return picture


BAD = {
    "no face": (lambda: np.full((200, 200, 3), 90, np.uint8), "no face is found"),
    "noise": (lambda: np.random.default_rng(0).integers(0, 255, (160, 160, 3)).astype(np.uint8), "no face"),
    "cartoon": (lambda: cartoon(), "no face is found"),
    "small": (lambda: rendered(0, pixels=80), "4. pixels wide"),
    "profile": (lambda: rendered(0, pose=Pose(55.0, 0, 0), pixels=240), "turned to the side"),
    "far side": (lambda: rendered(0, pose=Pose(80.0, 0, 0), pixels=240), "turned to the side"),
    "levels": (lambda: np.full((100, 100), 300.0), r"holds 300 to 300"),
    "nan": (lambda: np.full((100, 100), np.nan), "holds nan"),
    "int": (lambda: np.zeros((100, 100), np.int64), "int64 values"),
    "shape": (lambda: np.zeros((100, 100, 7), np.uint8), "an array"),
    "nothing": (lambda: None, "a NoneType"),
    "no file": (lambda: "no/such/picture.png", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_one_line(name: str) -> None:
    make, match = BAD[name]
    with pytest.raises(UserError, match=match) as told:
        mefar.align(make())
    assert "\n" not in str(told.value)


def test_bad_tokens_are_one_line(model: Model, tmp_path: Path) -> None:
    tokens = model.tokenize(ONSET, APEX)
    for strength in (float("nan"), float("inf"), -1.0):
        with pytest.raises(UserError, match="strength"):
            model.reconstruct(OTHER, tokens, strength=strength)
    for codes in (range(15), [32] * 16, [0.5] * 16):
        with pytest.raises(UserError, match="tokens"):
            model.tokens(codes)
    other = model.tokens([3] * 16)
    other.embeddings.add_(1)
    with pytest.raises(UserError, match="another tokenizer"):
        model.reconstruct(OTHER, other)
    with pytest.raises(UserError, match="2 faces and 3 tokens"):
        model.reconstruct([ONSET, OTHER], model.tokens([[1] * 16] * 3))
    with pytest.raises(UserError, match="no such checkpoint"):
        mefar.load(tmp_path / "none.ckpt")
