"""Settings and weights as mefar 0.1 wrote them, in today's form. Read until version 0.3, then this file goes.

Then FacialActionTokenizer took `network: warp` or `network: published` and the sizes of every network beside
its own settings, and kept its network under the name `codec`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# What a setting of 0.1 is called in a network of today, and the value it had where it was not given.
_SHARED: dict[str, tuple[str, Any]] = {
    "image_size": ("image_size", 256),
    "num_codes": ("num_codes", 32),
    "num_tokens": ("num_tokens", 16),
    "code_dim": ("code_dim", 16),
    "dim": ("dim", 64),
    "quantizer": ("quantizer", "ema"),
    "continuous_share": ("continuous_share", 0.15),
}
_NETWORKS: dict[str, tuple[str, dict[str, tuple[str, Any]]]] = {
    "warp": (
        "mefar.tokenizer.warp_network.WarpNetwork",
        _SHARED
        | {
            "depth": ("depth", 2),
            "moving_weight": ("moving_weight", 2.0),
            "commitment_weight": ("commitment_weight", 0.05),
            "smooth_weight": ("smooth_weight", 1e-3),
            "residual_weight": ("residual_weight", 1e-2),
        },
    ),
    "published": (
        "mefar.tokenizer.published_network.PublishedNetwork",
        _SHARED
        | {
            "depth": ("spatial_depth", 2),
            "patch_size": ("patch_size", 16),
            "temporal_depth": ("temporal_depth", 6),
            "heads": ("heads", 8),
            "head_dim": ("head_dim", 64),
        },
    ),
}
OURS = "FacialActionTokenizer"
FLAT = {name for _, settings in _NETWORKS.values() for name in settings} | {"bottleneck_convolutions"}


def is_earlier(settings: Mapping[str, Any]) -> bool:
    """Whether these are arguments of a FacialActionTokenizer of mefar 0.1."""
    network = settings.get("network", "warp")
    return isinstance(network, str) and network in _NETWORKS


def translated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of FacialActionTokenizer in 0.1 -> the same of today; a setting of the other network goes."""
    class_path, known = _NETWORKS[settings.get("network", "warp")]
    network = {ours: settings.get(name, default) for name, (ours, default) in known.items()}
    if settings.get("network") == "published":
        network["bottleneck"] = "halving"  # all that 0.1 knew
    else:
        network["strength"] = False  # codes said everything
    rest = {name: value for name, value in settings.items() if name not in FLAT | {"network"}}
    return rest | {"network": {"class_path": class_path, "init_args": network}}


def translate_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Bring a FacialActionTokenizer's checkpoint of 0.1 into today's form, in place; others stay."""
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, Mapping) or "num_codes" not in settings or not is_earlier(settings):
        return
    if str(settings.get("_class_path", OURS)).rpartition(".")[2] != OURS:
        return
    checkpoint["hyper_parameters"] = translated(settings)
    for name in ("state_dict", "current_model_state", "half_step"):
        if isinstance(checkpoint.get(name), Mapping):
            checkpoint[name] = {
                key.replace("codec.", "network.", 1) if key.startswith("codec.") else key: value
                for key, value in checkpoint[name].items()
            }


def config(path: str) -> str:
    """A YAML file's path, or its text in today's form if it is of 0.1; what cannot be read stays as it is."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        model = content["model"]
        kind, settings = str(model["class_path"]), model.get("init_args", {})
        old = kind.rpartition(".")[2] == OURS and is_earlier(settings)
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return path
    if not old:
        return path
    model["init_args"] = translated(settings)
    warnings.warn(
        f"{path}: sizes beside `network` are how mefar 0.1 wrote them, read until 0.3; see "
        "experiments/configs/pretrain.yaml for the form of today",
        stacklevel=2,
    )
    return yaml.safe_dump(content, sort_keys=False)
