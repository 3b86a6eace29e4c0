"""What a baseline is: what it reads of a clip once, and which head learns from that under the same folds.

A method stands where the tokenizer stands: same crops, folds, selections, controls, ledger and report. One of
your own is one file of ordinary PyTorch:

    class Brightness(Method):
        image_size = 32
        head = MyHead                                    # or nothing: the head that tokens have

        def features(self, onset, apex, clips):
            return (apex - onset).mean(1).flatten(1)[:, None]  # (B, L, D)

    mefar loso --method my_file.Brightness --dataset samm --data DIR

Its head is any head of mefar/classifier/head.py: an nn.Module that is trained for epochs, or a FittedHead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from mefar.classifier.head import HeadFactory, TokenHead
from mefar.classifier.settings import HeadTraining
from mefar.files import fingerprint


class Method(ABC):
    """Base of every baseline.

    Attributes:
        image_size: side of the face crops that it reads, in pixels.
        views: slightly different copies of each clip to train on.
        head: learns from what is read.
        training: how its head was published to be trained.
    """

    image_size: int = 64
    views: int = 1
    head: HeadFactory = TokenHead
    training: HeadTraining = HeadTraining()

    def prepare(self, clips: Sequence[str]) -> None:
        """Called with the keys of all clips of a study before anything is read: complain here."""
        return

    @abstractmethod
    def features(self, onset: Tensor, apex: Tensor, clips: Sequence[str]) -> Tensor:
        """What is read of some pairs, each by itself.

        Args:
            onset: (B, 3, H, W) float in [0, 1].
            apex: the same.
            clips: B clip keys "database/subject/clip".

        Returns:
            (B, L, D) float; images are their L channels of D = H * W pixels.
        """

    def fingerprint(self) -> str:
        """Hash of everything but code that decides the features."""
        settings = {name: repr(value) for name, value in sorted(vars(self).items())}
        return fingerprint([type(self).__qualname__, settings])


PUBLISHED_CNN = HeadTraining(
    betas=(0.9, 0.999),
    weight_decay=0.0,  # AdamW without decay is Adam
    schedule="constant",
    clip_norm=float("inf"),
    class_weights="equal",
    label_smoothing=0.0,
    normalise=False,
)
"""Plain Adam and plain cross-entropy: what networks on optical flow are published with."""
