"""Frames by number are the frames that playing shows; bad files are named."""

import multiprocessing
import os
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from filming import barcode, film, number_in, sound_only, turned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import REAL

from datamodules.voxceleb import video
from mefar.errors import UserError

COUNT = 90
FAST = {"preset": "ultrafast", "threads": "1"}
UNEVEN = sorted(random.Random(0).sample(range(6 * COUNT), COUNT))

USUAL = {**FAST, "bf": "2", "g": "30"}
CLOSED = {**FAST, "bf": "3", "g": "25", "x264-params": "b-adapt=0:open-gop=0"}
OPEN = {**FAST, "bf": "3", "g": "20", "x264-params": "b-adapt=0:open-gop=1"}
HEVC = {"g": "25", "x265-params": "log-level=none:pools=none:frame-threads=1"}
LATE, EARLY = [40 + 4 * i for i in range(COUNT)], [4 * i - 37 for i in range(COUNT)]

# name: suffix, codec, encoder's options, presentation times, container's options
CONTAINERS = {
    "closed groups": ("mp4", "libx264", {**FAST, "bf": "0", "g": "25"}, None, None),
    "B frames": ("mp4", "libx264", CLOSED, None, None),
    "open groups": ("mp4", "libx264", OPEN, None, None),
    "all intra": ("mp4", "libx264", {**FAST, "g": "1"}, None, None),
    "mov": ("mov", "libx264", USUAL, None, None),
    "matroska": ("mkv", "libx264", USUAL, None, None),
    "H.264 in AVI": ("avi", "libx264", USUAL, None, None),
    "variable rate": ("mp4", "libx264", USUAL, UNEVEN, None),
    "late start": ("mp4", "libx264", USUAL, LATE, None),
    "edit list": ("mp4", "libx264", USUAL, EARLY, None),
    "fragments": ("mp4", "libx264", USUAL, None, {"movflags": "frag_keyframe+empty_moov"}),
    "HEVC": ("mp4", "libx265", HEVC, None, None),
    "MPEG-4 AVI": ("avi", "mpeg4", {"g": "12", "bf": "2", "b": "2000k"}, None, None),
    "MJPEG AVI": ("avi", "mjpeg", {}, None, None),
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder, images = tmp_path_factory.mktemp("films"), [barcode(i) for i in range(COUNT)]
    return {
        name: film(folder / f"{name}.{suffix}", images, codec, 25, options, times, container)
        for name, (suffix, codec, options, times, container) in CONTAINERS.items()
    }


@pytest.mark.parametrize("name", CONTAINERS)
def test_random_access_gives_what_playing_shows(films, name):
    path = films[name]
    shown = [number_in(frame) for _, frame in video.play(path)]
    assert shown == list(range(COUNT))[-len(shown) :], "the barcode must survive the codec"
    assert video.info(path).frames == len(shown)
    rng = random.Random(name)
    many = [rng.randrange(len(shown)) for _ in range(120)]
    got = video.frames(path, many)
    assert got.shape == (120, 64, 96, 3)
    assert got.dtype == np.uint8
    assert [number_in(frame) for frame in got] == [shown[i] for i in many]
    for i in many[:20]:  # alone: every one a seek
        assert number_in(video.frames(path, [i], "pyav")[0]) == shown[i]


def test_an_edit_list_hides_its_frames(films):
    """37 quarter frames before zero: ten frames are in the file and not in the film."""
    assert video.info(films["edit list"]).frames == COUNT - 10
    assert number_in(video.frames(films["edit list"], [0])[0]) == 10


@pytest.mark.skipif(not video.HAS_DECORD, reason="no build of decord for this machine")
def test_decord_is_asked_only_where_it_is_right(films, monkeypatch):
    asked = []
    monkeypatch.setattr(
        video, "_decord", lambda path, indices: asked.append(path) or np.zeros((1, 64, 96, 3), np.uint8)
    )
    for path in films.values():
        video.frames(path, [3])
    assert set(asked) == {films[name] for name in ("closed groups", "B frames", "all intra")}


@pytest.mark.skipif(not video.HAS_DECORD, reason="no build of decord for this machine")
@pytest.mark.parametrize("name", ["closed groups", "B frames", "all intra"])
def test_both_decoders_agree(films, name):
    indices = [0, 88, 31, 31, 5]
    ours, theirs = (video.frames(films[name], indices, backend).astype(int) for backend in ("pyav", "decord"))
    assert np.abs(ours - theirs).mean() < 2.0


def test_moments_of_a_variable_rate(films):
    expected = (np.array(UNEVEN) - UNEVEN[0]) / 100
    np.testing.assert_allclose(video.moments(films["variable rate"]), expected, atol=1e-3)
    played = [seconds for seconds, _ in video.play(films["variable rate"])]
    np.testing.assert_allclose(played, expected, atol=1e-3)
    assert video.info(films["closed groups"]).fps == pytest.approx(25)


def test_read_all_and_play_only(films):
    images, seconds = video.read_all(films["closed groups"], max_frames=7)
    assert [number_in(image) for image in images] == list(range(7))
    np.testing.assert_allclose(seconds, np.arange(7) / 25)
    some = [number_in(image) for _, image in video.play(films["B frames"], only={50, 3, 4})]
    assert some == [3, 4, 50]


TURNS = {  # display matrix -> what a player does with the picture
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda image: image.transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", TURNS)
@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
def test_videos_of_phones_come_out_upright(films, tmp_path, matrix, backend):
    if backend == "decord" and not video.HAS_DECORD:
        pytest.skip("no build of decord for this machine")
    path = turned(tmp_path / "phone.mp4", films["B frames"], matrix)
    expected = [TURNS[matrix](image) for image in video.frames(films["B frames"], [5, 61], "pyav")]
    got = video.frames(path, [5, 61], backend)
    height, width = expected[0].shape[:2]
    assert got.shape == (2, height, width, 3)
    assert np.abs(got.astype(int) - np.stack(expected)).mean() < 2.0  # two decoders' colours
    about = video.info(path)
    assert (about.height, about.width) == (height, width)
    np.testing.assert_array_equal(video.read_all(path, 6)[0][5], expected[0])


@pytest.mark.parametrize("aspect", ["16:11", "10:11"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mpg"])
def test_pixels_that_are_not_square_are_shown_as_players_show_them(tmp_path, suffix, aspect):
    """A disk keeps its shape: as wide as high on the screen, not in the file."""
    wide, high = map(int, aspect.split(":"))
    columns, rows = np.meshgrid(np.arange(96), np.arange(64))
    disk = ((columns - 47.5) * wide / high) ** 2 + (rows - 31.5) ** 2 < 20**2
    image = np.repeat(np.where(disk, 220, 30)[..., None], 3, 2).astype(np.uint8)
    codec, options = ("mpeg1video", {"b": "2000k"}) if suffix == "mpg" else ("libx264", FAST)
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(wide, high)
        for _ in range(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode())
    about = video.info(path)
    assert about.width == pytest.approx(
        96 * wide / high, abs=4 if suffix == "mpg" else 1
    )  # from a table there
    assert about.height == 64
    for shown in (*video.frames(path, [0, 29]), *video.read_all(path, 1)[0]):
        assert shown.shape == (64, about.width, 3)
        inside = shown[..., 1] > 125
        assert np.ptp(np.flatnonzero(inside.any(0))) == pytest.approx(39, abs=3)
        assert np.ptp(np.flatnonzero(inside.any(1))) == pytest.approx(39, abs=2.5)


@pytest.mark.parametrize("suffix", ["mpg", "ts", "m2ts", "flv", "wmv", "3gp", "m4v", "gif"])
def test_what_else_people_keep_videos_in_is_read(tmp_path, suffix):
    codec = {"mpg": "mpeg2video", "wmv": "wmv2", "gif": "gif"}.get(suffix, "libx264")
    images = [barcode(i) for i in range(COUNT)]
    path = tmp_path / f"v.{suffix}"
    if suffix == "gif":
        with av.open(str(path), "w") as out:
            stream = out.add_stream("gif", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "gray"
            for image in images:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image[..., 0], "gray")))
            out.mux(stream.encode())
    else:
        film(path, images, codec, options={"b": "3000k"} if codec != "libx264" else USUAL)
    assert path.suffix in video.SUFFIXES
    shown = [number_in(frame) for _, frame in video.play(path)]
    assert shown == list(range(COUNT))[-len(shown) :]
    assert video.info(path).frames == len(shown)
    assert [number_in(frame) for frame in video.frames(path, [70, 3, 30])] == [shown[70], shown[3], shown[30]]


def test_a_video_that_changes_its_size_midway_is_one_line(tmp_path):
    for name, size in (("a", (96, 64)), ("b", (192, 128))):
        film(tmp_path / f"{name}.ts", (barcode(i, *size) for i in range(30)), options=USUAL)
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    for call in (video.read_all, lambda p: video.frames(p, [2, 45])):
        with pytest.raises(UserError, match=r"both.ts: changes its size midway, from 96 x 64 to 192 x 128"):
            call(path)
    assert number_in(video.frames(path, [2])[0]) == 2


def _resident() -> float:
    """Megabytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _open_often(films, count: int) -> float:
    """Megabytes that so many opens take, after some that fill what is kept on purpose."""
    names, cut = [*films, "B frames"], films["B frames"].with_name("cut.mp4")
    cut.write_bytes(films["B frames"].read_bytes()[:2000])
    for number in range(100 + count):
        if number == 100:
            before = _resident()
        path = films[names[number % len(names)]]
        video.frames(path, [number % 80, 3], ("auto", "pyav")[number % 2])
        next(video.play(path))  # left in the middle
        with pytest.raises(UserError):
            video.info(cut)
    return _resident() - before


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc on this machine")
@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_opening_keeps_no_memory(films, count):
    # A decoded frame has 9 KB, a decoder some MB: 200 that stay behind would show.
    assert _open_often(films, count) < 10 + 40 * count / 2000


def _read_in_child(path: Path) -> list[int]:
    return [number_in(frame) for frame in video.frames(path, [70, 2])]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_too(films, method):
    video.frames(films["closed groups"], [1])  # a decoder has lived in the parent
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(_read_in_child, (films["closed groups"],)).get(400) == [70, 2]


def test_bad_files_are_named(films, tmp_path):
    nothing, text, whole = (
        tmp_path / "nothing.mp4",
        tmp_path / "text.mp4",
        films["closed groups"].read_bytes(),
    )
    nothing.write_bytes(b"")
    text.write_text("not a video")
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(whole[: len(whole) // 2])  # the index of an mp4 is at its end
    for path, words in (
        (nothing, "not a readable video"),
        (text, "not a readable video"),
        (headless, "not a readable video"),
        (tmp_path / "missing.mp4", "no such file"),
        (sound_only(tmp_path / "sound.mp4"), "no picture stream"),
    ):
        for call in (video.info, video.read_all, lambda p: video.frames(p, [0])):
            with pytest.raises(UserError, match=words) as caught:
                call(path)
            assert path.name in str(caught.value)
            assert "\n" not in str(caught.value)
    for number in (-1, COUNT):
        with pytest.raises(UserError, match=f"no frame {number}"):
            video.frames(films["closed groups"], [number])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    share=st.floats(0.0, 0.999),
    name=st.sampled_from(["fragments", "MPEG-4 AVI", "MJPEG AVI", "closed groups"]),
)
def test_a_cut_file_gives_right_frames_or_an_error(films, tmp_path, share, name):
    whole = films[name].read_bytes()
    path = tmp_path / f"cut{films[name].suffix}"
    path.write_bytes(whole[: int(share * len(whole))])
    try:
        last = video.info(path).frames - 1
        got = video.frames(path, [0, last // 2])
    except UserError:
        return
    assert [number_in(frame) for frame in got] == [0, last // 2]


def refused(call):
    """What it gives, or the words of its refusal."""
    try:
        return call()
    except UserError as error:
        return str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7)), min_size=1, max_size=20),
    name=st.sampled_from(sorted(set(CONTAINERS) - {"HEVC"})),
    backend=st.sampled_from(["auto", "pyav"]),
)
def test_flipped_bits_give_frames_or_an_error_that_names_the_file(films, tmp_path, flips, name, backend):
    """Video has no checksums: a picture may be damaged, but nothing else may happen."""
    data = bytearray(films[name].read_bytes())
    for share, bit in flips:
        data[int(share * len(data))] ^= 1 << bit
    path = tmp_path / f"flipped{films[name].suffix}"
    path.write_bytes(data)
    got = refused(lambda: video.frames(path, [0, video.info(path).frames - 1], backend))
    if isinstance(got, str):
        assert path.name in got
        assert "\n" not in got
        return
    about = video.info(path)
    assert got.shape == (2, about.height, about.width, 3)
    assert got.dtype == np.uint8
    if about.codec == "mjpeg" and about.frames == COUNT:  # no frame leans on another: right, or damaged alone
        assert number_in(got[0]) == 0 or number_in(got[1]) == COUNT - 1


def test_damage_that_the_decoder_notices_is_an_error(films, tmp_path):
    """It would fill the hole with what it has: another moment's face."""
    data, reported = films["closed groups"].read_bytes(), 0
    start, end = data.find(b"mdat") + 1200, data.find(b"moov") - 100
    path = tmp_path / "holes.mp4"
    for number in range(10):
        place = start + (end - start) * number // 10
        path.write_bytes(data[:place] + bytes(60) + data[place + 60 :])
        got = refused(lambda: video.read_all(path)[0])
        if isinstance(got, str):
            reported += 1
            assert "holes.mp4" in got
        else:
            assert len(got) == COUNT
    assert reported >= 5


@pytest.mark.skipif(not REAL.is_dir(), reason="no real_video folder beside the project")
def test_real_files():
    for name, count in (
        ("WolfgangLanger_Pexels.mp4", 472),
        ("single_face.mp4", 72),
        ("face_noface.mov", 169),
    ):
        assert video.info(REAL / name).frames == count
        images, _ = video.read_all(REAL / name, max_frames=30)
        np.testing.assert_array_equal(video.frames(REAL / name, [29, 3], "pyav"), images[[29, 3]])
