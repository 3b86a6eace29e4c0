"""Files appear whole or not at all; locks; fingerprints. The only place where files are replaced.

A lock is held by an open file: it ends with its process, however that ends, and another process that waits
for it goes on. A fingerprint is a sha256 of everything that decides a result: settings, data and code.
"""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import inspect
import io
import json
import logging
import os
import pickle
import re
import secrets
import socket
import subprocess
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mefar.errors import UserError, one_line

_UMASK = os.umask(0o077)
os.umask(_UMASK)
_HOST = "".join(c for c in socket.gethostname() if c.isalnum()) or "here"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`: it becomes `path` when the block ends well, or is removed.

    What the disk refuses is told of `path`.
    """
    # Ranks on several machines may have the same process number.
    temporary = path.with_name(f"{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        try:
            yield temporary
            if temporary.is_file():
                temporary.chmod(0o666 & ~_UMASK)  # some libraries write for their user alone
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_ours(path: Path, sign: str) -> None:
    """Before long work: a file may be replaced that holds a sign of what we write there, and no other.

    Raises:
        UserError: something else stands there.
    """
    if path.is_dir() or (path.exists() and sign not in path.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"{path}: a folder, or holds something else; give another --out")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> str:
    """Text of a csv file; rows in the order of the columns, or by their names ("" where one has none)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([row.get(name, "") for name in columns] if isinstance(row, Mapping) else row)
    return text.getvalue()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written."""
    for path in folder.glob("*.tmp"):
        found = re.search(rf"\.{_HOST}-(\d+)-\w+\.tmp$", path.name)
        if found and not _alive(int(found[1])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@contextmanager
def lock(path: Path, say: bool = True) -> Iterator[None]:
    """Wait until no other process, on any machine that shares the disk, holds the lock file `path`.

    Whoever waits is told so in a line where `say` is true; ranks that take turns all the time need none.

    Raises:
        UserError: the file cannot be made or is a link.
    """
    held = _locked(path, blocking=False)
    if held is None:
        if say:
            logging.getLogger(__name__).warning("%s: another process works here; waiting", path.parent)
        held = _locked(path, blocking=True)
    assert held is not None
    try:
        yield
    finally:
        held.release()


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Take the lock file `path` if nobody holds it: whether it was taken; never waits."""
    held = _locked(path, blocking=False)
    try:
        yield held is not None
    finally:
        if held is not None:
            held.release()


def _locked(path: Path, blocking: bool) -> FileLock | None:
    if path.is_symlink():
        raise UserError(f"{path}: a lock file that is a link; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = FileLock(path, blocking=blocking, thread_local=False)
        made.acquire()
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be locked ({reason}); take another folder") from error
    return made


def claim_folder(folder: Path, verb: str, settings: dict[str, Any]) -> None:
    """Mark a folder with what it holds, or refuse one that holds something else.

    Raises:
        UserError: it holds another run, or files that the verb did not make.
    """
    mark = folder / f"{verb}.json"
    if not mark.is_file() and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"{folder}: is not empty and was not made by `mefar {verb}`; give another --out")
    mark_folder(mark, settings)


def mark_folder(mark: Path, settings: dict[str, Any]) -> None:
    """Write what a folder holds, or refuse one whose mark says otherwise."""
    settings = json.loads(json.dumps(settings))
    if not mark.is_file():
        write_text(mark, json.dumps(settings, indent=1, sort_keys=True) + "\n")
        return
    try:
        there = json.loads(mark.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{mark}: not JSON ({error}); give another --out") from error
    if there != settings:
        differs = first_difference(there, settings)
        raise UserError(f"{mark.parent}: made otherwise ({differs}); give another --out, or remove it")


def fingerprint(*parts: Any) -> str:
    """sha256 of settings (anything JSON can say, dataclasses), bytes, tensors, arrays and files (Path)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_bytes(part))
        digest.update(b"\n")
    return digest.hexdigest()


def _bytes(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, Path):
        with part.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    if hasattr(part, "detach"):
        part = part.detach().cpu().contiguous().numpy()
    if hasattr(part, "tobytes"):
        return f"{part.dtype}{part.shape}".encode() + bytes(part.tobytes())
    if is_dataclass(part) and not isinstance(part, type):
        part = asdict(part)
    return json.dumps(part, sort_keys=True, default=str).encode()


@functools.cache
def code_fingerprint(*modules: str) -> str:
    """sha256 of what the code of modules does; comments, docstrings and layout do not count.

    Modules are dotted names, such as "mefar.loso.engine"; a package stands for all modules in it.
    """
    parts = []
    for module in modules:
        spec = util.find_spec(module)
        assert spec is not None and spec.origin is not None, module
        origin = Path(spec.origin)
        files = sorted(origin.parent.glob("*.py")) if spec.submodule_search_locations else [origin]
        parts += [[module, path.name, source_fingerprint(path.read_bytes())] for path in files]
    return fingerprint(parts)


def source_fingerprint(source: bytes) -> str:
    """sha256 of what Python code does; comments, docstrings and layout do not count.

    Raises:
        SyntaxError: not Python.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                del body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def class_at(class_path: str, where: str) -> Any:
    """What a file names by a dotted path: a class, perhaps; whoever asks looks at it before it is called.

    `where` says in the message what names it.

    Raises:
        UserError: it cannot be imported.
    """
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}: {class_path} cannot be imported ({one_line(error)}); add the folder of its file to "
            "PYTHONPATH"
        ) from None


def code_of(kind: type) -> str:
    """sha256 of what the file of a class does, or, of a class typed into a notebook, what it holds."""
    try:
        path = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        path = None
    if path is not None and Path(path).is_file():
        return source_fingerprint(Path(path).read_bytes())
    return fingerprint([f"{name} {getattr(value, '__code__', value)}" for name, value in vars(kind).items()])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What torch.save wrote, or a .safetensors file's tensors: no code is run from it, every byte is checked.

    torch itself reads past a flipped bit; the checksums that its archives carry are compared here.

    Returns:
        Its content, on the CPU; of a file without names, such as a bare list, `{"": content}`.

    Raises:
        UserError: no such file, no checkpoint, damaged (the entry is named), or one that holds more than
            tensors and plain values.
    """
    import torch
    from safetensors.torch import load_file

    kind = _kind_of_checkpoint(path)
    try:
        if kind == "safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols, on the way to a refusal
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        with path.open("rb") as file:
            pickled = kind == "zip" or file.read(1) == b"\x80"
        if found or pickled:
            what = f"holds {found[1]}" if found else "holds Python objects or is damaged"
            raise UserError(
                f"{path}: refused, it {what}, and reading that could run code hidden in the file; ask for a "
                ".safetensors file or a plain state dict"
            ) from None
        raise UserError(f"{path}: not a checkpoint that can be read, damaged or cut short") from None
    except Exception as error:  # of damaged files torch raises whatever comes
        line = one_line(error, 160) or type(error).__name__
        raise UserError(f"{path}: not a checkpoint that can be read, damaged or cut short ({line})") from None
    return dict(content) if isinstance(content, Mapping) else {"": content}


def _kind_of_checkpoint(path: Path) -> str:
    """What a file is by its first bytes; refused where it is no checkpoint or its checksums are not right."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the checkpoint file in it")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise UserError(f"{path}: is empty; it was cut short when it was written or fetched")
    if start.lstrip()[:1] == b"<":
        raise UserError(f"{path}: is a web page, not a checkpoint; fetch the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: only points to a checkpoint in Git LFS; fetch the file itself")
    if path.suffix == ".safetensors":
        return "safetensors"
    if not start.startswith(b"PK"):
        return "pickle"
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                try:
                    with archive.open(name) as entry:
                        while entry.read(1 << 20):
                            pass
                except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
                    raise UserError(
                        f"{path}: its entry {name!r} is damaged; write or fetch the file anew"
                    ) from None
    except (zipfile.BadZipFile, OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: not a checkpoint that can be read, damaged or cut short ({error})"
        ) from None
    return "zip"


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> str:
    """Name of the first entry of two settings that differs, with both values where they are short."""
    for key in sorted(set(there) | set(here)):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old != new:
            return first_difference(old, new, f"{prefix}{key}.")
        if old != new:
            short = len(f"{old}{new}") < 100
            return f"{prefix}{key} ({old} there, {new} asked for)" if short else f"{prefix}{key}"
    return "content"


def commit() -> str | None:
    """Commit of the source tree this runs from; None for an installed package."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
