"""`mefar import-dface`: a published tokenizer checkpoint -> a mefar checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mefar.commands import run_function


def import_dface(
    checkpoint: Path, out: Path, *, image_size: int = 256, num_tokens: int | None = None
) -> None:
    """Write a published D-FACE tokenizer as a mefar checkpoint, for `mefar loso --tokenizer`.

    Args:
        checkpoint: .pt or .safetensors with the published state dict.
        out: checkpoint to write, by custom ending in .ckpt.
        image_size: side in pixels of the images it was trained on; the file does not tell.
        num_tokens: action tokens per pair that it must have; by default what its kernels and the image size
            say: a file of 4 tokens looks like one of 16 at twice the image size.
    """
    from mefar.tokenizer.import_dface import import_checkpoint

    found = import_checkpoint(checkpoint, out, image_size, num_tokens)
    print(
        f"{out}: {found['parameters']:,} parameters; {found['num_tokens']} tokens from"
        f" {found['num_codes']} codes of {found['code_dim']};"
        f" images of {found['image_size']} px in patches of {found['patch_size']};"
        f" width {found['dim']}, depth {found['spatial_depth']} and {found['temporal_depth']} in time,"
        f" {found['heads']} heads of {found['head_dim']}"
    )


def main(argv: Sequence[str]) -> int:
    """Run `mefar import-dface`."""
    return run_function(import_dface, argv, "mefar import-dface")
