"""The graph of autograd: where each node was made, and which parameters it leads to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from deconv_cli.gradients.tracing.code_location import CodeLocation

Node = Any
"""A node of autograd's graph: torch has no one class for them."""

_MAX_WALK = 4000


class AutogradGraph:
    """What is known of the nodes of a forward pass: the line, the operation, and how many tensors there were before.

    Args:
        bits: for the id of each parameter the bit that stands for it in sets of parameters.
    """

    def __init__(self, bits: dict[int, int]) -> None:
        self.locations: dict[Node, CodeLocation] = {}
        self.labels: dict[Node, str] = {}
        self.order: dict[Node, int] = {}
        self._bits = bits
        self._masks: dict[Node, int] = {}

    def parameters_below(self, node: Node) -> int:
        """Find the parameters that autograd reaches from a node, a bit each."""
        return self._reach(node, lambda _: None)

    def parameters_of(self, tensor: torch.Tensor) -> int:
        """Find the parameters that autograd reaches from a tensor, a bit each."""
        if tensor.grad_fn is not None:
            return self.parameters_below(tensor.grad_fn)
        return self._bits.get(id(tensor), 0) if tensor.requires_grad else 0

    def add_parameters(self, node: Node, parameters: int) -> None:
        """Count parameters as reached from a node that gives gradients to them past the graph."""
        self._masks[node] = self.parameters_below(node) | parameters

    def record_new_nodes(self, tensor: torch.Tensor, label: str, location: CodeLocation, position: int) -> None:
        """Remember where the nodes behind a tensor were made, as far as they are new."""

        def record(node: Node) -> None:
            self.locations[node], self.labels[node], self.order[node] = location, label, position

        if tensor.grad_fn is not None:
            self._reach(tensor.grad_fn, record)

    def label_of(self, node: Node) -> str:
        """Name the operation that made a node; one that nobody saw being made is named by its class."""
        return self.labels.get(node) or type(node).__name__.removesuffix("0").removesuffix("Backward")

    def location_of(self, node: Node) -> CodeLocation:
        """Find the line on which a node was made."""
        return self.locations.get(node) or CodeLocation()

    def _reach(self, start: Node, visit: Callable[[Node], None]) -> int:
        """Find the leaves below a node, without recursion: graphs are deep. Each new node is visited once."""
        masks, waiting = self._masks, [start]
        while waiting:
            node = waiting[-1]
            if node in masks:
                waiting.pop()
                continue
            below = [child for child, _ in node.next_functions if child is not None]
            missing = [child for child in below if child not in masks]
            if missing:
                waiting += missing
                continue
            variable = getattr(node, "variable", None)
            masks[node] = self._bits.get(id(variable), 0) if variable is not None else 0
            for child in below:
                masks[node] |= masks[child]
            visit(node)
            waiting.pop()
        return masks[start]


def distances_from(start: Node) -> dict[Node, int]:
    """Count the most steps from a node to every node below it: shortcuts do not bring what they skip nearer."""
    distances = {start: 0}
    for node in reversed(_children_first(start)):
        for child, _ in node.next_functions:
            if child is not None:
                distances[child] = max(distances.get(child, 0), distances[node] + 1)
    return distances


def _children_first(start: Node) -> list[Node]:
    """List a node and all below it, each after the nodes that it leads to, without recursion: graphs are deep."""
    order: list[Node] = []
    seen, waiting = {start}, [(start, iter(start.next_functions))]
    while waiting:
        node, children = waiting[-1]
        child = next((found for found, _ in children if found is not None and found not in seen), None)
        if child is None:
            order.append(node)
            waiting.pop()
        else:
            seen.add(child)
            waiting.append((child, iter(child.next_functions)))
    return order


def is_below(start: Node, goal: Node) -> bool:
    """Return whether a node is found among the next few thousand below another."""
    waiting, seen = deque([start]), {start}
    while waiting and len(seen) < _MAX_WALK:
        for child, _ in waiting.popleft().next_functions:
            if child is goal:
                return True
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return False
