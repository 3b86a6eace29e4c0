"""`mefar recognise` on rendered videos, and on what is no video."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from filming import film, turned

import mefar
from datamodules.demo.long_videos import make_long_video
from datamodules.footage import ahead, films_in, footage
from datamodules.voxceleb.video import info
from mefar.__main__ import main
from mefar.commands.pictures import pair
from mefar.commands.recognise import _for_a_challenge
from mefar.errors import UserError
from mefar.recognition.events import EVENT_COLUMNS, FRAME_COLUMNS, Event
from mefar.recognition.reading import NOTHING, read

EVENT = Event(1, 1, "micro", 0, 0.1, 0.2, 0, 3, 6, 1.0, 5.0, ("brows",))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> tuple[Path, list]:
    """Five seconds of one rendered face and its true events."""
    path = tmp_path_factory.mktemp("long") / "face.mp4"
    video = make_long_video(path, seed=SEED, seconds=5, fps=30)
    return path, list(video.events)


SEED = 15  # brows, and two blinks before them


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(*words: object) -> int:
    return main(["recognise", *map(str, words)])


def test_the_events_of_a_video_are_found_written_and_kept(rendered, tmp_path, capsys) -> None:
    path, truth = rendered
    out = tmp_path / "out"
    assert run(path, "--model", "none", "--out", out) == 0
    table = rows(out / "events.csv")
    assert list(table[0]) == list(EVENT_COLUMNS)
    for event in truth:
        assert any(
            abs(float(row["apex_s"]) - event.apex) < 0.1
            and float(row["onset_s"]) < event.apex < float(row["offset_s"])
            for row in table
        ), event
    frames = rows(out / "frames.csv")
    assert list(frames[0]) == list(FRAME_COLUMNS)
    assert len(frames) == 150
    assert {row["event"] for row in frames} == {"", *(row["event"] for row in table)}
    assert sum(int(row["blink"]) for row in frames) > 0
    told = json.loads((out / "events.json").read_text())
    assert len(told["events"]) == len(table)
    assert told["events"][0]["onset_s"] == float(table[0]["onset_s"])
    drawn = info(out / "annotated.mp4")
    assert (drawn.codec, drawn.frames) == ("h264", 150)
    page = (out / "report.html").read_text()
    assert "Expressions in face.mp4" in page
    assert page.count('alt="apex"') == len(table)

    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.suffix in (".npz", ".mp4")}
    assert run(path, "--model", "none", "--out", out) == 0  # nothing is measured or drawn again
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.suffix in (".npz", ".mp4")}
    capsys.readouterr()
    assert run(path, "--model", "none", "--out", out, "--threshold", "6") == 2
    assert "threshold (4.5 there, 6.0 asked for)" in capsys.readouterr().err


def test_from_python_and_with_a_known_event(rendered) -> None:
    path, truth = rendered
    found = mefar.recognise(path, model="none", onset=truth[0].onset, apex=truth[0].apex)
    [event] = list(found)
    assert event.onset == pytest.approx(truth[0].onset, abs=0.02)
    assert event.strength > 1
    assert list(found.to_frame().columns) == list(EVENT_COLUMNS)


def test_a_folder_gives_one_table_and_names_what_it_left_out(rendered, tmp_path, capsys) -> None:
    clips = tmp_path / "clips"
    (clips / "a").mkdir(parents=True)
    (clips / "a" / "one.mp4").write_bytes(rendered[0].read_bytes())
    (clips / "two.mp4").write_bytes(b"")
    out = tmp_path / "out"
    assert run(clips, "--model", "none", "--out", out, "--annotated", "false") == 2
    said = capsys.readouterr().out
    assert "two.mp4: left out:" in said
    assert {row["video"] for row in rows(out / "events.csv")} == {"a/one"}
    assert not (out / "a" / "one" / "annotated.mp4").exists()
    asked, table = rows(out / "challenge.csv"), rows(out / "events.csv")
    assert [row["pred_onset"] for row in asked] == [row["onset_frame"] for row in table] != []
    assert {(row["vid"], row["type"]) for row in asked} <= {("one", "me"), ("one", "mae")}


def test_a_challenge_counts_frames_by_the_names_of_their_files(tmp_path) -> None:
    for number in range(1001, 1010):
        cv2.imwrite(str(tmp_path / f"img{number}.png"), np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "events.csv").write_text("video,kind,onset_frame,offset_frame\ns7,macro,2,7\n")
    _for_a_challenge(tmp_path, {"s7": tmp_path})
    found = (tmp_path / "challenge.csv").read_text().splitlines()
    assert found == ["vid,pred_onset,pred_offset,type", f"{tmp_path.stem},1003,1008,mae"]


def test_nobody_there_is_told_and_is_no_error(tmp_path, capsys) -> None:
    path = film(tmp_path / "wall.mp4", [np.full((96, 128, 3), 120, np.uint8)] * 30)
    assert run(path, "--model", "none", "--out", tmp_path / "out") == 0
    assert "no face was found" in capsys.readouterr().out
    assert rows(tmp_path / "out" / "events.csv") == []
    assert "No face was found." in (tmp_path / "out" / "report.html").read_text()


def test_five_frames_a_second_says_what_cannot_be_seen(tmp_path, capsys) -> None:
    path = film(tmp_path / "slow.mp4", [np.full((96, 128, 3), 120, np.uint8)] * 12, fps=5)
    assert run(path, "--model", "none", "--out", tmp_path / "out", "--annotated", "false") == 0
    assert "at 5 frames a second nothing shorter than 0.4 s can be seen" in capsys.readouterr().out


def test_numbered_images_with_a_gap_are_a_video_with_a_gap(tmp_path) -> None:
    for number in (8, 9, 10, 14):
        cv2.imwrite(str(tmp_path / f"img{number}.png"), np.full((20, 30, 3), number, np.uint8))
    look = footage(tmp_path, fps=10)
    assert look.size == (30, 20)
    assert [(round(s, 3), int(frame[0, 0, 0])) for s, frame in look.play()] == [
        (0, 8),
        (0.1, 9),
        (0.2, 10),
        (0.6, 14),
    ]
    assert look.notes == ("3 images are missing between 8 and 14: gaps in time",)
    (tmp_path / "img9 2.png").write_bytes((tmp_path / "img9.png").read_bytes())
    assert footage(tmp_path, fps=10).notes[1] == "not called like the others and left out: img9 2.png"
    assert films_in(tmp_path) == [tmp_path]


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def bad(folder: Path, what: str) -> list[object]:
    path = folder / "video.mp4"
    if what == "missing":
        return [path]
    if what == "empty":
        path.write_bytes(b"")
    elif what == "text":
        path.write_text("no video")
    elif what == "audio":
        audio_only(path)
    elif what == "folder":
        (folder / "sub").mkdir()
        return [folder / "sub"]
    elif what == "images":
        (folder / "sub").mkdir()
        for number in range(3):
            cv2.imwrite(str(folder / "sub" / f"{number}.png"), np.zeros((9, 9, 3), np.uint8))
        return [folder / "sub"]
    else:
        film(path, [np.full((64, 64, 3), 120, np.uint8)] * 10)
    return [path, *OPTIONS.get(what, [])]


OPTIONS = {
    "half": ["--onset", 1],
    "order": ["--onset", 1, "--apex", 0.5],
    "model": ["--model", "x.ckpt"],
    "pairs": ["--every-pair", "true"],
    "rate": ["--fps", 3],
}


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("missing", "no such file or folder"),
        ("empty", "not a readable video"),
        ("text", "not a readable video"),
        ("audio", "has no picture stream; audio only?"),
        ("folder", "no video and no numbered images in it"),
        ("images", "give --fps"),
        ("half", "give --onset and --apex together"),
        ("order", "the onset before the apex"),
        ("model", "x.ckpt: no such checkpoint"),
        ("pairs", "--every-pair needs a tokenizer"),
        ("rate", "leave out --fps"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, what: str, complaint: str) -> None:
    words = bad(tmp_path, what)
    if what != "model":
        words += ["--model", "none"]
    assert run(*words, "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    lines = [line for line in (said.err + said.out).splitlines() if "error" in line or "left out:" in line]
    assert complaint in lines[0]
    assert not (tmp_path / "out" / "events.csv").exists() or what == "images"


def test_a_folder_of_something_else_is_not_written_into(rendered, tmp_path, capsys) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(rendered[0], "--model", "none", "--out", tmp_path) == 2
    assert "is not empty and was not made by" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "thesis.txt"]


def test_what_is_fetched_ahead_is_the_same_and_errors_come_through() -> None:
    def numbers():
        yield from range(9)
        raise UserError("ends")

    seen = []
    with pytest.raises(UserError, match="ends"):
        seen.extend(ahead(numbers()))
    assert seen == list(range(9))
    assert next(ahead(iter(range(10**9)))) == 0  # leaves no thread that waits for ever


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tokenizer that has learned nothing."""
    import torch

    from mefar.tokenizer.module import FacialActionTokenizer
    from mefar.tokenizer.warp_network import WarpNetwork

    path = tmp_path_factory.mktemp("model") / "tokenizer.ckpt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = FacialActionTokenizer(WarpNetwork(48, 16, 1, 8, code_dim=4))
    torch.save({"state_dict": made.state_dict(), "hyper_parameters": dict(made.hparams)}, path)
    return path


def test_a_tokenizer_gives_tokens_and_every_pair(rendered, model, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert run(rendered[0], "--model", model, "--annotated", "false", "--every-pair", "--out", out) == 0
    [event] = rows(out / "events.csv")
    assert event["emotion"] in ("", NOTHING) and not event["action_units"]
    pairs = rows(out / "pairs.csv")
    assert len(pairs) == 150 - 9  # 0.3 s are nine frames
    assert {int(pair["later_frame"]) - int(pair["frame"]) for pair in pairs} == {9}
    assert {len(row["tokens"].split()) for row in (event, *pairs)} == {16}
    assert run(rendered[0], "--model", "demo", "--annotated", "false", "--out", out) == 2
    assert "made otherwise (model" in capsys.readouterr().err


def test_at_rest_the_answer_is_nothing(model) -> None:
    still = np.full((48, 48, 3), 99, np.uint8)
    [told] = read(mefar.load(model).tokenizer, None, [EVENT], [still], [still])
    assert told.emotion == NOTHING and len(told.tokens) == 16


def test_the_model_that_comes_along_reads_classes_units_and_sentences() -> None:
    made = mefar.load("demo")
    onset, apex = pair(mefar.example("onset"), mefar.example("apex"), made.image_size)
    moved, still = read(made.tokenizer, made.readers, [EVENT, EVENT], [onset, onset], [apex, onset])
    assert moved.emotion == "surprise" and {"1", "2", "5"} <= set(moved.action_units)
    assert "brow" in moved.description and sum(moved.probabilities.values()) == pytest.approx(1)
    assert still.emotion == NOTHING and not still.action_units and not still.description


def test_what_a_folder_of_videos_gave_can_be_scored(tmp_path) -> None:
    from mefar.recognition.intervals import read_intervals

    table = tmp_path / "events.csv"
    table.write_text(
        "video," + ",".join(EVENT_COLUMNS) + "\nv1,1,1,micro,0.1,0.2,0.3,3,6,9,2.0,5.0,brows,negative,,,,,\n"
    )
    [interval] = read_intervals(table).intervals
    assert (interval.video, interval.kind, interval.onset, interval.offset) == ("v1", "micro", 3, 9)
    assert interval.emotion == "negative"


def test_a_video_that_breaks_off_is_told_and_used_up_to_there(rendered, tmp_path, capsys) -> None:
    whole = rendered[0].with_suffix(".ts")
    with av.open(str(rendered[0])) as source, av.open(str(whole), "w") as out:
        stream = source.streams.video[0]
        if hasattr(out, "add_stream_from_template"):
            copy = out.add_stream_from_template(stream)
        else:  # before PyAV 14
            copy = out.add_stream(template=stream)
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    data = whole.read_bytes()
    whole.write_bytes(data[: int(0.6 * len(data)) // 188 * 188])
    assert run(whole, "--model", "none", "--annotated", "false", "--out", tmp_path / "out") == 0
    told = json.loads((tmp_path / "out" / "events.json").read_text())
    assert 60 < told["frames"] < 140
    assert float(told["people"][0]["to_s"]) > 2


def test_a_phone_held_upright_a_large_picture_and_a_gif_show_the_face_that_is_there(
    rendered, tmp_path
) -> None:
    """The face fills as much of its crop, and stands as upright, whatever the file."""
    frames = [frame for _, frame in footage(rendered[0]).play()][:15]

    def widths(path: Path) -> list[float]:
        found = mefar.recognise(path, model="none")
        assert found.frames == 15 and len(found.tracks) == 1
        angles = [np.arctan2(*matrix[::-1, 0]) for matrix in found.tracks[0].matrices]
        assert np.abs(angles).max() < 0.2
        return [float(np.hypot(*matrix[:, 0])) for matrix in found.tracks[0].matrices]

    plain = widths(film(tmp_path / "plain.mp4", frames, fps=20))
    lying = film(tmp_path / "lying.mp4", [np.rot90(frame) for frame in frames], fps=20)
    assert widths(turned(tmp_path / "phone.mp4", lying, (0, 1, -1, 0))) == pytest.approx(plain, rel=0.05)
    large = [cv2.resize(frame, (3840, 2160)) for frame in frames]
    assert max(widths(film(tmp_path / "4k.mp4", large, fps=20, options={"preset": "ultrafast"}))) < 0.2 * min(
        plain
    )
    assert widths(film(tmp_path / "face.gif", frames, "gif", 20)) == pytest.approx(plain, rel=0.05)
