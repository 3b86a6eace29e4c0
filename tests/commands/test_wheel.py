"""A wheel works alone: what a clone has around it travels inside."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT

# Runs in an empty folder, with the unpacked wheel before everything else.
ALONE = """
import sys
from pathlib import Path
asked = []
def listen(event, found):
    if event in ("socket.connect", "socket.getaddrinfo"):
        asked.append((event, *found[-2:]))
sys.addaudithook(listen)
import mefar, datamodules
here = Path(sys.argv[1])
assert Path(mefar.__file__).is_relative_to(here) and Path(datamodules.__file__).is_relative_to(here)
from mefar.commands.shipped import shipped
assert shipped("configs", "demo").is_relative_to(here)
from datamodules.demo.head import head
head()
from datamodules.databases.errata import load_errata
assert load_errata()
from mefar.classifier.text_anchors import SHIPPED_ANCHORS, Anchors, read_descriptions
assert SHIPPED_ANCHORS.is_relative_to(here)
assert len(Anchors.load(SHIPPED_ANCHORS).descriptions) == len(read_descriptions())
from mefar.__main__ import main
assert main(["sweep", "loso"]) == 0 and main(["sweep", "pretrain"]) == 0
assert main(["loso", "--config", "loso_paper", "--print_config"]) == 0
sys.argv = ["mefar"]
assert main(["fit", "--config", "demo", "--print_config"]) == 0
import albumentations
assert not asked, asked  # nothing goes to the network unasked
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this clone, built by the setuptools that are installed here."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    source.mkdir()
    for name in ("mefar", "datamodules", "experiments", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)  # build leftovers stay out of the clone
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
    ]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_everything_that_is_no_code_travels_too(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    lost = {
        str(path.relative_to(ROOT))
        for top in ("mefar", "datamodules")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".nbi", ".nbc", ".tmp")
    } - inside
    assert not lost
    for kind in ("configs", "sweeps"):
        shipped = {f"mefar/experiments/{kind}/{p.name}" for p in (ROOT / "experiments" / kind).glob("*.yaml")}
        assert shipped and shipped <= inside
    assert not [name for name in inside if name.startswith(("tests", "experiments"))]


def test_an_unpacked_wheel_runs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    place, empty = tmp_path / "place", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(place)
    empty.mkdir()
    switches = ("NO_ALBUMENTATIONS_UPDATE", "HF_HUB_OFFLINE", "WANDB_MODE")  # as on anybody's machine
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    environment |= {"PYTHONPATH": str(place)}
    words = [sys.executable, "-c", ALONE, str(place)]
    done = subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pairs_per_epoch: 9600" in done.stdout
    assert not list(empty.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_installed_wheel_makes_the_demo(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, from the package index: minutes."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    empty = tmp_path / "empty"
    empty.mkdir()

    def call(*words: str | Path) -> None:
        subprocess.run(words, cwd=empty, env=environment, check=True)

    call(sys.executable, "-m", "venv", tmp_path / "venv")
    call(tmp_path / "venv/bin/python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    mefar = tmp_path / "venv/bin/mefar"
    call(mefar, "demo", "--size", "tiny")
    call(mefar, "sweep", "loso")
    call(mefar, "fit", "--config", "demo", "--print_config")
    assert (empty / "runs" / "demo" / "report.html").is_file()


def test_another_datamodules_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "datamodules").mkdir()
    (tmp_path / "datamodules" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "mefar", "doctor", "samm", "."]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("mefar doctor: error: ") and done.stderr.count("\n") == 1
    assert str(tmp_path / "datamodules") in done.stderr
