"""Importer of published tokenizer checkpoints: their names in, a mefar tokenizer out.

A published state dict has no sizes written in it: all are read off its tensors. What no tensor shows is the
image size, on which no weight depends: it is an argument, and with the kernels of the bottleneck it tells the
number of tokens. Every entry of the file is accounted for one by one: mapped to a weight of
ours, known to take no part in the computation, or named in an error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mefar.errors import UserError, one_line
from mefar.files import read_checkpoint, replacing
from mefar.tokenizer.module import FacialActionTokenizer
from mefar.tokenizer.published_network import PUBLISHED_BOTTLENECKS, PublishedNetwork, bottleneck_layout

# Published name -> name in PublishedNetwork, outside of the transformers.
PLAIN = {
    "to_patch_emb_first_frame.1.weight": "patch_embedding.pixel_norm.weight",
    "to_patch_emb_first_frame.1.bias": "patch_embedding.pixel_norm.bias",
    "to_patch_emb_first_frame.2.weight": "patch_embedding.project.weight",
    "to_patch_emb_first_frame.2.bias": "patch_embedding.project.bias",
    "to_patch_emb_first_frame.3.weight": "patch_embedding.norm.weight",
    "to_patch_emb_first_frame.3.bias": "patch_embedding.norm.bias",
    "spatial_rel_pos_bias.net.0.0.weight": "position_bias.network.0.weight",
    "spatial_rel_pos_bias.net.0.0.bias": "position_bias.network.0.bias",
    "spatial_rel_pos_bias.net.1.0.weight": "position_bias.network.2.weight",
    "spatial_rel_pos_bias.net.1.0.bias": "position_bias.network.2.bias",
    "spatial_rel_pos_bias.net.2.weight": "position_bias.network.4.weight",
    "spatial_rel_pos_bias.net.2.bias": "position_bias.network.4.bias",
    "vq.project_in.weight": "bottleneck.project.weight",
    "vq.project_in.bias": "bottleneck.project.bias",
    "vq.codebooks": "vq.codebook",
    "vq.project_out.weight": "token_projection.weight",
    "vq.project_out.bias": "token_projection.bias",
    "to_pixels_first_frame.0.weight": "to_pixels.weight",
    "to_pixels_first_frame.0.bias": "to_pixels.bias",
}
TRANSFORMERS = {
    "enc_spatial_transformer": "spatial_encoder",
    "enc_temporal_transformer": "temporal_encoder",
    "dec_spatial_transformer": "decoder",
}
BLOCK = {
    "0.dsconv.weight": "position.weight",
    "0.dsconv.bias": "position.bias",
    "3.0.weight": "feed_forward.norm.weight",
    "3.0.bias": "feed_forward.norm.bias",
    "3.1.weight": "feed_forward.expand.weight",
    "3.4.weight": "feed_forward.shrink.weight",
}
ATTENTION = {
    "norm.gamma": "norm.weight",
    "to_q.weight": "query.weight",
    "to_kv.weight": "key_value.weight",
    "q_scale": "query_scale",
    "k_scale": "key_scale",
    "to_out.weight": "out.weight",
}
CROSS_ATTENTION = ATTENTION | {"context_norm.gamma": "context_norm.weight", "null_kv": "null_key_value"}

PREFIXES = ("module.", "tokenizer.")
# How the published training scripts call the tokenizer beside the classifier, their `model`.
TOKENIZER_HALF, HEAD_PREFIX = "laq", "classifier."
# Files of a moving average hold it, the weights themselves and two counters.
AVERAGE, BESIDE_AVERAGE = "ema_model.", {"online_model", "initted", "step"}
CONTAINERS = ("model", "state_dict", "model_state_dict")
# Entries of a training checkpoint that say nothing about the function.
IGNORED = {
    *("opt", "optim", "optimizer", "optimizers"),
    *("optimizer_state", "optimizer_states", "optimizer_state_dict"),
    *("scheduler", "scheduler_state_dict", "lr_scheduler", "lr_schedulers", "scaler", "grad_scaler"),
    *("step", "steps", "global_step", "epoch", "iteration", "version"),
}
# Files that put the tokenizer under "tokenizer." may hold these other parts beside it.
OTHER_PARTS = {
    *("classifier_input", "classifier_expected", "input", "expected"),
    *("edclip_input", "edclip_expected"),
}


def load_tokenizer(
    path: str | Path, image_size: int = 256, num_tokens: int | None = None
) -> FacialActionTokenizer:
    """A published checkpoint as a tokenizer in eval mode, on the CPU.

    Args:
        path: `.safetensors`, or what torch.save wrote: a state dict, or a dict that holds one as `model` or
            `state_dict`. Names may start with `module.` or `tokenizer.`; optimiser entries are passed over.
        image_size: H = W in pixels that the tokenizer was trained on; a multiple of its patches' side.
        num_tokens: L that the file must have; None takes what kernels and image size say.

    Raises:
        UserError: the file cannot be read safely, or is no published tokenizer of consistent sizes.
    """
    path = Path(path)
    state, _ = read_halves(path)
    settings = infer_settings(state, path, image_size, num_tokens)
    names = published_names(settings)
    try:
        with torch.device("meta"):  # sizes are checked before any memory is asked for
            expected = PublishedNetwork(**settings).state_dict()
    except UserError as error:
        raise UserError(f"{path}: {error}; give the image size and tokens it was trained with") from None
    _check_names(state, names, path)
    weights = {}
    for published, ours in names.items():
        tensor = state[published]
        if ours is None:
            if published.endswith(".beta") and bool((tensor.float() != 0).any()):
                raise UserError(f"{path}: {published} is not zero; published norms have no bias")
            if published.endswith(".null_kv") and tensor.numel():
                raise UserError(
                    f"{path}: {published} is not empty; published self-attention has no null entries"
                )
            continue
        if tensor.shape != expected[ours].shape:
            raise UserError(
                f"{path}: {published} is {tuple(tensor.shape)}, but the file's other sizes ask for"
                f" {tuple(expected[ours].shape)}"
            )
        weights[ours] = tensor.float()  # before the check: what float64 can hold may be too large
        if not tensor.is_floating_point() or not bool(torch.isfinite(weights[ours]).all()):
            raise UserError(f"{path}: {published} holds values that are not finite float32 numbers")
    network = PublishedNetwork(**settings)
    counters = {name: value for name, value in network.state_dict().items() if name not in weights}
    network.load_state_dict(weights | counters)
    return FacialActionTokenizer(network).eval()


def import_checkpoint(
    path: Path, out: Path, image_size: int = 256, num_tokens: int | None = None
) -> dict[str, Any]:
    """Write a published checkpoint as a mefar checkpoint that `tokenizer.load` and LOSO accept.

    Returns:
        The settings that were read off the file, and `parameters`, their number.

    Raises:
        UserError: as load_tokenizer; or `out` is a folder or cannot be written.
    """
    model = load_tokenizer(path, image_size, num_tokens)
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": 0,
        "imported_from": {"file": path.name, "sha256": fingerprint_of(path)},
    }
    new_file(out, path, lambda partial: torch.save(checkpoint, partial))
    return model.network.settings | {"parameters": sum(weight.numel() for weight in model.parameters())}


def new_file(out: Path, source: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all, where nothing stands in its way.

    Raises:
        UserError: as refuse_others; or it cannot be written.
    """
    refuse_others(out, source)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            write(partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{out}: cannot be written ({one_line(error)})") from None


def refuse_others(out: Path, source: Path) -> None:
    """Whatever is there already stays, unless it was imported from `source`.

    Raises:
        UserError: `out` is a folder or another file.
    """
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name the checkpoint file to write")
    if out.exists() and _imported_from(out) != fingerprint_of(source):
        raise UserError(f"{out}: is there already and was not made of {source}; name another file")


def fingerprint_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _imported_from(out: Path) -> str:
    """Fingerprint of the file that a checkpoint was imported from; empty for any other file."""
    try:
        if out.suffix == ".safetensors":
            with safe_open(out, "pt") as file:
                return str((file.metadata() or {}).get("imported_from", ""))
        return str(read_checkpoint(out)["imported_from"]["sha256"])
    except (UserError, SafetensorError, KeyError, TypeError):
        return ""


def read_halves(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of the published tokenizer and of the classifier beside it, empty if there is none.

    Both are without prefixes and without optimiser entries.

    Published trainings write `{"model": classifier, "laq": tokenizer}`; other files hold the tokenizer alone,
    or both under the prefixes `tokenizer.` and `classifier.`. Of a file with a moving average of the weights
    (`ema_model.`) it is the average that is read.

    Raises:
        UserError: no such file; not readable without running code from it; no state dict in it.
    """
    content = read_checkpoint(path)
    if "" in content:
        raise UserError(f"{path}: holds a {type(content['']).__name__}, expected a state dict")
    if "hyper_parameters" in content:
        raise UserError(f"{path}: is a mefar checkpoint already; use it as it is")
    if isinstance(content.get(TOKENIZER_HALF), Mapping):
        _only_ignored(content, {TOKENIZER_HALF, "model"}, path)
        head = content.get("model")
        return _plain_names(content[TOKENIZER_HALF], path), _plain_names(head, path) if head else {}
    holders = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
    if len(holders) > 1:
        raise UserError(f"{path}: has several state dicts ({', '.join(holders)}); keep one")
    if holders:
        _only_ignored(content, {holders[0]}, path)
        content = content[holders[0]]
    state = _plain_names(content, path)
    head = {name: value for name, value in state.items() if name.startswith(HEAD_PREFIX)}
    return (
        {name: value for name, value in state.items() if name not in head},
        {name.removeprefix(HEAD_PREFIX): value for name, value in head.items()},
    )


def _only_ignored(content: Mapping[str, Any], known: set[str], path: Path) -> None:
    for name in content:
        if name not in known and str(name).split(".")[0] not in IGNORED:
            beside = " and ".join(map(repr, sorted(known)))
            raise UserError(f"{path}: entry {name!r} is unknown beside the weights in {beside}")


def _plain_names(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    def bare(name: object) -> str:
        return str(name).removeprefix("module.")

    if averaged := {name: value for name, value in content.items() if bare(name).startswith(AVERAGE)}:
        rest = {bare(name).split(".")[0] for name in content if name not in averaged}
        if unknown := rest - BESIDE_AVERAGE - IGNORED:
            raise UserError(f"{path}: entry {min(unknown)!r} is unknown beside the average in {AVERAGE}*")
        content = {bare(name).removeprefix(AVERAGE): value for name, value in averaged.items()}
    bundle = any(bare(name).startswith("tokenizer.") for name in content)
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        plain = str(name)
        while plain.startswith(PREFIXES):
            plain = plain.split(".", 1)[1]
        part = plain.split(".")[0]
        if part in IGNORED or (bundle and plain == bare(name) and part in OTHER_PARTS):
            continue
        if bare(name).startswith(HEAD_PREFIX) and not bundle:
            raise UserError(f"{path}: entry {name!r} is unknown beside a tokenizer without prefix")
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: entry {name!r} is unknown (a {type(value).__name__}, not a tensor)")
        stored = value.layout is torch.strided and value.device.type == "cpu"
        if not stored or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: entry {name!r} claims {tuple(value.shape)} but is not stored in full")
        if plain in state:
            raise UserError(f"{path}: {plain} is there twice, under two prefixes")
        state[plain] = value
    return state


def infer_settings(
    state: Mapping[str, Tensor], path: Path, image_size: int = 256, num_tokens: int | None = None
) -> dict[str, Any]:
    """Arguments of PublishedNetwork for a published state dict.

    Raises:
        UserError: a tensor that shows a size is missing or has another number of dimensions.
    """

    def shape(name: str, dimensions: int) -> torch.Size:
        if name not in state:
            raise UserError(f"{path}: {name} is missing; is this a published tokenizer?")
        if state[name].ndim != dimensions or state[name].numel() == 0:
            raise UserError(f"{path}: {name} is {tuple(state[name].shape)}, not of {dimensions} dimensions")
        return state[name].shape

    dim, patch_numbers = shape("to_patch_emb_first_frame.2.weight", 2)
    patch_size = math.isqrt(patch_numbers // 3)
    if 3 * patch_size**2 != patch_numbers:
        raise UserError(f"{path}: patches of {patch_numbers} numbers are not square patches of 3 channels")
    if image_size < patch_size or image_size % patch_size:
        raise UserError(f"{path}: its patches are {patch_size} px, image size {image_size} is no multiple")
    depths = {name: _count(state, f"{name}.layers.") for name in TRANSFORMERS}
    if depths["dec_spatial_transformer"] != depths["enc_spatial_transformer"]:
        raise UserError(f"{path}: spatial encoder and decoder differ in depth ({depths})")
    head_dim = shape("enc_spatial_transformer.layers.0.1.q_scale", 1)[0]
    width = shape("enc_spatial_transformer.layers.0.1.to_q.weight", 2)[0]
    if width % head_dim:
        raise UserError(f"{path}: attention width {width} is no multiple of the heads' width {head_dim}")
    num_codes, code_dim = shape("vq.codebooks", 2)
    kernels = [
        shape(f"vq.cnn_encoder.{2 * number}.weight", 4)[2:]
        for number in range(_count(state, "vq.cnn_encoder.", ".weight"))
    ]
    grid = image_size // patch_size
    counts = [
        count
        for (side, count), layout in PUBLISHED_BOTTLENECKS.items()
        if side == grid and [torch.Size(each.kernel) for each in layout] == kernels
    ]
    if num_tokens not in (*counts, None) or not counts:
        found = " and ".join("x".join(map(str, kernel)) for kernel in kernels)
        known = f"that makes {counts[0]} tokens" if counts else "that is no published bottleneck"
        raise UserError(
            f"{path}: convolutions {found} on {grid}x{grid} patches (image size {image_size}): {known}; give "
            "the image size that it was trained with"
        )
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "num_codes": num_codes,
        "num_tokens": counts[0],
        "code_dim": code_dim,
        "dim": dim,
        "spatial_depth": depths["enc_spatial_transformer"],
        "temporal_depth": depths["enc_temporal_transformer"],
        "heads": width // head_dim,
        "head_dim": head_dim,
    }


def published_names(settings: Mapping[str, Any]) -> dict[str, str | None]:
    """Every name of a published state dict of these sizes -> our name, or None if it takes no part.

    Without part in the computation are: `beta`, a constant zero; the context norm and the empty null entries
    that self-attention carries along.
    """
    names: dict[str, str | None] = dict(PLAIN)
    grid = settings["image_size"] // settings["patch_size"]
    layout = bottleneck_layout("published", grid, settings["num_tokens"])
    for number in range(len(layout)):  # ReLUs lie between them
        for kind in ("weight", "bias"):
            names[f"vq.cnn_encoder.{2 * number}.{kind}"] = f"bottleneck.convolutions.{number}.{kind}"
    for published, ours in TRANSFORMERS.items():
        depth = settings["temporal_depth" if ours == "temporal_encoder" else "spatial_depth"]
        names |= {f"{published}.norm_out.gamma": f"{ours}.norm.weight", f"{published}.norm_out.beta": None}
        for number in range(depth):
            block, own = f"{published}.layers.{number}", f"{ours}.blocks.{number}"
            names |= {f"{block}.{theirs}": f"{own}.{name}" for theirs, name in BLOCK.items()}
            names |= {f"{block}.1.{theirs}": f"{own}.attention.{name}" for theirs, name in ATTENTION.items()}
            names |= {f"{block}.1.{unused}": None for unused in ("context_norm.gamma", "null_kv")}
            if ours == "decoder":
                names |= {f"{block}.2.{theirs}": f"{own}.cross_attention.{name}"
                          for theirs, name in CROSS_ATTENTION.items()}  # fmt: skip
            for kind in ("1", "2") if ours == "decoder" else ("1",):
                names |= {f"{block}.{kind}.norm.beta": None, f"{block}.{kind}.context_norm.beta": None}
    return names


def _check_names(state: Mapping[str, Tensor], names: Mapping[str, str | None], path: Path) -> None:
    unknown, missing = set(state) - set(names), set(names) - set(state)
    if odd := sorted(unknown or missing):
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        what = "unknown to the published tokenizer" if unknown else "missing; is the file complete?"
        raise UserError(f"{path}: entry {odd[0]!r}{more} is {what}")


def _count(state: Mapping[str, Tensor], prefix: str, suffix: str = "") -> int:
    """How many numbered layers follow a prefix."""
    names = [name[len(prefix) :] for name in state if name.startswith(prefix) and name.endswith(suffix)]
    return len({name.split(".")[0] for name in names})
