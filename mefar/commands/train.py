"""`mefar fit | validate | test | predict`: LightningCLI over our modules.

Classes are named by `class_path` in YAML; short names work because the packages are imported here.
Everything of one training lies in one folder, `trainer.default_root_dir` (default
`runs/VERB-CLASS`): config.yaml, metrics.csv and checkpoints/, so `--ckpt_path last` resumes it.
metrics.csv is kept beside any logger that is asked for. A folder that holds another training is refused.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import CheckpointIO
from rich import get_console

# Imported for their class names: YAML may then say `class_path: VoxCelebDataModule`.
import datamodules.micro
import datamodules.voxceleb.module
import mefar.classifier.edclip
import mefar.classifier.module
import mefar.tokenizer.module
import mefar.tokenizer.published_network
import mefar.tokenizer.warp_network
import mefar.tokenizer.weight_ema
from mefar.commands import RUN_ID, fill, guard, name_run
from mefar.commands.checkpoints import check_no_other_training, check_same_data, check_shapes, is_finished
from mefar.commands.shipped import with_configs, with_shipped_configs
from mefar.commands.trainer_parts import LogLines, PredictionTable, SameClasses, ToTheEnd, WholeFiles
from mefar.errors import UserError
from mefar.files import claim, write_text
from mefar.report.training_page import write_training_report
from mefar.tokenizer import earlier
from mefar.tokenizer.plain import read_checkpoint
from mefar.tokenizer.validation_pictures import SampleKeeper

_FOUND_BY_TRAINER = ("last", "best", "hpc", "registry")


class MefarCLI(LightningCLI):
    """LightningCLI with one folder per training and plain words for checkpoints that do not fit."""

    command = "mefar fit"
    """What the user typed."""
    held: ExitStack
    """Ends with the verb: the claim of its folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What model and data must agree on is asked for once."""
        parser.link_arguments("model.image_size", "data.init_args.image_size", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Tell a classifier what its data are: which protocol, who is held out, which seed."""
        # Not link_arguments: when parsing, jsonargparse 4.53 fails on a model whose part a function makes,
        # as mefar.tokenizer.load does (add_function_arguments() got an unexpected keyword 'linked_targets');
        # when instantiating, the model would wait for the data, which wait for the model's image_size.
        config = self.config[str(self.subcommand)]
        model, data = (config[name].get("init_args") or {} for name in ("model", "data"))
        for theirs, ours in (("dataset", "protocol"), ("held_out", "held_out"), ("seed", "seed")):
            if ours in model and theirs in data:
                model[ours] = data[theirs]

    def _parse_ckpt_path(self) -> None:
        # The inherited one lets a checkpoint's hyperparameters overrule what the user wrote.
        checkpoint = self.config[self.config.subcommand].get("ckpt_path")
        if checkpoint and not str(checkpoint).startswith(_FOUND_BY_TRAINER):
            read_checkpoint(Path(checkpoint), "give a .ckpt file, or `last` to resume the newest")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        verb = str(self.subcommand)
        data = self.config[verb].get("data")
        asked = data.init_args.get("image_size") if data is not None and "init_args" in data else None
        check_settings(self.model, self.datamodule, asked)
        if str(config["precision"]).split("-")[-1] == "true" and "32" not in str(config["precision"]):
            raise UserError(f"trainer.precision: {config['precision']} is not enough or too much for the "
                            "codebook's counts; give 32-true, bf16-mixed or 16-mixed")  # fmt: skip
        if config["overfit_batches"]:
            raise UserError("trainer.overfit_batches: our loaders deal out pairs by number; give "
                            "trainer.limit_train_batches, or data.init_args.pairs_per_epoch")  # fmt: skip
        root = fill(Path(config["default_root_dir"] or f"runs/{verb}-{type(self.model).__name__}"))
        config["default_root_dir"] = str(root)
        # Other verbs than fit get a subfolder: they must not touch the training's own record.
        log = root if verb == "fit" else root / verb
        self._callbacks(config, root)
        # Before the folder is touched: a training that cannot begin leaves what is there as it was.
        resumes = self._check_checkpoint(config, root)
        if not config["fast_dev_run"] and getattr(rank_zero_only, "rank", 0) == 0:
            if verb == "fit":
                folders = [str(c.dirpath) for c in config["callbacks"] if isinstance(c, ModelCheckpoint)]
                check_no_other_training({root / "checkpoints", *map(Path, folders)}, resumes)
            if not self.held.enter_context(claim(log / ".lock")):
                raise UserError(f"{log}: another `mefar {verb}` works here; wait for it, or give another "
                                "trainer.default_root_dir")  # fmt: skip
        given = [] if config["logger"] in (None, True) else config["logger"]
        if given is not False and not config["fast_dev_run"]:
            given = given if isinstance(given, list) else [given]
            if verb == "fit" and any(type(logger).__name__ == "WandbLogger" for logger in given):
                self.held.enter_context(wandb_run(root, goes_on=resumes is not None))
            _keep(log / "metrics.csv")
            record = CSVLogger(root, name="", version="" if verb == "fit" else verb)
            # First, because config.yaml goes where the first logger is; W&B and others come on top.
            config["logger"] = [record, *given]
        if config["max_steps"] > 0 and config["log_every_n_steps"] is None:
            config["log_every_n_steps"] = max(1, min(50, config["max_steps"] // 10))
        plugins = config["plugins"] or []
        config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins])]
        # A strategy with files of its own kind (deepspeed, xla) accepts no other writer.
        plain = config["strategy"] == "auto" or str(config["strategy"]).startswith("ddp")
        if plain and not any(isinstance(plugin, CheckpointIO) for plugin in config["plugins"]):
            config["plugins"].append(WholeFiles())
        return super()._instantiate_trainer(config, callbacks)

    def _callbacks(self, config: dict[str, Any], root: Path) -> None:
        """Add ours to those of the YAML."""
        verb, present = str(self.subcommand), config["callbacks"] or []
        ours: list[Callback] = [*(present if isinstance(present, list) else [present]), SameClasses()]
        if config["enable_checkpointing"] is not False:
            if not any(isinstance(callback, Checkpoint) for callback in ours):
                ours.append(ModelCheckpoint(save_last=True))
            for callback in ours:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str((root / "checkpoints").absolute())
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in ours):
            if get_console().is_terminal:
                ours.append(RichProgressBar())
            else:
                config["enable_progress_bar"] = False
                ours.append(LogLines())
        if verb == "fit":
            ours.append(ToTheEnd())
        if verb == "predict":
            if type(self.model).predict_step is LightningModule.predict_step:
                raise UserError(f"{type(self.model).__name__} predicts no classes; give a classifier")
            ours.append(PredictionTable(root / verb / "predictions.csv"))
        if self._reports(config):
            ours.append(SampleKeeper(root, self.command))
        config["callbacks"] = ours

    def _check_checkpoint(self, config: dict[str, Any], root: Path) -> Path | None:
        """The checkpoint that this verb begins with, if any."""
        settings = self.config[str(self.subcommand)]
        name = settings.get("ckpt_path")
        if name == "best":
            settings["ckpt_path"] = name = str(root / "checkpoints" / "best.ckpt")
            read_checkpoint(Path(name))
        path = root / "checkpoints" / "last.ckpt" if name == "last" else Path(str(name))
        if name is None or not path.is_file():
            return None
        content = read_checkpoint(path)
        check_shapes(path, content, self.model)
        if self.subcommand == "fit":
            check_same_data(path, content, {} if self.datamodule is None else self.datamodule.hparams)
            if is_finished(content, config["max_epochs"], config["max_steps"]):
                raise UserError(
                    f"{path}: this training is finished, after {content['global_step']} steps; raise "
                    "trainer.max_epochs or trainer.max_steps to go on"
                )
        return path

    def _reports(self, config: Any) -> bool:
        """Whether this is a training that ends with a report page."""
        tokenizer = isinstance(self.model, mefar.tokenizer.module.FacialActionTokenizer)
        return tokenizer and str(self.subcommand) == "fit" and not config["fast_dev_run"]

    def after_fit(self) -> None:
        """Write the page of a tokenizer's training."""
        reports = self._reports(self.config[str(self.subcommand)]["trainer"])
        if not (reports and self.trainer.is_global_zero):
            return
        try:
            print(write_training_report(Path(self.trainer.default_root_dir)))
        except (UserError, OSError) as error:
            # The weights are safe by now: a page that cannot be written does not undo the training.
            print(f"mefar fit: no report page: {error}", file=sys.stderr)


@contextmanager
def wandb_run(root: Path, goes_on: bool) -> Iterator[None]:
    """Let W&B know a training by one name over all its starts, kept in `root`; a sweep's name goes before."""
    if RUN_ID in os.environ:
        yield
        return
    file = root / "wandb-run"
    if not (goes_on and file.is_file()):
        write_text(file, secrets.token_hex(4))
    told = {RUN_ID: file.read_text(encoding="utf-8").strip(), "WANDB_RESUME": "allow"}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            del os.environ[name]


@rank_zero_only
def _keep(record: Path) -> None:
    # CSVLogger begins by deleting the file of an earlier start; a resumed training keeps its curve.
    if record.is_file():
        number = 1
        while (older := record.with_name(f"{record.stem}-{number}{record.suffix}")).exists():
            number += 1
        record.rename(older)


def check_settings(model: LightningModule, data: LightningDataModule | None, asked: int | None) -> None:
    """Refuse data that are asked for in another size than their model's, which they follow.

    `asked` is the data's image_size in the configuration, its default where nothing was said.

    Raises:
        UserError: another size was asked for.
    """
    size, parameter = getattr(model, "image_size", None), signature(type(data)).parameters.get("image_size")
    if size is not None and parameter is not None and asked not in (None, size, parameter.default):
        raise UserError(
            f"image_size: {size} in the model, {asked} in the data; the data follow the model, leave "
            "data.init_args.image_size out"
        )


def missing_tensor(message: str) -> str:
    """The first disagreement of a failed `load_state_dict`, from torch's message, as part of one line."""
    found = re.search(r"(Missing|Unexpected) key\(s\) in state_dict: (\S+)", message)
    return f"{found[1].lower()} tensor {found[2].strip(',.')}" if found else message.splitlines()[0]


def main(argv: Sequence[str]) -> int:
    """Run one verb of the Trainer: the verb, then its options -> exit code."""
    verb = argv[0]
    return guard(f"mefar {verb}", lambda: _train(verb, argv), argv)


def _train(verb: str, argv: Sequence[str]) -> int:
    words = name_run(with_shipped_configs(argv))
    with ExitStack() as stack:

        class OneVerb(MefarCLI):
            """Builds the parser of one verb only; building all four takes seconds."""

            command = shlex.join(["mefar", *argv])
            held = stack

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
                args=with_configs(words, earlier.config),
            )
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise UserError(
                f"the checkpoint does not fit this model: {missing_tensor(str(error))}"
            ) from error
        except (MisconfigurationException, ValueError, TypeError, NotImplementedError) as error:
            if not _of_lightning(error):
                raise
            raise UserError(str(error)) from error
    return 0


def _of_lightning(error: Exception) -> bool:
    """Whether Lightning itself refused a setting: its checks raise where they stand."""
    if isinstance(error, MisconfigurationException):
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__")).startswith("lightning.")
