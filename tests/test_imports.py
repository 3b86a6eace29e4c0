"""The rules of the house: who may import whom, by folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from places import ROOT

FILES = [path for top in ("mefar", "datamodules") for path in sorted((ROOT / top).rglob("*.py"))]

# Folder or file -> what of ours it may import besides itself, errors, files, progress, tokens and metrics.
MAY = {
    "mefar/errors": set(),
    "mefar/files": {"mefar.errors"},
    "mefar/progress": {"mefar.errors"},
    "mefar/tokens": {"mefar.errors"},
    "mefar/randomness": set(),
    "mefar/metrics": {"mefar.errors"},
    "mefar/tokenizer": set(),
    "mefar/classifier": set(),
    "mefar/baselines": {"mefar.classifier", "mefar.loso"},
    "mefar/probes": {"mefar.baselines", "mefar.tokenizer", "mefar.loso"},
    "mefar/readers": {"mefar.classifier", "mefar.errors", "mefar.files"},
    "mefar/loso": {"mefar.classifier", "mefar.baselines", "mefar.readers"},
    "mefar/report": {"mefar.loso", "mefar.tokenizer", "mefar.recognition", "mefar.generation"},
    "mefar/generation": {"mefar.loso"},
    "mefar/recognition": {"mefar.tokenizer", "mefar.classifier", "mefar.baselines", "mefar.readers"},
    "datamodules": {"datamodules"},
}
EVERYBODY = {
    "mefar.randomness",
    "mefar.errors",
    "mefar.files",
    "mefar.progress",
    "mefar.tokens",
    "mefar.metrics",
    "mefar.__version__",
}
# The hall, where models and data meet, and names that earlier files on disk know.
PUBLIC = {"mefar/__init__", "mefar/__main__", "mefar/commands", "mefar/edclip", "mefar/averaging"}

# Library -> the files that may import it.
LIBRARIES = {
    "transformers": {"mefar/classifier/text_anchors.py"},
    "albumentations": {"datamodules/voxceleb/augmentation.py"},
    "decord": {"datamodules/voxceleb/video.py"},
    "wandb": set(),
    "lightning": {
        "mefar/tokenizer/module.py",
        "mefar/tokenizer/weight_ema.py",
        "mefar/tokenizer/validation_pictures.py",
        "mefar/classifier/module.py",
        "mefar/classifier/edclip.py",
        "mefar/loso/adapting.py",
        "mefar/loso/callback.py",
        "datamodules/micro.py",
        "datamodules/voxceleb/module.py",
    },
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports: for `from a import b` both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def within(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def room(path: Path) -> str:
    """mefar/loso/engine.py -> mefar/loso; mefar/tokens.py -> mefar/tokens; datamodules/... -> datamodules."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "datamodules" if parts[0] == "datamodules" else "/".join(parts[:2])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    where = room(path)
    if where in PUBLIC or (path.name == "__init__.py" and where == "datamodules"):
        return
    ours = {name for name in imports(path) if within(name, {"mefar", "datamodules"})} - {
        "mefar",
        "datamodules",
    }
    allowed = MAY[where] | {where.replace("/", ".")}
    if where == "datamodules":
        allowed |= {"mefar.errors", "mefar.files", "mefar.progress", "mefar.randomness"}
    elif "/" in where and (ROOT / where).is_dir():
        allowed |= EVERYBODY
    assert not {name for name in ours if not within(name, allowed)}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stays_behind_its_door(library: str) -> None:
    users = {str(p.relative_to(ROOT)) for p in FILES if within_any(imports(p), library)}
    users = {user for user in users if not user.startswith("mefar/commands/") or library != "lightning"}
    assert users <= LIBRARIES[library], users - LIBRARIES[library]


def within_any(names: set[str], library: str) -> bool:
    return any(within(name, {library}) for name in names)


def test_no_circles() -> None:
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
    names = {name.removesuffix(".__init__"): path for name, path in zip(dotted, FILES, strict=True)}
    graph = {
        name: {other for other in imports(path) if other in names} - {name}
        for name, path in names.items()
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(name: str, road: tuple[str, ...]) -> None:
        assert name not in road, " -> ".join([*road[road.index(name) :], name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*road, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_rules_see_the_source() -> None:
    assert len(FILES) > 60
    assert "torch" in imports(ROOT / "mefar/tokens.py")
    assert "lightning.pytorch" in imports(ROOT / "datamodules/micro.py")
