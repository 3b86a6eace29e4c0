"""`mefar fit` with two processes, as shipped: disjoint pairs, gates of both, one book, an exact resume."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from diary import number_pairs, read
from test_resume import folder, shipped  # noqa: F401  a fixture is found by its name

from mefar.__main__ import main


def test_two_processes_train_and_resume(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number_pairs(monkeypatch)
    torch.set_num_threads(1)  # the forked processes must not wake the thread pools of this one
    cv2.setNumThreads(1)
    out = tmp_path / "run"
    # Four of the 18 pairs per step; the last two of an epoch do not fill one and are left out.
    ranks = {"devices": 2, "strategy": "ddp_fork"}
    words = shipped(folder, out, {"continuous_share": 0.1}, validate=4, max_epochs=2, **ranks)
    config = yaml.safe_load(Path(words[-1]).read_text())
    config["data"]["init_args"]["batch_size"] = 2
    kept = {"filename": "kept-{step}", "every_n_train_steps": 2, "save_top_k": -1}
    config["trainer"]["callbacks"].append({"class_path": "ModelCheckpoint", "init_args": kept})
    Path(words[-1]).write_text(yaml.safe_dump(config))
    assert main(words) == 0
    ranks = [read(out / "diary", rank) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [8, 8]
    numbers = sorted(number for rank in ranks for pairs, _ in rank for number in pairs)
    assert numbers == [*range(16), *range(18, 34)]
    with (out / "metrics.csv").open(newline="") as file:
        gates = [row for row in csv.DictReader(file) if row.get("val/no_action_spread")]
    assert len(gates) == 2 and float(gates[-1]["val/code_usage"]) > 0
    end = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert end["VoxCelebDataModule"] | {"layout": ()} == {
        "epoch": 2, "first": 36, "batch": 0, "trained": 8, "layout": ()
    }  # fmt: skip

    # Step 6 lies in the middle of the second epoch.
    for rank in (0, 1):
        Path(f"{out / 'diary'}.{rank}").unlink()
    assert main([*words, "--ckpt_path", str(out / "checkpoints" / "kept-step=6.ckpt")]) == 0
    for rank in (0, 1):
        after = read(out / "diary", rank)
        assert [pairs for pairs, _ in after] == [pairs for pairs, _ in ranks[rank][6:]]
        assert [loss for _, loss in after] == pytest.approx([loss for _, loss in ranks[rank][6:]], rel=1e-5)
    resumed = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in end["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=1e-5, atol=1e-6, msg=name)
