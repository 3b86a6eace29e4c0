"""Would a spotter that was taught on tokens find more than the rule? On the 30 fps videos of spotting.py.

    python experiments/benchmarks/learned_spotter.py [--folder runs/spotting]

Tokens of every frame against the one GAP seconds before are features of a logistic regression: is a movement
from onset to apex going on? Frames in a row above a limit, merged, are an event. One video is left out at a
time; the limit is the best on the others. The rule beside it, at its default threshold, on the same videos.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parent))
from spotting import followed, in_frames, truth

from datamodules.faces.align import FaceAligner
from datamodules.footage import footage
from mefar import tokenizer
from mefar.recognition.intervals import Interval
from mefar.recognition.motion import resized
from mefar.recognition.reading import tokens_of
from mefar.recognition.scores import SpottingScore
from mefar.recognition.spotting import spot

GAP, FPS = 6, 30  # .2 s
LIMITS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def features(path: Path, model: object) -> np.ndarray:
    """(N, F) of the face seen longest: tokens of frame k against k - GAP; 0 where there is no pair."""
    track = max(followed(path).tracks, key=lambda each: len(each.frames))
    aligner, size, film = FaceAligner(model.image_size), model.image_size, footage(path)
    crops = {}
    for number, (_, frame) in enumerate(film.play()):
        if track.frames[0] <= number <= track.frames[-1]:
            crops[number] = aligner.crop(frame, resized(track.matrix_at(number), size))
    later = [k for k in crops if k - GAP in crops]
    made = tokens_of(model, [crops[k - GAP] for k in later], [crops[k] for k in later])
    found = np.zeros((film.frames, made.features[0].numel()), np.float32)
    found[later] = made.features.flatten(1).numpy()
    return found


def events(path: Path, shares: np.ndarray, limit: float) -> list[Interval]:
    """Runs above the limit: from the onset of the first pair to as long after the last as the rise took."""
    above = np.flatnonzero(shares > limit)
    runs = np.split(above, np.flatnonzero(np.diff(above) > 3) + 1) if len(above) else []
    found = []
    for run in runs:
        onset, apex = int(run[0]) - GAP // 2, int(run[-1])
        offset = apex + (apex - onset)
        found.append(Interval(path.stem, "micro" if offset - onset <= FPS / 2 else "macro", onset, offset))
    return found


def score(paths: list[Path], found: dict[Path, list[Interval]]) -> dict[str, float]:
    total = SpottingScore()
    for path in paths:
        true = [
            Interval(path.stem, row["kind"], int(row["onset"]), int(row["offset"])) for row in truth(path)
        ]
        total.update(true, found[path])
    return {name: float(value) for name, value in total.compute()["micro"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/spotting"))
    paths = sorted(parser.parse_args().folder.glob("30-fps*.mp4"))
    model, X, y = tokenizer.load("demo"), {}, {}
    for path in paths:
        X[path] = features(path, model)
        y[path] = np.zeros(len(X[path]), int)
        for row in truth(path):
            y[path][int(row["onset"]) + 2 : round(float(row["apex_s"]) * FPS) + 1] = 1
    shares = {}
    for path in paths:
        rest = [other for other in paths if other is not path]
        learner = make_pipeline(
            StandardScaler(), LogisticRegression(C=1e-3, max_iter=300, class_weight="balanced")
        )
        learner.fit(np.concatenate([X[p] for p in rest]), np.concatenate([y[p] for p in rest]))
        mine = {p: learner.predict_proba(X[p])[:, 1] for p in paths}
        best = max(LIMITS, key=lambda limit: score(rest, {p: events(p, mine[p], limit) for p in rest})["f1"])
        shares[path] = events(path, mine[path], best)
    rule = {
        p: in_frames(p.stem, FPS, [e for t in followed(p).tracks for e in spot(t.traces(), 4.5)])
        for p in paths
    }
    for kind in ("demo", "micro", "calm", "talking"):
        some = [p for p in paths if f"_{kind}" in p.name]
        for name, found in (("learned", shares), ("rule", rule)):
            told = score(some, found)
            print(
                f"{kind:8s} {name:8s} {told['tp']:.0f}/{told['fp']:.0f}/{told['fn']:.0f} F1 {told['f1']:.2f}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
