"""Gradients through time: per step of a recurrence, and per gate of a recurrent layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.backward import Backward
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing import Node, Step, Trace
from deconv_cli.gradients.verdicts import Place, TimeSeries

GATES = {
    "LSTM": ("input", "forget", "cell", "output"),
    "GRU": ("reset", "update", "new"),
    "RNN_TANH": ("hidden",),
    "RNN_RELU": ("hidden",),
}
"""Rows of the stacked weights in the order in which torch keeps them (torch.nn.LSTM, torch.nn.GRU: Variables)."""

_FADED = 1e-6
_MIN_STEPS = 3
_MAX_WALK = 4000


def gates_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """Name the gates whose rows are stacked in a parameter; one name or none for what has no gates."""
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


def time_series(subject: Subject, trace: Trace, backward: Backward) -> list[TimeSeries]:
    """Measure ‖∂loss/∂h_t‖ for every recurrence found; the graph of the trace must still be there.

    Hand-written loops are found as lines that run several times, each time on what they gave before. Layers of
    torch.nn are unrolled step by step with their own weights.
    """
    found = _of_layers(subject)
    for steps in _states(trace, backward):
        tensors = [step.tensor for step in steps]
        gradients = torch.autograd.grad(trace.loss, tensors, retain_graph=True, allow_unused=True)
        norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in gradients]
        found.append(_series(_name_of(steps[0]), steps[0].place, norms))
    return found


def _name_of(step: Step) -> str:
    """Name a state as its line does: `h` and `c` in `h, c = cell(x, (h, c))`."""
    names = [name.strip() for name in step.place.source.partition("=")[0].split(",")]
    return names[step.index if step.index < len(names) else 0] or step.spoken


def _series(name: str, place: Place, norms: Sequence[float]) -> TimeSeries:
    """Read the trend off the norms, seen backwards in time."""
    largest = max(norms)
    position = norms.index(largest)
    faded = [t for t in range(position) if norms[t] < _FADED * largest]
    late = [norm for norm in norms[len(norms) // 2 :] if norm]
    if faded:
        return TimeSeries(name, place, tuple(norms), "fades", faded[-1])
    if late and largest > max(late) / _FADED:
        return TimeSeries(name, place, tuple(norms), "explodes", position)
    return TimeSeries(name, place, tuple(norms), "steady", None)


def _states(trace: Trace, backward: Backward) -> list[list[Step]]:
    """Find the tensors that one turn of a loop hands to the next."""
    groups: dict[Any, list[tuple[int, Step]]] = defaultdict(list)
    for position, step in enumerate(trace.steps):
        if step.place.file and step.tensor.is_floating_point():
            groups[step.place.file, step.place.turn, step.name, step.index, step.place.module].append((position, step))
    chained = [group for group in groups.values() if _is_chain([step for _, step in group])]
    if not chained:
        return []
    states = []
    for group in chained:
        n_turns = len(group)
        # A turn of the loop ends with the last operation that any line of the same number of turns runs in it.
        ends = [max(other[t][0] for other in chained if len(other) == n_turns) for t in range(n_turns)]
        carried = [
            any(trace.order.get(consumer, 0) > end for consumer in _consumers(step.tensor.grad_fn, trace, backward))
            for (_, step), end in zip(group[:-1], ends, strict=False)
        ]
        if all(carried):
            states.append([step for _, step in group])
    # The last operation of a line is what the line gives.
    by_line = {(steps[0].place.file, steps[0].place.line, steps[0].index): steps for steps in states}
    return list(by_line.values())[:8]


def _consumers(node: Node, trace: Trace, backward: Backward) -> list[Node]:
    """Give the operations that read what a node gives."""
    return [consumer for consumer, _ in backward.consumers.get(node, []) if consumer in trace.order]


def _is_chain(steps: list[Step]) -> bool:
    if len(steps) < _MIN_STEPS or len({step.tensor.shape for step in steps}) != 1:
        return False
    return all(_reaches(later.tensor.grad_fn, earlier.tensor.grad_fn) for earlier, later in pairwise(steps[:4]))


def _reaches(start: Node, goal: Node) -> bool:
    waiting, seen = [start], {start}
    while waiting and len(seen) < _MAX_WALK:
        node = waiting.pop(0)
        for child, _ in node.next_functions:
            if child is goal:
                return True
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return False


def _of_layers(subject: Subject) -> list[TimeSeries]:
    """Unroll the recurrent layers of torch.nn that the model calls."""
    calls: list[tuple[str, nn.RNNBase, Any, Any]] = []
    handles = []
    for name, module in subject.model.named_modules():
        if isinstance(module, nn.RNNBase) and module.mode in GATES and not getattr(module, "proj_size", 0):

            def keep(layer: nn.RNNBase, arguments: Any, output: Any, name: str = name) -> None:  # noqa: ANN401
                calls.append((name, layer, arguments, output))

            handles.append(module.register_forward_hook(keep))
    if not handles:
        return []
    try:
        with subject.evaluating():
            loss = subject.run()[1]
    finally:
        for handle in handles:
            handle.remove()
    series = []
    for name, layer, arguments, output in calls:
        if isinstance(arguments[0], torch.Tensor) and isinstance(loss, torch.Tensor) and loss.requires_grad:
            series += _unrolled(name, layer, arguments, output, loss)
    return series


def _unrolled(name: str, layer: nn.RNNBase, arguments: Any, output: Any, loss: torch.Tensor) -> list[TimeSeries]:  # noqa: ANN401
    outputs = [output[0], *(output[1] if isinstance(output[1], tuple) else (output[1],))]
    needing = [tensor for tensor in outputs if tensor.requires_grad]
    gradients = torch.autograd.grad(loss, needing, retain_graph=True, allow_unused=True)
    sequence = arguments[0].detach()
    if sequence.ndim == 2:
        sequence = sequence.unsqueeze(0 if layer.batch_first else 1)
    sequence = sequence.transpose(0, 1) if layer.batch_first else sequence
    start = arguments[1] if len(arguments) > 1 else None
    again, states = _run_steps(layer, sequence, start)
    again = again.transpose(0, 1) if layer.batch_first else again
    again = again.reshape(output[0].shape)
    if not torch.allclose(again, output[0], rtol=1e-5, atol=1e-7):
        return []
    finals = [again, *_finals(layer, states, output)]
    pairs = [
        (tensor, gradient)
        for tensor, gradient in zip(finals, gradients, strict=False)
        if gradient is not None and tensor.requires_grad
    ]
    if not pairs:
        return []
    surrogate = torch.stack([(tensor * gradient.reshape(tensor.shape)).sum() for tensor, gradient in pairs]).sum()
    found = []
    for label, hidden in states.items():
        norms = [
            0.0 if gradient is None else float(gradient.norm())
            for gradient in torch.autograd.grad(surrogate, [h for h, _ in hidden], retain_graph=True, allow_unused=True)
        ]
        # A layer that reads backwards in time has its first step at the end.
        found.append(_series(f"{name}{label}", Place(module=name), norms))
    return found


_States = dict[str, list[tuple[torch.Tensor, torch.Tensor | None]]]


def _run_steps(layer: nn.RNNBase, sequence: torch.Tensor, start: Any) -> tuple[torch.Tensor, _States]:  # noqa: ANN401
    """Run a layer one step at a time. `sequence` is (time, batch, features)."""
    n_directions = 2 if layer.bidirectional else 1
    states: _States = {}
    layer_input = sequence
    for depth in range(layer.num_layers):
        sides = []
        for side in range(n_directions):
            suffix = f"_l{depth}" + ("_reverse" if side else "")
            label = f" layer {depth}" + (" backwards" if side else "")
            position = depth * n_directions + side
            hidden = _start(layer, start, position, sequence.shape[1], sequence)
            steps = []
            order = range(len(layer_input) - 1, -1, -1) if side else range(len(layer_input))
            for t in order:
                hidden = _cell(layer, layer_input[t], hidden, suffix)
                steps.append(hidden)
            states[label] = steps
            outputs = [h for h, _ in (reversed(steps) if side else steps)]
            sides.append(torch.stack(outputs))
        layer_input = torch.cat(sides, dim=-1)
    return layer_input, states


def _start(
    layer: nn.RNNBase,
    start: Any,  # noqa: ANN401
    position: int,
    n_batch: int,
    like: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    is_lstm = layer.mode == "LSTM"
    if start is None:
        zeros = like.new_zeros(n_batch, layer.hidden_size).requires_grad_()
        return zeros, zeros.clone() if is_lstm else None
    pieces = start if isinstance(start, tuple) else (start,)
    chosen = [piece.detach()[position].reshape(n_batch, -1).requires_grad_() for piece in pieces]
    return chosen[0], chosen[1] if is_lstm else None


def _cell(
    layer: nn.RNNBase, x: torch.Tensor, hidden: tuple[torch.Tensor, torch.Tensor | None], suffix: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    w_ih, w_hh = (getattr(layer, f"{kind}{suffix}").detach() for kind in ("weight_ih", "weight_hh"))
    b_ih, b_hh = (getattr(layer, f"{kind}{suffix}").detach() if layer.bias else None for kind in ("bias_ih", "bias_hh"))
    h, c = hidden
    from_input = nn.functional.linear(x, w_ih, b_ih)
    from_hidden = nn.functional.linear(h, w_hh, b_hh)
    if layer.mode == "LSTM":
        i, f, g, o = (from_input + from_hidden).chunk(4, dim=1)
        assert c is not None
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if layer.mode == "GRU":
        r_x, z_x, n_x = from_input.chunk(3, dim=1)
        r_h, z_h, n_h = from_hidden.chunk(3, dim=1)
        r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
        return (1 - z) * (n_x + r * n_h).tanh() + z * h, None
    total = from_input + from_hidden
    return (total.tanh() if layer.mode == "RNN_TANH" else total.relu()), None


def _finals(layer: nn.RNNBase, states: _States, output: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """Rebuild the last states that the layer gives beside its output, in their order and shape."""
    last = [steps[-1] for steps in states.values()]
    given = output[1] if isinstance(output[1], tuple) else (output[1],)
    rebuilt = [torch.stack([h for h, _ in last]).reshape(given[0].shape)]
    if layer.mode == "LSTM":
        rebuilt.append(torch.stack([c for _, c in last if c is not None]).reshape(given[1].shape))
    return rebuilt
