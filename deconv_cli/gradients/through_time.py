"""Gradients through time: recurrent layers step by step, hand-written loops, and gradients by gate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from deconv_cli.gradients.findings import TimeSeries
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, is_below
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, TracedTensor

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
