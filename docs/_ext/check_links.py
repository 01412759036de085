"""Check the links of a built site, and that it needs no network: `python docs/_ext/check_links.py build/site`."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the anchors that others may link to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the links of an element, and its own name."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        named = {given[name] for name in ("href", "src") if name in given}
        self.links |= named
        self.loaded |= named if tag in ("script", "link", "img") else set()
        self.links |= {part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()}


def broken_links(site: Path) -> list[str]:
    """List the links that lead nowhere, and what a page would load from elsewhere, each with its page."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in sorted(page.links):
            address = urlsplit(link)
            if address.scheme == "data":
                continue
            if address.scheme or address.netloc:
                broken += [f"{path.relative_to(site)}: {link}"] if link in page.loaded else []
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path.resolve()
            known = (
                pages.get(site / target.relative_to(site.resolve())) if target.is_relative_to(site.resolve()) else None
            )
            is_anchor = known is None or unquote(address.fragment) in known.anchors
            if not target.exists() or not is_anchor:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


if __name__ == "__main__":
    found = broken_links(Path(sys.argv[1]))
    sys.stdout.write("".join(f"{line}\n" for line in found) or "every link leads somewhere\n")
    sys.exit(bool(found))
