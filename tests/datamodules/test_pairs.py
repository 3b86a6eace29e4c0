from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from readers import casme2
from replicas import Row, write_casme2

from datamodules import crops as pairs
from datamodules.clips import Clip
from datamodules.crops import (
    PairSettings,
    PairStore,
    clip_fingerprint,
    fingerprint,
    read_image,
    render,
)
from datamodules.faces.apex import ApexRule
from datamodules.protocols import load
from datamodules.views import View, draw_view
from mefar import files
from mefar.errors import UserError

UInt8 = NDArray[np.uint8]
SMALL = PairSettings(image_size=32, faces="precropped", stabilise=False)


def texture(seed: int = 0, size: int = 96) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.uniform(0, 255, (size, size, 3)).astype(np.float32), (0, 0), 2.0)
    return np.asarray(128 + 40 * (picture - picture.mean()) / picture.std(), np.float32)


def film(root: Path, motions: dict[int, tuple[float, float]], seed: int = 0, suffix: str = ".png") -> Clip:
    """A clip on disk whose frames are one texture shifted by (x, y) pixels."""
    folder = root / "sub01" / "EP02_01"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (x, y) in motions.items():
        matrix = np.array([[1.0, 0.0, x], [0.0, 1.0, y]])
        frame = cv2.warpAffine(texture(seed), matrix, (96, 96), borderMode=cv2.BORDER_REFLECT)
        cv2.imwrite(str(folder / f"img{number}{suffix}"), np.rint(frame.clip(0, 255)).astype(np.uint8))
    frames = {number: folder / f"img{number}{suffix}" for number in motions}
    numbers = list(motions)
    return Clip(
        "casme2", "sub01", "EP02_01", "disgust", numbers[0], numbers[1], numbers[-1], 200.0, (), frames, 0
    )


def made(clip: Clip, settings: PairSettings) -> pairs.Pair:
    pair = render(clip, settings, pairs.FaceAligner(settings.image_size, settings.faces))
    assert pair is not None
    return pair


# --- images


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_images_are_rgb_and_gray_becomes_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    red = np.zeros((9, 7, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes blue, green, red
    cv2.imwrite(str(tmp_path / f"red{suffix}"), red)
    read = read_image(tmp_path / f"red{suffix}")
    assert read.shape == (9, 7, 3)
    assert read[..., 0].mean() > 190
    assert read[..., 2].mean() < 10
    cv2.imwrite(str(tmp_path / f"gray{suffix}"), np.arange(63, dtype=np.uint8).reshape(9, 7))
    gray = read_image(tmp_path / f"gray{suffix}")
    assert gray.shape == (9, 7, 3)
    assert (gray == gray[..., :1]).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.97])
def test_a_cut_off_image_is_an_error_with_its_name(tmp_path: Path, suffix: str, kept: float) -> None:
    file = tmp_path / f"img46{suffix}"
    data = cv2.imencode(suffix, texture(1).astype(np.uint8))[1].tobytes()
    file.write_bytes(data)
    read_image(file)
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=f"img46{suffix}.*copy it again") as caught:
        read_image(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_image_or_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "img1.jpg").write_bytes(b"no image at all")
    with pytest.raises(UserError, match=r"img1.jpg: not a readable image"):
        read_image(tmp_path / "img1.jpg")
    with pytest.raises(UserError, match=r"img2.jpg: cannot be read"):
        read_image(tmp_path / "img2.jpg")


@pytest.mark.parametrize("place", [0.4, 0.7])
def test_a_jpeg_damaged_in_the_middle_is_an_error(tmp_path: Path, place: float) -> None:
    """OpenCV would give a picture that is gray from there on."""
    data = cv2.imencode(".jpg", texture(2).astype(np.uint8))[1].tobytes()
    file = tmp_path / "img7.jpg"
    start = int(place * len(data))
    file.write_bytes(data[:start] + b"\xff\xfe" * 8 + data[start + 16 :])
    with pytest.raises(UserError, match=r"img7.jpg: the image is damaged \(.*\); copy it again"):
        read_image(file)


def test_twelve_bits_in_sixteen_are_seen(tmp_path: Path) -> None:
    gray = np.rint(texture(3)[..., 0].clip(0, 255)).astype(np.uint16)
    for name, shift in (("twelve", 4), ("sixteen", 8)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), gray << shift)
        assert np.array_equal(read_image(tmp_path / f"{name}.png")[..., 0], gray)
    cv2.imwrite(str(tmp_path / "float.tiff"), np.full((8, 8, 3), 0.5, np.float32))
    with pytest.raises(UserError, match=r"float.tiff: holds float32 values"):
        read_image(tmp_path / "float.tiff")


def test_an_image_of_too_many_pixels_is_an_error(tmp_path: Path) -> None:
    """The header alone: OpenCV refuses more than 2^30 pixels with an error of its own."""
    data = bytearray(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    data[16:24] = (1 << 16).to_bytes(4, "big") + (1 << 15).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "img1.png").write_bytes(data)
    with pytest.raises(UserError, match=r"img1.png: has too many pixels"):
        read_image(tmp_path / "img1.png")


# --- pictures of a clip


@pytest.mark.parametrize("apex", ["annotated", "spotted"])
def test_a_frame_of_another_size_is_an_error(tmp_path: Path, apex: ApexRule) -> None:
    clip = film(tmp_path, {10: (0, 0), 12: (3, 0), 14: (0, 0)})
    cv2.imwrite(str(clip.frames[12]), np.full((80, 96, 3), 90, np.uint8))
    with pytest.raises(UserError, match=r"img12.png: 96x80 pixels, but the onset frame has 96x96"):
        made(clip, replace(SMALL, apex=apex))


def test_view_zero_is_the_frame_itself(tmp_path: Path) -> None:
    clip = film(tmp_path, {10: (0, 0), 12: (3, 0), 14: (0, 0)})
    pair = made(clip, replace(SMALL, image_size=96))
    assert pair.onset.shape == pair.apex.shape == (1, 96, 96, 3)
    assert np.array_equal(pair.onset[0], read_image(clip.frames[10]))
    assert np.array_equal(pair.apex[0], read_image(clip.frames[12]))
    assert (pair.chosen.number, pair.chosen.rule) == (12, "annotated")


def test_both_frames_of_a_view_get_the_same_change(tmp_path: Path) -> None:
    clip = film(tmp_path, dict.fromkeys((10, 12, 14), (0.0, 0.0)))
    pair = made(clip, replace(SMALL, views=6))
    assert np.array_equal(pair.onset, pair.apex)
    assert all(np.abs(pair.onset[v].astype(int) - pair.onset[0]).mean() > 3 for v in range(1, 6))
    again = made(clip, replace(SMALL, views=3))
    assert np.array_equal(again.onset, pair.onset[:3])
    assert not np.array_equal(made(clip, replace(SMALL, views=3, seed=1)).onset[1:], pair.onset[1:3])


def test_a_mirrored_view_is_the_mirror_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "draw_view", lambda seed, key, v: View(flip=v > 0))
    pair = made(film(tmp_path, {10: (0, 0), 12: (1, 2), 14: (0, 0)}), replace(SMALL, views=2))
    difference = np.abs(pair.apex[1].astype(int) - pair.apex[0][:, ::-1])
    assert difference.max() <= 1


def test_views_show_frames_around_the_apex_of_the_same_clip(tmp_path: Path) -> None:
    # The gray level is the frame's number: 10 to 19, apex 12; the onset must not be shown as apex.
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(8, 20):
        cv2.imwrite(str(folder / f"img{number}.png"), np.full((40, 40), 10 * number, np.uint8))
    frames = {number: folder / f"img{number}.png" for number in range(8, 20)}
    clip = Clip("casme2", "sub01", "a", "disgust", 10, 12, 15, 200.0, (), frames)
    settings = replace(SMALL, views=40)
    pair = made(clip, settings)
    numbers = set()
    for v in range(40):
        view = draw_view(0, clip.key, v)
        level = ((float(np.median(pair.apex[v])) - 128) / view.contrast + 128) / view.brightness
        numbers.add(round(10 + (level - 100) / view.amplitude / 10))
    assert numbers == {11, 12, 13, 14}


def test_stabilising_takes_out_the_heads_own_motion(tmp_path: Path) -> None:
    clip = film(tmp_path, {10: (0, 0), 12: (1.3, -0.8), 14: (0, 0)})
    settings = replace(SMALL, image_size=96)

    def left(pair: pairs.Pair) -> float:
        return float(np.abs(pair.apex[0].astype(float) - pair.onset[0])[20:76, 20:76].mean())

    moving, still = made(clip, settings), made(clip, replace(settings, stabilise=True))
    assert np.array_equal(moving.onset, still.onset)
    assert left(still) < 0.25 * left(moving)


def test_the_spotted_apex_is_where_the_picture_moves_most(tmp_path: Path) -> None:
    motions = dict.fromkeys(range(10, 40), (0.0, 0.0))
    clip = film(tmp_path, motions)
    y, x = np.mgrid[0:96, 0:96].astype(np.float32)
    for number in motions:
        bump = 2.5 * np.exp(-(((number - 28) / 6) ** 2)) * np.exp(-((x - 48) ** 2 + (y - 48) ** 2) / 200)
        frame = cv2.remap(texture(), x, y + bump.astype(np.float32), cv2.INTER_CUBIC)
        cv2.imwrite(str(clip.frames[number]), np.rint(frame.clip(0, 255)).astype(np.uint8))
    pair = made(replace(clip, apex=None), PairSettings(96, "precropped", "spotted"))
    assert abs(pair.chosen.number - 28) <= 2
    assert pair.chosen.rule == "spotted"


# --- the store


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Clip, ...]:
    rows = [Row(i, "EP02_01f") for i in range(1, 6)]
    return casme2(write_casme2(tmp_path / "data", rows, size=(40, 40))).clips


def stamps(store: PairStore) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in store.folder.iterdir() if file.name != ".lock"}


def test_what_is_made_is_kept_and_only_the_missing_is_made(tmp_path: Path, clips: tuple[Clip, ...]) -> None:
    store = PairStore(tmp_path / "cache", SMALL)
    told: list[tuple[int, int]] = []
    first = store.prepare(clips, progress=lambda done, total, rate: told.append((done, total)))
    assert told == [(i, 5) for i in range(1, 6)]
    before = stamps(store)
    assert len(before) == 5
    assert all(name.endswith(".npz") for name in before)
    first["casme2/sub02/EP02_01f"][0].unlink()
    first["casme2/sub04/EP02_01f"][0].write_bytes(b"PK half a file")
    gone = subprocess.Popen(["true"])
    gone.wait()
    (store.folder / f"a.npz.{files._HOST}-{gone.pid}-0a1b2c.tmp").touch()
    told.clear()
    assert (
        PairStore(tmp_path / "cache", SMALL).prepare(clips, progress=lambda d, t, r: told.append((d, t)))
        == first
    )
    assert told == [(1, 2), (2, 2)]
    after = stamps(store)
    assert not [name for name in after if name.endswith(".tmp")], "what a killed run left is swept away"
    same = {name for name in before if "sub02" not in name and "sub04" not in name}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    onset, apex = store.load(first["casme2/sub04/EP02_01f"][0])
    assert onset.shape == apex.shape == (1, 32, 32, 3)


def test_ranks_that_share_a_disk_make_a_pair_once(tmp_path: Path, clips: tuple[Clip, ...]) -> None:
    """Two threads lock each other out as two processes do."""
    begun = threading.Event()

    def slowly(*_: object) -> None:
        begun.set()
        time.sleep(0.05)

    first = threading.Thread(target=lambda: PairStore(tmp_path / "cache", SMALL).prepare(clips, 1, slowly))
    first.start()
    assert begun.wait(200)
    told: list[int] = []
    PairStore(tmp_path / "cache", SMALL).prepare(clips, 1, lambda done, *_: told.append(done))
    first.join()
    assert not told, "all were made while this one waited"


def test_other_settings_or_frames_never_meet_an_old_file(tmp_path: Path, clips: tuple[Clip, ...]) -> None:
    clip = clips[0]
    others = [
        SMALL,
        replace(SMALL, image_size=48),
        replace(SMALL, apex="middle"),
        replace(SMALL, views=2),
        replace(SMALL, seed=1),
        replace(SMALL, stabilise=True),
        replace(SMALL, faces="align"),
        replace(SMALL, stretch=True),
    ]
    paths = {PairStore(tmp_path, settings).path(clip) for settings in others}
    paths.add(PairStore(tmp_path, SMALL).path(replace(clip, apex=14)))
    os.utime(clip.frames[12], ns=(1, 1))
    paths.add(PairStore(tmp_path, SMALL).path(clip))
    assert len(paths) == len(others) + 2


def test_an_unreadable_frame_ends_with_its_name_and_leaves_nothing_half_written(
    tmp_path: Path, clips: tuple[Clip, ...]
) -> None:
    broken = clips[2].frames[12]
    broken.write_bytes(broken.read_bytes()[:-40])
    store = PairStore(tmp_path / "cache", SMALL)
    with pytest.raises(UserError, match=r"sub03.*img12.jpg: the image is cut off"):
        store.prepare(clips)
    assert not [name for name in stamps(store) if "sub03" in name or not name.endswith(".npz")]


def test_a_kill_before_the_file_is_whole_leaves_no_file(
    tmp_path: Path, clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    store = PairStore(tmp_path / "cache", SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("mefar.files.os.replace", kill)
        with pytest.raises(KeyboardInterrupt):
            store.prepare(clips[:1])
    assert not list(store.folder.glob("*.npz"))
    assert store.prepare(clips[:1])["casme2/sub01/EP02_01f"][0].exists()


def test_frames_without_a_face_give_none_once(tmp_path: Path, clips: tuple[Clip, ...]) -> None:
    store = PairStore(tmp_path / "cache", replace(SMALL, faces="align"))
    found = store.prepare(clips[:2])
    assert [apex for _, apex in found.values()] == [None, None]
    told: list[int] = []
    assert store.prepare(clips[:2], progress=lambda d, t, r: told.append(d)) == found
    assert told == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, clips: tuple[Clip, ...]) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(UserError, match="cache: cannot be made"):
        PairStore(tmp_path / "cache", SMALL).prepare(clips)


def test_a_flipped_byte_is_named_and_the_pair_made_anew(
    tmp_path: Path, clips: tuple[Clip, ...], caplog: pytest.LogCaptureFixture
) -> None:
    store = PairStore(tmp_path / "cache", SMALL)
    path, _ = store.prepare(clips[:1])["casme2/sub01/EP02_01f"]
    whole = [images.copy() for images in store.load(path)]
    data = bytearray(path.read_bytes())
    for place in (len(data) // 3, 2 * len(data) // 3):
        data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path.name}: damaged or gone; start again"):
        store.load(path)
    store.prepare(clips[:1])
    assert f"{path}: damaged" in caplog.text
    assert all(np.array_equal(a, b) for a, b in zip(whole, store.load(path), strict=True))


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(
    tmp_path: Path, clips: tuple[Clip, ...]
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "cache" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match=r"\.lock: a lock file that is a link; remove it"):
        PairStore(tmp_path / "cache", SMALL).prepare(clips[:1])
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# --- fingerprints


def test_the_fingerprint_is_that_of_the_data(tmp_path: Path) -> None:
    root = write_casme2(tmp_path / "casme2", [Row(1, "EP02_01"), Row(2, "EP02_01", emotion="happiness")])
    study = load("casme2", root)
    one = fingerprint(study)
    assert len(one) == 64
    assert fingerprint(load("casme2", root)) == one
    assert fingerprint(load("casme2", root, classes=3)) != one
    assert fingerprint(replace(study, clips=study.clips[:1])) != one
    assert fingerprint(study, SMALL) != one
    relabelled = (replace(study.clips[0], label=4), study.clips[1])
    assert fingerprint(replace(study, clips=relabelled)) != one
    image = study.clips[0].frames[14]
    image.write_bytes(image.read_bytes() + b" ")
    assert fingerprint(study) != one


def test_frames_outside_the_clip_do_not_matter(tmp_path: Path) -> None:
    root = write_casme2(tmp_path, [Row(1, "EP02_01", frames=(8, 10, 12, 14, 20))])
    before = clip_fingerprint(casme2(root).clips[0])
    shutil.copy(
        root / "CASME2_RAW_selected/sub01/EP02_01/img8.jpg",
        root / "CASME2_RAW_selected/sub01/EP02_01/img9.jpg",
    )
    assert clip_fingerprint(casme2(root).clips[0]) == before
