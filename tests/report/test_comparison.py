"""Many runs as one table: true to their summaries, paired, and one line where they are not there."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from sample_runs import write_run

from mefar.__main__ import main
from mefar.loso.results import read_run
from mefar.report import comparison


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A run, the same with every answer wrong, and one of another protocol."""
    folders = [write_run(tmp_path / name) for name in ("tokens", "wrong", "other")]
    path = folders[1] / "predictions.csv"
    rows = list(csv.DictReader(path.open()))
    for row in rows:
        row["last"] = str((int(row["label"]) + 1) % 3)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for folder, changes in (
        (folders[1], {"method": "mefar.baselines.ststnet.STSTNet"}),
        (folders[2], {"protocol": "samm"}),
    ):
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | changes))
    return folders


def test_a_table_says_what_the_summaries_say(runs: list[Path], tmp_path: Path) -> None:
    found = comparison.blocks(runs)
    assert [[row.name for row in block.rows] for block in found] == [
        [f"{comparison.method_name(read_run(runs[0]))} (tokens)", "STSTNet"],
        [f"{comparison.method_name(read_run(runs[0]))} (other)"],
    ]
    scores = read_run(runs[0]).summary["scores"]
    assert comparison.cells(found[0])[0][1].startswith(
        f"{scores['last']['full']['uf1']:.3f}".removeprefix("0")
    )
    comparison.write(found, tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    for row in rows:
        own = read_run(tmp_path / row["run"]).summary["scores"][row["selection"]][row["place"]]
        assert float(row["uf1"]) == own["uf1"] and float(row["uar"]) == own["uar"]
    assert len(rows) == 3 * sum(len(places) for places in scores.values())


def test_worse_beyond_a_choice_of_subjects_is_marked(runs: list[Path]) -> None:
    first, wrong = comparison.blocks(runs)[0].rows
    assert (first.mark, wrong.mark) == ("", "-")
    second, better = comparison.blocks([runs[1], runs[0]])[0].rows
    assert (second.mark, better.mark) == ("", "+")


def test_markdown_and_latex_have_the_same_cells(runs: list[Path]) -> None:
    found = comparison.blocks(runs)
    text, tex = comparison.markdown(found), comparison.latex(found)
    for block in found:
        for line in comparison.cells(block):
            assert f"| {' | '.join(line)} |" in text
    assert tex.count(r"\begin{tabular}") == 2
    assert "STSTNet" in tex and r"95 \%" in tex
    assert "oracle* leaks" in text


def test_the_command_prints_writes_and_draws(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run) for run in runs]
    assert main(["table", *words, "--out", str(tmp_path / "a.md"), "--chart", str(tmp_path / "charts")]) == 0
    assert "STSTNet" in capsys.readouterr().out and "STSTNet" in (tmp_path / "a.md").read_text()
    assert len(list((tmp_path / "charts").glob("oracle_*"))) == 4


def test_what_is_no_run_is_said_in_a_line(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", str(tmp_path / "nothing")]) == 2
    assert main(["table", str(runs[0]), "--out", str(tmp_path / "a.docx")]) == 2
    (tmp_path / "notes.md").write_text("mine")
    assert main(["table", str(runs[0]), "--out", str(tmp_path / "notes.md")]) == 2
    assert (tmp_path / "notes.md").read_text() == "mine"
    summary = json.loads((runs[0] / "summary.json").read_text())
    (runs[0] / "summary.json").write_text(json.dumps(summary | {"control": "shuffled"}))
    assert main(["table", str(runs[0])]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 4 and "shuffled" in lines[3] and "a.docx" in lines[1]
    assert "notes.md: a folder, or holds something else" in lines[2]
    assert not (tmp_path / "a.docx").exists()
