"""A head that starts from weights in a file: the published classifier's, or a head that `mefar loso` kept.

    mefar import-dface THEIRS.pt runs/dface.ckpt      writes runs/dface-head.safetensors beside the tokenizer
    mefar loso --head mefar.classifier.pretrained.PretrainedHead --head.weights runs/dface-head.safetensors

Whom the file's training saw is not known here. A head that was trained on people of the database under test
has seen the held-out subjects, and its scores are not those of unseen people.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
from safetensors.torch import save_file

from mefar.classifier.head import EncoderLayer, TokenHead, sizes_in
from mefar.errors import UserError
from mefar.files import read_checkpoint


def save_head(head: TokenHead, path: Path, imported_from: str = "") -> None:
    """Write a head's weights, the number of its attention heads, which no shape tells, and its origin."""
    state = {name: value.contiguous() for name, value in head.state_dict().items()}
    layers = [layer for layer in head.layers if isinstance(layer, EncoderLayer)]
    about = {"heads": str(layers[0].heads if layers else 1), "imported_from": imported_from}
    save_file(state, path, about)


class PretrainedHead(TokenHead):
    """TokenHead of the sizes and weights of a file; what belongs to other classes or texts starts anew.

    Args:
        num_tokens: L, as in the file.
        token_dim: D, as in the file.
        num_classes: C; of another number than the file's, the class layer is not taken from it.
        text_dim: E; the same of the text layer.
        weights: .safetensors of a head.
        heads: attention heads; None: what the file says, or 4.
        dropout: probability in [0, 1).

    Raises:
        UserError: no such file, no TokenHead's weights in it, of other tokens, or not finite.
    """

    def __init__(
        self,
        num_tokens: int,
        token_dim: int,
        num_classes: int,
        text_dim: int | None = None,
        weights: Path | None = None,
        heads: int | None = None,
        dropout: float = 0.2,
    ) -> None:
        if weights is None:
            raise UserError("PretrainedHead: give its weights, a .safetensors file of a head")
        state = read_checkpoint(Path(weights))
        # Kept heads come with the scale of their tokens; whoever trains this one measures it anew.
        state = {name: value for name, value in state.items() if not name.startswith("tokens.")}
        if not {"embed", "query", "classes.weight", "classes.bias"} <= set(state):
            raise UserError(f"{weights}: holds no TokenHead (embed, query, classes)")
        if heads is None:
            with safetensors.safe_open(weights, "pt") as file:
                heads = int((file.metadata() or {}).get("heads", 4))
        sizes = sizes_in(state)
        length, read = sizes["num_tokens"], sizes["token_dim"]
        if (length, read) != (num_tokens, token_dim):
            raise UserError(
                f"{weights}: reads {length} tokens of {read} numbers, this tokenizer makes {num_tokens} of "
                f"{token_dim}; give the head's own tokenizer"
            )
        sizes |= {"num_classes": num_classes, "text_dim": text_dim, "heads": heads, "dropout": dropout}
        super().__init__(**sizes)
        here = self.state_dict()
        for part in ("classes.", "text."):
            fresh, kept = ({n: v for n, v in of.items() if n.startswith(part)} for of in (here, state))
            if {n: v.shape for n, v in fresh.items()} != {n: v.shape for n, v in kept.items()}:
                state = {n: v for n, v in state.items() if n not in kept} | fresh
        try:
            self.load_state_dict({name: value.float() for name, value in state.items()})
        except RuntimeError as error:
            raise UserError(f"{weights}: {str(error).splitlines()[-1].strip()}") from None
        for name, value in self.state_dict().items():
            if not value.isfinite().all():
                raise UserError(f"{weights}: {name} holds values that are not finite")
