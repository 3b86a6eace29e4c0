"""A page to play with tokens, by Gradio: what `mefar app` serves to this machine.

Two pictures or a short video in; tokens, what they say, and what they do to other faces. A token that is
clicked gets the code that is chosen for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from datamodules.footage import footage
from mefar.commands.model import Model
from mefar.commands.pictures import UInt8, align, example
from mefar.commands.recognise import recognise
from mefar.errors import UserError
from mefar.tokens import ActionTokens

MEGABYTES = 50
LONGEST = 20.0
"""Seconds of a video."""
KEPT = (3600, 3600)
"""How often uploaded files are looked through, and after how long they are removed, in seconds."""
SHOWN = 320
"""Pixels of a face on the page."""
FACES = 12
STYLE = """
.token {min-width: 3.2em !important; font-variant-numeric: tabular-nums}
.codes label {min-width: 3em}
"""
HELP = """## Facial actions as tokens
Give a face at rest and the same face in action, or a short video. Click a token to give it another code.
Everything stays on this machine. What a face shows is not what a person feels."""


class Page:
    """What the page's parts call.

    Args:
        model: reads and shows.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def read(
        self, onset: UInt8 | None, apex: UInt8 | None, video: str | None, face: float
    ) -> tuple[list[int], float]:
        """Codes and strength of the action in two pictures, or in the strongest event of a video."""
        with _told():
            if video is not None:
                onset, apex = _strongest(Path(video))
            if onset is None or apex is None:
                raise UserError("give two pictures, at rest and in action, or a video")
            found = align(onset, int(face))
            if found.faces > 1:
                gr.Warning(f"{found.faces} faces: face {int(face)} is read, 1 is the largest")
            tokens = self.model.tokenize(found, apex)
            strength = 1.0 if tokens.strength is None else float(tokens.strength[0])
            if strength == 0:
                gr.Warning("nothing but noise moves between these pictures")
            return tokens.indices[0].tolist(), strength

    def tokens(self, codes: Sequence[int], strength: float) -> ActionTokens:
        """As the model takes them."""
        return self.model.tokens(list(codes), strength)

    def says(self, codes: Sequence[int], strength: float) -> tuple[dict[str, float], dict[str, float], str]:
        """Classes, action units, and the nearest sentence; empty where the model has no readers."""
        if self.model.readers is None or not codes:
            return {}, {}, ""
        tokens = self.tokens(codes, strength)
        about = self.model.readers.about
        units = self.model.units(tokens)[0] if about.units else {}
        told = self.model.describe(tokens)[0] if about.sentences else {}
        return self.model.classify(tokens)[0], units, max(told, key=lambda each: told[each], default="")

    def shows(
        self, codes: Sequence[int], strength: float, factor: float, faces: Sequence[Any] | None
    ) -> list[tuple[UInt8, str]]:
        """The action on every chosen face: each at rest and moved."""
        if not codes:
            return []
        with _told():
            chosen = [align(each[0] if isinstance(each, tuple) else each) for each in faces or []]
            if len(chosen) > FACES:
                raise UserError(f"{len(chosen)} faces; the page shows {FACES}")
            if not chosen:
                return []
            moved = self.model.transfer(chosen, self.tokens(codes, strength), factor)
            pictures: list[tuple[UInt8, str]] = []
            for number, (rest, action) in enumerate(zip(chosen, moved, strict=True), 1):
                after = replace(rest, picture=action)
                pictures += [
                    (rest.crop(SHOWN), f"{number}: at rest"), (after.crop(SHOWN), f"{number}: in action")
                ]  # fmt: skip
            return pictures


def build(model: Model) -> gr.Blocks:
    """The page of a model."""
    page, L, K = Page(model), model.tokenizer.num_tokens, model.tokenizer.num_codes
    with gr.Blocks(title="mefar", analytics_enabled=False, delete_cache=KEPT) as blocks:
        codes, strength, place = gr.State([]), gr.State(1.0), gr.State(0)
        gr.Markdown(HELP)
        with gr.Row():
            onset = gr.Image(label="at rest", sources=["upload"], elem_id="onset", height=SHOWN)
            apex = gr.Image(label="in action", sources=["upload"], elem_id="apex", height=SHOWN)
            video = gr.Video(label="or a short video", sources=["upload"], elem_id="video", height=SHOWN)
        with gr.Row():
            face = gr.Number(1, label="which face, 1 the largest", precision=0, minimum=1, maximum=9)
            go = gr.Button("Read the action", variant="primary", elem_id="read", scale=2)
        with gr.Row():
            with gr.Column():
                gr.Markdown("**Tokens**: code of each position; click one to change it")
                buttons = _grid(L)
                picked = gr.Markdown("No token is chosen.", elem_id="picked")
                palette = gr.Radio(
                    [str(code) for code in range(K)],
                    label="its code",
                    elem_id="palette",
                    elem_classes="codes",
                )
            with gr.Column():
                classes = gr.Label(label="class", elem_id="classes", num_top_classes=5)
                units = gr.Label(label="action units", elem_id="units", num_top_classes=8, show_heading=False)
                sentence = gr.Textbox(label="nearest description", elem_id="sentence", interactive=False)
        factor = gr.Slider(0, 3, 1.0, step=0.1, label="strength: 1 as recorded", elem_id="strength")
        with gr.Row():
            faces = gr.Gallery(
                [str(example("other")), str(example("onset"))], label="faces to show it on", type="numpy",
                interactive=True, file_types=["image"], sources=["upload"], elem_id="faces", height=SHOWN,
            )  # fmt: skip
            out = gr.Gallery(
                label="the action on them",
                elem_id="out",
                columns=2,
                height=2 * SHOWN,
                format="png",
                buttons=["download", "fullscreen"],
            )

        told = {"api_visibility": "private"}
        now, shown = [codes, strength], [codes, strength, factor, faces]
        labels: Callable[[list[int]], list[Any]] = partial(_labels, count=L)

        def after(event: Any) -> None:
            """Whatever changed the codes: everything that shows them follows."""
            event.success(labels, codes, buttons, **told).success(
                page.says, now, [classes, units, sentence], **told
            ).success(page.shows, shown, out, **told)

        after(go.click(page.read, [onset, apex, video, face], now, **told))
        for position, button in enumerate(buttons):
            button.click(partial(_choose, position), codes, [place, picked, palette], **told)
        after(palette.input(_changed, [codes, place, palette], codes, **told))
        factor.release(page.shows, shown, out, **told)
        faces.change(page.shows, shown, out, **told)
    return blocks


def _grid(count: int) -> list[gr.Button]:
    """A button for every token, as square as it goes."""
    side, buttons = int(np.ceil(np.sqrt(count))), []
    for start in range(0, count, side):
        with gr.Row():
            for position in range(start, min(start + side, count)):
                buttons.append(gr.Button("·", elem_id=f"token{position}", elem_classes="token", size="sm"))
    return buttons


def _labels(codes: list[int], count: int) -> list[Any]:
    return [gr.Button(str(code)) for code in codes] or [gr.Button("·")] * count


def _choose(position: int, codes: list[int]) -> tuple[int, str, str | None]:
    if not codes:
        return position, "Read an action first.", None
    return position, f"Token {position + 1} of {len(codes)} is chosen.", str(codes[position])


def _changed(codes: list[int], position: int, code: str) -> list[int]:
    return [int(code) if place == position else each for place, each in enumerate(codes)]


def _strongest(video: Path) -> tuple[UInt8, UInt8]:
    """Onset and apex frame of the strongest event of a short video."""
    film = footage(video, None)
    if film.fps and film.frames / film.fps > LONGEST:
        raise UserError(f"the video lasts {film.frames / film.fps:.0f} s; give at most {LONGEST:.0f}")
    found = max(recognise(video, model="none"), key=lambda event: event.strength, default=None)
    if found is None:
        raise UserError("no movement of a face is found in the video; give two pictures")
    onset, apex = film.at([found.onset_frame, found.apex_frame])
    return onset, apex


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the user can mend, as a note on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None
