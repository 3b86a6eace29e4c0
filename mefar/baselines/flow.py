"""Optical flow from onset to apex and its strain: what most published baselines read.

OpenCV finds it on gray crops (DIS, or TV-L1 where its contrib modules are), or it is read from ready-made
images `<subject>_<clip>.png`: u, v and strain as red, green and blue (`mefar loso --flow DIR`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mefar.baselines.method import Method
from mefar.errors import UserError
from mefar.files import fingerprint

Algorithm = Literal["dis", "tvl1"]


def flow_between(onset: Tensor, apex: Tensor, algorithm: Algorithm = "dis") -> Tensor:
    """Where every pixel went from onset to apex, both (B, 3, H, W) float in [0, 1].

    Returns:
        (B, 2, H, W) float, right and down, in hundredths of the crop's width.

    Raises:
        UserError: OpenCV lacks the algorithm.
    """
    found = []
    finder = _finder(algorithm)
    for before, after in zip(_gray(onset), _gray(apex), strict=True):
        found.append(torch.from_numpy(finder.calc(before, after, None)).permute(2, 0, 1))
    return torch.stack(found) * (100 / onset.shape[-1])


def _finder(algorithm: Algorithm) -> Any:
    if algorithm == "dis":
        return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if not hasattr(cv2, "optflow"):
        raise UserError(
            "TV-L1 flow needs OpenCV's contrib modules (opencv-contrib-python-headless); or take dis"
        )
    return cv2.optflow.DualTVL1OpticalFlow_create()


def _gray(images: Tensor) -> Any:
    levels = (images.mul(255).round().to(torch.uint8)).permute(0, 2, 3, 1).cpu().numpy()
    return [cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) for image in levels]


def strain_of(flow: Tensor) -> Tensor:
    """How much the skin is stretched: the size of the flow's infinitesimal strain tensor.

    (B, 2, H, W) -> (B, 1, H, W) of sqrt(u_x^2 + v_y^2 + (u_y + v_x)^2 / 2), per pixel.
    """
    down, right = torch.gradient(flow, dim=(2, 3))
    shear = down[:, 0] + right[:, 1]
    return (right[:, 0].square() + down[:, 1].square() + shear.square() / 2).sqrt()[:, None]


class FlowMethod(Method):
    """Base of methods that read u, v and strain as images of 28 x 28.

    Args:
        algorithm: of the flow, `dis` or `tvl1`.
        flow_dir: folder of ready-made images `<subject>_<clip>.png` instead; see match_files.
        flow_list: csv that says which clips those images are of; see read_list.
        side: of the images, in pixels.
    """

    image_size = 128

    def __init__(
        self,
        algorithm: Algorithm = "dis",
        flow_dir: Path | None = None,
        flow_list: Path | None = None,
        side: int = 28,
    ) -> None:
        if flow_list is not None and flow_dir is None:
            raise UserError(f"{flow_list}: a list of images without a folder of them; give --flow DIR too")
        self.algorithm, self.side, self.flow_dir, self.flow_list = algorithm, side, flow_dir, flow_list
        self._files: dict[str, Path] = {}

    def prepare(self, clips: Sequence[str]) -> None:
        """Match ready-made images to clips.

        Raises:
            UserError: clips without an image.
        """
        if self.flow_dir is not None:
            listed = None if self.flow_list is None else read_list(Path(self.flow_list))
            self._files = match_files(clips, Path(self.flow_dir), listed)

    def fingerprint(self) -> str:
        """Settings, and the ready-made images."""
        files = [(clip, path.read_bytes()) for clip, path in sorted(self._files.items())]
        images = fingerprint(*[part for pair in files for part in pair]) if files else ""
        return fingerprint([type(self).__qualname__, self.algorithm, self.side, images])

    def features(self, onset: Tensor, apex: Tensor, clips: Sequence[str]) -> Tensor:
        """(B, 3, side * side): u, v, strain."""
        if self._files:
            return torch.stack([self._read(self._files[clip]) for clip in clips])
        flow = flow_between(onset, apex, self.algorithm)
        images = torch.cat([flow, 10 * strain_of(flow)], 1)  # a tenth of the flow's size per pixel
        return functional.adaptive_avg_pool2d(images, self.side).flatten(2)

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                levels = np.asarray(image.convert("RGB").resize((self.side, self.side), Image.Resampling.BOX))
        except OSError as error:
            raise UserError(f"{path}: not a picture that can be read; make it anew") from error
        return torch.from_numpy(levels.copy()).permute(2, 0, 1).flatten(1).float() / 255


Name = tuple[str, str]
"""Subject and clip, as `_named` has them."""


def match_files(
    clips: Sequence[str], folder: Path, listed: Collection[Name] | None = None
) -> dict[str, Path]:
    """Ready-made flow images by clip.

    Names are `<subject>_<clip>.png` at any depth, as they travel: blanks before the ending, upper or lower
    case, subjects with or without leading letters and zeros (sub01, s01, 01, 1), once or twice in a name
    (006_1_2 and 006_006_1_2).

    Args:
        clips: keys "database/subject/clip".
        folder: where the images are.
        listed: names that a list has, which must have all clips.

    Raises:
        UserError: no such folder, clips that are not listed or without an image, or two images of one clip.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds <subject>_<clip>.png")
    names = {key: _named(*key.split("/", 2)[1:]) for key in clips}
    if listed is not None:
        absent = [key for key, name in names.items() if name not in listed]
        if absent:
            others = sorted(set(listed) - set(names.values()))
            known = f" (it has {' '.join(others[0])}, which no clip is)" if others else ""
            raise UserError(
                f"flow_list: {len(absent)} of {len(clips)} clips are not in it: {_few(absent)}{known}; "
                "add their rows, or leave the list out"
            )
    there: dict[Name, list[Path]] = {}
    for path in sorted(folder.rglob("*.png")):
        subject, _, clip = path.stem.strip().partition("_")
        there.setdefault(_named(subject, clip), []).append(path)
    found, missing = {}, []
    for key, name in names.items():
        own, database = there.get(name, []), key.split("/", 1)[0]
        if len(own) > 1:  # databases share names: the folder may tell them apart
            own = [path for path in own if database in [part.lower() for part in path.parts]] or own
        if len(own) > 1:
            raise UserError(f"{folder}: {own[0].name} and {own[1]} are both of {key}; keep one")
        if own:
            found[key] = own[0]
        else:
            missing.append(key)
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(clips)} clips have no image <subject>_<clip>.png: "
            f"{_few(missing)}; add them, or leave flow_dir out"
        )
    return found


COLUMNS = {"subject": ("subject", "sub"), "clip": ("clip", "filename_o", "filename")}
"""What the columns of public lists are called, in the order of trust."""


def read_list(path: Path) -> set[Name]:
    """The clips that a list of flow images names: csv with a column subject (sub) and one clip (filename_o).

    Other columns (dataset, frame numbers, classes) are not looked at: folds and labels come from the
    database's own coding.

    Raises:
        UserError: no such file, a column that is not there, or no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            titles = {title.strip().lower(): title for title in reader.fieldnames or ()}
            rows = list(reader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the csv that lists the flow images") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a csv in UTF-8") from error
    chosen = []
    for what, names in COLUMNS.items():
        title = next((titles[name] for name in names if name in titles), None)
        if title is None:
            raise UserError(f"{path}: no column {' or '.join(names)} for the {what}; name one so")
        chosen.append(title)
    found = {_named(row[chosen[0]] or "", row[chosen[1]] or "") for row in rows}
    if not found:
        raise UserError(f"{path}: lists no clip; give the list that came with the images")
    return found


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")


def _named(subject: str, clip: str) -> Name:
    """Subject and clip in one spelling; a clip's name may begin with its subject's."""
    person, bare = _bare(subject), _bare(clip)
    return person, bare.removeprefix(f"{person}_")


def _bare(name: str) -> str:
    """Lower case, numbers without leading zeros, no `sub`, `s` or `spNO.` in front of the first."""
    bare = re.sub(r"(?<!\d)0+(?=\d)", "", name.strip().lower())
    return re.sub(r"^(?:subject|sub|spno\.?|s)(?=\d)", "", bare)
