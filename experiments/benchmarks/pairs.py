"""Training pairs per second and core: from mp4 by either decoder, and from our cache.

    python experiments/benchmarks/pairs.py

The script films moving textures (224 px, 25 fps, H.264 with FFmpeg's usual groups of 250 frames, 8 s each as
VoxCeleb's utterances are), then reads the same kind of pair from the files and from a cache of them: two
frames of one utterance, 0.32 to 0.60 s apart, anywhere. Readers take turns; each number is the median of all
turns, in pairs per second of processor time of one process with all its threads, so that other programs do
not change it. Files lie in the page cache on both sides.

The cache also pays for cutting its margin off and for making a batch tensor, which the mp4 readers are
spared; `augmented` does everything that training does to a pair. Decoders are called through
datamodules.video, whose look at the packets (what makes its frames right) is counted, and printed.

Last line: cache / best mp4 reader.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np

from datamodules.demo.encoding import write_h264
from datamodules.voxceleb import shards, video
from datamodules.voxceleb.augmentation import PairTransform
from datamodules.voxceleb.module import PairDataset

SIDE, FPS, FRAMES, GAP = 224, 25, 200, (0.32, 0.60)
Reader = Callable[[int], object]


def film(path: Path, rng: np.random.Generator) -> None:
    """Eight seconds of a texture that drifts and sways, with a little sensor noise."""
    texture = cv2.GaussianBlur(rng.normal(0, 1, (400, 400, 3)).astype(np.float32), (0, 0), 5)
    texture = 128 + 45 * texture / texture.std()
    pictures = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for number in range(FRAMES):
        move = np.array(
            [
                [1, 0, -60 + 15 * np.sin(number / 9)],
                [0, 1, -60 + 12 * np.cos(number / 13)],
            ]
        )
        image = cv2.warpAffine(texture, move, (SIDE, SIDE)) + rng.normal(0, 1.5, (SIDE, SIDE, 3))
        pictures[number] = np.clip(image, 0, 255)
    path.parent.mkdir(parents=True)
    write_h264(path, pictures, FPS)


def rate(read: Reader, seconds: float, pairs_per_call: int) -> float:
    """Pairs per second of processor time."""
    calls, start, end = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        read(calls)
        calls += 1
    return calls * pairs_per_call / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each reader in each turn")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, rng = Path(folder) / "mp4", np.random.default_rng(0)
        for number in range(options.videos):
            film(root / f"id{number:05d}" / "v" / "00001.mp4", rng)
        paths = sorted(root.rglob("*.mp4"))
        size, codec = sum(path.stat().st_size for path in paths), video.info(paths[0]).codec
        print(f"{len(paths)} files of {FRAMES} frames, {SIDE} px, {codec}, {size / 1e6:.1f} MB")
        made = shards.build(root, Path(folder) / "cache", SIDE, faces="precropped", workers=0, store="raw")
        print(f"cache: {made.frames} crops, {made.bytes / 1e6:.0f} MB")

        def from_file(backend: video.Backend) -> Reader:
            draw = np.random.default_rng(1)

            def read(_: int) -> object:
                gap = int(draw.integers(8, 16))
                first = int(draw.integers(0, FRAMES - gap))
                path = paths[int(draw.integers(len(paths)))]
                return video.frames(path, [first, first + gap], backend)

            return read

        def from_cache(train: bool) -> Reader:
            transform = PairTransform(SIDE, train)
            pairs = PairDataset(Path(folder) / "cache", None, GAP, transform, 1 << 40)
            return lambda call: pairs[list(range(32 * call, 32 * call + 32))]

        readers: dict[str, tuple[Reader, int]] = {
            "mp4, PyAV": (from_file("pyav"), 1),
            "mp4, look at the packets alone": (lambda call: video.info(paths[call % len(paths)]), 1),
            "cache": (from_cache(False), 32),
            "cache, augmented": (from_cache(True), 32),
        }
        if video.HAS_DECORD:
            readers = {"mp4, decord": (from_file("decord"), 1), **readers}
        for read, pairs in readers.values():
            rate(read, 0.2, pairs)  # imports, page cache, noise bank
        seen: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(options.turns):
            for name, (read, pairs) in readers.items():
                seen[name].append(rate(read, options.seconds, pairs))
    middle = {name: statistics.median(rates) for name, rates in seen.items()}
    for name, rates in seen.items():
        print(f"{name:32} {middle[name]:9.1f} pairs/s per core  (turns {min(rates):.1f} to {max(rates):.1f})")
    best = max(middle.get("mp4, decord", 0.0), middle["mp4, PyAV"])
    print(f"augmented ratio {middle['cache, augmented'] / best:.1f}")
    print(f"ratio {middle['cache'] / best:.1f}")


if __name__ == "__main__":
    main()
