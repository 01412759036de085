"""Gradients through time of the recurrent layers of torch.nn, and gradients by gate."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.code_location import CodeLocation

_FADED = 1e-6


@dataclass(frozen=True)
class TimeSeries:
    """The gradient of the loss on its way back through time.

    Attributes:
        name: the module with its layer and direction.
        location: the module.
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
