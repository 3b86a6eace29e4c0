"""A finished leave-one-subject-out run, made up, in the files that `mefar loso` writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from mefar.loso.results import read_predictions, worst_mistakes

CLASSES = ("negative", "positive", "surprise")
SUBJECTS = {"casme2": ("sub01", "sub02", "sub03"), "samm": ("006", "007"), "smic": ("s1", "s2", "s3", "s11")}


def scores(matrix: np.ndarray) -> dict[str, float]:
    """UF1 and UAR of a confusion matrix."""
    right = np.diag(matrix).astype(float)
    f1 = 2 * right / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
    return {"uf1": float(f1.mean()), "uar": float((right / np.maximum(matrix.sum(1), 1)).mean())}


def face(generator: np.random.Generator, size: int, lift: float) -> np.ndarray:
    """A sort of face, (size, size, 3) uint8; `lift` moves the corners of the mouth."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    skin = np.where(x**2 / 0.55 + y**2 / 0.8 < 1, 0.72 - 0.15 * (x + y) ** 2, 0.25)
    eyes = ((np.abs(x) - 0.3) ** 2 + 2.5 * (y + 0.25) ** 2) < 0.018
    mouth = (np.abs(y - 0.42 + lift * x**2) < 0.035) & (np.abs(x) < 0.32)
    gray = np.where(eyes | mouth, 0.15, skin) + generator.normal(0, 0.006, x.shape)
    return (np.clip(gray[..., None] * [1.0, 0.86, 0.78], 0, 1) * 255).astype(np.uint8)


def lost(clip: str, kind: str, detail: str) -> dict[str, Any]:
    """A finding about a clip that is not in the run."""
    return {"level": "lost", "kind": kind, "database": clip.split("/")[0], "clip": clip, "detail": detail}


def write_run(folder: Path, pictures: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """Write all files of a run; `changes` go to the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows, fold = [], 0
    for database, subjects in SUBJECTS.items():
        for subject in subjects:
            for number in range(int(generator.integers(2, 12))):
                label = int(generator.choice(3, p=(0.5, 0.3, 0.2)))
                last, oracle = (
                    label if generator.random() < sure else int(generator.integers(3)) for sure in (0.6, 0.8)
                )
                clip = f"clip{number:02d}"
                p = np.full(3, 0.2)
                p[last] += 0.4
                p[0] += 0.001 * len(rows)
                rows.append([database, subject, clip, fold, 0, label, last, oracle, *(p / p.sum()).round(6)])
            fold += 1
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["database", "subject", "clip", "fold", "seed", "label", "last", "oracle"]
        writer.writerow(header + [f"p_{name}" for name in CLASSES])
        writer.writerows(rows)

    def matrix(scope: str, column: int) -> np.ndarray:
        counts = np.zeros((3, 3), int)
        for row in rows:
            if scope in ("full", row[0]):
                counts[row[5], row[column]] += 1
        return counts

    scopes = ("full", *SUBJECTS)
    counts = {
        database: {
            "clips": sum(row[0] == database for row in rows),
            "subjects": len(subjects),
            "classes": {n: sum(r[0] == database and r[5] == i for r in rows) for i, n in enumerate(CLASSES)},
        }
        for database, subjects in SUBJECTS.items()
    }
    summary = {
        "protocol": "composite",
        "classes": list(CLASSES),
        "seeds": [0],
        "folds": fold,
        "clips": len(rows),
        "counts": counts,
        "scores": {
            "last": {scope: scores(matrix(scope, 6)) for scope in scopes},
            "oracle": {scope: scores(matrix(scope, 7)) for scope in scopes},
        },
        "intervals": {
            selection: {scope: {"uf1": [0.412, 0.777], "uar": [0.423, 0.788]} for scope in scopes}
            for selection in ("last", "oracle")
        },
        "controls": {
            "pixels": {scope: {"uf1": 0.61, "uar": 0.633} for scope in scopes},
            "shuffled": {scope: {"uf1": 0.321, "uar": 0.342} for scope in scopes},
        },
        "tokenizer": {
            "checkpoint": "runs/demo/tokenizer/checkpoints/last.ckpt",
            "sha256": "9f2c" * 16,
            "pretrained_on": "rendered faces, 120 identities",
        },
        "findings": [
            lost("casme2/sub04/EP12_01f", "missing frames", "frames 40 to 47 are missing"),
            lost("casme2/sub05/EP09_05f", "missing frames", "frames 40 to 47 are missing"),
            lost("samm/011/011_6_1", "no face", "no face found in the onset frame"),
        ],
        "command": "mefar loso --dataset composite --data runs/demo/corpora --tokenizer last.ckpt",
        "commit": "0123abc",
        "wall_seconds": 83.2,
        "mefar": "0.1.0",
    }
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))
    confusion = {"last": {scope: matrix(scope, 6).tolist() for scope in scopes}}
    (folder / "confusion.json").write_text(json.dumps(confusion))
    attention = {scope: generator.dirichlet(np.full(16, 3.0), 3).round(5).tolist() for scope in scopes}
    attention["smic"][1] = None
    (folder / "attention.json").write_text(json.dumps(attention))
    shown = pictures
    if shown is None:
        shown = {}
        for place, database in enumerate(SUBJECTS):
            drawn = [face(generator, 64 + 16 * place, lift) for lift in (0.0, 0.8, 0.6)]
            names = [f"{database}_{part}" for part in ("onset", "apex", "reconstruction")]
            shown.update(zip(names, drawn, strict=True))
        wrong = [mistake.clip for mistake in worst_mistakes(read_predictions(folder))]
        shown["mistakes_clips"] = np.array(wrong)
        for part, lift in (("onset", 0.0), ("apex", 0.8), ("reconstruction", 0.6)):
            shown[f"mistakes_{part}"] = np.stack([face(generator, 64, lift) for _ in wrong])
    usage = generator.multinomial(1600, generator.dirichlet(np.ones(32)))
    usage[7] = 0
    np.savez(folder / "pictures.npz", usage=usage, **shown)
    return folder
