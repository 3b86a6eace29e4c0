"""A database of one's own: one short file, outside the repository, for every verb; and what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from places import ROOT
from replicas import Row, write_casme2, write_smic

from datamodules.databases import catalogue
from datamodules.doctor import examine
from datamodules.protocols import load
from mefar.__main__ import main
from mefar.errors import UserError
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.warp_network import WarpNetwork

MINE = '''"""Our own recordings: 4 people, 2 clips each."""

from datamodules.databases.description import Columns, Database, Published, Rule, SubjectId

DATABASE = Database(
    name="mine",
    title="Our own recordings",
    access="ask us",
    fps=120.0,
    coding_file="mine.csv",
    columns=Columns(subject="Person", clip="Clip", onset="First", apex="", offset="Last", aus="Units"),
    subject=SubjectId(r"p0*(\\d+)", "p{:02d}", "such as p01"),
    published=Published(4, {"glad": 4, "sad": 4}),
    protocols={
        2: Rule(
            ("negative", "positive"),
            {"sad": "negative", "glad": "positive"},
            left_out=("other",),
            expected={"negative": 4, "positive": 4},
            subjects=4,
        )
    },
)
'''


@pytest.fixture
def mine(tmp_path: Path) -> tuple[str, Path]:
    """The file that describes it, and its data."""
    assert len(MINE.splitlines()) < 60
    file = tmp_path / "plugins" / "my_database.py"
    file.parent.mkdir()
    file.write_text(MINE)
    data = tmp_path / "recordings"
    lines = ["Clip;Person;First;Last;Emotion;Units"]
    rng = np.random.default_rng(0)
    for person in range(1, 5):
        for clip, emotion in (("a", "glad"), ("b", "Sad")):
            lines.append(f"{clip};P{person};10;13;{emotion};R12+4")
            folder = data / "frames" / f"p{person}" / clip
            folder.mkdir(parents=True)
            for number in range(10, 14):
                picture = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (64, 64))
                cv2.imwrite(str(folder / f"f{number:03d}.png"), picture)
    (data / "mine.csv").write_text("\n".join(lines))
    return str(file), data


def test_it_loads_and_the_doctor_finds_it_complete(
    mine: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, data = mine
    study = load(dataset, data)
    assert (study.protocol, study.class_names) == ("mine", ("negative", "positive"))
    assert [clip.key for clip in study.clips][:3] == ["mine/p01/a", "mine/p01/b", "mine/p02/a"]
    first = study.clips[0]
    assert (first.label, first.onset, first.apex, first.offset, first.fps) == (1, 10, None, 13, 120.0)
    assert [str(unit) for unit in first.aus] == ["4", "R12"]
    assert main(["doctor", dataset, str(data)]) == 0
    assert capsys.readouterr().out.startswith("mine: complete: 8 clips, 4 subjects, apex middle 8")
    (data / "frames" / "p3" / "b" / "f010.png").unlink()
    assert main(["doctor", "--json", dataset, str(data)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert {finding["clip"]: finding["row"] for finding in told["findings"] if finding["clip"]} == {
        "mine/p03/b": 7
    }


def test_loso_runs_on_it(mine: tuple[str, Path], tmp_path: Path) -> None:
    dataset, data = mine
    torch.manual_seed(0)
    model = FacialActionTokenizer(WarpNetwork(48, 16, 1, 8, code_dim=4))
    checkpoint = tmp_path / "tiny.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, checkpoint)
    words = ["loso", "--dataset", dataset, "--data", str(data), "--tokenizer", str(checkpoint)]
    words += ["--faces", "precropped", "--views", "2", "--epochs", "2", "--accelerator", "cpu"]
    words += ["--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]
    assert main(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["protocol"], summary["clips"], summary["folds"]) == ("mine", 8, 4)
    assert summary["classes"] == ["negative", "positive"]


def test_an_installed_package_brings_it(
    mine: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, data = mine
    site = Path(file).parent
    (site / "ours-1.0.dist-info").mkdir()
    (site / "ours-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    entry = site / "ours-1.0.dist-info" / "entry_points.txt"
    entry.write_text("[mefar.databases]\nmine = my_database:DATABASE\n")
    monkeypatch.syspath_prepend(site)
    assert len(load("mine", data).clips) == 8
    assert main(["databases", str(data), "--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert told["mine"]["found"]["entries"] == 8
    assert told["mine"]["protocols"] == {"2": ["negative", "positive"]}
    assert told["casme2"]["found"] is None and told["samm_lv"]["kind"] == "long videos"
    for value, says in (
        ("my_database:nothing", "cannot be loaded"),
        ("json:dumps", "is a function, no Database"),
    ):
        entry.write_text(f"[mefar.databases]\nmine = {value}\n")
        with pytest.raises(UserError, match=rf"entry point 'mine' of group mefar.databases.*{says}"):
            load("mine", data)
        with pytest.raises(UserError, match="no coding file"):
            load("dfme", data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("x = 1", "defines no databases"),
        ("from datamodules.databases.samm import DATABASE", "defines no databases"),
        ("1 / 0", "cannot be read (ZeroDivisionError: division by zero)"),
        ("def", "cannot be read (SyntaxError"),
        (MINE.replace('name="mine"', 'name="samm"'), "the name 'samm' is taken"),
        (MINE.replace('name="mine"', 'name="../up"'), "name '../up': use lower-case letters"),
        (MINE.replace('"glad": "positive"', '"glad": "happy"'), "but emotions become happy"),
        (MINE.replace("    2: Rule(", "    3: Rule("), "protocol of 3 classes: names negative, positive"),
        (MINE + MINE.replace("DATABASE", "OTHER"), "defines 2 databases"),
    ],
)
def test_a_file_that_describes_none_is_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "odd.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        load(str(file), tmp_path)
    assert str(file) in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_databases_and_what_a_folder_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_casme2(tmp_path / "CASME II", [Row(1, "EP02_01"), Row(2, "EP02_01")])
    write_smic(tmp_path / "SMIC", [(1, "negative", 1)])
    (tmp_path / "SAMM").mkdir()
    (tmp_path / "SAMM" / "SAMM_Micro_FACS_Codes_v2.xlsx").write_bytes(b"PK damaged")
    assert main(["databases", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    listed = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert listed == [*catalogue.known(), *catalogue.long_videos(), "composite"]
    assert {"casme2", "casme3_c", "samm_lv", "smic_e", "mmew"} < set(listed)
    assert f"2 listed in {tmp_path / 'CASME II' / 'CASME2-coding-20140508.xlsx'}" in text
    assert f"1 clips; folder {tmp_path / 'SMIC'}" in text
    assert "SAMM_Micro_FACS_Codes_v2.xlsx: not a readable .xlsx file" in text
    assert text.count(": nothing") >= 6
    assert main(["databases", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_list_comes_at_once() -> None:
    code = "import sys; from mefar.__main__ import main; main(['databases']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "datamodules.databases.casme2" in loaded
    assert not loaded & {"torch", "lightning", "cv2", "av", "transformers"}


def test_its_errata(mine: tuple[str, Path]) -> None:
    dataset, data = mine
    fixes = data.parent / "fixes.csv"
    fixes.write_text(
        "database,subject,clip,onset,field,value,when,source\nmine,p02,a,10,offset,12,equals 13,us\n"
    )
    described = MINE.replace("    fps=120.0,", f"    fps=120.0, errata=Path({str(fixes)!r}),")
    Path(dataset).write_text("from pathlib import Path\n" + described)
    assert {clip.key: clip.offset for clip in load(dataset, data).clips}["mine/p02/a"] == 12
    (correction,) = examine(dataset, data).errata
    assert (correction.clip, correction.old, correction.new) == ("mine/p02/a", "13", "12")
    fixes.write_text("subject,what\np02,x\n")
    with pytest.raises(UserError, match=r"fixes.csv: no errata .* give the columns database, subject, clip"):
        load(dataset, data)
