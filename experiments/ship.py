"""Make what comes with mefar: a tokenizer of rendered faces, and what reads its tokens.

    python experiments/ship.py tokenizer demo runs/demo/tokenizer/checkpoints/last.ckpt
    python experiments/ship.py readers demo runs/demo/corpora runs/demo/corpora-micro

The word after the verb is the model's name: `demo` at 64 px, `demo128`. The first makes a checkpoint small:
weights in half precision, nothing of the training. The second trains a head and a read-out of action units
on all rendered subjects, at both strengths, on the shipped tokenizer's tokens; a new tokenizer needs new
readers. `mefar.load("demo")`, `--tokenizer demo` and `mefar recognise` take both. Only models of rendered
faces may be shipped: the licences of VoxCeleb and of all databases of micro-expressions forbid it, or leave
it open.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from datamodules.micro import MicroExpressionDataset
from datamodules.protocols import load as load_study
from mefar.classifier.head import TokenHead
from mefar.classifier.settings import HeadTraining
from mefar.classifier.text_anchors import SHIPPED_ANCHORS, Anchors
from mefar.files import replacing
from mefar.loso import final, study
from mefar.readers import weights_of
from mefar.tokenizer.plain import load

ASSETS = Path(__file__).parents[1] / "mefar" / "assets"


def tokenizer(name: str, checkpoint: Path) -> None:
    """Write the weights and settings of a tokenizer's checkpoint."""
    path = ASSETS / f"tokenizer_{name}.ckpt"
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    settings = content["hyper_parameters"]
    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in content["state_dict"].items()
        if not name.endswith("vq.reservoir")
    }
    # Vectors that only training revives codes from; they are of no use here, but belong to the network.
    reservoir = content["state_dict"]["network.vq.reservoir"]
    weights["network.vq.reservoir"] = torch.zeros(reservoir.shape, dtype=torch.half)
    with replacing(path) as temporary:
        torch.save({"state_dict": weights, "hyper_parameters": settings}, temporary)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def readers(name: str, *corpora: Path, cache: Path = Path("runs/demo/cache")) -> None:
    """Train the readers on the composite of every corpus."""
    path = ASSETS / f"readers_{name}.safetensors"
    model, anchors, materials, shown = load(name), Anchors.load(SHIPPED_ANCHORS), [], []
    for data in corpora:
        clips = MicroExpressionDataset(
            load_study("composite", data), model.image_size, views=8, cache_dir=cache
        )
        key = f"ship-{weights_of(model)[:16]}-{clips.fingerprint()[:16]}"
        table = study.tokens_of(clips, model, cache / "tokens", key)
        materials.append(study.material(clips, table, {}, anchors))
        shown += study.units_of(clips)
    every = replace(
        materials[0],
        tokens=torch.cat([each.tokens for each in materials]),
        labels=torch.cat([each.labels for each in materials]),
        subjects=tuple(name for each in materials for name in each.subjects),
        clips=tuple(name for each in materials for name in each.clips),
    )
    notes = {
        "protocol": every.protocol,
        "clips": len(every.labels),
        "subjects": len(set(every.subjects)),
        "data": f"rendered faces: {' and '.join(path.name for path in corpora)} of `mefar make-demo`",
        "command": f"python experiments/ship.py readers {name} {' '.join(map(str, corpora))}",
    }
    made = final.train(every, shown, TokenHead, HeadTraining(), 0, weights_of(model), anchors, notes)
    made.save(path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB; F1 of units {made.about.unit_f1}")


if __name__ == "__main__":
    verb, name, *paths = sys.argv[1:]
    {"tokenizer": tokenizer, "readers": readers}[verb](name, *map(Path, paths))
