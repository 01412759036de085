"""Whether the graph of a loss reaches back to earlier turns of a loop, which `retain_graph=True` lets it do unseen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from deconv_cli.gradients.tensors_in import tensors_in
from deconv_cli.gradients.tracing.autograd_graph import Node


class CarriedGraph:
    """Remembers, for each line that calls backward, its newest node and how many steps had been taken."""

    def __init__(self) -> None:
        self._last: dict[tuple[str | None, int | None], tuple[int, int]] = {}
        self._first: int | None = None

    def begin(self) -> None:
        """Leave out what was made before the first pass, as a member that is computed from a weight once."""
        if self._first is None:
            self._first = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]

    def reaches_back(self, tensors: Any, line: tuple[str | None, int | None], n_steps: int) -> bool:  # noqa: ANN401
        """Return whether nodes from before the last pass of a line are below, though steps were taken since then."""
        starts = [t.grad_fn for t in tensors_in(tensors) if t.grad_fn is not None]
        numbers = {number for number in _sequence_numbers(starts) if number >= (self._first or 0)}
        newest, n_before = self._last.get(line, (-1, n_steps))
        self._last[line] = max(numbers, default=newest), n_steps
        return n_steps > n_before and any(number <= newest for number in numbers)


def _sequence_numbers(starts: list[Node]) -> Iterator[int]:
    """List the numbers by which torch counts the nodes below some, leaves left out."""
    seen, waiting = set(starts), starts
    while waiting:
        node = waiting.pop()
        if not hasattr(node, "variable"):
            yield node._sequence_nr()
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
