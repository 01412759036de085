"""Autograd's graph, and one watched backward pass: where a gradient turns to zero or NaN, or stops."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.tracing.code_location import CodeLocation, Operation

Node = Any
"""A node of autograd's graph: torch has no one class for them."""


class AutogradGraph:
    """The nodes of a forward pass, and the operation that made each.

    Args:
        bits: the bit of each parameter in sets of parameters, by the id of the parameter.
    """

    def __init__(self, bits: dict[int, int]) -> None:
        self.operations: dict[Node, Operation] = {}
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
        """Count parameters as reached from a node that passes gradients to them outside of the graph."""
        self._masks[node] = self.parameters_below(node) | parameters

    def record_new_nodes(self, tensor: torch.Tensor, operation: Operation) -> None:
        """Remember the operation that made the new nodes behind a tensor."""
        if tensor.grad_fn is not None:
            self._reach(tensor.grad_fn, lambda node: self.operations.update({node: operation}))

    def operation_of(self, node: Node) -> Operation:
        """Return the operation that made a node, named by the class of the node if nothing saw it being made."""
        kind = type(node).__name__.removesuffix("0").removesuffix("Backward")
        return self.operations.get(node) or Operation(kind, CodeLocation())

    def _reach(self, start: Node, visit: Callable[[Node], None]) -> int:
        """Find the leaves below a node, and visit each new node once; without recursion, since graphs are deep."""
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


def nodes_below(starts: Iterable[Node]) -> Iterator[Node]:
    """List nodes and all nodes below them, the nearest first."""
    waiting = deque(starts)
    seen = set(waiting)
    while waiting:
        node = waiting.popleft()
        yield node
        new = dict.fromkeys(child for child, _ in node.next_functions if child is not None and child not in seen)
        seen |= new.keys()
        waiting += new


@dataclass(frozen=True)
class Magnitude:
    """The largest magnitude of a gradient's elements, None where no gradient was given at all."""

    largest: float | None
    is_finite: bool = True

    @classmethod
    def of(cls, gradients: Sequence[torch.Tensor | None]) -> Magnitude:
        """Measure several gradients together."""
        given = [gradient.detach() for gradient in gradients if gradient is not None]
        values = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in given]
        sizes = [float(torch.linalg.vector_norm(tensor, math.inf)) for tensor in values if tensor.numel()]
        if not sizes:
            return cls(None)
        largest = max(sizes, key=lambda one: (math.isnan(one), one))
        return cls(largest, math.isfinite(largest))

    @property
    def is_zero(self) -> bool:
        """Zero everywhere, or missing."""
        return not self.largest


@dataclass(eq=False)
class BackwardTrace:
    """One backward pass; a gradient is None where autograd gives none.

    Attributes:
        arriving: for each node the gradient of its outputs.
        leaving: for each node the gradient of each of its inputs.
        consumers: for each node the nodes that it feeds, towards the loss, with the index of the input.
        leaf_of: the node of each parameter, by the parameter's id.
        error: the error that backward raised.
    """

    gradients: dict[str, torch.Tensor | None]
    arriving: dict[Node, Magnitude] = field(default_factory=dict)
    leaving: dict[Node, list[Magnitude]] = field(default_factory=dict)
    consumers: dict[Node, list[tuple[Node, int]]] = field(default_factory=dict)
    leaf_of: dict[int, Node] = field(default_factory=dict)
    error: Exception | None = None

    @cached_property
    def magnitudes(self) -> dict[str, Magnitude]:
        """How large each gradient is, for the parameters that have one."""
        return {name: Magnitude.of([gradient]) for name, gradient in self.gradients.items() if gradient is not None}

    def origins(self, parameter: nn.Parameter, is_faulty: Callable[[Magnitude], bool]) -> list[Node]:
        """Find the nodes where the gradient of a parameter becomes faulty: sound on arrival, faulty on leaving."""
        found: dict[Node, None] = {}
        waiting = [self.leaf_of[id(parameter)]] if id(parameter) in self.leaf_of else []
        seen: set[tuple[Node, int]] = set()
        while waiting:
            for consumer, index in self.consumers.get(waiting.pop(), []):
                if consumer not in self.leaving or (consumer, index) in seen:
                    continue
                seen.add((consumer, index))
                if not is_faulty(self.leaving[consumer][index]):
                    continue
                if is_faulty(self.arriving[consumer]):
                    waiting.append(consumer)
                else:
                    found[consumer] = None
        return list(found)

    def readers_of(self, parameter: torch.Tensor) -> list[tuple[Node, int]]:
        """List the nodes that read a parameter, with the index of the input."""
        return self.consumers.get(self.leaf_of.get(id(parameter)), [])


def trace_backward(
    loss: torch.Tensor, parameters: dict[str, nn.Parameter], *, is_reached: bool = True
) -> BackwardTrace:
    """Differentiate a scalar loss by its trainable parameters, and measure the gradients at every node.

    If autograd reaches none of them (`is_reached`), the trace only holds the graph.
    """
    result = BackwardTrace(dict.fromkeys(parameters))
    nodes = _walk(loss.grad_fn, result) if loss.grad_fn is not None else []
    if not is_reached:
        return result
    handles = [node.register_hook(_measuring(node, result)) for node in nodes if not hasattr(node, "variable")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result.gradients = differentiate(loss, parameters)
    except Exception as error:  # noqa: BLE001  hand-written backwards raise anything, which is a finding
        result.error = error
    finally:
        for handle in handles:
            handle.remove()
    return result


def differentiate(loss: torch.Tensor, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Differentiate a scalar loss, whose graph is freed; None where autograd gives no gradient.

    The `.grad` of the parameters is None before and after.
    """
    wanted = list(parameters.values())
    if not any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes_below([loss.grad_fn])):
        return dict(zip(parameters, torch.autograd.grad(loss, wanted, allow_unused=True), strict=True))
    # torch.utils.checkpoint with use_reentrant=True only fills in .grad.
    try:
        loss.backward()
        return {name: parameter.grad for name, parameter in parameters.items()}
    finally:
        for parameter in wanted:
            parameter.grad = None


def _measuring(node: Node, result: BackwardTrace) -> Callable[[Any, Any], None]:
    def hook(leaving: Any, arriving: Any) -> None:  # noqa: ANN401  torch's own signature
        result.arriving[node] = Magnitude.of(arriving)
        result.leaving[node] = [Magnitude.of([gradient]) for gradient in leaving]

    return hook


def _walk(start: Node, result: BackwardTrace) -> list[Node]:
    """List all nodes below a node, and note which node feeds which."""
    nodes = list(nodes_below([start]))
    for node in nodes:
        variable = getattr(node, "variable", None)
        if variable is not None:
            result.leaf_of[id(variable)] = node
        for index, (child, _) in enumerate(node.next_functions):
            if child is not None:
                result.consumers.setdefault(child, []).append((node, index))
    return nodes
