"""Folds trained in groups against the same folds trained alone, over a composite-sized study.

    python experiments/benchmarks/equality.py                the middle one of 18 groups: minutes
    python experiments/benchmarks/equality.py --groups 4     every fourth: a quarter of an hour
    python experiments/benchmarks/equality.py --groups 18    all of them: an hour

The study is loso.py's, with the default head, 2 views and 100 epochs, with and without dropout. In float64
every prediction must be equal and parameters at most 1e-6 apart; in float32, where rounding grows over
thousands of steps, the share of equal predictions is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from loso import DEFAULT, composite
from torch import Tensor

from mefar.classifier.head import HeadSize
from mefar.loso.engine import GroupTrainer, TokenSet, Training, single_threaded
from mefar.loso.folds import Fold, fold_model, plan
from mefar.loso.run import CPU_GROUP, GPU_GROUP


def trained(
    data: TokenSet, groups: Sequence[Sequence[Fold]], size: HeadSize, training: Training
) -> tuple[list[Tensor], Tensor]:
    """Predictions of the last epoch fold by fold, and all parameters, (folds, P)."""
    guesses, values = [], []
    with single_threaded():
        for group in groups:
            trainer = GroupTrainer(data, [fold_model(data, fold) for fold in group], size, training)
            guesses += [path[-1].argmax(-1) for path in trainer.run()]
            values.append(trainer.optimiser.values())
    return guesses, torch.cat(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--groups", type=int, default=1, help="about how many of the groups to compare")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--group", type=int, help="folds side by side; as mefar loso if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    case = replace(DEFAULT, views=2)
    training = replace(DEFAULT.training, epochs=options.epochs, eval_views=1)
    group = options.group or (GPU_GROUP if device.type == "cuda" else CPU_GROUP)
    for dtype in (torch.float64, torch.float32):
        data = composite(case, dtype).to(device)
        groups = plan(data.subjects, [0], group)
        stride = max(1, len(groups) // options.groups)
        groups = groups[stride // 2 :: stride]  # groups are ordered by the size of their subjects
        for dropout in (0.0, case.size.dropout):
            size = replace(case.size, dropout=dropout)
            together, values = trained(data, groups, size, training)
            alone, own = trained(data, [[fold] for each in groups for fold in each], size, training)
            clips = sum(len(each) for each in alone)
            same = sum(int((a == b).sum()) for a, b in zip(together, alone, strict=True))
            apart = float((values - own).abs().max())
            print(
                f"{str(dtype).removeprefix('torch.')}, dropout {dropout}, {training.epochs} epochs, "
                f"{len(alone)} folds in groups of {group}: {same} of {clips} predictions equal, "
                f"parameters at most {apart:.1e} apart",
                flush=True,
            )
            if dtype == torch.float64:
                assert same == clips
                assert apart < 1e-6


if __name__ == "__main__":
    main()
