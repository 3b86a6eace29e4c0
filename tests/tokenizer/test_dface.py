"""The importer: every entry accounted for, every size read, nothing unsafe or unfit let in."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mefar.__main__ import main
from mefar.errors import UserError
from mefar.tokenizer import import_dface as dface
from mefar.tokenizer import module as tokenizer
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.published_network import PUBLISHED_BOTTLENECKS, PublishedNetwork

State = dict[str, torch.Tensor]
SIZES = {
    "image_size": 64, "patch_size": 4, "num_codes": 8, "num_tokens": 16,
    "code_dim": 6, "dim": 12, "spatial_depth": 2, "temporal_depth": 1, "heads": 3, "head_dim": 4,
}  # fmt: skip


def published_state(settings: dict[str, object]) -> tuple[PublishedNetwork, State]:
    """A random network of some sizes and the file that the published code would have written of it."""
    codec = PublishedNetwork(**settings).eval()
    own = codec.state_dict()
    state: State = {}
    for published, ours in dface.published_names(settings).items():
        if ours is not None:
            state[published] = own[ours].clone()
        elif published.endswith("null_kv"):
            state[published] = torch.zeros(settings["heads"], 0, settings["head_dim"])
        elif published.endswith("gamma"):
            state[published] = torch.rand(settings["dim"])  # of a norm that is never applied
        else:
            state[published] = torch.zeros(settings["dim"])
    return codec, state


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return published_state(SIZES)[1]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    def to_file(content: object) -> Path:
        torch.save(content, tmp_path / "published.pt")
        return tmp_path / "published.pt"

    return to_file


def refusal(path: Path, **arguments: int) -> str:
    with pytest.raises(UserError) as caught:
        dface.load_tokenizer(path, **({"image_size": 64} | arguments))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@given(
    st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2),
    st.integers(1, 3), st.integers(2, 9), st.integers(1, 7),
    st.sampled_from(sorted(PUBLISHED_BOTTLENECKS)),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_every_size_is_read_off_the_file(
    patch: int,
    heads: int,
    depth: int,
    temporal: int,
    third: int,
    codes: int,
    width: int,
    book: tuple[int, int],
) -> None:
    side, tokens = book
    sizes = SIZES | {
        "image_size": side * patch, "patch_size": patch, "heads": heads, "spatial_depth": depth,
        "temporal_depth": temporal, "dim": 3 * third, "head_dim": 2 * third, "num_codes": codes,
        "code_dim": width, "num_tokens": tokens,
    }  # fmt: skip
    with torch.device("meta"):
        state = published_state(sizes)[1]
    assert dface.infer_settings(state, Path("x.pt"), side * patch) == sizes


def published_bottleneck(state: State, frames: torch.Tensor, tokens: int) -> torch.Tensor:
    """What the published code computes from patch vectors (B, d, h, w), count by count."""
    first, second = ((state[f"vq.cnn_encoder.{n}.weight"], state[f"vq.cnn_encoder.{n}.bias"])
                     if f"vq.cnn_encoder.{n}.weight" in state else None for n in (0, 2))  # fmt: skip
    assert first is not None
    cells = torch.conv2d(frames, *first, stride=2, padding=1)
    if second is not None:
        stride, padding = (2, 1) if tokens == 16 else (1, 0)
        cells = torch.conv2d(cells.relu(), *second, stride=stride, padding=padding)
    return cells.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("side", "tokens"), sorted(PUBLISHED_BOTTLENECKS))
def test_published_token_counts_compute_what_they_computed_there(
    side: int, tokens: int, write: Callable[[object], Path]
) -> None:
    torch.manual_seed(tokens)
    codec, state = published_state(SIZES | {"image_size": 4 * side, "num_tokens": tokens})
    model = dface.load_tokenizer(write(state), 4 * side)
    assert isinstance(model.network, PublishedNetwork) and model.num_tokens == tokens
    patches = torch.rand(2, side**2, 12)
    projected = torch.nn.functional.linear(
        patches, state["vq.project_in.weight"], state["vq.project_in.bias"]
    )
    frames = projected.transpose(1, 2).unflatten(2, (side, side))
    with torch.no_grad():
        expected = published_bottleneck(state, frames, tokens)
        assert expected.shape == (2, tokens, 6)
        torch.testing.assert_close(model.network.bottleneck(patches), expected)
        onset, apex = torch.rand(2, 1, 3, 4 * side, 4 * side)
        assert torch.equal(model.network.encode(onset, apex), codec.encode(onset, apex))


def test_all_weights_arrive_at_another_image_size_too(write: Callable[[object], Path]) -> None:
    codec, state = published_state(SIZES)
    weights = dict(dface.load_tokenizer(write(state), 32, num_tokens=4).network.named_parameters())
    for name, weight in codec.named_parameters():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize("prefix", ["", "module.", "tokenizer.", "module.tokenizer."])
@pytest.mark.parametrize("kind", ["flat", "model", "state_dict", "safetensors"])
def test_where_the_weights_may_lie(prefix: str, kind: str, state: State, tmp_path: Path) -> None:
    named: dict[str, object] = {prefix + name: value for name, value in state.items()}
    path = tmp_path / "published.pt"
    if kind == "safetensors":
        path = tmp_path / "published.safetensors"
        save_file({name: value.contiguous() for name, value in named.items()}, path)
    elif kind == "flat":
        torch.save(
            named | {"optimizer": {"lr": 1.0}, "optim.state.0.exp_avg": torch.ones(3), "steps": 7}, path
        )
    else:
        torch.save({kind: named, "optim": {"state": {0: torch.ones(2)}}, "scheduler": None, "epoch": 3}, path)
    model = dface.load_tokenizer(path, 64)
    assert torch.equal(model.network.vq.codebook, state["vq.codebooks"])
    assert not model.training


def test_other_parts_of_a_bundle_are_passed_over_by_name(
    state: State, write: Callable[[object], Path]
) -> None:
    bundle = {f"tokenizer.{name}": value for name, value in state.items()}
    assert dface.load_tokenizer(write(bundle | {"classifier.pos_embed": torch.ones(2)}), 64).num_codes == 8
    assert "'classifier.pos_embed'" in refusal(write(state | {"classifier.pos_embed": torch.ones(2)}))
    assert "'renderer.weight'" in refusal(write(bundle | {"renderer.weight": torch.ones(2)}))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_files_of_other_precision_become_float32(
    kind: torch.dtype, state: State, write: Callable[[object], Path]
) -> None:
    model = dface.load_tokenizer(write({name: value.to(kind) for name, value in state.items()}), 64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def head_state() -> State:
    return {"pos_embed": torch.rand(1, 16, 4), "token_embed.weight": torch.rand(4, 12)}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_both_halves_of_a_published_training_are_found(
    prefix: str, state: State, write: Callable[[object], Path]
) -> None:
    """Published scripts write the classifier as `model` and the tokenizer as `laq`."""
    tokens, head = ({prefix + name: value for name, value in half.items()} for half in (state, head_state()))
    path = write({"model": head, "laq": tokens, "epoch": 7, "optimizer": {"lr": 1.0}})
    found, classifier = dface.read_halves(path)
    assert found.keys() == state.keys() and classifier.keys() == head_state().keys()
    assert torch.equal(dface.load_tokenizer(path, 64).network.vq.codebook, state["vq.codebooks"])
    assert dface.read_halves(write({"laq": tokens}))[1] == {}
    assert "'critic' is unknown beside the weights in 'laq' and 'model'" in refusal(
        write({"model": head, "laq": tokens, "critic": {}})
    )


def test_of_a_moving_average_the_average_is_read(state: State, write: Callable[[object], Path]) -> None:
    averaged = {f"ema_model.{name}": value for name, value in state.items()}
    other = {f"online_model.{name}": value + 1 for name, value in state.items()}
    counters = {"initted": torch.tensor(True), "step": torch.tensor(10)}
    for content in (averaged | other | counters, {"state_dict": averaged | counters}):
        model = dface.load_tokenizer(write(content), 64)
        assert torch.equal(model.network.vq.codebook, state["vq.codebooks"])
    assert "'critic'" in refusal(write(averaged | {"critic.weight": torch.ones(1)}))


def test_an_unknown_entry_is_named(state: State, write: Callable[[object], Path]) -> None:
    for name in ("vq.codebook_ema", "enc_spatial_transformer.layers.0.2.to_q.weight", "discriminator"):
        assert repr(name) in refusal(write(state | {name: torch.ones(2)}))
    assert "'settings'" in refusal(write(dict(state) | {"settings": {"dim": 12}}))
    assert "'ema_model'" in refusal(write({"model": state, "ema_model": {}}))


@pytest.mark.parametrize(
    "name",
    ["vq.codebooks", "to_pixels_first_frame.0.bias", "dec_spatial_transformer.layers.1.2.null_kv",
     "enc_temporal_transformer.norm_out.gamma", "enc_spatial_transformer.layers.0.1.q_scale",
     "to_patch_emb_first_frame.2.weight", "vq.cnn_encoder.0.bias"],
)  # fmt: skip
def test_a_missing_entry_is_named(name: str, state: State, write: Callable[[object], Path]) -> None:
    del state[name]
    assert name in refusal(write(state))


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("vq.codebooks", torch.rand(8, 5), "other sizes"),
        ("vq.codebooks", torch.rand(8), "dimensions"),
        ("vq.codebooks", torch.rand(1, 6), "num_codes"),
        ("vq.codebooks", torch.full((8, 6), float("nan")), "not finite"),
        ("vq.codebooks", torch.full((8, 6), 1e300, dtype=torch.float64), "not finite float32"),
        ("vq.codebooks", torch.ones(8, 6, dtype=torch.int64), "not finite"),
        ("vq.codebooks", torch.ones(1).expand(10**9, 6), "not stored in full"),
        ("vq.codebooks", torch.eye(8, 6).to_sparse(), "not stored in full"),
        ("to_patch_emb_first_frame.2.weight", torch.rand(12, 47), "square patches"),
        ("to_patch_emb_first_frame.2.weight", torch.rand(13, 48), "other sizes"),
        ("enc_spatial_transformer.layers.0.1.q_scale", torch.rand(5), "no multiple"),
        ("dec_spatial_transformer.layers.1.3.1.weight", torch.rand(4, 4), "other sizes"),
        ("vq.cnn_encoder.2.weight", torch.rand(5, 6, 4, 4), "other sizes"),
        ("vq.cnn_encoder.2.weight", torch.rand(6, 6, 5, 5), "3x3 and 5x5"),
        ("enc_temporal_transformer.norm_out.beta", torch.ones(12), "not zero"),
        ("enc_temporal_transformer.layers.0.1.null_kv", torch.rand(3, 4, 4), "not empty"),
    ],
)
def test_a_file_that_lies_about_a_size(
    name: str, tensor: torch.Tensor, words: str, state: State, write: Callable[[object], Path]
) -> None:
    message = refusal(write(state | {name: tensor}))
    assert words in message


def test_depths_that_differ(state: State, write: Callable[[object], Path]) -> None:
    fewer = {
        name: value
        for name, value in state.items()
        if not name.startswith("dec_spatial_transformer.layers.1.")
    }
    assert "differ in depth" in refusal(write(fewer))
    gap = {name.replace("enc_temporal_transformer.layers.0.", "enc_temporal_transformer.layers.5."): value
           for name, value in state.items()}  # fmt: skip
    assert "layers.5." in refusal(write(gap))


def test_arguments_that_do_not_fit(state: State, write: Callable[[object], Path]) -> None:
    path = write(state)
    assert "62" in refusal(path, image_size=62)
    for tokens in (9, 0, 4):
        assert "on 16x16 patches (image size 64): that makes 16 tokens" in refusal(path, num_tokens=tokens)
    assert "on 12x12 patches (image size 48): that is no published" in refusal(path, image_size=48)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "old", "bare", "renamed"])
def test_a_malicious_pickle_is_refused_and_not_run(form: str, state: State, tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "was_here"
    content = {"model": state, "optim": Hostile(marker)}
    if form == "bare":
        path.write_bytes(pickle.dumps({"optim": Hostile(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    if form == "renamed":
        path = path.rename(tmp_path / "evil.safetensors")
    message = refusal(path)
    assert ("refused" in message) == (form != "renamed")
    assert not marker.exists()


def test_files_that_are_no_checkpoint(state: State, tmp_path: Path, write: Callable[[object], Path]) -> None:
    assert "no such" in refusal(tmp_path / "missing.pt")
    assert "is a folder" in refusal(tmp_path)
    for suffix in (".pt", ".safetensors"):
        for content in (b"", b"hello, this is text", bytes(200)):
            path = tmp_path / f"junk{suffix}"
            path.write_bytes(content)
            refusal(path)
    whole = write(state).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    refusal(tmp_path / "cut.pt")
    assert "list" in refusal(write([1, 2]))
    assert "missing" in refusal(write({}))
    assert "already" in refusal(write({"state_dict": state, "hyper_parameters": {"num_codes": 8}}))
    assert "twice" in refusal(
        write({"vq.codebooks": torch.ones(2, 2), "module.vq.codebooks": torch.ones(2, 2)})
    )
    assert "several" in refusal(write({"model": state, "state_dict": state}))


def test_the_command_writes_a_normal_checkpoint(
    state: State, tmp_path: Path, write: Callable[[object], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(state), tmp_path / "new/folder/dface.ckpt"
    assert main(["import-dface", str(path), str(out), "--image-size", "64"]) == 0
    assert "16 tokens from 8 codes of 6" in capsys.readouterr().out
    onset, apex = torch.rand(2, 2, 3, 64, 64)
    expected = dface.load_tokenizer(path, 64).tokenize(onset, apex)
    for model in (
        tokenizer.load(out),
        FacialActionTokenizer.load_from_checkpoint(out, map_location="cpu").eval(),
    ):
        assert torch.equal(model.tokenize(onset, apex).embeddings, expected.embeddings)
    assert [file.name for file in out.parent.iterdir()] == ["dface.ckpt"]
    assert main(["import-dface", str(path), str(out), "--image-size", "64"]) == 0, "the same file again"


def test_nothing_that_is_there_is_destroyed(
    state: State, tmp_path: Path, write: Callable[[object], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(state)
    before = path.read_bytes()
    assert main(["import-dface", str(path), str(path), "--image-size", "64"]) == 2
    assert f"{path}: is there already" in capsys.readouterr().err
    assert path.read_bytes() == before
    other = tmp_path / "mine.txt"
    other.write_text("mine")
    assert main(["import-dface", str(path), str(other), "--image-size", "64"]) == 2
    assert other.read_text() == "mine"


def test_the_command_ends_a_mistake_in_one_line(
    state: State, tmp_path: Path, write: Callable[[object], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(state | {"odd": torch.ones(1)}), tmp_path / "out.ckpt"
    assert main(["import-dface", str(path), str(out), "--image-size", "64"]) == 2
    assert "'odd'" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not out.exists()
    good = write(state)
    assert main(["import-dface", str(good), str(tmp_path), "--image-size", "64"]) == 2
    assert "folder" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert main(["import-dface", str(good), str(blocked / "out.ckpt"), "--image-size", "64"]) == 2
    assert "cannot be written" in capsys.readouterr().err
