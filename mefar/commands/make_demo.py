"""`mefar make-demo DIR`: render the demo corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datamodules.demo.corpora import Corpora, make_databases, make_voxceleb
from datamodules.demo.realism import Extra
from mefar.files import lock
from mefar.progress import shown


def make_demo(
    out: Path,
    *,
    seed: int = 0,
    size: Literal["demo", "tiny"] = "demo",
    strength: Literal["micro", "demo", "macro"] = "demo",
    talking: bool = True,
    twins: bool = False,
    realism: list[Extra] | None = None,
    workers: int = 0,
) -> None:
    """Render faces and write them in the layouts of the real databases; what is there already is kept.

    Args:
        out: folder to write: voxceleb, casme2, samm, smic, casme3 and ground_truth.
        seed: same seed, same files.
        size: demo (350 speakers, 8 subjects x 13 clips per database; about 2 minutes on 2 cores, 300 MB) or
            tiny (seconds; for tests).
        strength: peak of every acting unit in the databases, in shares of its full action: micro .08 to .22
            (FACS intensity A to B; half a pixel of 64), demo .3 to .7 (C), macro .7 to 1 (D to E).
        talking: also render voxceleb, whose people talk alike at every strength; false for databases alone.
        twins: two speakers play each script of voxceleb, in videos of the same names, for training on what
            one action looks like on two faces (the data's option `twins`).
        realism: what real interviews have, added to voxceleb, as `[wrinkles, glasses]`; also shutter (motion
            blur), camera (noise and compression) and turns (of the head).
        workers: processes; 0 = one per core (tiny: this one alone).
    """
    if size == "tiny" and workers == 0:
        workers = 1  # starting processes would take longer than the work
    corpora = Corpora(out, seed, size, strength, twins, realism or ())
    with lock(out / ".lock"), shown("rendering databases", "subjects") as progress:
        make_databases(corpora, workers, progress)
    if talking:
        with lock(out / ".lock"), shown("rendering voxceleb", "speakers") as progress:
            make_voxceleb(corpora, workers, progress)
    names = ("voxceleb, " if talking else "") + "casme2, samm, smic, casme3"
    print(f"{out}: demo corpora of rendered faces, seed {seed}, strength {strength}: {names}")
