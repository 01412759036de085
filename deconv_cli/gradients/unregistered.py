"""Weights that the loss depends on and the model does not register, so that no optimizer gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.nested_tensors import is_plain, leaves_of, tensors_in
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.backward_trace import AutogradGraph, Node
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace
from deconv_cli.vocabulary import counted

_REGISTERED = ("_parameters", "_buffers", "_modules")


def find_unregistered(subject: Subject, forward: ForwardTrace) -> tuple[tuple[str, str, CodeLocation], ...]:
    """List the leaves of the loss's graph that are neither parameters of the model or the loss, nor inputs.

    A tensor that the model itself differentiates by counts as an input, as the points of a physics-informed network.

    Returns:
        The owner, as code writes it (`self.scale`), or empty where no member of a module keeps the weight; the kind:
        `member`, `buffer`, `derived` (the result of an operation on a Parameter), `container` or `unknown`; and the
        line that reads it.
    """
    graph = forward.graph
    known = {id(parameter) for parameter in (*subject.parameters.values(), *_parameters_of(subject.loss))}
    known |= {id(weight) for module in subject.model.modules() for weight in module._parameters.values()}
    known |= {id(tensor) for tensor in tensors_in((subject.arguments, subject.keywords, subject.target))}
    known |= {id(tensor) for tensor in (*forward.log.differentiated_by, *forward.log.wrapped)}
    owners = dict(_owners(subject.model, known))
    found: dict[str, tuple[str, str, CodeLocation]] = {}
    above: dict[Node, Node] = {}
    for leaf, reader in _leaves(forward.loss.grad_fn, above):
        if id(leaf) in known:
            continue
        owner, kind = owners.get(id(leaf), ("", "unknown"))
        # Forward lets a plain tensor require a gradient to differentiate by its inputs.
        if owner or isinstance(leaf, nn.Parameter):
            location = _location_above(reader, above, graph)
            found.setdefault(owner or str(location), (owner, kind, location))
    return tuple(found.values())


def ids_past_registration(model: nn.Module) -> set[int]:
    """List by id the weights that modules keep in containers, as plain tensors or made of a Parameter."""
    known = {id(parameter) for parameter in model.parameters()}
    return {key for key, _ in _owners(model, known)} - known


def _leaves(start: Node, above: dict[Node, Node]) -> Iterator[tuple[torch.Tensor, Node]]:
    """List the leaves below a node, each with its reader; `above` is filled with one reader of every node."""
    seen, waiting = {start}, [start] if start is not None else []
    while waiting:
        node = waiting.pop()
        for child, _ in node.next_functions:
            if child is None or child in seen:
                continue
            seen.add(child)
            waiting.append(child)
            above[child] = node
            if hasattr(child, "variable"):
                yield child.variable, node


def _location_above(node: Node, above: dict[Node, Node], graph: AutogradGraph) -> CodeLocation:
    """Find the first line of this forward pass that reads the output of a node from before the pass."""
    while not graph.location_of(node).file and node in above:
        node = above[node]
    return graph.location_of(node)


def _owners(model: nn.Module, known: set[int]) -> Iterator[tuple[int, tuple[str, str]]]:
    """List the unregistered weights that modules hold, by id, with the member that holds each and its kind."""
    for name, module in model.named_modules():
        inside = f" of '{name}'" if name else ""
        for member, buffer in module._buffers.items():
            if buffer is not None and buffer.requires_grad and buffer.is_leaf:
                yield id(buffer), (f"self.{member}{inside}", "buffer")
        derived = {
            name: buffer for name, buffer in module._buffers.items() if buffer is not None and not buffer.is_leaf
        }
        for member, value in (*derived.items(), *vars(module).items()):
            if member in _REGISTERED or member.endswith("_hooks"):
                continue
            owner = f"self.{member}{inside}"
            if isinstance(value, torch.Tensor):
                kind = "member" if value.is_leaf else "derived"
                for leaf in [value] if value.is_leaf else [leaf for leaf, _ in _leaves(value.grad_fn, {})]:
                    yield id(leaf), (owner, kind)
                if value.grad_fn is not None and hasattr(value.grad_fn, "variable"):
                    yield id(value.grad_fn.variable), (owner, kind)
            for leaf in leaves_of(value) if is_plain(value) else ():
                held = list(leaf.parameters()) if isinstance(leaf, nn.Module) else [leaf]
                yield from ((id(each), (owner, "container")) for each in held if id(each) not in known)


def _parameters_of(loss: Any) -> list[nn.Parameter]:  # noqa: ANN401  any callable
    """List the parameters of a loss function that is a module, or a closure over one."""
    cells = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
    modules = [found for found in (loss, *cells) if isinstance(found, nn.Module)]
    return [parameter for module in modules for parameter in module.parameters()]


def describe_plain_containers(model: nn.Module) -> list[str]:
    """Describe the members of modules that are plain lists, tuples or dictionaries of unregistered weights.

    One sentence for each member, without a final stop.
    """
    modules = {id(module) for module in model.modules()}
    parameters = {id(parameter) for parameter in model.parameters()}
    sentences = []
    for name, module in model.named_modules():
        for member, value in vars(module).items():
            if member in _REGISTERED or member.endswith("_hooks") or not is_plain(value):
                continue
            leaves = list(leaves_of(value))
            lost_parameters = [x for x in leaves if isinstance(x, nn.Parameter) and id(x) not in parameters]
            lost_modules = [x for x in leaves if isinstance(x, nn.Module) and id(x) not in modules]
            # A module without parameters, such as an activation, loses nothing.
            lost_modules = [x for x in lost_modules if any(True for _ in x.parameters())]
            for lost, word in ((lost_parameters, "parameter"), (lost_modules, "module")):
                if lost:
                    is_dictionary = isinstance(value, dict)
                    where = f"self.{member}" + (f" of '{name}'" if name else "")
                    kind = "dictionary" if is_dictionary else type(value).__name__
                    sentences.append(
                        f"{where} is a plain {kind} of {counted(len(lost), word)}, which the model does not know, so "
                        f"that {'it is' if len(lost) == 1 else 'they are'} neither checked nor trained; use "
                        f"nn.{word.capitalize()}{'Dict' if is_dictionary else 'List'}"
                    )
    return sentences
