"""The page of a run: complete, self-contained, true to its files, and one line when they are not there."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pages import Page, check_alone, part, words
from PIL import Image
from places import ROOT
from sample_runs import CLASSES, SUBJECTS, write_run

from mefar.__main__ import main
from mefar.errors import UserError
from mefar.loso.results import ordered, read_predictions, read_run, worst_mistakes
from mefar.report import figures
from mefar.report.loso_page import charts, write_figures, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = ROOT / "mefar" / "report" / "templates"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "loso-composite")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def told(folder: Path, **changes: object) -> str:
    """The page of a run without charts and pictures: `changes` of its summary."""
    write_run(folder, pictures={}, **changes)
    for name in ("predictions.csv", "confusion.json", "attention.json", "pictures.npz"):
        (folder / name).unlink()
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page: str) -> None:
    seen = check_alone(page)
    assert seen.tags.count("img") == 5 * (len(SUBJECTS) + 8)
    assert "prefers-color-scheme: dark" in page


def test_links_are_found_where_there_are_some() -> None:
    with pytest.raises(AssertionError):
        check_alone('<style></style><a href="https://mefar.example">elsewhere</a>')
    assert Page("<rect style='fill: url(https://mefar.example/x)'/>").links == ["https://mefar.example/x"]
    assert Page("<p>http and https are words</p>").links == []


def test_the_same_run_is_the_same_bytes(run: Path, tmp_path: Path, page: str) -> None:
    shutil.copytree(run, tmp_path / "copy")
    assert write_report(tmp_path / "copy").read_text(encoding="utf-8") == page


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
    bare = told(tmp_path / "run", intervals={})
    assert "draws of the subjects" not in bare and "±" not in bare and "–" not in bare.partition("<body>")[2]


def test_published_numbers_stand_beside_composite_only(run: Path, page: str, tmp_path: Path) -> None:
    assert "D-FACE 2026 0.894 0.897 0.974 0.975 0.842 0.848 0.872 0.851 oracle" in words(page)
    assert "Not comparable: this run has" in words(page)
    other = told(tmp_path / "casme2", protocol="casme2")
    assert "D-FACE" not in other


def test_the_official_composite_is_called_comparable(tmp_path: Path) -> None:
    counts = {
        name: {"clips": clips, "subjects": subjects, "classes": {}}
        for name, clips, subjects in (("casme2", 145, 24), ("smic", 164, 16), ("samm", 133, 28))
    }
    page = told(tmp_path / "run", counts=counts)
    assert "Not comparable" not in page


def test_a_tokenizer_that_saw_the_test_faces_is_called_out(page: str, tmp_path: Path) -> None:
    assert "was pretrained on" not in page
    tokenizer = {"checkpoint": "x.ckpt", "sha256": "0", "pretrained_on": "casme2 and voxceleb"}
    leaky = words(told(tmp_path / "run", tokenizer=tokenizer))
    assert "The tokenizer was pretrained on casme2 and voxceleb" in leaky


def test_shuffled_labels_are_called_out(page: str, tmp_path: Path) -> None:
    assert "were shuffled" not in page
    control = write_report(write_run(tmp_path / "run", control="shuffled")).read_text(encoding="utf-8")
    assert "A control: the labels of this run were shuffled." in control


def test_several_seeds_show_their_spread(tmp_path: Path) -> None:
    cell = {"uf1": 0.5, "uf1_std": 0.0312, "uar": 0.6, "uar_std": 0.01}
    page = told(tmp_path / "run", seeds=[0, 1, 2], scores={"last": {"full": cell}})
    assert "0.500 ± 0.031" in words(page)
    assert "means over 3 seeds, ± their standard deviation" in words(page)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_confusion_counts_are_drawn(run: Path, page: str) -> None:
    matrix = json.loads((run / "confusion.json").read_text())["last"]["full"]
    drawn = figures.confusion(matrix, CLASSES)
    counts = [f"{count}" for row in matrix for count in row]
    shares = [f"{count / sum(row):.0%}" for row in matrix for count in row]
    assert texts(drawn) == [text for pair in zip(counts, shares, strict=True) for text in pair]
    strength = [cell.get_facecolor()[3] for cell in drawn.axes[0].patches]
    assert max(strength) == strength[int(np.argmax(np.array(matrix) / np.sum(matrix, 1, keepdims=True)))]
    shown = words(part(page, "Confusion"))
    assert all(text in shown for text in (*counts, *shares, *CLASSES, "predicted", "annotated"))
    assert texts(figures.confusion([[0, 0], [1, 3]], ["a", "b"])) == ["0", "none"] * 2 + [
        "1",
        "25%",
        "3",
        "75%",
    ]


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
    assert "clips of the shuffled class" in words(control)
    assert "Rows are shuffled labels, columns predicted" in control


def cells(figure: Figure) -> list[tuple[float, ...]]:
    return [cell.get_facecolor() for cell in figure.axes[0].patches]


def test_attention_is_drawn_against_the_uniform_share(run: Path, page: str) -> None:
    shares = json.loads((run / "attention.json").read_text())["casme2"][2]
    assert f"<title>surprise, token 3: {shares[3]:.1%} (uniform 6.2%)</title>" in page
    assert "no clips" in part(page, "Attention over tokens")  # smic has none of one class
    flat, (red, blue, *_) = np.split(
        np.array(cells(figures.attention([[0.25] * 4, [1, 0, 0, 0]], ["a", "b"]))), 2
    )
    assert (flat[:, 3] == 0).all() and red[3] == blue[3] == 1
    assert red[0] > red[2] and blue[0] < blue[2]
    assert "do not tell classes apart" not in page


def test_attention_that_is_as_good_as_uniform_is_called_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "attention.json").write_text(json.dumps({"full": [[0.26, 0.24, 0.25, 0.25], [0.25] * 4, None]}))
    shown = part(write_report(run).read_text(encoding="utf-8"), "Attention over tokens")
    assert "No mean weight is further than 4.2% from the uniform share" in words(shown)
    assert shown.count("<svg") == 1 and "full colour is 1.1 times" in words(shown)


def test_heads_without_attention_have_a_page(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "attention.json").write_text("{}")
    assert "Attention" not in words(write_report(tmp_path / "run").read_text(encoding="utf-8"))


def test_one_database_has_one_row_by_its_own_name(tmp_path: Path) -> None:
    counts = {"samm": {"clips": 86, "subjects": 8, "classes": {}}}
    both = {"full": {"uf1": 0.5, "uar": 0.6}, "samm": {"uf1": 0.5, "uar": 0.6}}
    page = told(tmp_path / "run", protocol="samm", counts=counts, scores={"last": both})
    assert "SAMM 86 0.500" in words(part(page, "Scores")) and "Full" not in words(page)
    assert "databases of the protocol" not in page and "restricted" not in page


def test_inner_selection_is_explained_where_it_is_shown(page: str, tmp_path: Path) -> None:
    assert "held out from a second model" not in words(page)
    cell = {"full": {"uf1": 0.5, "uar": 0.6}}
    inner = told(tmp_path / "run", scores={"last": cell, "oracle": cell, "inner": cell})
    assert "held out from a second model" in words(inner)
    assert words(part(inner, "Next to published numbers")).count("this run") == 3 + 1  # and in the warning


def test_code_usage_and_perplexity(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pictures={})
    np.savez(run / "pictures.npz", usage=np.array([50, 50, 50, 50, 0, 0, 0, 0]))
    text = words(write_report(run).read_text(encoding="utf-8"))
    assert "4 of 8 codes are used on these clips; perplexity 4.0 of 8 over 200 tokens." in text


def test_what_files_say_cannot_become_markup(tmp_path: Path) -> None:
    """Every text of every file of a run, and every key that is a name, tries to become a tag."""
    count = itertools.count()

    def hostile() -> str:
        return (
            f"""$x_{next(count)}_y$</title></style></svg><evil on="1">&lt;evil&gt; " on='2' ' on="3" -->\\"""
        )

    names = [hostile() for _ in CLASSES]
    place, subject, clip = hostile(), hostile().replace("/", ""), hostile()
    cell = {"uf1": 0.5, "uar": 0.6}
    run = write_run(
        tmp_path / "run",
        pictures={},
        protocol=hostile(),
        classes=names,
        scores={"last": {"full": cell, place: cell, hostile(): cell}, "oracle": {place: cell}},
        intervals={"last": {"full": {"uf1": [0.1, 0.9], "uar": [0.1, 0.9]}}},
        controls={hostile(): {place: cell}},
        counts={
            place: {"clips": 3, "subjects": 2, "classes": {names[0]: 3}},
            "samm": {"clips": 1, "subjects": 1},
        },
        notes=[[hostile(), hostile()], [f"samm/{hostile()}", hostile()]],
        findings=[
            dict.fromkeys(("kind", "database", "clip", "detail", "file"), hostile()) | {"level": "lost"}
        ],
        left_out=[[hostile(), hostile()]],
        tokenizer={"checkpoint": hostile(), "sha256": hostile(), "pretrained_on": f"samm {hostile()}"},
        head={hostile(): hostile()},
        training={hostile(): [hostile()]},
        adapt_tokenizer=0.1,
        **{name: hostile() for name in ("command", "commit", "apex", "views", "edclip", "mefar")},
    )
    matrix = {"full": [[1, 2, 3]] * 3, place: [[1, 0, 0]] * 3}
    (run / "confusion.json").write_text(json.dumps({"last": matrix}))
    (run / "attention.json").write_text(json.dumps({place: [[0.25, 0.75], None, [0.5, 0.5]]}))
    with (run / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["database", "subject", "clip", "seed", "label", "last", *(f"p_{name}" for name in names)]
        )
        table.writerow([place.replace("/", ""), subject, clip, 0, 0, 1, 0.1, 0.8, 0.1])
    text = write_report(run).read_text(encoding="utf-8")
    page = check_alone(text)
    assert "evil" not in page.tags and "on" not in dict(page.attributes)
    shown = {int(number) for number in re.findall(r"x_(\d+)_y", text)}
    assert shown == set(range(next(count)))  # nothing was left out, so everything was tried
    assert not re.search(
        r"\|\s*safe|autoescape false", "".join(p.read_text() for p in TEMPLATES.glob("*.html"))
    )
    for path in write_figures(run, tmp_path / "figures"):
        assert path.parent == tmp_path / "figures" and path.is_file()


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("summary.json", ("scores", "last", "samm", "uf1")),
        ("summary.json", ("controls", "pixels", "full", "uar")),
        ("summary.json", ("intervals", "last", "full", "uf1")),
        ("summary.json", ("counts", "samm", "clips")),
        ("summary.json", ("counts", "samm", "classes", "positive")),
        ("summary.json", ("seeds",)),
        ("summary.json", ("findings",)),
        ("summary.json", ("wall_seconds",)),
        ("confusion.json", ("last", "full")),
        ("attention.json", ("full",)),
    ],
)
def test_what_has_not_its_form_is_one_line(tmp_path: Path, file: str, keys: tuple[str, ...]) -> None:
    run = write_run(tmp_path / "run", pictures={})
    content = json.loads((run / file).read_text())
    inside = content
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = "<b>0.5</b>"
    (run / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{file}: {'.'.join(keys)}: Input should be a valid .*; run `mefar"):
        write_report(run)


def test_tables_of_other_classes_are_one_line(tmp_path: Path) -> None:
    for file, content in (
        ("attention.json", {"full": [[0.5, 0.5], None]}),
        ("confusion.json", {"last": {"full": [[1, 2, 3], [1, 2, 3], [1, 2]]}}),
    ):
        run = write_run(tmp_path / "run", pictures={})
        (run / file).write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"{file}: not of the 3 classes of summary\.json"):
            write_report(run)


def test_remarks_of_the_loaders_are_passed_on(tmp_path: Path) -> None:
    notes = [["smic", "164 of 164 apexes from the middle"], ["samm/006/006_1_2", "apex not annotated"]]
    left_out = [["samm/6/a", "emotion other"], ["samm/6/b", "emotion other"]]
    twice = {"level": "warning", "kind": "coding file", "database": "samm", "clip": "samm/7/c",
             "detail": "listed twice", "file": "codes.xlsx", "row": 17}  # fmt: skip
    page = words(told(tmp_path / "run", notes=notes, findings=[twice], left_out=left_out))
    assert "samm/7/c coding file listed twice codes.xlsx, row 17" in page
    assert "2 × emotion other" in page and "2 clips left out samm/6/a emotion other" in page
    assert "SMIC-HS: 164 of 164 apexes from the middle" in page
    assert "samm/006/006_1_2 apex not annotated" in page
    assert "2 annotated clips left out by the protocol's rule" in page


def test_optional_files_may_be_absent(tmp_path: Path) -> None:
    page = told(tmp_path / "run", controls=None, findings=[])
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


def test_figures_are_ready_for_a_paper(tmp_path: Path) -> None:
    counts = {"samm": {"clips": 86, "subjects": 2, "classes": {}}}
    run = write_run(tmp_path / "run", counts=counts)
    rows = (run / "predictions.csv").read_text().splitlines()
    (run / "predictions.csv").write_text(
        "\n".join([rows[0], *(row for row in rows if row.startswith("samm"))])
    )
    written = write_figures(run, tmp_path / "figures")
    names = {"confusion_full", "attention_full", "codes", "subjects_samm", "pictures"}
    assert {path.name for path in written} == {f"{name}.{end}" for name in names for end in ("pdf", "png")}
    for path in written:
        if path.suffix == ".pdf":
            content = path.read_bytes()
            assert b"/FontFile2" in content and b"/Type3" not in content and b"CreationDate" not in content
            left, _, right, _ = map(float, re.search(rb"/MediaBox \[([^]]*)\]", content)[1].split())  # type: ignore[index]
            with Image.open(path.with_suffix(".png")) as image:
                assert image.width == pytest.approx((right - left) / 72 * 300, abs=2)
            if path.stem != "pictures":
                assert right - left <= 3.6 * 72  # a column of a paper
    with Image.open(tmp_path / "figures" / "pictures.png") as image:
        assert image.width > 5 * 0.95 * 300 and image.height < 400  # one database, five pictures
    again = figures.save({"codes": charts(read_run(run), paper=True)["codes"]}, tmp_path / "again")
    for path in again:
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes()


def test_matplotlib_is_imported_by_the_first_chart_only() -> None:
    program = "import sys, mefar.report.loso_page, mefar.report.training_page as _; "
    program += "print({'matplotlib', 'torch'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"


def test_the_users_own_style_neither_changes_charts_nor_is_changed(
    run: Path, tmp_path: Path, page: str
) -> None:
    import matplotlib

    shutil.copytree(run, tmp_path / "copy")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert write_report(tmp_path / "copy").read_text(encoding="utf-8") == page
        assert matplotlib.rcParams["font.size"] == 30


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert re.fullmatch(r"mefar report: error: .*: holds neither a LOSO run .*\n", capsys.readouterr().err)
    with pytest.raises(UserError, match=r"summary\.json: no such file"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="Invalid JSON: EOF"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="protocol: Field required; run `mefar loso` again"):
        write_report(tmp_path)
    run = write_run(tmp_path / "run")
    (run / "pictures.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"pictures\.npz: cannot be read"):
        write_report(run)


def test_the_command_writes_page_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", pictures={}, counts={"samm": {"clips": 8, "subjects": 2}})
    for name in ("predictions.csv", "confusion.json", "attention.json"):
        (run / name).unlink()
    assert main(["report", str(run), "--figures", str(tmp_path / "all")]) == 0
    names = [tmp_path / "all" / name for name in ("codes.pdf", "codes.png")]
    assert capsys.readouterr().out.split() == [str(run / "report.html"), *map(str, names)]
    assert sorted((tmp_path / "all").iterdir()) == names
