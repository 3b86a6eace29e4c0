"""What is asked of a checkpoint before anything is begun with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from mefar.errors import UserError
from mefar.files import first_difference
from mefar.tokenizer import FacialActionTokenizer


def check_shapes(path: Path, content: dict[str, Any], model: LightningModule) -> None:
    """Refuse a checkpoint of another model, by the tensors that both have.

    Raises:
        UserError: the first tensor that differs.
    """
    there, here = content["state_dict"], model.state_dict()
    shared = [name for name in there if name in here]
    other = [name for name in shared if there[name].shape != here[name].shape]
    if other:
        name = other[0]
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise UserError(
            f"{path}: {name} is {list(there[name].shape)} in the file and {list(here[name].shape)} in the "
            f"model{more}; give the settings it was trained with"
        )
    if there and here and not shared:
        raise UserError(f"{path}: a checkpoint of another class than {type(model).__name__}")
    if isinstance(model, FacialActionTokenizer):  # whose optimiser has every parameter of its network
        groups = [group for state in content.get("optimizer_states", []) for group in state["param_groups"]]
        trained = sum(len(group["params"]) for group in groups)
        trains = sum(parameter.requires_grad for parameter in model.parameters())
        if groups and trained != trains:
            then, now = content["hyper_parameters"]["network"], model.hparams["network"]
            raise UserError(
                f"{path}: trained {trained} tensors where this model trains {trains}; give the settings it "
                f"was trained with: {first_difference(then, now)}"
            )


def check_same_data(path: Path, content: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Refuse to go on with other data than a training has seen.

    A corpus may have moved: it is known by the name of its folder.

    Raises:
        UserError: the data that it would go on with have another name.
    """
    before = content.get("datamodule_hyper_parameters") or {}
    for name in ("dataset", "data"):
        old, new = (Path(str(settings.get(name, ""))).name for settings in (before, data))
        if name in before and name in data and old != new:
            raise UserError(
                f"{path}: was trained on {before[name]}, not on {data[name]}; --ckpt_path goes on with the "
                "same training only"
            )


def is_finished(content: Mapping[str, Any], max_epochs: int | None, max_steps: int = -1) -> bool:
    """Whether a training with these limits has nothing left to do; None and -1 are no limit."""
    progress = content.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    epochs = int(progress.get("processed", 0))
    over = max_epochs is not None and 0 <= max_epochs <= epochs
    return over or 0 < max_steps <= int(content.get("global_step", 0))


def check_no_other_training(folders: Iterable[Path], goes_on_from: Path | None) -> None:
    """Refuse to begin a training where the checkpoints of another one lie.

    Raises:
        UserError: there are some in its folders, and it does not go on from one of them.
    """
    for folder in folders:
        there = sorted(folder.glob("*.ckpt"))
        if there and (goes_on_from is None or goes_on_from.resolve().parent != folder.resolve()):
            raise UserError(
                f"{there[0]}: of another training; go on with it by --ckpt_path last, or give another "
                "--trainer.default_root_dir"
            )
