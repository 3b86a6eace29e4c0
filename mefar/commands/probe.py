"""`mefar probe TOKENIZER DATA`: what the tokens know, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from datamodules.demo import truth as demo_truth
from datamodules.faces.align import FaceMode
from datamodules.faces.landmarks import FaceMesh, model_file
from datamodules.micro import MicroExpressionDataset
from datamodules.protocols import load as load_study
from datamodules.voxceleb.augmentation import PairTransform
from datamodules.voxceleb.module import PairDataset, VoxCelebDataModule
from datamodules.voxceleb.shards import read_index
from mefar.errors import UserError
from mefar.files import check_ours, write_text
from mefar.probes import faces as face_probes
from mefar.probes import tokens as probes
from mefar.progress import shown
from mefar.tokenizer.module import load as load_tokenizer
from mefar.tokens import as_images

READERS = ("tokens", "embeddings", "pixels")
Change = Callable[[torch.Tensor], torch.Tensor]


def probe(
    tokenizer: Path,
    data: Path,
    *,
    dataset: str = "composite",
    faces: FaceMode = "align",
    views: int = 8,
    cache_dir: Path = Path("runs/cache"),
    landmarks: Path | None = None,
    pairs: int = 40,
    out: Path | None = None,
) -> None:
    """Measure token quality on a database: action units, identity, few clips, other databases, pictures.

    Linear probes on one-hot tokens, on token embeddings and on aligned pixel differences, each on people or
    clips that it was not fitted on; everything again in gray and at 60 % resolution. On the demo's rendered
    faces also how near an expression carried to another face comes to that face's true frame.

    With `--dataset videos` on a folder of people who talk, laid out like VoxCeleb: what tokens give over
    copying the onset, by size of motion, 0.32 to 0.6 s apart, what the tokens of somebody else give, whether
    nothing is the same for everybody, and, with MediaPipe's face mesh, whether movements carried to another
    face have their size there.

    Args:
        tokenizer: checkpoint.
        data: folder of the database, for composite of all three; of videos.
        dataset: protocol whose clips and labels are used, or `videos`.
        faces: `align` finds the face; `precropped` takes frames that are face crops already.
        views: looks at each clip whose mean a probe reads, the same for tokens and pixels; 1 = the clip.
        cache_dir: folder for face crops.
        landmarks: MediaPipe's face_landmark.tflite, to measure movements that are carried to another face;
            default: the installed MediaPipe's, if there is one.
        pairs: videos only: pairs of frames per person.
        out: also write the numbers to this JSON file.
    """
    if out is not None:
        check_ours(out, '"tokenizer":')
    model = load_tokenizer(tokenizer)
    mesh = landmarks or model_file()
    if dataset == "videos":
        numbers = _faces(model, data, faces, cache_dir, mesh, pairs)
        Console().print(_list(str(data), numbers))
        _write(out, {"tokenizer": str(tokenizer), "dataset": dataset, "gates": numbers})
        return
    study = load_study(dataset, data)
    with shown("aligning faces", "clips") as progress:
        clips = MicroExpressionDataset(
            study, model.image_size, faces, views=views, cache_dir=cache_dir, progress=progress
        )
    truth = _truth(data, clips, model.image_size, faces)
    changes: dict[str, Change] = {
        "as recorded": lambda x: x,
        "gray": probes.gray,
        "60 % resolution": probes.low_resolution,
    }
    domains = {
        name: _measure(model, clips, change, None if truth is None else change(truth), mesh)
        for name, change in changes.items()
    }
    for name, measured in domains.items():
        Console().print(_table(name, measured))
    if "au_f1" not in measured["probes"]["tokens"]:
        print(f"action units: none is shown by {probes.FEWEST_POSITIVES} clips, so their row is left out")
    told = {"tokenizer": str(tokenizer), "dataset": dataset, "clips": len(clips), "views": views}
    _write(out, told | {"domains": domains})


def _write(out: Path | None, found: dict[str, Any]) -> None:
    if out is not None:
        write_text(out, json.dumps(found, indent=1))
        print(out)


def _faces(
    model: Any, data: Path, mode: FaceMode, cache_dir: Path, mesh: Path | None, pairs: int
) -> dict[str, float]:
    """Gates of a folder of videos, as many pairs of every person."""
    gap = (0.32, 0.60)
    module = VoxCelebDataModule(
        str(data), model.image_size, gap, faces=mode, cache_dir=str(cache_dir), frames_per_utterance=200
    )
    module.prepare_data()
    speakers = sorted(read_index(module.folder)[0]["speakers"])
    if len(speakers) < 2:
        raise UserError(
            f"{data}: one person in it; transfer needs two: give a folder per person, as VoxCeleb"
        )
    batches = []
    for name in speakers:
        people = PairDataset(module.folder, {name}, gap, PairTransform(model.image_size, False), pairs)
        batches.append(people[list(range(pairs))])
    onset, apex = (torch.cat([batch[key] for batch in batches]).float() / 255 for key in ("onset", "apex"))
    subjects = [name for name in speakers for _ in range(pairs)]
    found = {"people": float(len(speakers)), "pairs": float(len(onset))}
    found |= face_probes.gains(model, onset, apex, subjects)
    if mesh is None:
        print("no landmarks: MediaPipe is not installed, see datamodules/faces/landmarks.py")
        return found
    return found | face_probes.carried_movements(model, onset, apex, subjects, _reader(mesh))


def _reader(mesh: Path) -> Change:
    """(N, 3, S, S) in [0, 1] -> (N, 468, 2) landmarks."""
    reader = FaceMesh(mesh)

    def landmarks(images: torch.Tensor) -> torch.Tensor:
        crops = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(np.stack([reader.points(crop) for crop in crops]))

    return landmarks


def _pairs(
    clips: MicroExpressionDataset, change: Change, views: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Onset and apex of every clip's first views, (V, 3, S, S) float in [0, 1], as changed by a camera."""
    for row in range(len(clips)):
        item = clips[row]
        onset, apex = (item[name].view(-1, *item[name].shape[-3:])[:views] for name in ("onset", "apex"))
        yield change(onset.float() / 255), change(apex.float() / 255)


def _measure(
    model: Any, clips: MicroExpressionDataset, change: Change, truth: torch.Tensor | None, mesh: Path | None
) -> dict[str, Any]:
    study = clips.study
    subjects = [clip.subject_key for clip in study.clips]
    databases = [clip.database for clip in study.clips]
    labels = torch.tensor([clip.label for clip in study.clips])
    # Clips whose database has no action units (SMIC) say nothing about units they do not show.
    coded = [row for row, clip in enumerate(study.clips) if clip.aus]
    numbers = sorted({unit.number for clip in study.clips for unit in clip.aus})
    units = torch.tensor(
        [[any(unit.number == n for unit in study.clips[row].aus) for n in numbers] for row in coded]
    ).view(len(coded), len(numbers))
    rows: dict[str, dict[str, float]] = {}
    per_unit: dict[str, dict[str, float]] = {}
    for name, read in probes.features(model, _pairs(clips, change, clips.settings.views)).items():
        mean, each = probes.au_probe(read[coded], units, [subjects[row] for row in coded])
        per_unit[name] = {f"AU{numbers[column]}": value for column, value in each.items()}
        accuracy, chance = probes.identity_probe(read, subjects)
        rows[name] = ({"au_f1": mean} if each else {}) | {"identity": accuracy, "identity_chance": chance}
        rows[name]["uf1_all_clips"] = probes.all_clips(read, labels, subjects)
        for shots in (5, 10):
            rows[name][f"uf1_{shots}_clips_per_class"] = probes.few_shot(read, labels, subjects, shots)
        for database, value in probes.cross_database(read, labels, subjects, databases).items():
            rows[name][f"uf1_others_to_{database}"] = value
    onset, apex = (torch.cat(images) for images in zip(*_pairs(clips, change, 1), strict=True))
    rebuilt = probes.reconstruction(model, onset, apex, subjects)
    if truth is not None:
        rebuilt |= probes.transfer_error(model, onset, apex, subjects, truth)
    if truth is not None and mesh is not None:
        rebuilt |= face_probes.against_truth(model, onset, apex, subjects, truth, _reader(mesh))
    return {"probes": rows, "au_f1": per_unit, "reconstruction": rebuilt}


def _truth(data: Path, clips: MicroExpressionDataset, size: int, faces: FaceMode) -> torch.Tensor | None:
    """True frames (N, 3, S, S) of every clip's face under its partner's expression; None on real data."""
    if not demo_truth.has_truth(data):
        return None
    study = clips.study.clips
    partners = probes.other_faces([clip.subject_key for clip in study]).tolist()
    actors = [(study[row], clips.apexes[study[row].key].number) for row in partners]
    with shown("rendering the true transfers", "clips") as progress:
        pictures = demo_truth.true_frames(data, actors, study, size, faces, progress)
    return as_images(pictures)


def _list(title: str, numbers: dict[str, float]) -> Table:
    table = Table("gate", "", title=title, title_justify="left")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.3f}".rstrip("0").rstrip("."))
    return table


def _table(title: str, numbers: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("probe")
    for name in READERS:
        table.add_column(name, justify="right")
    for row in numbers["probes"]["tokens"]:
        table.add_row(row, *(f"{numbers['probes'][name][row]:.3f}" for name in READERS))
    for name, value in numbers["reconstruction"].items():
        table.add_row(name, f"{value:.3f}", "", "")
    return table
