"""The gates of real faces, on pictures of which the answer is known."""

from __future__ import annotations

import pytest
import torch

from datamodules.faces import landmarks
from mefar.errors import UserError
from mefar.probes import faces
from mefar.tokens import ActionTokens

SUBJECTS = ["a", "a", "b", "b", "c", "c"]


class Dot:
    """A face is a dot; its action is how far it goes down, of which a share is carried."""

    num_codes, num_tokens, dim = 16, 1, 1

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def tokenize(self, onset: torch.Tensor, apex: torch.Tensor) -> ActionTokens:
        rows = place(apex)[:, 1] - place(onset)[:, 1]
        return ActionTokens(rows[:, None].long() % 16, rows[:, None, None])

    def reconstruct(self, onset: torch.Tensor, tokens: ActionTokens) -> torch.Tensor:
        steps = (tokens.embeddings[:, 0, 0] * self.share).round().long()
        return torch.stack([image.roll(int(n), 1) for image, n in zip(onset, steps, strict=True)])


def place(images: torch.Tensor) -> torch.Tensor:
    """(N, 2) x and y of the brightest pixel."""
    at = images.mean(1).flatten(1).argmax(1)
    return torch.stack([at % images.shape[-1], at // images.shape[-1]], 1).float()


def mesh(images: torch.Tensor) -> torch.Tensor:
    """A mouth where the dot is; a head 20 px wide that was turned, shifted and enlarged by chance."""
    generator = torch.Generator().manual_seed(int(images.sum()) + int(place(images).sum()))
    points = torch.rand(len(images), 468, 2, generator=torch.Generator().manual_seed(7)) * 20
    points[:] = points[:1].clone()
    points[:, faces.REGIONS["mouth"]] = place(images)[:, None]
    turn = 0.1 * torch.randn(len(images), 1, 2, generator=generator) + torch.tensor([1.0, 0.0])
    z = torch.view_as_complex(points) * torch.view_as_complex(turn)
    return torch.view_as_real(z) + torch.randn(len(images), 1, 2, generator=generator)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    steps = [2, 8, 4, 10, 6, 12]
    onset = torch.zeros(6, 3, 32, 32)
    for row in range(6):
        onset[row, :, 2 + row, 10 + row] = 1
    return onset, torch.stack([image.roll(n, 1) for image, n in zip(onset, steps, strict=True)])


def test_gains_of_a_perfect_and_of_a_deaf_tokenizer() -> None:
    found = faces.gains(Dot(), *pairs(), SUBJECTS)
    assert found["gain_over_copy"] > 50 and found["delta_psnr"] > 50
    assert found["people_better"] == 1 and found["no_action_rows"] == 1
    assert found["code_usage"] == 6 / 16
    assert "no_action_share" not in found
    deaf = faces.gains(Dot(share=0), *pairs(), SUBJECTS)
    assert deaf["people_better"] == 0
    for name in ("gain_over_copy", "gain_part_1", "gain_part_5", "delta_psnr"):
        assert deaf[name] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_size_of_carried_movements_is_read_off_landmarks_whatever_the_head_does(share: float) -> None:
    found = faces.carried_movements(Dot(share), *pairs(), SUBJECTS, mesh)
    assert found["slope_mouth"] == pytest.approx(share, abs=0.02)
    assert found["correlation_mouth"] > 0.99
    assert found["tokens_kept"] == (share == 1.0)
    # Half the way leaves a face nearer to what it was than its own next frame.
    assert (found["identity_carried"] < found["identity_frames"]) == (share < 1)


def test_a_mesh_that_is_not_there_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="no such file"):
        landmarks.FaceMesh(tmp_path / "face_landmark.tflite")
    (tmp_path / "face_landmark.tflite").write_bytes(b"not a network")
    with pytest.raises(UserError, match="not a network"):
        landmarks.FaceMesh(tmp_path / "face_landmark.tflite")
