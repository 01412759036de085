"""Gradients through time: recurrent layers of torch.nn, loops written by hand, and gradients by gate."""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, is_below
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, TracedTensor

_FADED = 1e-6


@dataclass(frozen=True)
class TimeSeries:
    """The gradient of the loss on its way back through time.

    Attributes:
        name: the module, or the state of a hand-written loop.
        location: its line.
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


GATES = {
    "LSTM": ("input", "forget", "cell", "output"),
    "GRU": ("reset", "update", "new"),
    "RNN_TANH": ("hidden",),
    "RNN_RELU": ("hidden",),
}
"""Rows of the stacked weights in the order in which torch keeps them (torch.nn.LSTM, torch.nn.GRU: Variables)."""


def gates_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """List the gates whose rows are stacked in a parameter; one name or none for other parameters."""
    owner, _, last = name.rpartition(".")
    module = dict(model.named_modules()).get(owner)
    if isinstance(module, nn.RNNBase) and last.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
        return GATES.get(module.mode, ())
    if isinstance(module, nn.LSTMCell):
        return GATES["LSTM"]
    return GATES["GRU"] if isinstance(module, nn.GRUCell) else ()


def gate_norms(model: nn.Module, name: str, gradient: torch.Tensor) -> dict[str, float]:
    """Measure the gradient of each gate, for a parameter of a recurrent layer."""
    gates = gates_of(model, name)
    if len(gates) < 2 or gradient.shape[0] % len(gates):
        return {}
    return {gate: float(rows.norm()) for gate, rows in zip(gates, gradient.chunk(len(gates)), strict=True)}


_CELLS: dict[str, Callable[..., torch.Tensor]] = {
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}
_FORWARDS = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)

_States = dict[str, list[torch.Tensor]]
"""The states h of each layer and direction in the order in which they are computed: `(batch, features)` each."""


def series_of_layers(subject: Subject) -> list[TimeSeries]:
    """Measure ‖∂loss/∂h_t‖ for every recurrent layer of torch.nn that the model calls, in evaluation mode."""
    layers = {name: module for name, module in subject.model.named_modules() if _can_be_unrolled(module)}
    if not layers:
        return []
    calls: list[tuple[str, _States]] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(subject.evaluating())
        for name, layer in layers.items():
            vars(layer)["forward"] = _unrolled_forward(layer, name, calls)
            stack.callback(vars(layer).pop, "forward")
        loss = subject.run()[1]
    series = []
    for name, states in calls:
        for label, steps in states.items():
            norms = _gradient_norms(loss, steps)
            if any(norms):
                series.append(TimeSeries.of(f"{name}{label}", CodeLocation(module=name), norms))
    return series


def _can_be_unrolled(module: nn.Module) -> bool:
    is_plain = isinstance(module, nn.RNNBase) and type(module).forward in _FORWARDS and "forward" not in vars(module)
    return is_plain and not getattr(module, "proj_size", 0)


def _gradient_norms(loss: Any, tensors: list[torch.Tensor]) -> list[float]:  # noqa: ANN401  whatever the loss gives
    """Measure ‖∂loss/∂h_t‖; zero where the loss does not depend on h_t, an empty list without any graph."""
    if not isinstance(loss, torch.Tensor) or not all(t.requires_grad for t in (loss, *tensors)):
        return []
    gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return [0.0 if gradient is None else float(gradient.norm()) for gradient in gradients]


def _unrolled_forward(layer: nn.Module, name: str, calls: list[tuple[str, _States]]) -> Callable[..., Any]:
    """Return a forward that runs a layer step by step, and adds the states of each call to `calls`."""
    assert isinstance(layer, nn.RNNBase)
    own, n_directions = layer.forward, 2 if layer.bidirectional else 1

    def forward(given: Any, start: Any = None) -> Any:  # noqa: ANN401  torch's own signature
        if not isinstance(given, torch.Tensor):
            return own(given, start)  # packed sequences
        sequence = given if given.ndim == 3 else given.unsqueeze(0 if layer.batch_first else 1)
        sequence = sequence.transpose(0, 1) if layer.batch_first else sequence
        states: _States = {}
        last: list[tuple[torch.Tensor, ...]] = []
        for depth in range(layer.num_layers):
            sides = []
            for side in range(n_directions):
                suffix, label = (f"_l{depth}_reverse", " backwards") if side else (f"_l{depth}", "")
                state = _start(layer, start, depth * n_directions + side, sequence)
                steps = []
                for x in reversed(sequence) if side else sequence:
                    state = _step(layer, x, state, suffix)
                    steps.append(state[0])
                states[f" layer {depth}{label}"] = steps
                last.append(state)
                sides.append(torch.stack(steps[::-1] if side else steps))
            sequence = torch.cat(sides, dim=-1)
        calls.append((name, states))
        output = (sequence.transpose(0, 1) if layer.batch_first else sequence).reshape(*given.shape[:-1], -1)
        final = [torch.stack(pieces) for pieces in zip(*last, strict=True)]
        final = final if given.ndim == 3 else [piece.squeeze(1) for piece in final]
        return output, tuple(final) if layer.mode == "LSTM" else final[0]

    return forward


def _start(layer: nn.RNNBase, start: Any, position: int, sequence: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
    """Return the first state of one layer and direction, h or h and c: zeros, or the state that the model gave."""
    n_states = 2 if layer.mode == "LSTM" else 1
    if start is None:
        zeros = sequence.new_zeros(sequence.shape[1], layer.hidden_size).requires_grad_()
        return (zeros, zeros.clone())[:n_states]
    pieces = start if isinstance(start, tuple) else (start,)
    return tuple(piece[position].reshape(sequence.shape[1], -1) for piece in pieces)


def _step(layer: nn.RNNBase, x: torch.Tensor, state: tuple[torch.Tensor, ...], suffix: str) -> tuple[torch.Tensor, ...]:
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if layer.bias else ()))
    weights = [getattr(layer, f"{kind}{suffix}") for kind in kinds]
    if layer.mode == "LSTM":
        return torch.lstm_cell(x, state, *weights)
    return (_CELLS[layer.mode](x, state[0], *weights),)


_MIN_TURNS = 3
_MAX_STATES = 8

_Turns = list[tuple[int, TracedTensor]]
"""The tensors that one line makes in the turns of a loop, with their positions among all tensors with a gradient."""


def has_loops(forward: ForwardTrace) -> bool:
    """Return whether any line passes its result on to its next turn."""
    return bool(_chains(forward))


def series_of_loops(forward: ForwardTrace, backward: BackwardTrace) -> list[TimeSeries]:
    """Measure ‖∂loss/∂h_t‖ for every state h of a loop; the graph of the forward pass must still exist."""
    found = []
    for states in _states(forward, backward):
        norms = _gradient_norms(forward.loss, [state.tensor for state in states])
        found.append(TimeSeries.of(_name_of(states[0]), states[0].operation.location, norms))
    return found


def _name_of(state: TracedTensor) -> str:
    """Name a state as its line does: `h` and `c` in `h, c = cell(x, (h, c))`."""
    names = [name.strip() for name in state.operation.location.source.partition("=")[0].split(",")]
    return names[state.index if state.index < len(names) else 0] or state.operation.label


def _states(forward: ForwardTrace, backward: BackwardTrace) -> list[list[TracedTensor]]:
    """Find the tensors that one turn of a loop hands to the next."""
    chains, order = _chains(forward), forward.graph.order
    by_line = {}
    for chain in chains:
        # A turn of the loop ends with the last operation that any line of the same number of turns runs in it.
        ends = [max(other[t][0] for other in chains if len(other) == len(chain)) for t in range(len(chain))]
        is_state = True
        for (_, made), end in zip(chain[:-1], ends, strict=False):
            readers = backward.consumers.get(made.tensor.grad_fn, [])
            is_state = is_state and any(order.get(reader, -1) > end for reader, _ in readers)
        if is_state:
            last = chain[0][1]
            location = last.operation.location
            # The last operation of a line makes its result.
            by_line[location.file, location.line, last.index] = [made for _, made in chain]
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


def _is_chain(turns: list[TracedTensor]) -> bool:
    if len(turns) < _MIN_TURNS or len({made.tensor.shape for made in turns}) != 1:
        return False
    return all(is_below(later.tensor.grad_fn, earlier.tensor.grad_fn) for earlier, later in pairwise(turns[:4]))
