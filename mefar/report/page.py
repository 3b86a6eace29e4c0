"""What every report page is made of: one self-contained HTML file of sections."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

ASSETS = Path(__file__).parents[1] / "assets"
LIGHTER_AND_DARKER = '<span class="lighter">lighter</span> and <span class="darker">darker</span>'


def write_page(path: Path, title: str, lead: str, sections: Iterable[str]) -> Path:
    """Write a page, whole or not at all.

    Args:
        path: file to write.
        title: plain text.
        lead: HTML under the title.
        sections: HTML, in their order; empty ones leave no trace.

    Returns:
        The file's path.
    """
    template = Template((ASSETS / "report.html").read_text(encoding="utf-8"))
    body = "\n".join(section for section in sections if section)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(template.substitute(title=escape(title), lead=lead, body=body), encoding="utf-8")
    os.replace(temporary, path)
    return path


def section(name: str, *content: str) -> str:
    """A headline and what stands under it, HTML."""
    return f"<section><h2>{name}</h2>\n" + "\n".join(part for part in content if part) + "\n</section>"


def plural(count: int, noun: str, ending: str = "s") -> str:
    """`1 clip`, `2 clips`."""
    return f"{count:,} {noun}" + ("" if count == 1 else ending)


def warning(text: str) -> str:
    """HTML in a red frame; nothing for no text."""
    return f'<p class="warning">{text}</p>' if text else ""


def note(text: str) -> str:
    """HTML in small gray letters."""
    return f'<p class="note">{text}</p>'


def table(head: str, rows: Sequence[str], kind: str = "") -> str:
    """A table that scrolls where the window is narrow.

    Args:
        head: HTML of the header's rows.
        rows: HTML of the body's rows.
        kind: CSS classes.
    """
    opened = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="wide">{opened}<thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def facts(entries: Mapping[str, Any]) -> str:
    """A table of names and values, plain text; entries without a value are left out."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in entries.items()
        if value not in (None, "")
    )
    return f'<div class="wide"><table class="facts">{rows}</table></div>'


def listed(noun: str, pairs: Sequence[Sequence[Any]], several: str = "") -> str:
    """Pairs (what, text) to unfold; nothing for none."""
    if not pairs:
        return ""
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(text))}</td></tr>" for k, text in pairs)
    name = f"{len(pairs):,} {several}" if several and len(pairs) > 1 else plural(len(pairs), noun)
    return f"<details><summary>{name}</summary><table><tbody>{rows}</tbody></table></details>"
