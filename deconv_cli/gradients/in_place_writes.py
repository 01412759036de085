"""Which write of forward it is that torch complains of in backward, and its line written so that it writes no more."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deconv_cli.gradients.tracing.forward_trace import InPlaceWrite

_MESSAGE = re.compile(
    r"\[torch\.\w+ \[([\d, ]*)\]\](?:, which is output \d+ of (\w+))?, is at version (\d+); expected version (\d+)"
)
"""What torch says of the tensor: its shape, the node that made it, and how often it was written."""


def writes_at_fault(error: Exception | None, writes: Sequence[InPlaceWrite]) -> list[InPlaceWrite] | None:
    """List the writes that fit what torch says of the tensor; None where it says nothing of the kind."""
    found = _MESSAGE.search(str(error)) if error is not None else None
    if found is None:
        return None
    shape = tuple(int(size) for size in found[1].split(",") if size.strip())
    node, actual, expected = found[2], int(found[3]), int(found[4])
    fitting = [write for write in writes if write.shape == shape and expected < write.version <= actual]
    exact = [write for write in fitting if node is None or write.node == node]
    return exact or fitting or list(writes)


def line_out_of_place(source: str) -> str | None:
    """Write a line so that it makes a new tensor; None where that is not certain."""
    augmented = re.fullmatch(r"([\w.\[\]]+)\s*([-+*/@])=\s*(.+)", source)
    if augmented and "[" not in augmented[1]:
        return f"{augmented[1]} = {augmented[1]} {augmented[2]} {augmented[3]}"
    method = re.fullmatch(r"(?:([\w.]+)\s*=\s*)?([\w.]+)\.(\w+)_\((.*)\)", source)
    if method:
        return f"{method[1] or method[2]} = {method[2]}.{method[3]}({method[4]})"
    return None
