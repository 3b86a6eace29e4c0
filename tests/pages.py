"""Report pages as a browser would see them."""

from __future__ import annotations

import re
from html.parser import HTMLParser


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def part(page: str, name: str) -> str:
    """A section of a page."""
    start = page.index(f"<h2>{name}</h2>")
    return page[start : page.index("</section>", start)]


class Page(HTMLParser):
    """What a browser would see: tags and attributes; fails on a tag that is closed but not open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @property
    def links(self) -> list[str]:
        """Addresses that a browser would follow or fetch, but for places in the page itself."""
        named = [value for name, value in self.attributes if name.split(":")[-1] in ("href", "src", "srcset")]
        named += [found for _, value in self.attributes for found in re.findall(r"url\(([^)]*)\)", value)]
        return [address for address in named if not address.startswith(("#", "data:image/png;base64,"))]


def check_alone(html: str) -> Page:
    """A page that needs nothing else: no link, no script, no style from elsewhere, all tags closed."""
    page = Page(html)
    assert page.open == [] and page.links == []
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style and "url(" not in style
    return page
