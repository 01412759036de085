"""One backward pass, watched: at which node a gradient turns to zero, to NaN, or is not given at all."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.tracing import Node


@dataclass(frozen=True)
class Size:
    """How large a gradient is: the largest magnitude among its finite elements, and whether all are finite.

    `largest` is None where no gradient was given at all.
    """

    largest: float | None
    is_finite: bool = True

    @classmethod
    def of(cls, gradients: Sequence[torch.Tensor | None]) -> Size:
        """Measure several gradients together."""
        given = [_values(gradient) for gradient in gradients if gradient is not None]
        given = [values for values in given if values.numel()]
        if not given:
            return cls(None)
        largest = max(float(gradient.abs().max()) for gradient in given)
        return cls(largest, bool(torch.tensor(largest).isfinite()))

    @property
    def is_zero(self) -> bool:
        """Zero everywhere, or not given."""
        return not self.largest


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.detach().coalesce().values() if gradient.is_sparse else gradient.detach()


@dataclass(eq=False)
class Backward:
    """What a backward pass told.

    Attributes:
        gradients: by parameter; None where autograd gives none.
        arriving: at each node, the gradient of its outputs.
        leaving: at each node, the gradient of each of its inputs.
        consumers: for each node, the nodes that it feeds with the index of the input, on the way to the loss.
        leaf_of: the node of each parameter.
        error: what backward raised, if it did.
    """

    gradients: dict[str, torch.Tensor | None]
    arriving: dict[Node, Size] = field(default_factory=dict)
    leaving: dict[Node, list[Size]] = field(default_factory=dict)
    consumers: dict[Node, list[tuple[Node, int]]] = field(default_factory=dict)
    leaf_of: dict[int, Node] = field(default_factory=dict)
    error: Exception | None = None

    def births(self, parameter: nn.Parameter, is_ill: Callable[[Size], bool]) -> list[Node]:
        """Find the nodes at which the gradient of a parameter falls ill: well on arrival, ill on leaving towards it."""
        start = self.leaf_of.get(id(parameter))
        found: list[Node] = []
        waiting, seen = [start] if start is not None else [], set()
        while waiting:
            node = waiting.pop()
            for consumer, index in self.consumers.get(node, []):
                if consumer not in self.leaving or (consumer, index) in seen:
                    continue
                seen.add((consumer, index))
                if not is_ill(self.leaving[consumer][index]):
                    continue
                if not is_ill(self.arriving[consumer]):
                    if consumer not in found:
                        found.append(consumer)
                else:
                    waiting.append(consumer)
        return found

    def parents_of(self, parameter: nn.Parameter) -> list[tuple[Node, int]]:
        """Give the nodes that read a parameter, with the index of the input."""
        return self.consumers.get(self.leaf_of.get(id(parameter)), [])


def run_backward(loss: torch.Tensor, parameters: dict[str, nn.Parameter], *, keep_graph: bool = False) -> Backward:
    """Differentiate a loss by the parameters and watch every node.

    Args:
        loss: a scalar with a graph.
        parameters: those that require a gradient.
        keep_graph: leave the graph for another pass.
    """
    names = list(parameters)
    result = Backward(dict.fromkeys(names))
    nodes = _walk(loss.grad_fn, result)
    handles = []

    def watch(node: Node) -> Callable[[Any, Any], None]:
        def hook(leaving: Any, arriving: Any) -> None:  # noqa: ANN401
            result.arriving[node] = Size.of(arriving)
            result.leaving[node] = [Size.of([gradient]) for gradient in leaving]

        return hook

    for node in nodes:
        if not hasattr(node, "variable"):
            handles.append(node.register_hook(watch(node)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # torch.utils.checkpoint with use_reentrant=True only fills in .grad.
            is_reentrant = any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes)
            wanted = [parameters[name] for name in names]
            found = (
                _differentiate_into_grad(loss, wanted, keep_graph=keep_graph)
                if is_reentrant
                else torch.autograd.grad(loss, wanted, retain_graph=keep_graph, allow_unused=True)
            )
        result.gradients = dict(zip(names, found, strict=True))
    except Exception as error:  # noqa: BLE001  hand-written backwards raise anything, which is a finding
        result.error = error
    finally:
        for handle in handles:
            handle.remove()
    return result


def _differentiate_into_grad(
    loss: torch.Tensor, parameters: list[nn.Parameter], *, keep_graph: bool
) -> Sequence[torch.Tensor | None]:
    """Differentiate by way of `.grad`; what stood there before is put back."""
    kept = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        loss.backward(retain_graph=keep_graph)
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def _walk(start: Node, result: Backward) -> list[Node]:
    consumers: dict[Node, list[tuple[Node, int]]] = defaultdict(list)
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            result.leaf_of[id(variable)] = node
        for index, (child, _) in enumerate(node.next_functions):
            if child is None:
                continue
            consumers[child].append((node, index))
            if child not in seen:
                seen.add(child)
                waiting.append(child)
    result.consumers = dict(consumers)
    return list(seen)
