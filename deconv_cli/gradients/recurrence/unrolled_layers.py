"""Recurrent layers of torch.nn: gradients by gate, and through time, unrolled with their own weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from deconv_cli.gradients.recurrence.time_series import TimeSeries
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.code_location import CodeLocation

GATES = {
    "LSTM": ("input", "forget", "cell", "output"),
    "GRU": ("reset", "update", "new"),
    "RNN_TANH": ("hidden",),
    "RNN_RELU": ("hidden",),
}
"""Rows of the stacked weights in the order in which torch keeps them (torch.nn.LSTM, torch.nn.GRU: Variables)."""


def gates_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """List the gates whose rows are stacked in a parameter; one name or none for what has no gates."""
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

_State = tuple[torch.Tensor, torch.Tensor | None]
"""The state h of a layer, and the cell state c of an LSTM: `(batch, features)` each."""

_States = dict[str, list[_State]]
"""The states of each layer and direction, in the order in which they are computed."""


def series_of_layers(subject: Subject) -> list[TimeSeries]:
    """Measure ‖∂loss/∂h_t‖ for every recurrent layer of torch.nn that the model calls, in evaluation mode."""
    names = {module: name for name, module in subject.model.named_modules() if _can_be_unrolled(module)}
    if not names:
        return []
    calls: list[tuple[str, Any, Any, Any]] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ANN401  torch's own signature
        if module in names:
            calls.append((names[module], module, arguments, output))

    handle = module_hooks.register_module_forward_hook(keep)
    try:
        with subject.evaluating():
            loss = subject.run()[1]
    finally:
        handle.remove()
    series = []
    for name, layer, arguments, output in calls:
        if isinstance(arguments[0], torch.Tensor) and isinstance(loss, torch.Tensor) and loss.requires_grad:
            states, surrogate = _unroll(layer, arguments, output, loss)
            series += _series(name, states, surrogate) if surrogate is not None else []
    return series


def _can_be_unrolled(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) and module.mode in GATES and not getattr(module, "proj_size", 0)


def _series(name: str, states: _States, surrogate: torch.Tensor) -> list[TimeSeries]:
    found = []
    for label, hidden in states.items():
        gradients = torch.autograd.grad(surrogate, [h for h, _ in hidden], retain_graph=True, allow_unused=True)
        norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in gradients]
        # A layer that reads backwards in time has its first step at the end.
        found.append(TimeSeries.of(f"{name}{label}", CodeLocation(module=name), norms))
    return found


def _unroll(
    layer: nn.RNNBase,
    arguments: Any,  # noqa: ANN401  what the model calls the layer with
    output: Any,  # noqa: ANN401  what the layer gives
    loss: torch.Tensor,
) -> tuple[_States, torch.Tensor | None]:
    """Run a layer again, step by step: its states, and a scalar with the gradient of the loss by the layer's outputs.

    The scalar is None where the layer computes something else, or the loss does not depend on it.
    """
    outputs = [output[0], *_as_tuple(output[1])]
    needing = [tensor for tensor in outputs if tensor.requires_grad]
    gradients = torch.autograd.grad(loss, needing, retain_graph=True, allow_unused=True)
    sequence = arguments[0].detach()
    if sequence.ndim == 2:
        sequence = sequence.unsqueeze(0 if layer.batch_first else 1)
    sequence = sequence.transpose(0, 1) if layer.batch_first else sequence
    again, states = _run_steps(layer, sequence, arguments[1] if len(arguments) > 1 else None)
    again = (again.transpose(0, 1) if layer.batch_first else again).reshape(output[0].shape)
    if not torch.allclose(again, output[0], rtol=1e-5, atol=1e-7):
        return states, None
    terms = [
        (tensor * gradient.reshape(tensor.shape)).sum()
        for tensor, gradient in zip([again, *_last_states(states, outputs[1:])], gradients, strict=False)
        if gradient is not None and tensor.requires_grad
    ]
    return states, torch.stack(terms).sum() if terms else None


def _as_tuple(state: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401  h, or the pair of h and c of an LSTM
    return state if isinstance(state, tuple) else (state,)


def _run_steps(layer: nn.RNNBase, sequence: torch.Tensor, start: Any) -> tuple[torch.Tensor, _States]:  # noqa: ANN401
    """Run a layer one step at a time. `sequence` is `(time, batch, features)`."""
    n_directions = 2 if layer.bidirectional else 1
    states: _States = {}
    for depth in range(layer.num_layers):
        sides = []
        for side in range(n_directions):
            suffix, label = (f"_l{depth}_reverse", " backwards") if side else (f"_l{depth}", "")
            hidden = _start(layer, start, depth * n_directions + side, sequence)
            steps = []
            for x in reversed(sequence) if side else sequence:
                hidden = _step(layer, x, hidden, suffix)
                steps.append(hidden)
            states[f" layer {depth}{label}"] = steps
            sides.append(torch.stack([h for h, _ in (reversed(steps) if side else steps)]))
        sequence = torch.cat(sides, dim=-1)
    return sequence, states


def _start(layer: nn.RNNBase, start: Any, position: int, sequence: torch.Tensor) -> _State:  # noqa: ANN401  h or (h, c)
    """Take the first state of one layer and direction: zeros, or what the model gave."""
    n_batch = sequence.shape[1]
    if start is None:
        h = sequence.new_zeros(n_batch, layer.hidden_size).requires_grad_()
        return h, h.clone() if layer.mode == "LSTM" else None
    chosen = [piece.detach()[position].reshape(n_batch, -1).requires_grad_() for piece in _as_tuple(start)]
    return chosen[0], chosen[1] if layer.mode == "LSTM" else None


def _step(layer: nn.RNNBase, x: torch.Tensor, state: _State, suffix: str) -> _State:
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if layer.bias else ()))
    weights = [getattr(layer, f"{kind}{suffix}").detach() for kind in kinds]
    h, c = state
    if c is None:
        return _CELLS[layer.mode](x, h, *weights), None
    h, c = torch.lstm_cell(x, (h, c), *weights)
    return h, c


def _last_states(states: _States, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Rebuild the last states that the layer gives beside its output, in their order and shape."""
    last = [steps[-1] for steps in states.values()]
    rebuilt = [torch.stack([h for h, _ in last]).reshape(given[0].shape)]
    if len(given) > 1:
        rebuilt.append(torch.stack([c for _, c in last if c is not None]).reshape(given[1].shape))
    return rebuilt
