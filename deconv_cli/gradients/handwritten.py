"""Hand-written backwards, each checked by itself: against autograd of the same forward and finite differences."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.utils import _pytree as pytree

from deconv_cli.gradients.backward_mistakes import Mistake, Trial, find_mistake
from deconv_cli.gradients.finite_differences.directional import Comparison, Outcome, compare_along
from deconv_cli.gradients.finite_differences.scalar_function import Direction, ScalarFunction, TensorGradient
from deconv_cli.gradients.finite_differences.search import ELEMENT_TOLERANCE, compare_tensors, unravel
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tensors_in import tensors_in
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_backward
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, FunctionCall
from deconv_cli.gradients.tracing.interception import trace_forward

_CALLS_PER_FUNCTION = 3

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class GradientError:
    """How the gradient of one input is wrong, compared with `reference` at the worst element and counted over all.

    Attributes:
        rows: first and last wrong row of the first axis, whose length is `n_rows`.
        is_step: the forward is a step, whose true derivative is zero: a surrogate gradient.
    """

    comparison: Comparison
    rows: tuple[int, int]
    n_rows: int
    is_step: bool
    reference: str


@dataclass(frozen=True, eq=False)
class WrongInput:
    """An input of a Function for which its backward gives a wrong gradient, or None (`is_missing`).

    The location is where backward is written, or where the Function was called; `parameters` are behind this input;
    `mistake` is what is done wrong, where that can be told, over `n_samples` where it is about sums.
    """

    function: str
    name: str
    location: CodeLocation
    error: GradientError
    is_missing: bool
    parameters: frozenset[str]
    mistake: Mistake | None = None
    n_samples: int = 0


def check_functions(subject: Subject, budget: float) -> tuple[tuple[WrongInput, ...], list[str]]:
    """Check every hand-written Function on the inputs it is called with, in float64 if possible, in `budget` seconds.

    The batch is whole, since a fault may lie in how samples are summed.

    Returns:
        The inputs with a wrong gradient, and sentences on what could not be checked.
    """
    deadline = time.monotonic() + budget
    try:
        with subject.in_double():
            return _check_calls(trace_forward(subject), deadline)
    except RuntimeError:
        return _check_calls(trace_forward(subject), deadline)


def _check_calls(forward: ForwardTrace, deadline: float) -> tuple[tuple[WrongInput, ...], list[str]]:
    wrong: dict[tuple[CodeLocation, str], WrongInput] = {}
    unchecked: list[str] = []
    counts: Counter[type] = Counter()
    for call in forward.log.calls:
        counts[call.function] += 1
        if counts[call.function] > _CALLS_PER_FUNCTION:
            continue
        try:
            for item in _check_call(call, forward, deadline):
                wrong.setdefault((item.location, item.name), item)
        except Exception as error:  # noqa: BLE001  whatever a hand-written Function raises is noted, not passed on
            reason = f"could not be run by itself ({type(error).__name__})"
            unchecked.append(f"{call.function.__name__} at {call.location} {reason}")
    return tuple(wrong.values()), unchecked


def _check_call(call: FunctionCall, forward: ForwardTrace, deadline: float) -> list[WrongInput]:
    leaves, spec = pytree.tree_flatten(call.arguments)
    positions = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    # An input that needs no gradient may be given none, and often is.
    moved = [n for n, needed in zip(positions, call.needs, strict=True) if needed and leaves[n].is_floating_point()]
    own = {n: leaves[n].clone().contiguous().requires_grad_() for n in moved}

    def arguments() -> Any:  # noqa: ANN401  the Function's own arguments
        return pytree.tree_unflatten([own.get(n, leaf) for n, leaf in enumerate(leaves)], spec)

    outputs = _real(call.function.apply(*arguments()))
    weights = _random_weights(outputs)
    tensors = [own[n] for n in moved]
    pristine = [(own.get(n, leaves[n]), leaves[n].detach().clone()) for n in positions]
    given = _gradients(outputs, tensors, weights)
    with torch.no_grad():  # a backward that writes to what it reads spoils nothing but its own gradient
        for tensor, values in pristine:
            tensor.copy_(values)
    expected = _by_autograd(call.function, arguments, tensors, weights)

    def value() -> float:
        with torch.no_grad():
            found = _real(call.function.apply(*arguments()))
            return sum(float((o.double() * w).sum()) for o, w in zip(found, weights, strict=True))

    trial = Trial(functools.partial(_differentiate, call, leaves, spec, moved), tensors, weights, given, expected)
    function = ScalarFunction(value, deadline=deadline)
    names, location = _input_names(call.function, len(leaves)), location_of_backward(call.function)
    result = []
    for position, n in enumerate(moved):
        error = _compare_input(function, tensors[position], given[position], expected[position] if expected else None)
        if error is not None:
            where, behind = location if location.file else call.location, _behind(call, positions.index(n), forward)
            mistake, n_samples = find_mistake(trial, position) or (None, 0)
            is_missing = given[position] is None
            name = call.function.__name__
            result.append(WrongInput(name, names[n], where, error, is_missing, behind, mistake, n_samples))
    return result


def _differentiate(
    call: FunctionCall,
    leaves: list[Any],
    spec: pytree.TreeSpec,
    moved: list[int],
    weights: Sequence[torch.Tensor],
) -> tuple[Sequence[torch.Tensor | None], bool]:
    """Call a Function anew and differentiate it, for incoming gradients; says too whether it wrote to its inputs."""
    own = {n: leaf.detach().clone() for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
    kept = {n: tensor.clone() for n, tensor in own.items()}
    for n in moved:
        own[n].requires_grad_()
    arguments = pytree.tree_unflatten([own.get(n, leaf) for n, leaf in enumerate(leaves)], spec)
    gradients = _gradients(_real(call.function.apply(*arguments)), [own[n] for n in moved], list(weights))
    return gradients, any(not torch.equal(own[n].detach(), tensor) for n, tensor in kept.items())


def _behind(call: FunctionCall, index: int, forward: ForwardTrace) -> frozenset[str]:
    """Name the parameters that the gradient of one tensor input of a call goes on to."""
    children = [child for child, _ in call.node.next_functions] if call.node is not None else []
    child = children[index] if index < len(children) else None
    reached = forward.graph.parameters_below(child) if child is not None else 0
    return frozenset(name for name in forward.names if forward.bit(name) & reached)


def _real(outputs: Any) -> Tensors:  # noqa: ANN401  whatever a Function gives
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]


def _random_weights(outputs: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs]


def _gradients(outputs: Tensors, tensors: Tensors, weights: Tensors) -> tuple[torch.Tensor | None, ...]:
    """Differentiate the weighted sum of those outputs that have a graph."""
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
        [output for output, _ in pairs], tensors, [weight for _, weight in pairs], allow_unused=True
    )
    return found


class _Context(FunctionCtx):
    """The context of a forward that autograd itself differentiates."""

    def __init__(self) -> None:
        self.needs_input_grad = (True,) * 64

    def _nothing(self, *_given: object) -> None:
        """Nothing needs saving, marking or setting."""

    save_for_backward = mark_non_differentiable = mark_dirty = _nothing
    set_materialize_grads = _nothing  # type: ignore[assignment]


def _by_autograd(
    function: type[torch.autograd.Function], arguments: Callable[[], Any], tensors: Tensors, weights: Tensors
) -> tuple[torch.Tensor | None, ...] | None:
    """Differentiate the pieces of forward; None where autograd cannot follow it."""
    has_setup = function.setup_context is not torch.autograd.Function.setup_context
    with contextlib.suppress(Exception), torch.enable_grad():
        outputs = _real(function.forward(*arguments()) if has_setup else function.forward(_Context(), *arguments()))
        if any(output.requires_grad for output in outputs):
            return _gradients(outputs, tensors, weights)
    return None


def _compare_input(
    function: ScalarFunction, tensor: torch.Tensor, given: torch.Tensor | None, expected: torch.Tensor | None
) -> GradientError | None:
    """Check the gradient of one input. Where two ways of computing it differ, finite differences decide."""
    hand = torch.zeros_like(tensor) if given is None else given.detach().to(tensor.dtype)
    if hand.shape != tensor.shape:
        raise ValueError("backward gives a gradient of another shape")
    moved = TensorGradient("input", tensor, hand)
    if expected is not None:
        gap = hand - expected
        size = torch.maximum(hand.abs(), expected.abs())
        off = gap.abs() > 1e-8 * size + 1e-9 * float(expected.abs().max()) + 1e-300
        if not bool(off.any()):
            return None
        direction = (gap / gap.abs().max()).reshape(-1) * moved.scale
        by_autograd = TensorGradient("input", tensor, expected)
        outcome = compare_along(function, [Direction(moved, 0, direction)]).outcome
        if outcome in (Outcome.AGREES, Outcome.KINK):
            return None
        if compare_along(function, [Direction(by_autograd, 0, direction)]).outcome is Outcome.AGREES:
            return _error_by_autograd(hand, expected, off)
    found = compare_tensors(function, [moved])["input"]
    if found is None or found.outcome is not Outcome.DIFFERS:
        return None
    return _error_by_differences(found, tensor)


def _error_by_differences(found: Comparison, tensor: torch.Tensor) -> GradientError:
    """Describe an error that finite differences found at one element and looked for at a few others."""
    is_everywhere = found.n_wrong > 1
    n_wrong = round(tensor.numel() * found.n_wrong / max(found.n_tried, 1)) if is_everywhere else 1
    row = found.element[0] if found.element else 0
    return GradientError(
        replace(found, n_wrong=n_wrong, n_tried=tensor.numel()),
        rows=(0, tensor.shape[0] - 1) if is_everywhere and tensor.ndim else (row, row),
        n_rows=tensor.shape[0] if tensor.ndim else 1,
        is_step=abs(found.numeric) <= 10 * found.error_bar and abs(found.autograd) > 1e-3,
        reference="finite differences",
    )


def _error_by_autograd(hand: torch.Tensor, expected: torch.Tensor, off: torch.Tensor) -> GradientError:
    """Describe an error that autograd of the same forward shows at every element."""
    gap = (hand - expected).abs()
    relative = gap / torch.maximum(hand.abs(), expected.abs()).clamp_min(1e-300)
    clear = off & (relative > ELEMENT_TOLERANCE)
    chosen = clear if bool(clear.any()) else off
    element = unravel(int(torch.where(chosen, gap, -1.0).argmax()), hand.shape)
    ratios = (hand / expected)[chosen & (expected != 0)]
    rows = chosen.reshape(chosen.shape[0], -1).any(dim=1).nonzero().flatten() if chosen.ndim else torch.zeros(1)
    comparison = Comparison(
        Outcome.DIFFERS,
        autograd=float(hand[element]),
        numeric=float(expected[element]),
        error_bar=0.0,
        resolution=ELEMENT_TOLERANCE,
        element=element,
        n_wrong=int(chosen.sum()),
        n_tried=hand.numel(),
        ratio=float(ratios.median()) if ratios.numel() else None,
        ratio_range=(float(ratios.min()), float(ratios.max())) if ratios.numel() else None,
    )
    return GradientError(
        comparison,
        rows=(int(rows[0]), int(rows[-1])),
        n_rows=hand.shape[0] if hand.ndim else 1,
        is_step=not bool(expected.any()),
        reference="autograd of the same forward",
    )


def _input_names(function: type[torch.autograd.Function], n_inputs: int) -> list[str]:
    names: list[str] = []
    with contextlib.suppress(ValueError, TypeError):
        names = list(inspect.signature(function.forward).parameters)
    if function.setup_context is torch.autograd.Function.setup_context:
        names = names[1:]
    return [names[n] if n < len(names) else f"input {n + 1}" for n in range(n_inputs)]
