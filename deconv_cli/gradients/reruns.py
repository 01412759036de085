"""The loss computed again: same seed, other seed, changed parameters, first optimizer steps."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch

from deconv_cli.gradients.nested_tensors import norm_of
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace
from deconv_cli.gradients.tracing.forward_trace import Detachment, ForwardTrace

_CHANGES = (1e-3, 0.1, 1.0, 10.0)
"""Changes of a parameter in units of its size."""


def repeat(subject: Subject, forward: ForwardTrace) -> tuple[float, float]:
    """Compute the loss twice with one seed."""
    first, second = float(forward.loss.detach()), subject.value()
    if is_same(first, second):
        return first, second
    # A watched pass may use other kernels of torch and round differently.
    return second, subject.value()


def is_same(first: float, second: float) -> bool:
    """Return whether two losses are one number, or both NaN."""
    return first == second or (math.isnan(first) and math.isnan(second))


def find_moved_from_outside(subject: Subject, forward: ForwardTrace, backward: BackwardTrace) -> frozenset[str]:
    """Find the parameters without a gradient whose plain values, outside of torch, change the loss.

    A thresholded loss may be constant in one parameter and change with another that leaves torch on the same line.
    """
    returned = getattr(subject.model, "returned", None)
    moved: dict[tuple[str, ...], bool] = {}
    found = set()
    for name in subject.trainable:
        bit = forward.bit(name)
        uses = uses_outside(forward, bit)
        if backward.gradients.get(name) is not None or not uses or (forward.flow.sources | forward.reached) & bit:
            continue
        lines = tuple(sorted({str(use.location) for use in uses}))
        if lines not in moved and returned is not None:  # a recorded pass does not compute with plain values again
            moved[lines] = not returned.isdisjoint(lines)
        elif lines not in moved:
            names = [other for other in subject.trainable if any(forward.bit(other) & use.lost for use in uses)]
            moved[lines] = any(loss_changes_with(subject, other) for other in names)
        if moved[lines]:
            found.add(name)
    return frozenset(found)


def uses_outside(forward: ForwardTrace, bit: int) -> list[Detachment]:
    """List the operations at which a parameter's value became a number, a list or an array."""
    return [use for use in forward.outside_uses if use.lost & bit]


def loss_changes_with(subject: Subject, name: str) -> bool:
    """Return whether the loss changes with a parameter, changed by little or by much, or can no longer be computed."""
    parameter = subject.parameters[name]
    kept = parameter.data.clone()
    generator = torch.Generator().manual_seed(1)
    before = subject.value()
    try:
        for size in _CHANGES:
            parameter.data.copy_(kept + size * _noise_like(kept, generator))
            if subject.value() != before:
                return True
    except Exception:  # noqa: BLE001  as where the parameter is a length, which another one does not fit
        return True
    finally:
        parameter.data.copy_(kept)
    return False


def _noise_like(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw normal noise of the size of a parameter."""
    return torch.randn(values.shape, generator=generator).to(values) * values.abs().mean().clamp_min(0.1)


def loses_writes(subject: Subject, name: str) -> bool:
    """Return whether forward sets a parameter to the same values whatever they were.

    A projection, such as a clamp, depends on the values, so it is no fault.
    """
    parameter = subject.parameters[name]
    own = parameter.data
    noise = _noise_like(own, torch.Generator().manual_seed(0)) * 1e-2
    once = _after_a_pass(subject, name, own)
    moved = _after_a_pass(subject, name, once / 2 + noise)
    parameter.data = own
    return torch.equal(once, moved)


def _after_a_pass(subject: Subject, name: str, start: torch.Tensor) -> torch.Tensor:
    """Return the values of a parameter after a pass."""
    parameter = subject.parameters[name]
    parameter.data = start.clone()
    with subject.keeping_writes_to(name), contextlib.suppress(Exception):  # a model may refuse other values
        subject.run()
    return parameter.data.clone()


_N_STEPS = 3
_STEP = 1e-3
"""Each weight moves by this much, as in the first steps of Adam with its usual learning rate."""


@dataclass(frozen=True)
class FirstSteps:
    """Norms of the gradients, and of the weights, after 1, 2, ... optimizer steps, by parameter.

    A head or a residual branch that starts at zero blocks the gradient of the layers behind it until the first step.
    """

    gradients: list[dict[str, float]]
    weights: list[dict[str, float]]

    def steps_until_given(self, name: str) -> int | None:
        """Count the steps until a gradient is no longer zero; None where it stays zero."""
        return next((n for n, norms in enumerate(self.gradients, start=1) if norms.get(name)), None)

    def steps_until_above(self, name: str, reference: str, share: float) -> int | None:
        """Count the steps until ‖gradient‖ / ‖weight‖ reaches a share of that of another weight."""
        for n, (gradients, weights) in enumerate(zip(self.gradients, self.weights, strict=True), start=1):
            known = all(which in gradients and weights[which] for which in (name, reference))
            if known and gradients[name] / weights[name] >= share * gradients[reference] / weights[reference]:
                return n
        return None


def take_first_steps(subject: Subject) -> FirstSteps:
    """Take a few optimizer steps, measure the gradients after each, and restore the weights; empty if a step fails."""
    kept = {name: parameter.data.clone() for name, parameter in subject.trainable.items()}
    steps = FirstSteps([], [])
    try:
        found = _gradients(subject)
        for _ in range(_N_STEPS):
            for name, gradient in found.items():
                subject.parameters[name].data.sub_(gradient.sgn(), alpha=_STEP)
            found = _gradients(subject)
            steps.gradients.append({name: norm_of(gradient) for name, gradient in found.items()})
            steps.weights.append({name: norm_of(subject.parameters[name]) for name in found})
    except Exception:  # noqa: BLE001  a model may refuse other values
        return FirstSteps([], [])
    finally:
        for name, data in kept.items():
            subject.parameters[name].data.copy_(data)
    return steps


def _gradients(subject: Subject) -> dict[str, torch.Tensor]:
    loss = as_scalar(subject.run()[1])
    found = torch.autograd.grad(loss, list(subject.trainable.values()), allow_unused=True)
    given = zip(subject.trainable, found, strict=True)
    return {name: g.to_dense() if g.is_sparse else g for name, g in given if g is not None}
