"""Hand-written backwards, each judged by itself: against autograd of the same forward and finite differences."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.utils import _pytree as pytree

from deconv_cli.gradients.differences import (
    ELEMENT_TOLERANCE,
    Move,
    Outcome,
    Probe,
    Slot,
    compare_along,
    compare_slots,
    unravel,
)
from deconv_cli.gradients.tracing import FunctionCall
from deconv_cli.gradients.verdicts import Place

_CALLS_PER_FUNCTION = 3


@dataclass(frozen=True, eq=False)
class WrongInput:
    """An input of a Function for which its backward gives a wrong gradient.

    Attributes:
        call: the call that shows it.
        index: which tensor among the tensor inputs of the call.
        name: what forward calls the input.
        definition: where backward is written.
        element: index of the worst element.
        backward: what backward gives there.
        expected: what it should give.
        n_wrong: elements that are wrong.
        n_elements: elements in all.
        ratio: median of given / expected over the wrong elements, None where expected is zero.
        ratio_range: the smallest and the largest of these ratios.
        rows: first and last wrong row of the first axis.
        n_rows: length of the first axis.
        missing: backward gives nothing at all (None) for an input that has a gradient.
        is_step: the forward is a step, whose true derivative is zero: a surrogate gradient.
        oracle: what it was compared with.
    """

    call: FunctionCall
    index: int
    name: str
    definition: Place
    element: tuple[int, ...]
    backward: float
    expected: float
    n_wrong: int
    n_elements: int
    ratio: float | None
    ratio_range: tuple[float, float] | None
    rows: tuple[int, int]
    n_rows: int
    missing: bool
    is_step: bool
    oracle: str


def check_functions(calls: list[FunctionCall], *, deadline: float) -> tuple[list[WrongInput], list[str]]:
    """Check every hand-written Function that was called, on the inputs it was called with.

    Args:
        calls: recorded in float64.
        deadline: in seconds of the monotonic clock.

    Returns:
        The inputs with a wrong gradient, and the sentences on what could not be checked.
    """
    wrong: list[WrongInput] = []
    unchecked: list[str] = []
    counts: dict[type, int] = {}
    for call in calls:
        counts[call.function] = counts.get(call.function, 0) + 1
        if counts[call.function] > _CALLS_PER_FUNCTION:
            continue
        try:
            wrong += _check_call(call, deadline)
        except Exception as error:  # noqa: BLE001  whatever a hand-written Function raises is told, not passed on
            unchecked.append(
                f"{call.function.__name__} at {call.place} could not be run by itself ({type(error).__name__})"
            )
    return wrong, unchecked


def _check_call(call: FunctionCall, deadline: float) -> list[WrongInput]:
    leaves, spec = pytree.tree_flatten(call.arguments)
    places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    # An input that needs no gradient may be given none, and often is.
    moved = [n for n, needed in zip(places, call.needs, strict=True) if needed and leaves[n].is_floating_point()]
    own = {n: leaves[n].clone().contiguous().requires_grad_() for n in moved}

    def arguments() -> Any:  # noqa: ANN401
        return pytree.tree_unflatten([own.get(n, leaf) for n, leaf in enumerate(leaves)], spec)

    outputs = _real(call.function.apply(*arguments()))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    tensors = [own[n] for n in moved]
    with_graph = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    given = torch.autograd.grad([o for o, _ in with_graph], tensors, [w for _, w in with_graph], allow_unused=True)

    def value() -> float:
        with torch.no_grad():
            found = _real(call.function.apply(*arguments()))
            return sum(float((o.double() * w).sum()) for o, w in zip(found, weights, strict=True))

    expected = _by_autograd(call.function, arguments, tensors, weights)
    probe = Probe(value, deadline=deadline)
    names = _input_names(call.function, len(leaves))
    definition = definition_of(call.function)
    result = []
    for position, n in enumerate(moved):
        found = _compare_input(
            probe, tensors[position], given[position], None if expected is None else expected[position]
        )
        if found is not None:
            result.append(WrongInput(call=call, index=places.index(n), name=names[n], definition=definition, **found))
    return result


def _real(outputs: Any) -> list[torch.Tensor]:  # noqa: ANN401
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


class _Context(FunctionCtx):
    """Stands for the context of a forward that autograd itself differentiates."""

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Nothing needs saving."""

    def mark_non_differentiable(self, *args: torch.Tensor) -> None:
        """Nothing needs marking."""

    def mark_dirty(self, *args: torch.Tensor) -> None:
        """Nothing needs marking."""

    def set_materialize_grads(self, value: bool) -> None:
        """Nothing needs setting."""

    def __init__(self) -> None:
        self.needs_input_grad = (True,) * 64


def _by_autograd(
    function: type[torch.autograd.Function],
    arguments: Callable[[], Any],
    tensors: list[torch.Tensor],
    weights: list[torch.Tensor],
) -> list[torch.Tensor | None] | None:
    """Differentiate the pieces of forward; None where autograd cannot follow it."""
    has_setup = function.setup_context is not torch.autograd.Function.setup_context
    with contextlib.suppress(Exception), torch.enable_grad():
        outputs = _real(function.forward(*arguments()) if has_setup else function.forward(_Context(), *arguments()))
        pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
        if not pairs:
            return None
        found = torch.autograd.grad([o for o, _ in pairs], tensors, [w for _, w in pairs], allow_unused=True)
        return list(found)
    return None


def _compare_input(
    probe: Probe, tensor: torch.Tensor, given: torch.Tensor | None, expected: torch.Tensor | None
) -> dict[str, Any] | None:
    """Judge the gradient of one input. Where two ways of computing it differ, finite differences decide."""
    hand = torch.zeros_like(tensor) if given is None else given.detach().to(tensor.dtype)
    if hand.shape != tensor.shape:
        raise ValueError("backward gives a gradient of another shape")
    slot = Slot("input", tensor, hand)
    if expected is not None:
        gap = hand - expected
        size = torch.maximum(hand.abs(), expected.abs())
        floor = 1e-9 * float(expected.abs().max()) + 1e-300
        off = gap.abs() > 1e-8 * size + floor
        if not bool(off.any()):
            return None
        direction = (gap / gap.abs().max()).reshape(-1) * slot.scale
        by_autograd = Slot("input", tensor, expected)
        hand_agrees = compare_along(probe, [Move(slot, 0, direction)]).outcome
        true_agrees = compare_along(probe, [Move(by_autograd, 0, direction)]).outcome
        if hand_agrees is Outcome.AGREES or hand_agrees is Outcome.KINK:
            return None
        if true_agrees is Outcome.AGREES:
            return _describe(hand, expected, off, missing=given is None, oracle="autograd of the same forward")
    outcome = compare_slots(probe, [slot])["input"]
    if outcome.outcome is not Outcome.DIFFERS or outcome.comparison is None or outcome.comparison.element is None:
        return None
    found = outcome.comparison
    element = found.element or ()
    n_wrong = round(tensor.numel() * found.n_wrong / max(found.n_tried, 1)) if found.n_wrong > 1 else 1
    row = element[0] if element else 0
    return {
        "element": element,
        "backward": found.autograd,
        "expected": found.numeric,
        "n_wrong": n_wrong,
        "n_elements": tensor.numel(),
        "ratio": found.ratio,
        "ratio_range": found.ratio_range,
        "rows": (0, tensor.shape[0] - 1) if found.n_wrong > 1 and tensor.ndim else (row, row),
        "n_rows": tensor.shape[0] if tensor.ndim else 1,
        "missing": given is None,
        "is_step": abs(found.numeric) <= 10 * found.error_bar and abs(found.autograd) > 1e-3,
        "oracle": "finite differences",
    }


def _describe(
    hand: torch.Tensor, expected: torch.Tensor, off: torch.Tensor, *, missing: bool, oracle: str
) -> dict[str, Any]:
    gap = (hand - expected).abs()
    relative = gap / torch.maximum(hand.abs(), expected.abs()).clamp_min(1e-300)
    clear = off & (relative > ELEMENT_TOLERANCE)
    chosen = clear if bool(clear.any()) else off
    element = unravel(int(torch.where(chosen, gap, -1.0).argmax()), hand.shape)
    ratios = (hand / expected)[chosen & (expected != 0)]
    rows = chosen.reshape(chosen.shape[0], -1).any(dim=1).nonzero().flatten() if chosen.ndim else torch.zeros(1)
    return {
        "element": element,
        "backward": float(hand[element]),
        "expected": float(expected[element]),
        "n_wrong": int(chosen.sum()),
        "n_elements": hand.numel(),
        "ratio": float(ratios.median()) if ratios.numel() else None,
        "ratio_range": (float(ratios.min()), float(ratios.max())) if ratios.numel() else None,
        "rows": (int(rows[0]), int(rows[-1])),
        "n_rows": hand.shape[0] if hand.ndim else 1,
        "missing": missing,
        "is_step": not bool(expected.any()),
        "oracle": oracle,
    }


def _input_names(function: type[torch.autograd.Function], n_inputs: int) -> list[str]:
    names: list[str] = []
    with contextlib.suppress(ValueError, TypeError):
        names = list(inspect.signature(function.forward).parameters)
    if function.setup_context is torch.autograd.Function.setup_context:
        names = names[1:]
    return [names[n] if n < len(names) else f"input {n + 1}" for n in range(n_inputs)]


def definition_of(function: type[torch.autograd.Function]) -> Place:
    """Find the line on which the backward of a hand-written Function begins."""
    with contextlib.suppress(OSError, TypeError):
        code = inspect.unwrap(function.backward).__code__
        lines, first = inspect.getsourcelines(code)
        # Decorators stand above the line that a person looks for.
        above = next((n for n, line in enumerate(lines) if line.lstrip().startswith("def ")), 0)
        return Place(code.co_filename, first + above, f"{function.__name__}.backward")
    return Place(function=f"{function.__name__}.backward")
