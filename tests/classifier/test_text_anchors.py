"""Text anchors: data that a file keeps whole, made by any text tower; and EDCLIP on top of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mefar.classifier.text_anchors import (
    SHIPPED_ANCHORS,
    UNDESCRIBED,
    Anchors,
    Description,
    encode_descriptions,
    read_descriptions,
)
from mefar.errors import UserError

PROTOCOLS = {
    "composite": ("negative", "positive", "surprise"),
    "casme2": ("happiness", "disgust", "repression", "surprise", "others"),
    "samm": ("happiness", "contempt", "anger", "surprise", "others"),
    "smic": ("negative", "positive", "surprise"),
    "casme3": ("negative", "positive", "surprise", "others"),
}
WORDS = [
    "a",
    "an",
    "the",
    "happy",
    "sad",
    "face",
    "with",
    "lip",
    "corners",
    "up",
    "down",
    "brows",
    "raised",
    "and",
    ".",
    ",",
]


def made() -> Anchors:
    rows = (
        Description("any", "happy", "up"),
        Description("any", "sad", "down"),
        Description("x", "sad", "far down"),
    )
    vectors = torch.nn.functional.normalize(
        torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    return Anchors(rows, vectors, "toy tower")


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
        (
            "protocol,class,description\nany,happy,a\nany,happy,a\n",
            "row 3: any/happy has this sentence twice",
        ),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_descriptions(path)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such description file"):
        read_descriptions(tmp_path / "none.csv")


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


def test_files_that_are_no_anchors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "anchors.safetensors"
    with pytest.raises(UserError, match="no such anchors file"):
        Anchors.load(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="not an anchors file"):
        Anchors.load(path)
    save_file({"vectors": torch.zeros(2, 3)}, path)
    with pytest.raises(UserError, match="not an anchors file"):
        Anchors.load(path)


def test_a_file_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "anchors.safetensors"
    made().save(path)
    vectors = load_file(path)["vectors"]
    rows = [
        {"protocol": d.protocol, "class": d.class_name, "description": d.sentence}
        for d in made().descriptions
    ]
    metadata = {"text_model": "toy tower", "sha256": made().sha256, "descriptions": json.dumps(rows)}
    save_file({"vectors": vectors}, path, metadata)
    assert Anchors.load(path).text_model == "toy tower"
    save_file({"vectors": -vectors}, path, metadata)
    with pytest.raises(UserError, match="does not match its hash"):
        Anchors.load(path)


# Selection


def test_selection_follows_the_classes_and_prefers_the_protocols_own_sentence() -> None:
    anchors = made()
    vectors, described = anchors.select("y", ("sad", "others", "happy"))
    assert described.tolist() == [True, False, True]
    torch.testing.assert_close(vectors, torch.stack([anchors.vectors[1], torch.zeros(5), anchors.vectors[0]]))
    vectors, _ = anchors.select("x", ("sad",))
    torch.testing.assert_close(vectors[0], anchors.vectors[2])


def test_sentences_of_a_class_are_averaged_and_centring_moves_classes_apart() -> None:
    rows = [Description("any", name, text) for name in ("happy", "sad") for text in ("a", "b")]
    vectors = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.2, 0.0], [1.0, 0.0, 0.2], [1.0, -0.2, 0.0], [1.0, 0.0, -0.2]]), dim=1
    )
    anchors = Anchors(tuple(rows), vectors, "toy tower")
    plain, _ = anchors.select("any", ("happy", "others", "sad"))
    expected = torch.nn.functional.normalize(torch.tensor([1.0, 0.1, 0.1]), dim=0)
    torch.testing.assert_close(plain[0], expected)
    centred, described = anchors.select("any", ("happy", "others", "sad"), centred=True)
    assert float(plain[0] @ plain[2]) > 0.9
    assert float(centred[0] @ centred[2]) == pytest.approx(-1)
    assert described.tolist() == [True, False, True] and not centred[1].any()
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
    vectors, described = anchors.select(protocol, PROTOCOLS[protocol])
    torch.testing.assert_close(vectors.norm(dim=1), described.float())
    known = vectors[described]
    assert float((known @ known.T - torch.eye(len(known))).max()) < 0.95, "anchors must differ"
    assert set(anchors.descriptions) == set(read_descriptions()), "run `mefar anchors` again"


# Text towers


@pytest.fixture(scope="module", params=["bert", "clip", "siglip"])
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random text tower with its tokenizer, saved as transformers saves them."""
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    if request.param == "bert":
        config = transformers.BertConfig(**sizes, intermediate_size=16)
        transformers.BertModel(config).save_pretrained(folder)
    elif request.param == "siglip":
        config = transformers.SiglipTextConfig(**sizes, intermediate_size=16, projection_size=16)
        transformers.SiglipTextModel(config).save_pretrained(folder)
        told = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
        told.save_pretrained(folder)
    else:
        text = transformers.CLIPTextConfig(
            **sizes, intermediate_size=16, projection_dim=12, eos_token_id=3, bos_token_id=2, pad_token_id=0
        )
        transformers.CLIPTextModelWithProjection(text).save_pretrained(folder)
    return folder


def test_any_tower_gives_unit_vectors_that_do_not_depend_on_company(tower: Path) -> None:
    short, long = "a happy face .", "a sad face with brows raised and lip corners down ."
    both = encode_descriptions(str(tower), [short, long])
    assert both.shape == (2, 12 if "clip" in tower.name else 16)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encode_descriptions(str(tower), [short])[0], both[0], atol=1e-5, rtol=0)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_a_missing_tower_is_one_line(tmp_path: Path) -> None:
    for name in ("nobody/no-such-tower", str(tmp_path)):
        with pytest.raises(UserError, match="not on this machine") as caught:
            encode_descriptions(name, ["a"])
        assert "\n" not in str(caught.value)
