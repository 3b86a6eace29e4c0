"""Made-up onset/apex pairs of three subjects, a tiny tokenizer of each kind, and the study that they make."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from test_tokenizer import SMALL
from token_sets import study
from torch.utils.data import Dataset

from mefar.loso.adapting import Adaptation
from mefar.loso.folds import StudyTokens
from mefar.loso.token_table import tokenize
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.published_network import PublishedNetwork
from mefar.tokenizer.warp_network import WarpNetwork

CLIPS = (3, 4, 6)  # training sets of 10, 9 and 7 clips: a last batch of 2, of 1, and of 3
SUBJECTS = tuple(f"casme2/{number}" for number, count in enumerate(CLIPS) for _ in range(count))
PUBLISHED = {"image_size": 32, "patch_size": 4, "dim": 16, "spatial_depth": 1, "temporal_depth": 1,
             "heads": 2, "head_dim": 8, "num_codes": 8, "num_tokens": 4, "code_dim": 4}  # fmt: skip


class Pairs(Dataset[dict[str, Any]]):
    """Smooth pictures, one per subject, moved by an amount that the label decides; V slightly darker views.

    Attributes:
        spoilt: subject whose pictures are garbage.
    """

    def __init__(self, side: int, views: int, spoilt: str = "") -> None:
        self.side, self.views, self.spoilt = side, views, spoilt

    def __getitem__(self, row: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(int(SUBJECTS[row][-1]))
        coarse = torch.rand(1, 3, 9, 9, generator=generator)
        face = torch.nn.functional.interpolate(coarse, (self.side, self.side), mode="bilinear")[0]
        moved = torch.roll(face, (row % 3 - 1) * 3 + row // 3 % 2, dims=1)
        if SUBJECTS[row] == self.spoilt:
            face, moved = torch.rand(2, *face.shape, generator=torch.Generator().manual_seed(99)).unbind()
        dim = 1 - 0.05 * torch.arange(self.views).view(-1, 1, 1, 1)
        onset, apex = ((image * dim * 255).byte() for image in (face, moved))
        one = self.views == 1
        return {
            "onset": onset[0] if one else onset,
            "apex": apex[0] if one else apex,
            "clip": f"{SUBJECTS[row]}/clip{row:03d}",
        }


@cache
def tokenizer(network: str = "warp") -> FacialActionTokenizer:
    torch.manual_seed(3)
    published = network == "published"
    model = FacialActionTokenizer(PublishedNetwork(**PUBLISHED) if published else WarpNetwork(**SMALL))
    pairs = [Pairs(model.image_size, 1)[row] for row in range(len(SUBJECTS))]
    onset, apex = (torch.stack([pair[name] for pair in pairs]) / 255 for name in ("onset", "apex"))
    with torch.no_grad():  # a book that fits the encoder, or every clip would be the same tokens
        actions = model.network.encode(onset, apex).flatten(0, 1)
        model.network.vq.codebook.copy_(actions[torch.randperm(len(actions))[: model.num_codes]])
    return model.eval()


def adaptation(network: str = "warp", spoilt: str = "", weight: float = 0.1) -> Adaptation:
    model = tokenizer(network)
    return Adaptation(model, Pairs(model.image_size, 2, spoilt), weight)


@cache
def material(network: str = "warp") -> StudyTokens:
    pairs = adaptation(network).pairs
    items = [pairs[row] for row in range(len(SUBJECTS))]
    batch = {name: torch.stack([item[name] for item in items]) for name in ("onset", "apex")}
    table = tokenize(tokenizer(network), [batch | {"clip": [item["clip"] for item in items]}])
    labels = torch.arange(len(SUBJECTS)) % 3
    return study(table.embeddings, labels, SUBJECTS)
