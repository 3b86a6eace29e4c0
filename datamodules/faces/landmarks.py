"""468 landmarks of an aligned face crop, by MediaPipe's face mesh (Apache-2.0): to measure, never to align.

The network is one file of MediaPipe's wheel, `mediapipe/modules/face_landmark/face_landmark.tflite`, and is
read by OpenCV. `pip install --no-deps "mediapipe==0.10.21"` brings it (a development dependency: later wheels
lack the file, and what this one asks for is older than what mefar uses, hence `--no-deps`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mefar.errors import UserError

_SIDE, _AROUND = 192, 0.25  # what the network sees, and how much of the crop's side it wants around it


def model_file() -> Path | None:
    """The network's file where MediaPipe is installed, else None."""
    found = importlib.util.find_spec("mediapipe")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "modules" / "face_landmark" / "face_landmark.tflite"
    return path if path.is_file() else None


class FaceMesh:
    """Landmarks of faces that lie where `FaceAligner` puts them.

    Args:
        path: face_landmark.tflite.

    Raises:
        UserError: no such file, or not that network.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file; give MediaPipe's face_landmark.tflite")
        try:
            self._net = cv2.dnn.readNetFromTFLite(str(path))
        except cv2.error as error:
            raise UserError(f"{path}: not a network that OpenCV reads ({error.err})") from None
        self._outputs = self._net.getUnconnectedOutLayersNames()

    def points(self, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(S, S, 3) uint8 RGB -> (468, 2) float, (x, y) in pixels of the crop."""
        side, around = crop.shape[0], round(_AROUND * crop.shape[0])
        wide = cv2.copyMakeBorder(crop, around, around, around, around, cv2.BORDER_REPLICATE)
        seen = cv2.resize(wide, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
        self._net.setInput(seen.astype(np.float32)[None].transpose(0, 3, 1, 2) / 255)
        mesh = max(self._net.forward(self._outputs), key=np.size).reshape(-1, 3)
        scale = (side + 2 * around) / _SIDE
        return np.asarray((mesh[:, :2] + 0.5) * scale - 0.5 - around, np.float32)
