"""The page of a tokenizer's training: its curves are one, its pictures the tokens', and failure is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from pages import check_alone, part, words
from sample_runs import face, write_run
from test_tokenizer import SMALL, Pairs, trainer
from torch.utils.data import DataLoader

from mefar.__main__ import main
from mefar.errors import UserError
from mefar.report import figures
from mefar.report.training_page import charts, write_training_report
from mefar.report.training_results import read_training
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.validation_pictures import SampleKeeper
from mefar.tokenizer.warp_network import WarpNetwork

HEADER = "epoch,step,train/loss,train/reconstruction,val/gain_over_copy,val/delta_psnr,val/code_usage\n"
START = ("command", "commit", "time", "processes", "precision", "torch", "mefar", "step")
SAMPLES = ("onset", "apex", "reconstruction", "transferred")


def write_training(folder: Path, gain: float = 3.21, delta: float = 4.5) -> Path:
    """A training that was interrupted after step 59 and went on from the checkpoint of step 39."""
    folder.mkdir(parents=True)
    train = "".join(f"0,{step},{1 - step / 100},0.5,,,\n" for step in range(9, 60, 10))
    (folder / "metrics-1.csv").write_text(HEADER + train + "0,39,,,-1.5,0.2,0.25\n")
    later = "".join(f"1,{step},0.25,0.125,,,\n" for step in range(49, 80, 10))
    (folder / "metrics.csv").write_text(HEADER + later + f"1,79,,,{gain},{delta},0.75\n")
    (folder / "config.yaml").write_text("model: <tokenizer>\n")
    starts = [
        {"command": "mefar fit --config a.yaml", "step": 0},
        {"command": "mefar fit --config a.yaml --ckpt_path last", "step": 40, "commit": "0123abc"},
    ]
    (folder / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    (folder / "samples").mkdir()
    generator = np.random.default_rng(0)
    for name, step, lift in (("first", 40, 0.2), ("newest", 80, 0.6)):
        lifts = dict(zip(SAMPLES, (0.0, 0.8, lift, -0.5), strict=True))
        drawn = {key: np.stack([face(generator, 32, value)] * 3) for key, value in lifts.items()}
        usage = np.array([60, 60, 60, 0])
        np.savez(folder / "samples" / f"{name}.npz", step=np.array(step), usage=usage, **drawn)
    return folder


def page_of(folder: Path) -> str:
    return write_training_report(folder).read_text(encoding="utf-8")


# The page


def test_the_page_is_complete_and_needs_nothing_else(tmp_path: Path) -> None:
    page = page_of(write_training(tmp_path / "run"))
    check_alone(page)
    assert "After 80 steps the reconstruction is 3.21 dB better than a copy of the onset" in words(page)
    assert "4.50 dB better than with another pair's tokens; 75% of the codes in use." in words(page)
    assert 'class="warning"' not in page
    gates = part(page, "Gates, at every validation")
    assert gates.count("<svg") == 3 and "step 39: -1.5" in gates
    assert part(page, "Loss and its terms").count("<svg") == 2
    assert "3 of 4 codes are used on the validation pairs; perplexity 3.0 of 4 over 180 tokens." in words(
        page
    )
    made = words(part(page, "How this was made"))
    assert "command mefar fit --config a.yaml --ckpt_path last" in made
    assert f"repeat with mefar fit --config {tmp_path}/run/config.yaml" in made
    assert "All 2 starts" in made and "model: &lt;tokenizer&gt;" in made


@pytest.mark.parametrize(
    ("gain", "delta", "says"),
    [
        (-0.4, 1.0, "learned nothing: its reconstruction is 0.40 dB worse than a copy of the onset"),
        (0.0, 1.0, "learned nothing"),
        (2.0, -0.25, "tokens say nothing: with those of another pair the reconstruction is 0.25 dB better"),
    ],
)
def test_a_training_that_learned_nothing_is_told_so(
    tmp_path: Path, gain: float, delta: float, says: str
) -> None:
    page = page_of(write_training(tmp_path / "run", gain, delta))
    assert says in words(page) and page.count('class="warning"') == 1
    assert ("dB better than with another" in words(page)) == (delta > 0)


def test_the_pictures_show_progress_and_the_tokens_of_others(tmp_path: Path) -> None:
    run = write_training(tmp_path / "run")
    shown = part(page_of(run), "What the tokens say")
    assert shown.count("<img") == 3 * 7
    head = words(shown[shown.index("<thead") : shown.index("</thead")])
    assert head == "onset apex reconstruction change rebuilt step 40 rebuilt step 80 other tokens"
    with np.load(run / "samples" / "newest.npz") as newest, np.load(run / "samples" / "first.npz") as first:
        onset, gain = newest["onset"][0], figures.gain_for(newest["onset"][0], newest["apex"][0])
        order = [newest["apex"], first["reconstruction"], newest["reconstruction"], newest["transferred"]]
        maps = [figures.png_uri(figures.signed_map(onset, each[0], gain), 112) for each in order]
    places = [shown.index(uri) for uri in maps]
    assert places == sorted(places) and len(set(maps)) == 4
    shutil.copy(run / "samples" / "newest.npz", run / "samples" / "first.npz")
    assert part(page_of(run), "What the tokens say").count("<img") == 3 * 6  # validated once: no progress


def test_a_training_without_samples_or_validation_still_has_a_page(tmp_path: Path) -> None:
    run = write_training(tmp_path / "run")
    shutil.rmtree(run / "samples")
    for name in ("starts.jsonl", "config.yaml", "metrics-1.csv"):
        (run / name).unlink()
    (run / "metrics.csv").write_text("epoch,step,train/loss,train/reconstruction\n0,9,0.5,0.5\n")
    page = page_of(run)
    assert "After 10 steps: not validated yet" in words(page)
    assert "<h2>Gates" not in page and "<h2>What the tokens" not in page and "<h2>Codes" not in page


# The curves


def test_steps_that_were_made_twice_count_once(tmp_path: Path) -> None:
    run = write_training(tmp_path / "run")
    record = read_training(run)
    assert [step for step, _ in record.curves["train/loss"]] == [9, 19, 29, 39, 49, 59, 69, 79]
    assert dict(record.curves["train/loss"])[49] == 0.25
    assert record.curves["val/gain_over_copy"] == [(39, -1.5), (79, 3.21)]
    assert record.resumed == [49]
    # Ten starts: metrics-10 is newer than metrics-2.
    (run / "metrics.csv").rename(run / "metrics-2.csv")
    # Its last line was torn by a kill and is no step 7.
    (run / "metrics-10.csv").write_text(HEADER + "1,69,0.125,0.1,,,\n1,7")
    record = read_training(run)
    assert record.curves["train/loss"][-2:] == [(59, 0.25), (69, 0.125)]
    assert record.curves["val/gain_over_copy"][-1] == (39, -1.5)
    assert record.resumed == [49, 69]


def test_a_curve_has_its_numbers_and_marks() -> None:
    drawn = figures.curve([(0, 1.0), (10, 3.0), (20, 2.0)], level=0.0, breaks=[10])
    mark, level, line, *dots = drawn.axes[0].lines
    assert list(mark.get_xdata()) == [10, 10] and list(level.get_ydata()) == [0, 0]
    assert list(line.get_xdata()) == [0, 10, 20] and list(line.get_ydata()) == [1, 3, 2] and len(dots) == 3
    assert "<title>step 10: 3.00</title>" in figures.svg(drawn, "a curve")
    assert drawn.axes[0].get_yscale() == "linear"
    many = figures.curve([(step, 1000.0 / (step + 1)) for step in range(1000)]).axes[0]
    (thinned,) = many.lines
    assert len(thinned.get_xdata()) <= 120 and many.get_yscale() == "log"
    assert figures.curve([(5, 1.0)]).axes[0].lines[0].get_xydata().tolist() == [[5, 1]]


def test_what_files_say_cannot_become_markup(tmp_path: Path) -> None:
    hostile = """</title></style></svg><evil on="1"> " on='2' ' on="3" -->"""
    run = write_training(tmp_path / "<evil on=1>")
    (run / "config.yaml").write_text(hostile)
    (run / "starts.jsonl").write_text(
        json.dumps(dict.fromkeys(START, hostile)) + "\n" + json.dumps({"step": hostile})
    )
    for name in ("metrics.csv", "metrics-1.csv"):
        text = (run / name).read_text().replace("val/delta_psnr", '"val/' + hostile.replace('"', '""') + '"')
        (run / name).write_text(text.replace("train/loss", '"' + hostile.replace('"', '""') + '"'))
    page = check_alone(page_of(run))
    assert "evil" not in page.tags and "on" not in dict(page.attributes)
    assert page_of(run).count("&lt;evil on=") >= 12
    assert page_of(run) == page_of(run)


# The command


def test_the_command_decides_by_what_lies_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_training(tmp_path / "tokenizer")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html")]
    shutil.copytree(run, tmp_path / "both")
    write_run(tmp_path / "both")
    assert main(["report", str(tmp_path / "both")]) == 0
    assert "Leave one subject out" in (tmp_path / "both" / "report.html").read_text()
    other = tmp_path / "classifier"
    other.mkdir()
    (other / "metrics.csv").write_text("epoch,step,train/loss,val/uf1\n0,9,0.5,\n")
    capsys.readouterr()
    for folder in (other, tmp_path / "nowhere"):
        assert main(["report", str(folder)]) == 2
        assert re.fullmatch(
            rf"mefar report: error: {folder}: holds neither a LOSO run .*\n", capsys.readouterr().err
        )
    (run / "samples" / "newest.npz").write_bytes(b"no archive")
    assert main(["report", str(run)]) == 2
    assert "newest.npz: cannot be read" in capsys.readouterr().err
    shutil.rmtree(run / "samples")
    for name in ("metrics.csv", "metrics-1.csv"):
        (run / name).write_text("step,train/loss,val/gain_over_copy\n9,0.5,0.25\n")
    assert main(["report", str(run), "--figures", str(tmp_path / "all")]) == 0
    names = {f"{name}.{end}" for name in ("train_loss", "val_gain_over_copy") for end in ("pdf", "png")}
    assert {path.name for path in (tmp_path / "all").iterdir()} == names
    assert (
        charts(read_training(run), paper=True)["val/gain_over_copy"].axes[0].get_ylabel()
        == "gain over copy, dB"
    )
    with pytest.raises(UserError, match="no training of a tokenizer"):
        read_training(other)


# What the training keeps


def fit(folder: Path, epochs: int, **options: Any) -> FacialActionTokenizer:
    L.seed_everything(0)
    model = FacialActionTokenizer(WarpNetwork(**SMALL, continuous_share=0.2), learning_rate=3e-3)
    keeper = SampleKeeper(folder, "mefar fit --x", pairs=3, side=24)
    loader = DataLoader(Pairs(), batch_size=8)
    trainer(folder, epochs, callbacks=[keeper]).fit(model, loader, loader, **options)
    return model.eval()


def test_validation_keeps_pairs_their_tokens_and_those_of_others(tmp_path: Path) -> None:
    model = fit(tmp_path, 2)
    with (
        np.load(tmp_path / "samples" / "newest.npz") as newest,
        np.load(tmp_path / "samples/first.npz") as first,
    ):
        assert (int(first["step"]), int(newest["step"])) == (3, 6)
        assert newest["onset"].shape == (3, 24, 24, 3)  # shrunk from 48
        assert np.array_equal(first["onset"], newest["onset"])
        assert not np.array_equal(first["reconstruction"], newest["reconstruction"])
        assert newest["usage"].sum() == 24 * 4
        batch = [Pairs()[row] for row in (0, 4, 7)]
        onset, apex = (torch.stack([row[name] for row in batch]).float() / 255 for name in ("onset", "apex"))
        tokens = model.tokenize(onset, apex)
        moved = model.reconstruct(onset, tokens.select(torch.tensor([2, 0, 1])))
        small = torch.nn.functional.interpolate(moved, [24, 24], mode="bilinear", antialias=True)
        expected = (small * 255).round().clamp(0, 255).permute(0, 2, 3, 1)
        assert (torch.from_numpy(newest["transferred"]).float() - expected).abs().max() <= 1
        every = [Pairs()[row] for row in range(24)]
        onset, apex = (torch.stack([row[name] for row in every]).float() / 255 for name in ("onset", "apex"))
        usage = torch.bincount(model.tokenize(onset, apex).indices.flatten(), minlength=8)
        assert newest["usage"].tolist() == usage.tolist()


def test_a_resumed_training_keeps_its_first_pictures_and_a_new_one_does_not(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    fit(tmp_path, 2, ckpt_path=checkpoint)
    with np.load(tmp_path / "samples/first.npz") as first, np.load(tmp_path / "samples/newest.npz") as newest:
        assert (int(first["step"]), int(newest["step"])) == (3, 6)
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 3] and starts[0]["command"] == "mefar fit --x"
    marked = dict(np.load(tmp_path / "samples" / "first.npz")) | {"step": np.array(-1)}
    np.savez(tmp_path / "samples" / "first.npz", **marked)
    fit(tmp_path, 1)
    with np.load(tmp_path / "samples" / "first.npz") as first:
        assert int(first["step"]) == 3
    assert len((tmp_path / "starts.jsonl").read_text().splitlines()) == 1


def test_a_disk_that_takes_nothing_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("in the way")
    (tmp_path / "starts.jsonl").mkdir()
    with pytest.warns(UserWarning, match="samples of this validation are not kept"):
        fit(tmp_path, 1)
    assert list(tmp_path.rglob("*.ckpt"))
