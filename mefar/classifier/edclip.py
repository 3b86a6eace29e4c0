"""LightningModule 3, EDCLIP: emotion descriptions pull the pooled action feature toward their meaning.

Source: "From Pixels to Semantics" (ICLR 2026), emotion-description CLIP. Every class that has a sentence has
a text vector, its anchor (text_anchors.py); the class "others" has none and must stay far from all of them.
"""

from __future__ import annotations

from pathlib import Path

from mefar.classifier.head import HeadFactory, TokenHead, name_of, takes_text
from mefar.classifier.module import TokenClassifier
from mefar.classifier.settings import HeadTraining
from mefar.classifier.text_anchors import SHIPPED_ANCHORS, Anchors
from mefar.errors import UserError
from mefar.tokens import ActionTokenizer


class EDCLIP(TokenClassifier):
    """A TokenClassifier whose pooled feature is aligned with text anchors.

    Prediction stays the argmax of the logits; the text space only teaches.

    Args:
        tokenizer: anything that makes action tokens; frozen. In YAML `class_path: mefar.tokenizer.load`
            with the checkpoint as `path`.
        protocol: protocol id, which picks the descriptions.
        class_names: names of the classes in label order.
        anchors: anchors file made by `mefar anchors`; the default is the shipped one.
        centred: take out of the anchors what all emotions have in common.
        head: class of the head, which must take `text_dim`, and its options (`learn_temperature`).
        training: how to train it; weight, temperature and margin of the alignment are among it.
        held_out: who is held out; with the seed it names the fold that this training is.
        seed: of initial values, views and order.
    """

    def __init__(
        self,
        tokenizer: ActionTokenizer,
        protocol: str,
        class_names: list[str],
        anchors: str = str(SHIPPED_ANCHORS),
        head: HeadFactory = TokenHead,
        training: HeadTraining = HeadTraining(),  # noqa: B008  frozen
        held_out: str | None = None,
        seed: int = 0,
        centred: bool = False,
    ) -> None:
        texts = Anchors.load(Path(anchors)).select(protocol, class_names, centred)
        super().__init__(tokenizer, len(class_names), head, training, held_out, seed)
        self.save_hyperparameters(ignore=["tokenizer", "head", "training"])
        if not takes_text(head):
            raise UserError(
                f"EDCLIP: head {name_of(head)} takes no text_dim; give one that does, or use TokenClassifier"
            )
        self.align(texts)
