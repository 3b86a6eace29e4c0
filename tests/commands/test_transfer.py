"""`mefar transfer` on rendered faces, and on what is none."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from filming import film
from PIL import Image
from rendering import face

from datamodules.demo.head import actions_of
from datamodules.demo.render import Pose
from mefar.__main__ import main
from mefar.generation.dictionary import Dictionary

SMILE = {name: 0.8 * weight for unit in (6, 12) for name, weight in actions_of(unit).items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    drawn = {
        "onset": face(3, pixels=200),
        "smile": face(3, SMILE, pixels=200),
        "other": face(21, pixels=300, share=0.25),
        "third": face(22, pixels=240, share=0.3)[..., :1].repeat(3, axis=2),
        "small": face(1, pixels=200, share=0.16),
        "side": face(1, pose=Pose(yaw=45), pixels=200),
        "nobody": np.full((120, 160, 3), 90, np.uint8),
        "cartoon": cartoon(),
    }
    drawn["two"] = np.concatenate([face(1, pixels=200, share=0.3), face(2, pixels=200)], axis=1)
    for name, picture in drawn.items():
        cv2.imwrite(str(folder / f"{name}.png"), picture[..., ::-1])
    return folder


def cartoon() -> np.ndarray:
    """Two dots and a line in a circle."""
    picture = np.full((200, 200, 3), 255, np.uint8)
    cv2.circle(picture, (100, 100), 80, (255, 220, 0), -1)
    for x in (70, 130):
        cv2.circle(picture, (x, 80), 10, (0, 0, 0), -1)
    cv2.ellipse(picture, (100, 120), (40, 25), 0, 20, 160, (0, 0, 0), 4)
    return picture


def run(folder: Path, *words: object) -> int:
    """Words that name a picture of the fixture become its path."""
    known = {path.stem: str(path) for path in folder.glob("*.png")}
    return main(["transfer", *(known.get(str(word), str(word)) for word in words)])


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_an_action_moves_other_faces_and_its_tokens_do_the_same(pictures: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    words = ["--target", "other", "third", "--strength", 2]
    assert run(pictures, "--source", "onset", "smile", *words, "--grid", "--out", out) == 0
    for name in ("other", "third"):
        before, after = read(pictures / f"{name}.png"), read(out / f"{name}.smile.png")
        changed = (before != after).any(2)
        assert after.shape == before.shape and 0.03 < changed.mean() < 0.9
        assert not changed[[0, -1]].any() and not changed[:, [0, -1]].any()  # the face is in the middle
        assert np.abs(before.astype(int) - after).max() > 30
    assert (after == after[..., :1]).all()  # the third is gray
    grid = Image.open(out / "grid.png")
    assert grid.width > 1.6 * grid.height  # four columns, two rows
    assert run(pictures, "--source", out / "smile.json", *words, "--out", again) == 0
    assert np.array_equal(read(again / "other.smile.png"), read(out / "other.smile.png"))
    assert "indices" in json.loads((again / "smile.json").read_text())


def test_strength_0_changes_no_byte_and_a_clip_goes_there_and_back(
    pictures: Path, tmp_path: Path, capsys
) -> None:
    words = ["--source", "onset", "smile", "--target", "other"]
    assert run(pictures, *words, "--strength", 0, "--out", tmp_path / "nothing") == 0
    before = read(pictures / "other.png")
    assert np.array_equal(read(tmp_path / "nothing" / "other.smile.png"), before)
    out = tmp_path / "clip"
    assert run(pictures, *words, "--strength", 2, "--frames", 5, "--out", out) == 0
    with av.open(str(out / "other.smile.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == stream.codec_context.color_primaries == 6  # BT.601, told
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(stream)]
    assert len(frames) == 5 and frames[0].shape == before.shape
    moved = [np.abs(frame - frames[0]).mean() for frame in frames]
    assert moved[2] > 2 * moved[4] and moved[2] > moved[1] > moved[4]
    capsys.readouterr()
    assert run(pictures, *words, "--strength", 1, "--frames", 5, "--out", out) == 2
    assert "made otherwise" in capsys.readouterr().err
    assert run(pictures, *words, "--frames", 5, "--gif", "--out", tmp_path / "gif") == 0
    assert Image.open(tmp_path / "gif" / "other.smile.gif").n_frames == 5


PAIR = ("--source", "onset", "smile", "--target", "other")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--source", "onset", "smile", "--target", "nobody"), "nobody.png: no face"),
        (("--source", "onset", "smile", "--target", "cartoon"), "cartoon.png: no face"),
        (("--source", "onset", "smile", "--target", "side"), "side.png: the face is turned"),
        (("--source", "onset", "smile", "--target", "small"), "small.png: the face is 4"),
        (("--source", "onset", "smile", "--target", "two", "--face", 3), "face 3 is asked for, it shows 2"),
        (("--source", "onset", "--target", "other"), "one picture shows no action"),
        (("--source", "nobody", "smile", "--target", "other"), "nobody.png: no face"),
        ((*PAIR, "--strength", "nan"), '"strength": Expected a float. Got value: nan'),
        ((*PAIR, "--strength", ".nan"), "--strength is nan"),
        ((*PAIR, "--strength", "-1"), "--strength is -1"),
        ((*PAIR, "--top", 3), "--top takes a number from 1 on, and --run"),
        ((*PAIR, "--frames", 2), "--frames is 2"),
        ((*PAIR, "--units", "twelve"), "twelve"),
        (("--target", "other"), "give --source, or --dataset and --data, or"),
    ],
)
def test_what_cannot_be_is_one_line(pictures: Path, tmp_path: Path, capsys, words: tuple, said: str) -> None:
    assert run(pictures, *words, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_tokenizer_are_refused(pictures: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "theirs.json"
    content = {
        "format": "mefar tokens",
        "version": 1,
        "tokenizer": "ab" * 32,
        "indices": [1] * 16,
        "strength": 1.0,
    }
    path.write_text(json.dumps(content))
    assert run(pictures, "--source", path, "--target", "other", "--out", tmp_path / "out") == 2
    assert "theirs.json: made by another tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_of_two_faces_the_larger_is_taken_and_said(pictures: Path, tmp_path: Path, caplog) -> None:
    words = ["--source", "onset", "smile", "--target", "two", "--strength", 2]
    before = read(pictures / "two.png")
    for number, (left, right) in {"1": (False, True), "2": (True, False)}.items():
        out = tmp_path / number
        assert run(pictures, *words, "--face", number, "--out", out) == 0
        changed = (read(out / "two.smile.png") != before).any(2)
        assert (changed[:, :180].any(), changed[:, 220:].any()) == (left, right)
    assert "2 faces; the largest is taken" in caplog.text


def test_clips_of_a_database_act_by_their_names(pictures: Path, tmp_path: Path, capsys) -> None:
    for clip in ("s1_ne_01", "s1_ne_02"):
        folder = tmp_path / "smic" / "HS" / "s1" / "micro" / "negative" / clip
        folder.mkdir(parents=True)
        for number, name in enumerate(("onset", "smile", "smile")):
            cv2.imwrite(str(folder / f"image{number:06d}.bmp"), cv2.imread(str(pictures / f"{name}.png")))
    words = ["--dataset", "smic", "--data", tmp_path / "smic", "--target", "other", "--out"]
    assert run(pictures, *words, tmp_path / "out", "--clips", "s1/s1_ne_02", "--strength", 2) == 0
    made = read(tmp_path / "out" / "other.smic-s1-s1_ne_02.png")
    assert (made != read(pictures / "other.png")).any()
    assert not list((tmp_path / "out").glob("*ne_01*"))
    capsys.readouterr()
    assert run(pictures, *words, tmp_path / "nine", "--clips", "megc") == 2
    assert "--clips casme2/sub01/EP19_06f: no such clip in" in capsys.readouterr().err


def test_a_video_acts_from_its_first_frame_to_the_most_moved_one(
    pictures: Path, tmp_path: Path, capsys
) -> None:
    rest, act = (read(pictures / f"{name}.png") for name in ("onset", "smile"))
    path = film(tmp_path / "film.mp4", [rest, rest, act, act, rest, rest], options={"crf": "10"})
    words = ["--source", path, "--target", "other", "--strength", 2, "--out"]
    assert run(pictures, *words, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "onset is frame 0, apex frame 2," in told or "onset is frame 0, apex frame 3," in told
    moved = np.abs(read(tmp_path / "out" / "other.film.png").astype(int) - read(pictures / "other.png"))
    assert moved.max() > 20
    assert run(pictures, *words, tmp_path / "still", "--onset", 0, "--apex", 0.04) == 0
    still = np.abs(read(tmp_path / "still" / "other.film.png").astype(int) - read(pictures / "other.png"))
    assert still.max() < 0.3 * moved.max()
    assert run(pictures, *words, tmp_path / "late", "--onset", 0.2, "--apex", 0.1) == 2
    assert "has 0.24 s; give an onset before the apex in it" in capsys.readouterr().err


def test_tokens_are_kept_by_what_they_say_of_an_action_unit(
    pictures: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    effect = torch.zeros(2, 16, 32)
    effect[0, 3:5], effect[1, 9] = 0.3, 0.3  # positions 3 and 4 say AU12, position 9 AU4, whatever their code
    words = Dictionary((12, 4), effect, torch.full_like(effect, 0.1), torch.ones(2), torch.ones(2))
    monkeypatch.setattr("mefar.commands.explore.read_out", lambda *_: words)
    given = ["--source", "onset", "smile", "--target", "other", "--out"]
    assert run(pictures, *given, tmp_path / "one", "--units", 12) == 0
    assert "smile: tokens kept at positions 3, 4" in capsys.readouterr().out
    assert run(pictures, *given, tmp_path / "two", "--units", 12, 4) == 0
    assert "smile: tokens kept at positions 3, 4, 9" in capsys.readouterr().out
    kept = json.loads((tmp_path / "one" / "smile.json").read_text())["indices"]
    assert len({code for place, code in enumerate(kept) if place not in (3, 4)}) == 1  # no action
    assert run(pictures, *given, tmp_path / "three", "--units", 26) == 2
    assert "--units 26: is not read; choose from 12, 4" in capsys.readouterr().err
