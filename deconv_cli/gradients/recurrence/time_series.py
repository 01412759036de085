"""Gradients through time, and those of loops: lines that run several times, each on what they gave before."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from deconv_cli.gradients.tracing.autograd_graph import is_below
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, TracedTensor

_FADED = 1e-6


@dataclass(frozen=True)
class TimeSeries:
    """The gradient of the loss on its way back through time.

    Attributes:
        name: the module, or the state of a hand-written loop.
        location: where it stands.
        norms: ‖∂loss/∂h_t‖ for t = 0, 1, ...
        trend: `fades`, `explodes` or `steady`, seen backwards in time.
        step: the last step, counted from the first, at which the norm is below a millionth of the largest (fades), or
            the step at which it is largest (explodes); None for steady.
    """

    name: str
    location: CodeLocation
    norms: tuple[float, ...]
    trend: str
    step: int | None

    @classmethod
    def of(cls, name: str, location: CodeLocation, norms: Sequence[float]) -> TimeSeries:
        """Read the trend off the norms."""
        largest = max(norms)
        position = norms.index(largest)
        faded = [t for t in range(position) if norms[t] < _FADED * largest]
        late = [norm for norm in norms[len(norms) // 2 :] if norm]
        if faded:
            return cls(name, location, tuple(norms), "fades", faded[-1])
        if late and largest > statistics.median(late) / _FADED:
            return cls(name, location, tuple(norms), "explodes", position)
        return cls(name, location, tuple(norms), "steady", None)


_MIN_TURNS = 3
_MAX_STATES = 8

_Turns = list[tuple[int, TracedTensor]]
"""What one line gave in each turn of a loop, with its position among all tensors that carry a gradient."""


def has_loops(forward: ForwardTrace) -> bool:
    """Return whether any line hands on from turn to turn what it computes."""
    return bool(_chains(forward))


def series_of_loops(forward: ForwardTrace, backward: BackwardTrace) -> list[TimeSeries]:
    """Measure ‖∂loss/∂h_t‖ for every state h of a loop; the graph of the forward pass must still be there."""
    found = []
    for states in _states(forward, backward):
        tensors = [state.tensor for state in states]
        gradients = torch.autograd.grad(forward.loss, tensors, retain_graph=True, allow_unused=True)
        norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in gradients]
        found.append(TimeSeries.of(_name_of(states[0]), states[0].operation.location, norms))
    return found


def _name_of(state: TracedTensor) -> str:
    """Name a state as its line does: `h` and `c` in `h, c = cell(x, (h, c))`."""
    names = [name.strip() for name in state.operation.location.source.partition("=")[0].split(",")]
    return names[state.index if state.index < len(names) else 0] or state.operation.label


def _states(forward: ForwardTrace, backward: BackwardTrace) -> list[list[TracedTensor]]:
    """Find the tensors that one turn of a loop hands to the next."""
    chains = _chains(forward)
    states = []
    for chain in chains:
        n_turns = len(chain)
        # A turn of the loop ends with the last operation that any line of the same number of turns runs in it.
        ends = [max(other[t][0] for other in chains if len(other) == n_turns) for t in range(n_turns)]
        if all(
            any(position > end for position in _positions_of_readers(made, forward, backward))
            for (_, made), end in zip(chain[:-1], ends, strict=False)
        ):
            states.append([made for _, made in chain])
    # The last operation of a line is what the line gives.
    by_line = {
        (made[0].operation.location.file, made[0].operation.location.line, made[0].index): made for made in states
    }
    return list(by_line.values())[:_MAX_STATES]


def _chains(forward: ForwardTrace) -> list[_Turns]:
    """Group the tensors of each instruction, and keep the groups in which each is made of the one before."""
    groups: dict[Any, _Turns] = defaultdict(list)
    for position, made in enumerate(forward.log.differentiable):
        location = made.operation.location
        if location.file and made.tensor.is_floating_point():
            key = location.file, location.call_path, made.name, made.index, location.module
            groups[key].append((position, made))
    return [group for group in groups.values() if _is_chain([made for _, made in group])]


def _positions_of_readers(made: TracedTensor, forward: ForwardTrace, backward: BackwardTrace) -> list[int]:
    """List when the operations ran that read a tensor."""
    order = forward.graph.order
    readers = backward.consumers.get(made.tensor.grad_fn, [])
    return [order[reader] for reader, _ in readers if reader in order]


def _is_chain(turns: list[TracedTensor]) -> bool:
    if len(turns) < _MIN_TURNS or len({made.tensor.shape for made in turns}) != 1:
        return False
    return all(is_below(later.tensor.grad_fn, earlier.tensor.grad_fn) for earlier, later in pairwise(turns[:4]))
