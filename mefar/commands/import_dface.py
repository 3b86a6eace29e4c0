"""`mefar import-dface`: a published checkpoint -> a mefar tokenizer, and a head if a classifier is in it."""

from __future__ import annotations

from pathlib import Path


def import_dface(
    checkpoint: Path, out: Path, *, image_size: int = 256, num_tokens: int | None = None, heads: int = 8
) -> None:
    """Write a published D-FACE tokenizer as a mefar checkpoint, for `mefar loso --tokenizer`.

    What the published training scripts write holds a classifier too. It becomes OUT-head.safetensors beside
    the tokenizer, for `--head mefar.classifier.pretrained.PretrainedHead --head.weights FILE`.

    Args:
        checkpoint: .pt or .safetensors with the published state dict.
        out: checkpoint to write, by custom ending in .ckpt.
        image_size: side in pixels of the images it was trained on; the file does not tell.
        num_tokens: action tokens per pair that it must have; by default what its kernels and the image size
            say: a file of 4 tokens looks like one of 16 at twice the image size.
        heads: attention heads of the classifier; the file does not tell.
    """
    from mefar.classifier.head import head_from_published
    from mefar.classifier.pretrained import save_head
    from mefar.errors import UserError
    from mefar.tokenizer import import_dface as dface

    classifier = dface.read_halves(checkpoint)[1]
    try:
        head = head_from_published(classifier, heads) if classifier else None
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    head_path = out.with_name(f"{out.stem}-head.safetensors")
    if head is not None:
        dface.refuse_others(head_path, checkpoint)
    found = dface.import_checkpoint(checkpoint, out, image_size, num_tokens)
    print(
        f"{out}: {found['parameters']:,} parameters; {found['num_tokens']} tokens from"
        f" {found['num_codes']} codes of {found['code_dim']};"
        f" images of {found['image_size']} px in patches of {found['patch_size']};"
        f" width {found['dim']}, depth {found['spatial_depth']} and {found['temporal_depth']} in time,"
        f" {found['heads']} heads of {found['head_dim']}"
    )
    if head is not None:
        made_of, done = dface.fingerprint_of(checkpoint), head
        dface.new_file(head_path, checkpoint, lambda partial: save_head(done, partial, made_of))
        count = sum(weight.numel() for weight in head.parameters())
        print(f"{head_path}: its classifier, {count:,} parameters, {head.classes.out_features} classes")
