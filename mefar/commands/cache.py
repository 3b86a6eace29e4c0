"""`mefar cache VOXCELEB OUT`: decode and align every utterance once, so that training never decodes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from datamodules.cache import build
from datamodules.progress import shown


def main(argv: list[str]) -> int:
    """Build or resume a cache, and say what it holds.

    Returns:
        Exit code: 0.

    Raises:
        DataError: no videos, another cache in OUT, not enough disk.
    """
    parser = argparse.ArgumentParser(prog="mefar cache", description=__doc__)
    parser.add_argument("voxceleb", type=Path, metavar="VOXCELEB", help="folder of face videos, any depth")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the cache; resumed if it was begun")
    parser.add_argument("--size", type=int, default=256, help="side of the crops in pixels (default 256)")
    parser.add_argument(
        "--frames", type=int, default=25, help="crops kept per video (default 25 = 2 s at 80 ms)"
    )
    parser.add_argument(
        "--faces",
        choices=("align", "precropped"),
        default="align",
        help="find faces, or take frames as they are",
    )
    parser.add_argument("--no-stabilise", action="store_true", help="leave the head's own motion in")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which parts of long videos are kept")
    args = parser.parse_args(argv)
    with shown("decoding") as progress:
        made = build(
            args.voxceleb,
            args.out,
            args.size,
            args.frames,
            args.faces,
            workers=args.workers,
            seed=args.seed,
            progress=progress,
            stabilise=not args.no_stabilise,
        )
    print(
        f"{args.out}: {made.frames} crops in {made.windows} windows of {made.utterances} videos, "
        f"{made.speakers} speakers, {made.bytes / 1e6:.0f} MB"
    )
    if made.quarantined:
        print(f"{made.quarantined} videos gave nothing: {args.out / 'quarantine.csv'}")
    return 0
