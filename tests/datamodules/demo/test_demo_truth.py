"""True transfers: a face's own action comes out as it was filmed, another's moves what that one moved."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.demo.corpora import on_set
from datamodules.demo.truth import has_truth, true_frames
from datamodules.micro import MicroExpressionDataset
from datamodules.protocols import load
from mefar.errors import UserError

SIDE = 64


@pytest.fixture(scope="module")
def clips(
    tiny_corpora: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, MicroExpressionDataset]:
    study = load("casme2", tiny_corpora, 3)
    return tiny_corpora, MicroExpressionDataset(study, SIDE, cache_dir=tmp_path_factory.mktemp("cache"))


def picture(clips: MicroExpressionDataset, row: int, key: str) -> np.ndarray:
    return clips[row][key].permute(1, 2, 0).numpy().astype(float)


def test_the_own_action_is_the_apex_that_was_filmed(clips: tuple[Path, MicroExpressionDataset]) -> None:
    root, made = clips
    study = made.study.clips
    truth = true_frames(root, [(c, made.apexes[c.key].number) for c in study], study, SIDE).astype(float)
    assert has_truth(root) and truth.shape == (len(study), SIDE, SIDE, 3)
    nearer = [
        np.abs(truth[row] - picture(made, row, "apex")).mean()
        < np.abs(picture(made, row, "onset") - picture(made, row, "apex")).mean()
        for row in range(len(study))
    ]
    assert all(nearer)


def test_no_action_leaves_the_other_face_alone(clips: tuple[Path, MicroExpressionDataset]) -> None:
    root, made = clips
    study = made.study.clips
    other = next(c for c in study if c.subject != study[0].subject)
    still, moved = true_frames(
        root, [(study[0], study[0].onset), (study[0], made.apexes[study[0].key].number)], [other, other], SIDE
    ).astype(float)
    onset = picture(made, study.index(other), "onset")
    assert np.abs(still - onset).mean() < 4.0  # sensor noise and compression
    assert np.abs(moved - still).max() > 15.0  # gray levels, somewhere in the face


def test_what_has_no_truth_is_refused(tmp_path: Path, clips: tuple[Path, MicroExpressionDataset]) -> None:
    clip = clips[1].study.clips[0]
    assert not has_truth(tmp_path)
    with pytest.raises(UserError, match="no demo corpora"):
        on_set(tmp_path, "casme2", "sub01")
    with pytest.raises(UserError, match=f"{clip.subject}_{clip.clip}.npz"):
        true_frames(tmp_path, [(clip, clip.onset)], [clip], SIDE)
