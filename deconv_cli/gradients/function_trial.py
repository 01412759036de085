"""Run a hand-written Function on its own, and compare its gradients with autograd and finite differences."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.utils import _pytree as pytree

from deconv_cli.gradients.finite_difference_search import ELEMENT_TOLERANCE, compare_tensors, unravel
from deconv_cli.gradients.finite_differences import (
    Comparison,
    Direction,
    Outcome,
    ScalarFunction,
    TensorGradient,
    compare_along,
)
from deconv_cli.gradients.nested_tensors import real
from deconv_cli.gradients.torch_modes import EachCall, LiftedHalves
from deconv_cli.gradients.tracing.forward_trace import FunctionCall
from deconv_cli.gradients.tracing.operations import STEPS, plain_name

Gradients = Sequence[torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class FunctionTrial:
    """A Function and the arguments of a call; every run works on copies.

    Attributes:
        leaves: the arguments, flattened by `spec`.
        tensors: the inputs to differentiate by, which lie at these `positions` among the leaves, and at these `places`
            among the tensors of the call.
    """

    function: type[torch.autograd.Function]
    leaves: list[Any]
    spec: pytree.TreeSpec
    positions: list[int]
    places: list[int]
    tensors: list[torch.Tensor]

    @classmethod
    def of(cls, call: FunctionCall) -> FunctionTrial:
        """Build a trial from a call. Inputs that need no gradient are not compared."""
        leaves, spec = pytree.tree_flatten(call.arguments)
        given = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        places = [k for k, n in enumerate(given) if call.needs[k] and leaves[n].is_floating_point()]
        positions = [given[k] for k in places]
        tensors = [leaves[n].detach().clone().contiguous().requires_grad_() for n in positions]
        return cls(call.function, leaves, spec, positions, places, tensors)

    def arguments(self) -> Any:  # noqa: ANN401  the Function's own arguments
        """Copy the arguments; inputs to differentiate by are no leaves, so that forward may write to them."""
        copies = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        for n, tensor in zip(self.positions, self.tensors, strict=True):
            copies[n] = tensor.clone()
        return pytree.tree_unflatten(copies, self.spec)

    def outputs(self) -> list[torch.Tensor]:
        """Call the Function."""
        with LiftedHalves():
            return real(self.function.apply(*self.arguments()))

    @cached_property
    def weights(self) -> list[torch.Tensor]:
        """Random incoming gradients, the same for each run."""
        with torch.no_grad():
            outputs = self.outputs()
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs]

    def value(self) -> float:
        """Add up the outputs with the weights of the incoming gradients."""
        with torch.no_grad():
            return sum(float((o.double() * w).sum()) for o, w in zip(self.outputs(), self.weights, strict=True))

    def gradients(self, weights: Sequence[torch.Tensor] | None = None) -> Gradients:
        """Run the hand-written backward on incoming gradients."""
        own = [weight.clone() for weight in weights or self.weights]  # backward may write to what it is given
        return differentiate(self.outputs(), self.tensors, own)

    @cached_property
    def given(self) -> Gradients:
        """The gradients of the hand-written backward."""
        return self.gradients()

    @cached_property
    def expected(self) -> Gradients | None:
        """The gradients of autograd through the pieces of forward; None if autograd cannot follow them."""
        with contextlib.suppress(Exception), torch.enable_grad():
            outputs = self.pieces()
            if any(output.requires_grad for output in outputs):
                return differentiate(outputs, self.tensors, self.weights)
        return None

    def pieces(self) -> list[torch.Tensor]:
        """Run forward without its Function, so that autograd sees the pieces."""
        has_setup = self.function.setup_context is not torch.autograd.Function.setup_context
        context = () if has_setup else (_Context(),)
        with LiftedHalves():
            return real(self.function.forward(*context, *self.arguments()))

    def known_values(self) -> list[torch.Tensor]:
        """List all values of forward, the gradients by them from autograd, and the quotients of these gradients."""
        made = list[torch.Tensor]()

        def collect(func: Any, args: Any, keywords: dict[str, Any]) -> Any:  # noqa: ANN401  any function of torch
            result = func(*args, **keywords)
            made.extend(real(result))
            return result

        with contextlib.suppress(Exception), torch.enable_grad(), EachCall(collect):
            outputs = self.pieces()
            found = [*self.tensors, *made]
            gradients = differentiate(outputs, [tensor for tensor in found if tensor.requires_grad], self.weights)
            own = [gradient for gradient in gradients if gradient is not None]
            slopes = [one / other for one, other in itertools.permutations(own, 2) if one.shape == other.shape]
            return [*own, *slopes, *(tensor.detach() for tensor in found)]
        return []

    def proof_of_surrogate(self, index: int) -> str:
        """Write why a gradient may be meant as a surrogate for that of a step; empty if this input passes no step."""
        steps = set[str]()

        def pass_on(func: Any, args: Any, keywords: dict[str, Any]) -> Any:  # noqa: ANN401  any function of torch
            result, name = func(*args, **keywords), plain_name(func).strip("_")
            if name not in STEPS:
                return result
            steps.add(name)
            return args[0] + (result - args[0]).detach() if args else result  # the gradient passes straight through

        with contextlib.suppress(Exception), torch.enable_grad(), EachCall(pass_on):
            passed = differentiate(self.pieces(), self.tensors, self.weights)[index]
            own = self.expected[index] if self.expected else None
            is_cut = passed is not None and (own is None or not torch.allclose(passed, own))
            if steps and self.expected and is_cut:
                return f"forward uses {' and '.join(sorted(steps))}, with a derivative of zero"
        return "small changes of this input have no effect on forward" * self._is_step(index)

    def _is_step(self, index: int) -> bool:
        """Return whether small changes of an input leave the outputs the same to the bit, but large ones do not."""
        tensor = self.tensors[index].detach()
        kept, generator = tensor.clone(), torch.Generator().manual_seed(2)
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * tensor.abs().mean()
        with torch.no_grad():
            before, is_same = self.outputs(), []
            for size in (1e-7, 1.0, 10.0, -10.0):
                tensor.copy_(kept + size * noise)
                is_same.append(all(map(torch.equal, before, self.outputs())))
            tensor.copy_(kept)
        return is_same[0] and not all(is_same)

    def returns(self, index: int) -> bool:
        """Return whether forward returns one of the inputs unchanged."""
        own = self.tensors[index]
        with torch.no_grad():
            return any(output.shape == own.shape and torch.equal(output, own) for output in self.outputs())


class _Context(FunctionCtx):
    """A context for a forward that autograd itself differentiates."""

    def __init__(self) -> None:
        self.needs_input_grad = (True,) * 64

    def _nothing(self, *_given: object) -> None:
        """Nothing needs saving, marking or setting."""

    save_for_backward = mark_non_differentiable = mark_dirty = _nothing
    set_materialize_grads = _nothing  # type: ignore[assignment]


def differentiate(
    outputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], **options: bool
) -> Gradients:
    """Differentiate the weighted sum of the outputs that have a graph."""
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    with LiftedHalves():
        found: Gradients = torch.autograd.grad(
            [output for output, _ in pairs], tensors, [weight for _, weight in pairs], allow_unused=True, **options
        )
    return found


def compare_input(trial: FunctionTrial, index: int, deadline: float = math.inf) -> tuple[Comparison, str] | None:
    """Check the gradient of one of the tensors of a trial.

    If backward and autograd differ, finite differences decide.

    Returns:
        The comparison at the worst element, counted over all elements, and the name of the reference; None if the
        gradient is right.

    Raises:
        ValueError: backward gives a gradient of another shape.
    """
    function = ScalarFunction(trial.value, deadline=deadline)
    tensor, given = trial.tensors[index], trial.given[index]
    expected = trial.expected[index] if trial.expected is not None else None
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
            return _compare_elements(hand, expected, off), "autograd through the same forward"
    compared = compare_tensors(function, [moved])["input"]
    if compared is None or compared.outcome is not Outcome.DIFFERS:
        return None
    n_wrong = round(tensor.numel() * compared.n_wrong / max(compared.n_tried, 1)) if compared.n_wrong > 1 else 1
    return replace(compared, n_wrong=n_wrong, n_tried=tensor.numel()), "finite differences"


def _compare_elements(hand: torch.Tensor, expected: torch.Tensor, off: torch.Tensor) -> Comparison:
    """Compare a gradient with autograd of the same forward, which shows every element."""
    gap = (hand - expected).abs()
    relative = gap / torch.maximum(hand.abs(), expected.abs()).clamp_min(1e-300)
    clear = off & (relative > ELEMENT_TOLERANCE)
    chosen = clear if bool(clear.any()) else off
    element = unravel(int(torch.where(chosen, gap, -1.0).argmax()), hand.shape)
    ratios = (hand / expected)[chosen & (expected != 0)]
    return Comparison(
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
