"""What `mefar fit` refuses before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
from filming import barcode, film

from mefar.__main__ import main


def test_a_model_and_data_of_two_image_sizes_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "faces" / "one.mp4", [barcode(1)])
    argv = "fit --model FacialActionTokenizer --model.network WarpNetwork --model.network.image_size 64 "
    argv += "--data VoxCelebDataModule --data.init_args.data faces --data.init_args.image_size 96 "
    argv += "--trainer.accelerator cpu"
    assert main(argv.split()) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("mefar fit: error: image_size: 64 in the model, 96 in the data; the data follow")
    assert "\n" not in said
    assert not Path("runs").exists(), "nothing was begun"
