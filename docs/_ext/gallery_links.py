"""Lead links to the source of an example, which work on a code host, to its page in the gallery of the site."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

_LINK = re.compile(r"\]\(((?:\.\./)*)examples/(?:([^)]*)\.py|README\.rst)\)")


def to_gallery(text: str) -> str:
    """Replace links to examples in a page of Markdown."""
    return _LINK.sub(lambda found: f"]({found[1]}gallery/{found[2] or 'index'}.rst)", text)


def setup(application: Sphinx) -> dict[str, bool]:
    """Replace the links of every page as it is read."""

    def replace(_: Sphinx, __: str, content: list[str]) -> None:
        content[0] = to_gallery(content[0])

    application.connect("source-read", replace)
    return {"parallel_read_safe": True}
