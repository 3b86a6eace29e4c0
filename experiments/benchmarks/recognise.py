"""Is `mefar recognise` as fast as the video, and which part of it costs what?

    python experiments/benchmarks/recognise.py [--seconds 20] [--long 600] [--model none]

Films one rendered face that talks, blinks and turns, 1280 x 720 at 30 frames a second, and recognises it by
the command that users type, in a process of its own: seconds of video per second of wall clock, processor
time, the largest memory. Then the parts by themselves, in milliseconds of processor time per frame. `--long`
repeats the film to that many seconds without encoding it anew: memory must not grow with length.

Last line: seconds of video per second. Other programs change the wall clock, hardly the processor time.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import cv2
import numpy as np

from datamodules.demo.encoding import write_h264
from datamodules.demo.identity import Identity
from datamodules.demo.long_videos import perform
from datamodules.demo.replicas import STUDIOS
from datamodules.faces.align import FaceAligner
from datamodules.footage import footage, write_video
from mefar.commands.recognise import follow
from mefar.recognition.drawing import annotate
from mefar.recognition.events import Recognition
from mefar.recognition.motion import SIDE
from mefar.recognition.spotting import spot

PLAIN = argparse.RawDescriptionHelpFormatter
FPS, WIDTH, HEIGHT = 30, 1280, 720


def film(path: Path, seconds: float) -> None:
    """A rendered face three times as large as it was rendered, with the noise of a sensor of that size."""
    rng = np.random.default_rng(9)
    identity, scene = Identity.random(rng), STUDIOS["casme2"].scene(rng, 1.0)
    performance = perform(rng, seconds, FPS, scene.camera.scale, "talking").performance
    noise = [rng.normal(0, 2.5, (HEIGHT, WIDTH, 3)).astype(np.int8) for _ in range(5)]

    def large() -> Iterator[np.ndarray]:
        for number, picture in enumerate(scene.film(identity, performance, rng)):
            tall = cv2.resize(picture, (960, HEIGHT), interpolation=cv2.INTER_CUBIC)
            whole = cv2.copyMakeBorder(tall, 0, 0, 160, 160, cv2.BORDER_REPLICATE)
            yield np.clip(whole.astype(np.int16) + noise[number % 5], 0, 255).astype(np.uint8)

    write_h264(path, large(), FPS, crf=23)


def repeated(source: Path, path: Path, seconds: float) -> None:
    """The same packets again and again."""
    with av.open(str(source)) as read:
        stream = read.streams.video[0]
        packets = [packet for packet in read.demux(stream) if packet.dts is not None]
        length = round(float(stream.frames / stream.average_rate / stream.time_base))
        with av.open(str(path), "w") as write:
            copy = write.add_stream_from_template(stream)
            for turn in range(max(1, round(seconds / (length * stream.time_base)))):
                for packet in packets:
                    again = av.Packet(bytes(packet))
                    again.pts, again.dts = packet.pts + turn * length, packet.dts + turn * length
                    again.is_keyframe, again.time_base, again.stream = (
                        packet.is_keyframe,
                        packet.time_base,
                        copy,
                    )
                    write.mux(again)


def command(path: Path, out: Path, model: str) -> tuple[float, float, float]:
    """Run the command: wall seconds, processor seconds, MB at most."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    words = ["-m", "mefar", "recognise", str(path), "--out", str(out), "--model", model]
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, used, after.ru_maxrss / 1024


def timed(work: Callable[[], Any], frames: int) -> tuple[Any, float]:
    """What it gives, and milliseconds of processor time per frame."""
    start = time.process_time()
    made = work()
    return made, 1e3 * (time.process_time() - start) / frames


def parts(path: Path, folder: Path, frames: int) -> dict[str, float]:
    look = footage(path)
    told: dict[str, float] = {}
    seen, told["decode"] = timed(lambda: [frame for _, (_, frame) in zip(range(frames), look.play())], frames)  # noqa: B905
    aligner = FaceAligner(SIDE)
    aligner.detect(seen[0])
    _, detect = timed(lambda: [aligner.detect(frame) for frame in seen[:10]], 10)
    told["look for faces, twice a second"] = detect * 2 / FPS
    followed, whole = timed(lambda: follow(look, None), look.frames)
    told["follow one face"] = whole - told["decode"] - told["look for faces, twice a second"]
    _events, told["spot"] = timed(lambda: [spot(t.traces()) for t in followed.tracks], look.frames)
    found = Recognition(str(path), followed.seconds, followed.frames, FPS, look.size, "", (), followed.tracks)
    drawn, told["draw"] = timed(
        lambda: list(annotate(found, [(k / FPS, frame) for k, frame in enumerate(seen)])), frames
    )
    _, told["encode what was drawn"] = timed(lambda: write_video(folder / "drawn.mp4", drawn), frames)
    told["decode again, to draw"] = told["decode"]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20, help="of video")
    parser.add_argument("--long", type=float, default=0, help="seconds of another film, for its memory")
    parser.add_argument("--model", default="none", help="as of mefar recognise")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film(folder / "film.mp4", asked.seconds)
        for part, cost in parts(folder / "film.mp4", folder, min(60, round(asked.seconds * FPS))).items():
            print(f"{part:32} {cost:6.2f} ms of processor time per frame")
        runs = {f"{asked.seconds:g} s": folder / "film.mp4"}
        if asked.long:
            repeated(folder / "film.mp4", folder / "long.mp4", asked.long)
            runs[f"{asked.long:g} s"] = folder / "long.mp4"
        speed = 0.0
        for title, path in runs.items():
            wall, used, memory = command(path, folder / path.stem, asked.model)
            length = footage(path).frames / FPS
            speed = length / wall
            print(
                f"{WIDTH} x {HEIGHT}, {FPS} fps, {title}: {wall:.1f} s on the wall, {used:.1f} s of "
                f"{os.cpu_count()} processors, {memory:.0f} MB at most"
            )
        print(f"seconds of video per second: {speed:.2f}")


if __name__ == "__main__":
    main()
