"""What each way to keep crops costs: disk, time to build, pairs per second; multiplied out for VoxCeleb2.

    python experiments/benchmarks/stores.py FOLDER [FOLDER ...] [--size 256]

Each folder of face videos is read once into each store, in this process alone; then pairs are read from it,
without and with all augmentation. Times are of the processor, for one process with all its threads; readers
take turns, and each number is the median of the turns. Files lie in the page cache.

Below the measured lines: each multiplied by the 1,092,009 files of VoxCeleb2 dev.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np

from datamodules.voxceleb import video
from datamodules.voxceleb.augmentation import PairTransform
from datamodules.voxceleb.module import PairDataset
from datamodules.voxceleb.shards import build
from datamodules.voxceleb.stores import STORES
from datamodules.voxceleb.utterances import find_utterances

FILES, GAP = 1_092_009, (0.32, 0.60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each reader in each turn")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    for folder in options.folders:
        paths = [folder / utterance.path for utterance in find_utterances(folder)]
        about = [video.info(path) for path in paths]
        seconds = statistics.median(one.frames / one.fps for one in about)
        width = statistics.median(one.width for one in about)
        shape = f"medians {seconds:.1f} s and {width:.0f} px wide"
        print(f"{folder}: {len(paths)} files, {shape}; crops of {options.size} px", flush=True)
        with tempfile.TemporaryDirectory() as out:
            measure(folder, Path(out), options)


def measure(folder: Path, out: Path, options: argparse.Namespace) -> None:
    """Print the lines of one folder."""
    lines = {}
    for store in STORES:
        start = time.process_time()
        made = build(folder, out / store, options.size, workers=0, store=store)
        files = made.utterances + made.quarantined
        lines[store] = (made.bytes / files, (time.process_time() - start) / files)
        if store == "raw":
            print(f"  {made.windows} windows, {made.frames} crops, {made.quarantined} files quarantined")
    readers = [(store, train) for store in STORES for train in (False, True)]
    rates: dict[tuple[str, bool], list[float]] = {reader: [] for reader in readers}
    for turn in range(options.turns + 1):
        for store, train in readers:
            dataset = PairDataset(out / store, None, GAP, PairTransform(options.size, train), 1 << 40)
            found = rate(dataset, options.seconds if turn else 0.3, turn)
            if turn:  # the first fills caches
                rates[store, train].append(found)
    for store, (size, cost) in lines.items():
        read, augmented = (statistics.median(rates[store, train]) for train in (False, True))
        speed = f"{read:7.1f} pairs/s per core, augmented {augmented:6.1f}"
        print(f"  {store:5}  {size / 1e3:9.1f} kB/file  {cost:6.3f} core s/file  {speed}")
    for store, (size, cost) in lines.items():
        disk, hours = FILES * size / 1e12, FILES * cost / 3600
        print(f"  {store:5}  {disk:9.4f} TB  {hours:9.1f} core hours  for VoxCeleb2 dev")


def rate(dataset: PairDataset, seconds: float, turn: int) -> float:
    """Pairs per second of processor time."""
    numbers = np.random.default_rng(turn)
    count, start, end = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        dataset[[int(number) for number in numbers.integers(0, 1 << 39, 16)]]
        count += 16
    return count / (time.process_time() - start)


if __name__ == "__main__":
    main()
