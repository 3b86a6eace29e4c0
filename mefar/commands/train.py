"""`mefar fit | validate | test | predict`: LightningCLI over our modules.

Classes are named by `class_path` in YAML; short names work because the packages are imported here.
Everything of one training lies in one folder, `trainer.default_root_dir` (default
`runs/VERB-CLASS`): config.yaml, metrics.csv and checkpoints/, so `--ckpt_path last` resumes it.
metrics.csv is kept beside any logger that is asked for.
"""

from __future__ import annotations

import pickle
import re
import shlex
import sys
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import CheckpointIO, TorchCheckpointIO

# Imported for their class names: YAML may then say `class_path: VoxCelebDataModule`.
import datamodules.micro
import datamodules.voxceleb.module
import mefar.classifier.edclip
import mefar.classifier.module
import mefar.tokenizer.module
import mefar.tokenizer.published_network
import mefar.tokenizer.warp_network
import mefar.tokenizer.weight_ema
from mefar.commands import guard
from mefar.errors import UserError
from mefar.files import replacing, sweep
from mefar.report.training_page import write_training_report
from mefar.sweeps import fill, name_run
from mefar.tokenizer import earlier
from mefar.tokenizer.validation_pictures import SampleKeeper

_FOUND_BY_TRAINER = ("last", "best", "hpc", "registry")


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning's own writer goes through the system's temporary folder. Where that lies on another disk, a
    process killed at the wrong moment leaves half a `last.ckpt` in place of the one before.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write beside the old file, then rename; addresses (`s3://...`) are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with replacing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class MefarCLI(LightningCLI):
    """LightningCLI with one folder per training and plain words for checkpoints that do not fit."""

    command = "mefar fit"
    """What the user typed."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The size of the images is asked for once, in the model; the data follow."""
        parser.link_arguments("model.image_size", "data.init_args.image_size", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        # The inherited one lets a checkpoint's hyperparameters overrule what the user wrote.
        checkpoint = self.config[self.config.subcommand].get("ckpt_path")
        if checkpoint and not str(checkpoint).startswith(_FOUND_BY_TRAINER):
            check_checkpoint(Path(checkpoint))

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        verb = str(self.subcommand)
        data = self.config[verb].get("data")
        asked = data.init_args.get("image_size") if data is not None and "init_args" in data else None
        check_settings(self.model, self.datamodule, asked)
        root = fill(Path(config["default_root_dir"] or f"runs/{verb}-{type(self.model).__name__}"))
        config["default_root_dir"] = str(root)
        # Before the folder is touched: a resume that cannot work leaves the run as it was.
        checkpoint = str(self.config[verb].get("ckpt_path"))
        path = root / "checkpoints" / "last.ckpt" if checkpoint == "last" else Path(checkpoint)
        if path.is_file():
            check_shapes(path, self.model)
        present = config["callbacks"] or []
        config["callbacks"] = [*(present if isinstance(present, list) else [present])]
        given = [] if config["logger"] in (None, True) else config["logger"]
        if given is not False and not config["fast_dev_run"]:
            # Other verbs than fit get a subfolder: they must not touch the training's own record.
            log = root if verb == "fit" else root / verb
            _keep(log / "metrics.csv")
            record = CSVLogger(root, name="", version="" if verb == "fit" else verb)
            # First, because config.yaml goes where the first logger is; W&B and others come on top.
            config["logger"] = [record, *(given if isinstance(given, list) else [given])]
        if config["enable_checkpointing"] is not False:
            if not any(isinstance(c, Checkpoint) for c in config["callbacks"]):
                config["callbacks"].append(ModelCheckpoint(save_last=True))
            for callback in config["callbacks"]:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str((root / "checkpoints").absolute())
        plugins = config["plugins"] or []
        config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins])]
        # A strategy with files of its own kind (deepspeed, xla) accepts no other writer.
        plain = config["strategy"] == "auto" or str(config["strategy"]).startswith("ddp")
        if plain and not any(isinstance(plugin, CheckpointIO) for plugin in config["plugins"]):
            config["plugins"].append(WholeFiles())
        bar = config["enable_progress_bar"] is not False
        if bar and not any(isinstance(c, ProgressBar) for c in config["callbacks"]):
            config["callbacks"].append(RichProgressBar())
        if self._reports(config):
            config["callbacks"].append(SampleKeeper(root, self.command))
        return super()._instantiate_trainer(config, callbacks)

    def _reports(self, config: Any) -> bool:
        """Whether this is a training that ends with a report page."""
        tokenizer = isinstance(self.model, mefar.tokenizer.module.FacialActionTokenizer)
        return tokenizer and str(self.subcommand) == "fit" and not config["fast_dev_run"]

    def after_fit(self) -> None:
        """Write the page of a tokenizer's training."""
        root = Path(self.trainer.default_root_dir)
        if not self.trainer.is_global_zero or not self._reports(self.config[str(self.subcommand)]["trainer"]):
            return
        try:
            print(write_training_report(root))
        except (UserError, OSError) as error:
            # The weights are safe by now: a page that cannot be written does not undo the training.
            print(f"mefar fit: no report page: {error}", file=sys.stderr)


@rank_zero_only
def _keep(record: Path) -> None:
    # CSVLogger begins by deleting the file of an earlier start; a resumed training keeps its curve.
    if record.is_file():
        number = 1
        while (older := record.with_name(f"{record.stem}-{number}{record.suffix}")).exists():
            number += 1
        record.rename(older)


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file that must be a checkpoint of Lightning's.

    Returns:
        Its content, tensors still on disk.

    Raises:
        UserError: no such file, unreadable, or without model weights.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give a .ckpt file, or `last` to resume the newest")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not a checkpoint that can be read; it may be cut short") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path}: holds no state_dict; give a checkpoint that `mefar fit` wrote")
    return content


def check_shapes(path: Path, model: LightningModule) -> None:
    """Refuse a checkpoint of another model, by the tensors that both have.

    Raises:
        UserError: the first tensor that differs.
    """
    checkpoint = check_checkpoint(path)
    earlier.translate_checkpoint(checkpoint)
    there, here = checkpoint["state_dict"], model.state_dict()
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


def check_settings(model: LightningModule, data: LightningDataModule | None, asked: int | None) -> None:
    """Refuse a model and data that answer the same question differently, such as image_size.

    The Trainer would do so too, but only once it logs, and with a traceback.

    Args:
        model: to be trained.
        data: whose image_size follows the model's.
        asked: the data's image_size in the configuration, its default where nothing was said.

    Raises:
        UserError: the first setting of one name with two values.
    """
    if data is None:
        return
    ours, theirs = dict(model.hparams), dict(data.hparams)
    for name in ours:
        same = name.startswith("_") or name not in theirs
        if not same and (type(ours[name]) is not type(theirs[name]) or ours[name] != theirs[name]):
            raise UserError(
                f"{name}: {ours[name]!r} in the model, {theirs[name]!r} in the data; "
                f"give model.init_args.{name} and data.init_args.{name} the same value"
            )
    size, parameter = getattr(model, "image_size", None), signature(type(data)).parameters.get("image_size")
    if size is not None and parameter is not None and asked not in (None, size, parameter.default):
        raise UserError(
            f"image_size: {size} in the model, {asked} in the data; the data follow the model, leave "
            "data.init_args.image_size out"
        )


def missing_tensor(message: str) -> str:
    """The first disagreement of a failed `load_state_dict`, as part of one line.

    Args:
        message: text of torch's RuntimeError.
    """
    found = re.search(r"(Missing|Unexpected) key\(s\) in state_dict: (\S+)", message)
    return f"{found[1].lower()} tensor {found[2].strip(',.')}" if found else message.splitlines()[0]


def main(argv: Sequence[str]) -> int:
    """Run one verb of the Trainer.

    Args:
        argv: the verb, then its options.

    Returns:
        Exit code.
    """
    verb = argv[0]
    return guard(f"mefar {verb}", lambda: _train(verb, argv), argv)


def _train(verb: str, argv: Sequence[str]) -> int:
    words = name_run(argv)

    class OneVerb(MefarCLI):
        """Builds the parser of one verb only; building all four takes seconds."""

        command = shlex.join(["mefar", *words])

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {verb: LightningCLI.subcommands()[verb]}

    try:
        OneVerb(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "mefar", "exit_on_error": False, verb: {"exit_on_error": False}},
            args=earlier.words(words),
        )
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise UserError(f"the checkpoint does not fit this model: {missing_tensor(str(error))}") from error
    return 0
