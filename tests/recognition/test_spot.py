"""`mefar spot` under leave-one-subject-out: what it chooses on whom, and on a replica from disk to page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import openpyxl
import pytest
import torch

from datamodules.demo.long_videos import make_long_video
from mefar.__main__ import main
from mefar.recognition.intervals import Interval, read_intervals
from mefar.recognition.protocol import (
    THRESHOLDS,
    Candidate,
    call_classes,
    leave_one_out,
    over,
    per_subject,
    pooled,
)
from mefar.recognition.scores import CLASSES
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.warp_network import WarpNetwork


def four_people() -> tuple[dict, dict, dict]:
    """a, b and c want a low threshold; d, alone, a high one: it has false alarms up to 5."""
    truths, candidates, subjects = {}, {}, {}
    for person in "abcd":
        for take in (1, 2):
            video = f"{person}/{take}"
            subjects[video] = person
            truths[video] = [Interval(video, "micro", 100 * k, 100 * k + 9) for k in range(3)]
            sure = 8.0 if person == "d" else 3.3
            candidates[video] = [Candidate(truth, sure) for truth in truths[video]]
            if person == "d":
                candidates[video] += [
                    Candidate(Interval(video, "micro", 50 + 100 * k, 59 + 100 * k), 5.0) for k in range(9)
                ]
    return truths, candidates, subjects


def test_the_held_out_subject_has_no_say_in_its_threshold() -> None:
    truths, candidates, subjects = four_people()
    folds = {fold.subject: fold for fold in leave_one_out(truths, candidates, subjects, 4.5)}
    assert folds["d"].threshold < 3.3  # what the three others want, although it is bad for d
    assert folds["d"].oracle > 5.0
    for video in ("d/1", "d/2"):  # nothing that d does changes what is chosen for it
        truths[video], candidates[video] = [], []
    again = {fold.subject: fold for fold in leave_one_out(truths, candidates, subjects, 4.5)}
    assert again["d"].threshold == folds["d"].threshold
    assert again["d"].others_f1 == folds["d"].others_f1


def test_equal_thresholds_fall_to_the_one_nearest_the_default() -> None:
    truths, candidates, subjects = four_people()
    kept = {video: who for video, who in subjects.items() if who == "d"} | {"e/1": "e"}
    folds = {f.subject: f for f in leave_one_out(truths | {"e/1": []}, candidates | {"e/1": []}, kept, 6.0)}
    assert folds["e"].threshold == min(THRESHOLDS, key=lambda t: abs(t - 6.0))


def test_classes_are_called_without_the_subject_itself() -> None:
    torch.manual_seed(0)
    labels = [name for _ in range(5) for name in CLASSES]
    subjects = [f"p{k}" for k in range(5) for _ in CLASSES]
    place = torch.eye(3).repeat(5, 2) + 0.05 * torch.randn(15, 6)
    spotted, whose = place + 0.05 * torch.randn(15, 6), subjects
    assert call_classes(place, labels, subjects, spotted, whose) == labels
    turned = [*labels[1:3], labels[0], *labels[3:]]  # what p0's own expressions are said to be
    assert call_classes(place, turned, subjects, spotted, whose)[:3] == labels[:3]
    assert call_classes(place[:6], labels[:6], subjects[:6], spotted[:3], whose[:3]) == ["", "", ""]


def test_counts_are_pooled_over_videos_with_nothing_in_them_too() -> None:
    truths, candidates, subjects = four_people()
    truths["z/1"], subjects["z/1"] = [Interval("z/1", "macro", 0, 40)], "z"  # not spotted at all
    thresholds = dict.fromkeys(subjects, 4.5)
    scores = pooled(truths, candidates, thresholds)
    assert (scores["micro"]["tp"], scores["micro"]["fp"], scores["micro"]["fn"]) == (6, 18, 18)
    assert scores["macro"]["fn"] == 1
    people = per_subject(truths, candidates, subjects, thresholds)
    assert people["z"] == {"micro": (0, 0, 0), "macro": (0, 0, 1)}
    assert sum(counts["micro"][0] for counts in people.values()) == 6
    assert [one.onset for one in over(candidates["d/1"], 5.1)] == [0, 100, 200]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CAS(ME)^2 in its layout: four subjects, a video each, of which the second cannot be read."""
    root = tmp_path_factory.mktemp("data") / "CAS(ME)^2"
    folders = [root / "rawvideo" / name for name in ("s15", "s16", "s19", "s20")]
    for folder in folders:
        folder.mkdir(parents=True)
    video = make_long_video(folders[0] / "15_0401girlcrashing.avi", seed=15, seconds=5, fps=30)
    (folders[0] / "15_0401girlcrashing.truth.csv").unlink()
    (folders[1] / "16_0401girlcrashing.avi").write_bytes(b"no video")
    for folder in folders[2:]:
        copy = folder / f"{folder.name[1:]}_0401girlcrashing.avi"
        copy.write_bytes((folders[0] / "15_0401girlcrashing.avi").read_bytes())
    book = openpyxl.Workbook()
    book.active.title = "CASFEcode_final"
    for subject, feeling in enumerate(("negative", "others", "positive", "surprise"), 1):
        for k, event in enumerate(video.events, 1):
            onset, apex, offset = (round(30 * s) + 1 for s in (event.onset, event.apex, event.offset))
            kind = f"{event.kind}-expression"
            book.active.append([subject, f"anger1_{k}", onset, apex, offset, 4, feeling, kind, "anger"])
    book.save(root / "CAS(ME)^2code_final.xlsx")
    return root


def test_from_a_database_to_scores_and_a_page(database: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    torch.manual_seed(0)
    model = FacialActionTokenizer(WarpNetwork(48, 16, 1, 8, code_dim=4))
    checkpoint = tmp_path / "tiny.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, checkpoint)
    words = ["spot", "--dataset", "casme_sq", "--data", str(database), "--out", str(out)]
    words += ["--model", str(checkpoint)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "casme_sq/s16/anger1: not spotted, all its expressions are missed" in said
    summary = json.loads((out / "summary.json").read_text())
    fixed = summary["scores"]["fixed in advance"]["overall"]
    assert (fixed["tp"], fixed["fn"]) == (3, 1)
    assert fixed["strs"] == pytest.approx(fixed["f1"] * fixed["analysis_f1"])
    called = {row.emotion for row in read_intervals(out / "default.csv").intervals}
    assert called <= set(
        CLASSES
    )  # the same face three times: who is right is chance, that each is called is not
    with (out / "folds.csv").open(newline="") as file:
        assert [row["subject"] for row in csv.DictReader(file)] == [
            f"casme_sq/s{number}" for number in (15, 16, 19, 20)
        ]
    assert "Spotting: casme_sq" in (out / "report.html").read_text()

    assert (
        main(
            ["score-spotting", str(out / "truth.csv"), str(out / "default.csv"), "--out", str(out / "s.json")]
        )
        == 0
    )
    again = json.loads((out / "s.json").read_text())["scores"]["overall"]
    assert again["f1"] == fixed["f1"]

    before = sorted((p, p.stat().st_mtime_ns) for p in (out / "tracks").iterdir())
    assert main(words) == 0  # measured once
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (out / "tracks").iterdir())


def test_a_folder_of_something_else_is_refused(database: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["spot", "--dataset", "casme_sq", "--data", str(database), "--out", str(tmp_path)]) == 2
    assert "was not made by `mefar spot`" in capsys.readouterr().err
