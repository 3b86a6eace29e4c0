"""`mefar app [MODEL]`: a page on this machine to play with tokens."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from mefar.errors import UserError


def app(model: str = "demo", *, port: int | None = None, device: str = "cpu", browser: bool = True) -> None:
    """Open a page: two pictures or a short video in; tokens, what they say, and the action on other faces.

    The page is served to this machine alone, and sends nothing anywhere.

    Args:
        model: demo, a folder that `mefar export` wrote, or a tokenizer's checkpoint.
        port: of the page; left out, the first that is free from 7860 on.
        device: where the model computes: cpu, cuda, mps.
        browser: open it in the browser.
    """
    if find_spec("gradio") is None:
        raise UserError("the page needs the package gradio: pip install 'mefar[app]'")
    from mefar.commands.model import load

    made = load(model, device)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
    from mefar.commands.app_page import MEGABYTES, STYLE, build

    how: dict[str, Any] = {"share": False, "inbrowser": browser, "footer_links": [], "css": STYLE}
    how |= {"server_name": "127.0.0.1", "server_port": port, "max_file_size": f"{MEGABYTES}mb"}
    page = build(made)
    try:
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **how)
    except OSError as error:
        raise UserError(f"port {port or '7860 and the next'}: {error}; give another --port") from None
    print(f"{url} is the page, for this machine alone; Ctrl-C ends it", flush=True)
    page.block_thread()
