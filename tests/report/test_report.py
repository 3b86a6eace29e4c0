"""The page of a run: complete, self-contained, true to its files, and one line when they are not there."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_runs import CLASSES, SUBJECTS, write_run

from mefar.__main__ import main
from mefar.errors import UserError
from mefar.loso.results import ordered, read_predictions, worst_mistakes
from mefar.report import figures
from mefar.report.loso_page import write_figure, write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "loso-composite")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def part(page: str, name: str) -> str:
    """A section of a page."""
    start = page.index(f"<h2>{name}</h2>")
    return page[start : page.index("</section>", start)]


class Balance(HTMLParser):
    """Fails on a tag that is closed but not open; `open` is what was never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "line", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag
        elif self.open[-1:] == [tag]:
            self.open.pop()


def test_the_page_needs_nothing_else(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert not re.findall(r"<script|@import|url\(", page)
    assert page.count('src="data:image/png;base64,') == 5 * (len(SUBJECTS) + 8)
    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def test_every_score_of_the_summary_is_on_the_page(run: Path, page: str) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for selection in ("last", "oracle"):
        for cell in summary["scores"][selection].values():
            assert f"{cell['uf1']:.3f}" in page
            assert f"{cell['uar']:.3f}" in page
    text = words(page)
    assert f"UF1 {summary['scores']['last']['full']['uf1']:.3f}" in text
    assert "leaks" in text
    assert "pixel control" in text
    assert "shuffled labels" in text


def test_rows_come_in_the_order_of_published_tables(page: str) -> None:
    scores = words(page[page.index("<h2>Scores") : page.index("<h2>Next to")])
    places = [scores.index(name) for name in ("Full", "CASME II", "SMIC-HS", "SAMM")]
    assert places == sorted(places)
    assert ordered({"samm", "zz", "full", "casme2"}) == ["full", "casme2", "samm", "zz"]


def test_intervals_stand_under_our_numbers_only(page: str, tmp_path: Path) -> None:
    scores, peers = (part(page, name) for name in ("Scores", "Next to published numbers"))
    assert scores.count(".412–.777") == scores.count(".423–.788") == 2 * 4  # last and oracle, 4 rows
    assert peers.count(".412–.777") == 2 * 4
    assert "95 % of 2,000 draws of the subjects" in words(peers)
    bare = write_report(write_run(tmp_path / "run", intervals={})).read_text(encoding="utf-8")
    assert "draws of the subjects" not in bare and "bounds" not in bare.partition("<body>")[2]


def test_published_numbers_stand_beside_composite_only(run: Path, page: str, tmp_path: Path) -> None:
    assert "D-FACE 2026 0.894 0.897 0.974 0.975 0.842 0.848 0.872 0.851 oracle" in words(page)
    assert "Not comparable: this run has" in words(page)
    other = write_report(write_run(tmp_path / "casme2", protocol="casme2")).read_text(encoding="utf-8")
    assert "D-FACE" not in other


def test_the_official_composite_is_called_comparable(tmp_path: Path) -> None:
    counts = {
        name: {"clips": clips, "subjects": subjects, "classes": {}}
        for name, clips, subjects in (("casme2", 145, 24), ("smic", 164, 16), ("samm", 133, 28))
    }
    page = write_report(write_run(tmp_path / "run", counts=counts)).read_text(encoding="utf-8")
    assert "Not comparable" not in page


def test_a_tokenizer_that_saw_the_test_faces_is_called_out(page: str, tmp_path: Path) -> None:
    assert "was pretrained on" not in page
    tokenizer = {"checkpoint": "x.ckpt", "sha256": "0", "pretrained_on": "casme2 and voxceleb"}
    leaky = write_report(write_run(tmp_path / "run", tokenizer=tokenizer)).read_text(encoding="utf-8")
    assert "The tokenizer was pretrained on casme2 and voxceleb" in leaky


def test_shuffled_labels_are_called_out(page: str, tmp_path: Path) -> None:
    assert "were shuffled" not in page
    control = write_report(write_run(tmp_path / "run", control="shuffled")).read_text(encoding="utf-8")
    assert "A control: the labels of this run were shuffled." in control


def test_several_seeds_show_their_spread(tmp_path: Path) -> None:
    cell = {"uf1": 0.5, "uf1_std": 0.0312, "uar": 0.6, "uar_std": 0.01}
    run = write_run(tmp_path / "run", seeds=[0, 1, 2], scores={"last": {"full": cell}})
    page = write_report(run).read_text(encoding="utf-8")
    assert "0.500 ± 0.031" in words(page)
    assert "pooled over 3 seeds" in words(page)


def test_confusion_counts_are_drawn(run: Path, page: str) -> None:
    matrix = json.loads((run / "confusion.json").read_text())["last"]["full"]
    drawn = figures.confusion_svg(matrix, CLASSES)
    assert drawn in page
    assert f"annotated negative, predicted surprise: {matrix[0][2]} of {sum(matrix[0])}" in drawn


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_subject_scores_are_the_predictions(run: Path, page: str) -> None:
    rows = [row for row in rows_of(run) if row["subject"] == "sub01"]
    right = sum(row["last"] == row["label"] for row in rows)
    assert f"sub01: {right} of {len(rows)}" in page


def test_the_surest_mistakes_come_first_with_their_pictures(run: Path, page: str) -> None:
    shown = part(page, "Worst mistakes")
    rows = [row for row in rows_of(run) if row["last"] != row["label"]]
    rows.sort(key=lambda row: -max(float(row[f"p_{name}"]) for name in CLASSES))
    places = [shown.index(f">{row['clip']}<small>") for row in rows[:1]]
    text = words(shown)
    for row in rows[:8]:
        annotated, predicted = (CLASSES[int(row[name])] for name in ("label", "last"))
        p = max(float(row[f"p_{name}"]) for name in CLASSES)
        assert f"subject {row['subject']} {annotated} {predicted} {p:.2f}" in text
    assert places == sorted(places)
    assert shown.count("<img") == 5 * 8 and shown.count("<tr>") == 8 + 1


def test_mistakes_average_the_seeds(tmp_path: Path) -> None:
    rows = [
        "a,0,0,1,0.1,0.9,0.0", "a,1,0,0,0.5,0.3,0.2", "b,0,0,1,0.4,0.6,0.0",
        "b,1,0,0,0.7,0.3,0.0",  # right on average
        "c,0,2,1,0.0,0.8,0.2", "c,1,2,1,0.0,0.8,0.2",
    ]  # fmt: skip
    head = "database,subject,clip,seed,label,last," + ",".join(f"p_{name}" for name in CLASSES)
    (tmp_path / "predictions.csv").write_text("\n".join([head, *(f"samm,6,{row}" for row in rows)]))
    predictions = read_predictions(tmp_path)
    found = worst_mistakes(predictions)
    assert [(m.clip, m.annotated, m.predicted) for m in found] == [
        ("samm/6/c", "surprise", "positive"), ("samm/6/a", "negative", "positive"),
    ]  # fmt: skip
    assert [m.probability for m in found] == pytest.approx([0.8, 0.6])
    assert len(worst_mistakes(predictions, 1)) == 1


def test_mistakes_without_pictures_and_none_of_shuffled_labels(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "bare", pictures={})).read_text(encoding="utf-8")
    assert "<img" not in part(page, "Worst mistakes") and "rebuilt change" not in part(page, "Worst mistakes")
    control = write_report(write_run(tmp_path / "run", control="shuffled")).read_text(encoding="utf-8")
    assert "Worst mistakes" not in control
    assert "this run, shuffled labels" in control
    assert "clips of the shuffled class" in control
    assert "Rows are shuffled labels, columns predicted" in control


def test_attention_is_drawn_against_the_uniform_share(run: Path, page: str) -> None:
    shares = json.loads((run / "attention.json").read_text())["casme2"][2]
    assert f"surprise, token 3: {shares[3]:.1%} (uniform 6.2%)" in page
    assert "no clips" in part(page, "Attention over tokens")  # smic has none of one class
    drawn = figures.attention_svg([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]], ["flat", "one"])
    fills = re.findall(r'fill="(#[0-9a-f]{6})" stroke', drawn)
    assert fills[:4] == ["#ffffff"] * 4
    red, blue = fills[4], fills[5]
    assert "do not tell classes apart" not in page
    assert int(red[1:3], 16) > int(red[5:], 16) and int(blue[1:3], 16) < int(blue[5:], 16)


def test_attention_that_is_as_good_as_uniform_is_called_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "attention.json").write_text(json.dumps({"full": [[0.26, 0.24, 0.25, 0.25], [0.25] * 4, None]}))
    shown = part(write_report(run).read_text(encoding="utf-8"), "Attention over tokens")
    assert "No mean weight is further than 4.2% from the uniform share" in words(shown)
    assert shown.count("<svg") == 1 and "full colour is 1.1 times" in words(shown)
    assert 'fill="#ffffff"' in shown and len(set(re.findall(r'fill="(#[0-9a-f]{6})" stroke', shown))) == 3


def test_one_database_has_one_row_by_its_own_name(tmp_path: Path) -> None:
    counts = {"samm": {"clips": 86, "subjects": 8, "classes": {}}}
    both = {"full": {"uf1": 0.5, "uar": 0.6}, "samm": {"uf1": 0.5, "uar": 0.6}}
    run = write_run(tmp_path / "run", protocol="samm", counts=counts, scores={"last": both})
    page = write_report(run).read_text(encoding="utf-8")
    assert "SAMM 86 0.500" in words(part(page, "Scores")) and "Full" not in words(page)
    assert "databases of the protocol" not in page and "restricted" not in page


def test_inner_selection_is_explained_where_it_is_shown(page: str, tmp_path: Path) -> None:
    assert "held out from a second model" not in page
    cell = {"full": {"uf1": 0.5, "uar": 0.6}}
    run = write_run(tmp_path / "run", scores={"last": cell, "oracle": cell, "inner": cell})
    inner = write_report(run).read_text(encoding="utf-8")
    assert "held out from a second model" in inner
    assert words(part(inner, "Next to published numbers")).count("this run") == 3 + 1  # and in the warning


def test_code_usage_and_perplexity(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pictures={})
    np.savez(run / "pictures.npz", usage=np.array([50, 50, 50, 50, 0, 0, 0, 0]))
    text = words(write_report(run).read_text(encoding="utf-8"))
    assert "4 of 8 codes are used on these clips; perplexity 4.0 of 8 over 200 tokens." in text


def test_what_the_user_wrote_cannot_become_markup(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", command="mefar <script>alert(1)</script>", dropped=[["casme2/<b>", "a & b"]]
    )
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "casme2/&lt;b&gt;" in page
    assert "a &amp; b" in page


def test_remarks_of_the_loaders_are_passed_on(tmp_path: Path) -> None:
    notes = [["smic", "164 of 164 apexes from the middle"], ["samm/006/006_1_2", "apex not annotated"]]
    left_out = [["samm/6/a", "emotion other"], ["samm/6/b", "emotion other"]]
    run = write_run(tmp_path / "run", notes=notes, left_out=left_out)
    page = words(write_report(run).read_text(encoding="utf-8"))
    assert "2 × emotion other" in page and "2 clips left out samm/6/a emotion other" in page
    assert "SMIC-HS: 164 of 164 apexes from the middle" in page
    assert "samm/006/006_1_2 apex not annotated" in page
    assert "2 annotated clips left out by the protocol's rule" in page


def test_optional_files_may_be_absent(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", controls=None, dropped=[])
    for name in ("predictions.csv", "confusion.json", "attention.json", "pictures.npz"):
        (run / name).unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Confusion" not in page
    assert "<h2>Codes" not in page
    assert "Dropped clips None." in words(page)


def test_signed_map_tells_lighter_from_darker() -> None:
    before = np.full((2, 2, 3), 100, np.uint8)
    after = before.copy()
    after[0, 0] += 50
    after[1, 1] -= 50
    drawn = figures.signed_map(before, after, gain=20).astype(int)
    assert drawn[0, 0, 0] > drawn[0, 0, 2]
    assert drawn[1, 1, 2] > drawn[1, 1, 0]
    assert drawn[0, 1].tolist() == [255, 255, 255]
    assert figures.gain_for(before, before) == 20


def test_figure_has_a_row_per_database(run: Path, tmp_path: Path) -> None:
    with Image.open(write_figure(run, tmp_path / "docs" / "faces.png")) as image:
        width, height = image.size
    assert width > 5 * 176
    assert height > 3 * 176
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["faces.png"]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert re.fullmatch(r"mefar report: error: .*: holds neither a LOSO run .*\n", capsys.readouterr().err)
    with pytest.raises(UserError, match=r"summary\.json: no such file"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="no 'protocol'"):
        write_report(tmp_path)
    run = write_run(tmp_path / "run")
    (run / "pictures.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"pictures\.npz: cannot be read"):
        write_report(run)
    (run / "pictures.npz").unlink()
    with pytest.raises(UserError, match=r"no pictures\.npz"):
        write_figure(run, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_the_command_writes_page_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", str(run), "--figure", str(tmp_path / "faces.png")]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html"), str(tmp_path / "faces.png")]
