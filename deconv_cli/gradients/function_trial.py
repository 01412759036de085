"""A hand-written Function by itself, called anew as often as needed: its outputs, and its gradients by two ways."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deconv_cli.gradients.tensors_in import real
from deconv_cli.gradients.tracing.forward_trace import FunctionCall
from deconv_cli.gradients.tracing.operations import STEPS, plain_name

Gradients = Sequence[torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class FunctionTrial:
    """A Function and what it was called with; every call works on copies.

    Attributes:
        leaves: the arguments, flattened by `spec`.
        tensors: the inputs that it is differentiated by, by their position among the leaves.
    """

    function: type[torch.autograd.Function]
    leaves: list[Any]
    spec: pytree.TreeSpec
    tensors: dict[int, torch.Tensor]

    @classmethod
    def of(cls, call: FunctionCall) -> FunctionTrial:
        """Take a call that was seen; an input that needs no gradient may be given none, and often is."""
        leaves, spec = pytree.tree_flatten(call.arguments)
        positions = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        needed = [n for n, is_needed in zip(positions, call.needs, strict=True) if is_needed]
        moved = [n for n in needed if leaves[n].is_floating_point()]
        return cls(call.function, leaves, spec, _moving(leaves, moved))

    def _with(self, changed: dict[int, torch.Tensor]) -> FunctionTrial:
        """Change some of the leaves."""
        leaves = [changed.get(k, leaf) for k, leaf in enumerate(self.leaves)]
        return FunctionTrial(self.function, leaves, self.spec, _moving(leaves, self.tensors))

    def arguments(self) -> Any:  # noqa: ANN401  the Function's own arguments
        """Copy the arguments; those that are differentiated by are no leaves, so that forward may write to them."""
        copies = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        for n, tensor in self.tensors.items():
            copies[n] = tensor.clone()
        return pytree.tree_unflatten(copies, self.spec)

    def outputs(self) -> list[torch.Tensor]:
        """Call the Function."""
        return real(self.function.apply(*self.arguments()))

    @cached_property
    def weights(self) -> list[torch.Tensor]:
        """Incoming gradients: random, the same each time."""
        with torch.no_grad():
            outputs = self.outputs()
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs]

    def value(self) -> float:
        """Weigh the outputs and add up."""
        with torch.no_grad():
            return sum(float((o.double() * w).sum()) for o, w in zip(self.outputs(), self.weights, strict=True))

    def gradients(self, weights: Sequence[torch.Tensor] | None = None) -> Gradients:
        """Differentiate by the hand-written backward, for incoming gradients."""
        own = [weight.clone() for weight in weights or self.weights]  # backward may write to what it is given
        return differentiate(self.outputs(), list(self.tensors.values()), own)

    @cached_property
    def given(self) -> Gradients:
        """What the hand-written backward gives for each of the tensors."""
        return self.gradients()

    @cached_property
    def expected(self) -> Gradients | None:
        """What autograd of the pieces of forward gives; None where it cannot follow them."""
        with contextlib.suppress(Exception), torch.enable_grad():
            outputs = self.pieces()
            if any(output.requires_grad for output in outputs):
                return differentiate(outputs, list(self.tensors.values()), self.weights)
        return None

    def pieces(self) -> list[torch.Tensor]:
        """Run forward without its Function, so that autograd sees the pieces."""
        has_setup = self.function.setup_context is not torch.autograd.Function.setup_context
        context = () if has_setup else (_Context(),)
        return real(self.function.forward(*context, *self.arguments()))

    def known_values(self) -> list[torch.Tensor]:
        """List what forward computes and takes, and the gradients by all of that, as autograd gives them."""
        with contextlib.suppress(Exception), torch.enable_grad(), _Collecting() as mode:
            outputs = self.pieces()
            found = [*self.tensors.values(), *mode.tensors]
            gradients = differentiate(outputs, [tensor for tensor in found if tensor.requires_grad], self.weights)
            return [*(g for g in gradients if g is not None), *(tensor.detach() for tensor in found)]
        return []

    def proof_of_surrogate(self, index: int) -> str:
        """Say what proves that a gradient is a surrogate for that of a step; empty where nothing does."""
        given = self.given[index]
        for is_limited_before in (False, True):
            mode = StepsPassedThrough(is_limited_before=is_limited_before)
            with contextlib.suppress(Exception), torch.enable_grad(), mode:
                outputs = self.pieces()
                passed = differentiate(outputs, list(self.tensors.values()), self.weights)[index]
                if mode.steps and given is not None and passed is not None and torch.allclose(given, passed, rtol=1e-6):
                    return f"it is the derivative of forward with {' and '.join(mode.steps)} passed straight through"
        return "forward stays the same where this input moves a little, and changes in steps" * self._is_step(index)

    def _is_step(self, index: int) -> bool:
        """Return whether the outputs stay the same, to the bit, under small changes of an input and not under large."""
        position, tensor = list(self.tensors.items())[index]
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * tensor.detach().abs().mean()
        with torch.no_grad():
            before = self.outputs()
            moved = {size: self._with({position: tensor.detach() + size * noise}).outputs() for size in (1e-7, 1.0)}
        is_same = {size: all(map(torch.equal, before, outputs)) for size, outputs in moved.items()}
        return is_same[1e-7] and not is_same[1.0]

    def moved(self) -> FunctionTrial:
        """Change all numbers that it is differentiated by."""
        return self._with({n: 1.5 * self.leaves[n] + 0.1 for n in self.tensors})

    def returns(self, index: int) -> bool:
        """Return whether one of the tensors comes out of forward as it went in."""
        own = list(self.tensors.values())[index]
        with torch.no_grad():
            return any(output.shape == own.shape and torch.equal(output, own) for output in self.outputs())

    def narrowed(self, axis: int, n: int) -> FunctionTrial | None:
        """Keep the first slices along an axis of the inputs that share it; None where the Function takes no such."""
        for axes in self._sharing(axis):
            trial = self._with({k: self.leaves[k].narrow(own, 0, n) for k, own in axes.items()})
            with contextlib.suppress(Exception):
                pairs = zip(trial.given, trial.tensors.values(), strict=True)
                if trial.weights and all(given is None or given.shape == own.shape for given, own in pairs):
                    return trial
        return None

    def is_of_samples(self, axis: int) -> bool:
        """Return whether each slice of the outputs depends on its own slice of the inputs, and on no step before it."""
        for axes in self._sharing(axis):
            flipped = self._with({k: self.leaves[k].flip(own) for k, own in axes.items()})
            with contextlib.suppress(Exception), torch.no_grad():
                pairs = zip(self.outputs(), flipped.outputs(), strict=True)
                return all(one.ndim > axis and torch.allclose(one.flip(axis), two) for one, two in pairs)
        return False

    def joins(self, axis: int) -> bool:
        """Return whether the first slice of an output depends on later slices of the inputs, as no time step does."""
        for axes in self._sharing(axis):
            moved = {k: own for k, own in axes.items() if self.leaves[k].is_floating_point()}
            changed = self._with({k: _with_later_changed(self.leaves[k], own) for k, own in moved.items()})
            with contextlib.suppress(Exception), torch.no_grad():
                pairs = zip(self.outputs(), changed.outputs(), strict=True)
                return any(
                    one.ndim > axis and not torch.allclose(one.narrow(axis, 0, 1), two.narrow(axis, 0, 1))
                    for one, two in pairs
                )
        return False

    def _sharing(self, axis: int) -> Iterator[dict[int, int]]:
        """List which inputs may share an axis, each with its own number: one alone, those like it, all of that size."""
        sizes = {k: leaf.shape for k, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)}
        for k, shape in sizes.items():
            if len(shape) <= axis or shape[axis] < 2:
                continue
            yield {k: axis}
            like = {j: axis for j, other in sizes.items() if len(other) > axis and other[axis] == shape[axis]}
            yield like
            yield {j: 0 for j, other in sizes.items() if other and other[0] == shape[axis]} | like


class _Collecting(TorchFunctionMode):
    """Collects all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        result = func(*args, **(kwargs or {}))
        self.tensors += real(result)
        return result


class StepsPassedThrough(TorchFunctionMode):
    """Lets gradients pass rounding and signs as if these were not there, and notes them as `steps`.

    A limit of what was rounded is, with `is_limited_before`, that of what goes into the rounding.
    """

    def __init__(self, *, is_limited_before: bool) -> None:
        super().__init__()
        self.steps: dict[str, None] = {}
        self._is_limited_before = is_limited_before
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        result, name = func(*args, **(kwargs or {})), plain_name(func).strip("_")
        if name in STEPS and len(args) == 1:
            self.steps[name] = None
            passed = args[0] + (result - args[0]).detach()
            self._before[id(passed)] = args[0], passed
            return passed
        known = self._before.get(id(args[0])) if args and self._is_limited_before else None
        if known is not None and name in ("clamp", "clip", "clamp_min", "clamp_max", "hardtanh"):
            limited = func(known[0], *args[1:], **(kwargs or {}))
            return limited + (result - limited).detach()
        return result


class _Context(FunctionCtx):
    """The context of a forward that autograd itself differentiates."""

    def __init__(self) -> None:
        self.needs_input_grad = (True,) * 64

    def _nothing(self, *_given: object) -> None:
        """Nothing needs saving, marking or setting."""

    save_for_backward = mark_non_differentiable = mark_dirty = _nothing
    set_materialize_grads = _nothing  # type: ignore[assignment]


def _with_later_changed(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    first, later = tensor.split([1, tensor.shape[axis] - 1], axis)
    return torch.cat([first, 1.5 * later + 0.1], axis)


def _moving(leaves: list[Any], positions: Iterable[int]) -> dict[int, torch.Tensor]:
    return {n: leaves[n].detach().clone().contiguous().requires_grad_() for n in positions}


def differentiate(
    outputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], **options: bool
) -> Gradients:
    """Differentiate the weighted sum of those outputs that have a graph."""
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    found: Gradients = torch.autograd.grad(
        [output for output, _ in pairs], tensors, [weight for _, weight in pairs], allow_unused=True, **options
    )
    return found
