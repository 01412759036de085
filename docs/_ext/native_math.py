"""Formulas as MathML, which browsers draw without help: no script, no network, no LaTeX."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def draw(is_block: bool) -> Any:  # noqa: ANN401
    """Make the visitor of formulas in a line, or of displayed ones."""

    def visit(translator: Any, node: nodes.Element) -> None:  # noqa: ANN401
        translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=is_block))
        raise nodes.SkipNode

    return visit


def setup(application: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    application.add_html_math_renderer("mathml", (draw(False), None), (draw(True), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
