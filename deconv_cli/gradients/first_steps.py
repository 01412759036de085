"""The gradients after the first optimizer steps: what is zero or tiny at the start need not stay so.

A head, a residual branch or a factor of a low-rank update that starts at zero keeps the gradient from what lies behind
it until the first step has moved it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tensors_in import norm_of
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude

_N_STEPS = 3
_STEP = 1e-3
"""Each weight moves by this much, as in the first steps of Adam with its usual learning rate."""

_UNEVEN = 1e-6


@dataclass(frozen=True)
class FirstSteps:
    """Gradients after 1, 2, ... steps: norms of the gradients, and of the weights, by parameter."""

    gradients: tuple[Mapping[str, float], ...]
    weights: tuple[Mapping[str, float], ...]

    def steps_until_given(self, name: str) -> int | None:
        """Count the steps after which a gradient is no longer zero; None where it stays so."""
        given = (n for n, norms in enumerate(self.gradients, start=1) if norms.get(name))
        return next(given, None)

    def steps_until_above(self, name: str, reference: str, share: float) -> int | None:
        """Count the steps after which ‖gradient‖ / ‖weight‖ is no longer below a share of that of another weight."""
        for n, (gradients, weights) in enumerate(zip(self.gradients, self.weights, strict=True), start=1):
            ratio, other = (_ratio(gradients, weights, which) for which in (name, reference))
            if ratio is not None and other is not None and ratio >= share * other:
                return n
        return None


def _ratio(gradients: Mapping[str, float], weights: Mapping[str, float], name: str) -> float | None:
    return gradients[name] / weights[name] if name in gradients and weights[name] else None


def is_uneven(subject: Subject, backward: BackwardTrace | None) -> bool:
    """Return whether some gradient is zero, or tiny beside another, so that steps are worth taking."""
    given = {name: g for name, g in (backward.gradients if backward else {}).items() if g is not None}
    if not any(Magnitude.of([gradient]).largest for gradient in given.values()):
        return False
    if any(Magnitude.of([gradient]).is_zero for gradient in given.values()):
        return True
    norms = [(norm_of(gradient), norm_of(subject.parameters[name])) for name, gradient in given.items()]
    ratios = [gradient / weight for gradient, weight in norms if weight]
    return bool(ratios) and min(ratios) < _UNEVEN * max(ratios)


def take_first_steps(subject: Subject) -> FirstSteps | None:
    """Take a few steps, measure the gradients after each, and put the weights back; None where a step fails."""
    kept = {name: parameter.data.clone() for name, parameter in subject.trainable.items()}
    gradients, weights = [], []
    try:
        found = _gradients(subject)
        for _ in range(_N_STEPS):
            for name, gradient in found.items():
                subject.parameters[name].data.sub_(gradient.sgn(), alpha=_STEP)
            found = _gradients(subject)
            gradients.append({name: norm_of(gradient) for name, gradient in found.items()})
            weights.append({name: norm_of(subject.parameters[name]) for name in found})
    except RuntimeError:
        return None
    finally:
        for name, data in kept.items():
            subject.parameters[name].data.copy_(data)
    return FirstSteps(tuple(gradients), tuple(weights))


def _gradients(subject: Subject) -> dict[str, torch.Tensor]:
    loss = as_scalar(subject.run()[1])
    found = torch.autograd.grad(loss, list(subject.trainable.values()), allow_unused=True)
    given = zip(subject.trainable, found, strict=True)
    return {name: g.to_dense() if g.is_sparse else g for name, g in given if g is not None}
