"""Any network, any tokenizer class: a user's file by class path, and what mefar 0.1 wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filming import barcode, film
from test_tokenizer import SMALL, batch, small

from mefar.__main__ import main
from mefar.commands.shipped import with_configs
from mefar.errors import UserError
from mefar.tokenizer import earlier, load
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.network import ActionNetwork
from mefar.tokenizer.plain import located
from mefar.tokenizer.published_network import PublishedNetwork
from mefar.tokenizer.warp_network import WarpNetwork
from mefar.tokens import ActionTokens

NETWORK = '''
"""A user's network: what changed in the four quarters of the picture, each as one of two codes."""
import torch
from torch import nn
from torch.nn import functional as F
from mefar.tokenizer.network import ActionNetwork
from mefar.tokens import ActionTokens

class Quarters(ActionNetwork):
    def __init__(self, image_size: int = 32, width: int = 3) -> None:
        super().__init__()
        self.image_size, self.num_codes, self.num_tokens, self.dim = image_size, 2, 4, width
        self.codes = nn.Embedding(2, width)
        self.paint = nn.Linear(width, 3)

    def tokenize(self, onset, apex):
        moved = F.adaptive_avg_pool2d((apex - onset).mean(1), 2).flatten(1)
        indices = (moved > 0).long()
        return ActionTokens(indices, self.codes(indices))

    def reconstruct(self, onset, tokens):
        cells = self.paint(tokens.embeddings).transpose(1, 2).unflatten(2, (2, 2))
        return onset + F.interpolate(cells, onset.shape[-2:])

    def losses(self, batch):
        onset, apex = batch["onset"], batch["apex"]
        return {"mine": (self.reconstruct(onset, self.tokenize(onset, apex)) - apex).abs().mean()}
'''

FOREIGN = '''
"""A user's tokenizer that shares nothing with ours, not even the base class of its network."""
import lightning as L
import torch
from mefar.tokens import ActionTokens

class Brighter(L.LightningModule):
    num_codes, num_tokens, dim = 2, 1, 1

    def __init__(self, image_size: int = 32, limit: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.image_size, self.limit = image_size, limit
        self.step = torch.nn.Parameter(torch.tensor(0.5))

    def tokenize(self, onset, apex):
        indices = ((apex - onset).mean((1, 2, 3)) > self.limit).long().unsqueeze(1)
        return ActionTokens(indices, indices.unsqueeze(-1).float())

    def reconstruct(self, onset, tokens):
        return (onset + self.step * tokens.embeddings.view(-1, 1, 1, 1)).clamp(0, 1)

    def training_step(self, batch, batch_idx):
        onset, apex = batch["onset"].float() / 255, batch["apex"].float() / 255
        return (self.reconstruct(onset, self.tokenize(onset, apex)) - apex).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside of the package with a user's two files."""
    (tmp_path / "my_network.py").write_text(NETWORK)
    (tmp_path / "my_tokenizer.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_network", "my_tokenizer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def fit(folder: Path, model: dict[str, Any], **data: Any) -> Path:
    """`mefar fit` for two steps on three films: the checkpoint."""
    for number in range(3):
        film(folder / f"films/{number}.mp4", (barcode(100 * number + i) for i in range(20)))
    config = {
        "trainer": {"default_root_dir": str(folder / "run"), "max_steps": 2, "accelerator": "cpu"},
        "model": model,
        "data": {
            "class_path": "VoxCelebDataModule",
            "init_args": {
                "data": str(folder / "films"), "cache_dir": str(folder / "cache"), "faces": "precropped",
                "stabilise": False, "pairs_per_epoch": 8, "val_pairs": 4, "batch_size": 4, "num_workers": 0,
                **data,
            },
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "config.yaml"), "--trainer.enable_progress_bar=false"]) == 0
    (checkpoint,) = (folder / "run/checkpoints").glob("last.ckpt")
    return checkpoint


def test_a_network_of_a_users_own_file_is_trained_and_loaded(outside: Path) -> None:
    network = {"class_path": "my_network.Quarters", "init_args": {"width": 5}}
    checkpoint = fit(outside, {"class_path": "FacialActionTokenizer", "init_args": {"network": network}})
    content = torch.load(checkpoint, weights_only=True)
    assert content["datamodule_hyper_parameters"]["image_size"] == 32, "the data follow the network"
    model = load(checkpoint)
    assert isinstance(model, FacialActionTokenizer)
    assert (model.image_size, model.num_codes, model.num_tokens, model.dim) == (32, 2, 4, 5)
    onset, apex = batch(size=32)
    assert model.tokenize(onset, apex).embeddings.shape == (3, 4, 5)
    with pytest.raises(UserError, match="Quarters has no adaptation_error"):
        model.adaptation_error(onset, apex, [0, 1, 2])


def test_a_tokenizer_of_a_users_own_class_is_trained_and_loaded(outside: Path) -> None:
    checkpoint = fit(outside, {"class_path": "my_tokenizer.Brighter", "init_args": {"limit": 0.25}})
    model = load(checkpoint)
    assert type(model).__name__ == "Brighter" and model.limit == 0.25
    onset = torch.zeros(2, 3, 32, 32)
    apex = torch.stack([onset[0] + 0.2, onset[0] + 0.3])
    assert model.tokenize(onset, apex).indices.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nowhere.Network", "cannot be imported"),
        ("os.system", "is no tokenizer"),
        ("torch.nn.Linear", "is no tokenizer"),
        ("Network", "cannot be imported"),
    ],
)
def test_a_checkpoint_that_names_no_tokenizer_is_refused(named: str, says: str, tmp_path: Path) -> None:
    settings = {"_class_path": named, "command": "true"}
    torch.save({"state_dict": {}, "hyper_parameters": settings}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=says) as caught:
        load(tmp_path / "x.ckpt")
    assert named in str(caught.value) and "\n" not in str(caught.value)


class Handed(ActionNetwork):
    """Takes a module: no checkpoint could make it again."""

    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.image_size, self.num_codes, self.num_tokens, self.dim = 32, 2, 1, 1

    def tokenize(self, onset: torch.Tensor, apex: torch.Tensor) -> ActionTokens:
        raise NotImplementedError

    reconstruct = losses = tokenize


def test_a_network_whose_arguments_no_checkpoint_can_hold_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="Handed: argument part is a Linear"):
        FacialActionTokenizer(Handed(torch.nn.Linear(1, 1)))


# What mefar 0.1 wrote

FLAT = {
    "warp": SMALL | {"network": "warp", "quantizer": "ema", "continuous_share": 0.15, "moving_weight": 3.0,
                     "patch_size": 16, "heads": 8, "bottleneck_convolutions": None, "learning_rate": 2e-3},
    "published": {"network": "published", "image_size": 32, "patch_size": 4, "dim": 16, "depth": 1,
                  "temporal_depth": 2, "heads": 2, "head_dim": 8, "num_codes": 8, "num_tokens": 4,
                  "code_dim": 8, "quantizer": "nsvq", "moving_weight": 2.0, "learning_rate": 2e-3},
}  # fmt: skip


@pytest.mark.parametrize("network", ["warp", "published"])
def test_checkpoints_of_earlier_versions_load(network: str, tmp_path: Path) -> None:
    made = {
        "warp": WarpNetwork(**SMALL, strength=False),
        "published": PublishedNetwork(32, 4, 16, 1, 2, 2, 8, 8, 4, 8, bottleneck="halving"),
    }
    model = FacialActionTokenizer(made[network])
    old = {name.replace("network.", "codec.", 1): value for name, value in model.state_dict().items()}
    torch.save({"state_dict": old, "hyper_parameters": FLAT[network]}, tmp_path / "old.ckpt")
    again = load(tmp_path / "old.ckpt")
    onset, apex = batch(size=model.image_size)
    assert torch.equal(again.tokenize(onset, apex).indices, model.eval().tokenize(onset, apex).indices)
    assert again.hparams["learning_rate"] == 2e-3
    assert network == "published" or again.network.settings["moving_weight"] == 3.0


def test_configurations_of_earlier_versions_are_read(tmp_path: Path) -> None:
    settings = SMALL | {"image_size": 64, "learning_rate": 1e-2}
    with pytest.warns(UserWarning, match="read until 0.3"):
        checkpoint = fit(
            tmp_path, {"class_path": "FacialActionTokenizer", "init_args": settings}, image_size=64
        )
    model = load(checkpoint)
    assert isinstance(model.network, WarpNetwork) and model.image_size == 64
    assert model.network.settings == WarpNetwork(**SMALL | {"image_size": 64, "strength": False}).settings
    assert model.hparams["learning_rate"] == 1e-2
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["init_args"]
    assert written["network"]["init_args"]["num_codes"] == 8, "written down in the form of today"


def test_todays_settings_are_left_alone() -> None:
    checkpoint = {"hyper_parameters": dict(small().hparams), "state_dict": {"codec.x": 1}}
    earlier.translate_checkpoint(checkpoint)
    assert checkpoint["state_dict"] == {"codec.x": 1}
    argv = [
        "fit",
        "--config",
        "experiments/configs/pretrain.yaml",
        "--config=missing.yaml",
        "--x",
        "--config",
    ]
    assert with_configs(argv, earlier.config) == argv


# Starting from weights


def saved(model: FacialActionTokenizer, path: Path, **more: Any) -> Path:
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(content | more, path)
    return path


def test_a_training_starts_from_weights_at_another_size_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(5)
    before = small()
    before.network.vq.started.fill_(True)
    path = saved(before, tmp_path / "x.ckpt", global_step=2400, datamodule_hyper_parameters={"data": "faces"})
    with caplog.at_level("INFO"):
        after = FacialActionTokenizer(WarpNetwork(**SMALL | {"image_size": 64}), 1e-5, weights=path)
    said = caplog.messages[-1]
    assert (
        f"{path}: WarpNetwork starts from these weights" in said and "2,400 steps on faces at 48 px" in said
    )
    assert said.endswith("images are now 64 px")
    for name, value in before.network.state_dict().items():
        assert torch.equal(after.network.state_dict()[name], value), name
    again = load(saved(after, tmp_path / "y.ckpt"))
    path.unlink()
    assert "weights" not in again.hparams, (
        "a checkpoint does not lean on the file that its training began with"
    )


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (WarpNetwork(**SMALL | {"dim": 24}), r"slot_weight is \[4, 4, 16\] in the file and \[4, 4, 24\]"),
        (
            WarpNetwork(**SMALL | {"depth": 2}),
            "weights of WarpNetwork do not fit WarpNetwork: the file lacks",
        ),
        (PublishedNetwork(32, 4, 16, 1, 1, 2, 8, 8, 4, 4), "weights of WarpNetwork do not fit PublishedN"),
    ],
)
def test_weights_of_another_network_are_refused(network: ActionNetwork, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        FacialActionTokenizer(network, weights=saved(small(), tmp_path / "x.ckpt"))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = small()
    with torch.no_grad():
        broken.network.field.weight[3, 3] = float("nan")
    path = saved(broken, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"network\.field\.weight holds values that are not finite"):
        load(path)
    with pytest.raises(UserError, match=r"field\.weight holds values that are not finite"):
        FacialActionTokenizer(WarpNetwork(**SMALL), weights=path)
    huge = {name: value.double() * 1e300 for name, value in small().state_dict().items()}
    torch.save({"state_dict": huge, "hyper_parameters": dict(broken.hparams)}, path)
    with pytest.raises(UserError, match="not finite"):
        load(path)


def test_the_option_starts_from_weights_and_resuming_with_another_quantizer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(small(), tmp_path / "x.ckpt")
    network = {"class_path": "WarpNetwork", "init_args": SMALL}
    init_args = {"network": network, "weights": str(path), "learning_rate": 0.0, "weight_decay": 0.0}
    checkpoint = fit(tmp_path, {"class_path": "FacialActionTokenizer", "init_args": init_args})
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in load(checkpoint).named_parameters())
    before = checkpoint.read_bytes()
    words = ["--model.init_args.network.init_args.quantizer", "nsvq", "--trainer.max_steps", "4"]
    words += ["--model.init_args.weights", "null", "--ckpt_path", "last"]
    assert main(["fit", "--config", str(tmp_path / "config.yaml"), *words]) == 2
    assert "init_args.quantizer (ema there, nsvq asked for)" in capsys.readouterr().err.splitlines()[-1]
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nowhere.Network", "'nowhere.Network': No module named 'nowhere'"),
        ("my_network.Unfinished", "my_network.Unfinished is abstract"),
        ("my_network.Mute", "Mute: sets no num_codes"),
        ("WarpNetwork --model.network.image_size 100", "image_size must be a multiple of 16"),
    ],
)
def test_a_network_that_cannot_be_is_named_in_one_line(
    words: str, says: str, outside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = "class Unfinished(ActionNetwork):\n    def losses(self, batch): ...\n"
    mute = "class Mute(Quarters):\n    def __init__(self):\n        nn.Module.__init__(self)\n"
    (outside / "my_network.py").write_text(NETWORK + unfinished + mute + "        self.image_size = 32\n")
    monkeypatch.chdir(outside)
    argv = (
        f"fit --model FacialActionTokenizer --model.network {words} --data VoxCelebDataModule --data.data x"
    )
    assert main(argv.split()) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said
    assert not Path("runs").exists()


def test_the_tokenizer_that_comes_with_mefar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = located("demo")
    assert path.stat().st_size < 15e6 and path.with_suffix(".md").is_file()
    model = load("demo")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 9, 9, generator=generator)
    face = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
    noisy = (face + torch.randn(face.shape, generator=generator) / 255).clamp(0, 1)
    nothing, something = model.tokenize(face, noisy), model.tokenize(face, face.roll(2, 2))
    assert nothing.strength is not None and (nothing.strength == 0).all()
    assert len(torch.unique(nothing.indices, dim=0)) == 1
    assert something.strength is not None and (something.strength > 0.1).all()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_bytes(b"a file of the user's own")
    assert located("demo") == Path("demo")
