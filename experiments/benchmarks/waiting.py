"""Share of the demo's pretraining that is spent waiting for data.

    python experiments/benchmarks/waiting.py

Model, batches and pairs are those of experiments/configs/demo.yaml; the pairs come from a cache of filmed
textures (the demo's faces take minutes to render, and cost the loader the same). The Trainer's own profiler
says how long each step waited for its batch, in seconds of wall clock; median of the turns.

Last line: that share of the epoch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import instantiate_module
from lightning.pytorch.profilers import SimpleProfiler
from pairs import film

from datamodules.voxceleb.module import VoxCelebDataModule
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.warp_network import WarpNetwork  # noqa: F401, the configuration names it

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, help="loader processes; the configuration's if not given")
    options = parser.parse_args()
    config = yaml.safe_load(CONFIG.read_text())
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for number in range(8):
            film(Path(folder) / "mp4" / f"id{number:05d}" / "v" / "00001.mp4", rng)
        settings = config["data"]["init_args"]
        settings |= {"data": f"{folder}/mp4", "cache_dir": f"{folder}/cache", "faces": "precropped"}
        if options.workers is not None:
            settings["num_workers"] = options.workers
        for turn in range(options.turns):
            seed_everything(turn, verbose=False)
            profiler = SimpleProfiler()
            trainer = Trainer(
                max_epochs=1,
                limit_train_batches=options.steps,
                limit_val_batches=0,
                profiler=profiler,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            model = instantiate_module(FacialActionTokenizer, config["model"]["init_args"])
            trainer.fit(model, datamodule=VoxCelebDataModule(image_size=model.image_size, **settings))
            spent = {
                name.rsplit(".", 1)[-1]: sum(times) for name, times in profiler.recorded_durations.items()
            }
            waited, whole = spent["train_dataloader_next"], spent["run_training_epoch"]
            print(f"{options.steps} steps in {whole:.2f} s, {waited:.2f} s of them waiting for data")
            shares.append(100 * waited / whole)
    print(f"num_workers {settings['num_workers']}: waiting {sorted(shares)[len(shares) // 2]:.1f} %")


if __name__ == "__main__":
    main()
