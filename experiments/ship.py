"""Make a checkpoint small enough to come with mefar: weights in half precision, nothing of the training.

    python experiments/ship.py runs/demo/tokenizer/checkpoints/last.ckpt mefar/assets/tokenizer_demo.ckpt

`mefar.tokenizer.load("demo")` and `--tokenizer demo` then read it. Only tokenizers of rendered faces may be
shipped: the licences of VoxCeleb and of all databases of micro-expressions forbid it, or leave it open.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mefar.files import replacing


def ship(checkpoint: Path, out: Path) -> None:
    """Write the weights and settings of a tokenizer's checkpoint."""
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
    with replacing(out) as temporary:
        torch.save({"state_dict": weights, "hyper_parameters": settings}, temporary)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
