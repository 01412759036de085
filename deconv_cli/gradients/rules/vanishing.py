"""VANISHING, EXPLODING: ‖gradient‖ / ‖weight‖ is a million times smaller or larger than in the layer next to the loss.

There is no fixed limit, since a small loss has small gradients everywhere. If other weights at least as far from the
loss are sound, a weight lies on a branch of its own, such as the queries and keys of attention. Its gradient may be
smaller then, so the limit is the square.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch

from deconv_cli.gradients.evidence import Evidence, Layer
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.rules.zero_or_non_finite import find_zero
from deconv_cli.gradients.through_time import TimeSeries
from deconv_cli.gradients.tracing.code_location import CodeLocation

COLLAPSE = 1e-6
"""Ratio to the layer next to the loss that counts as vanished, and its inverse as exploded."""


def find_vanishing(evidence: Evidence, name: str) -> Finding | None:
    """Find a weight whose gradient has faded, and the layer at which it falls most."""
    ratio, reference = _ratios(evidence, name)
    sound_behind = any(layer.ratio >= COLLAPSE * reference for layer in _farther(evidence, name))
    if ratio >= (COLLAPSE**2 if sound_behind else COLLAPSE) * reference:
        return None
    factor, near, far = min(_steps(evidence))
    why = f"the gradient fades on its way back; the largest fall, by {1 / factor:.2g}, is from '{near}' to '{far}'."
    suggestion = "use ReLU-like units, residual connections or normalization between the layers"
    return _finding(Verdict.VANISHING, evidence, name, far, why, suggestion)


def find_exploding(evidence: Evidence, name: str) -> Finding | None:
    """Find a weight whose gradient has grown out of bounds, and the layer at which it rises most."""
    ratio, reference = _ratios(evidence, name)
    sound_behind = any(layer.ratio <= reference / COLLAPSE for layer in _farther(evidence, name))
    if ratio <= reference / (COLLAPSE**2 if sound_behind else COLLAPSE):
        return None
    factor, near, far = max(_steps(evidence))
    why = f"the gradient grows on its way back; the largest rise, by {factor:.2g}, is from '{near}' to '{far}'."
    suggestion = "start from smaller (orthogonal) weights, or clip with torch.nn.utils.clip_grad_norm_"
    return _finding(Verdict.EXPLODING, evidence, name, far, why, suggestion)


def _farther(evidence: Evidence, name: str) -> list[Layer]:
    """List the other layers that are at least as far from the loss as a weight."""
    distances = {layer.name: layer.distance for layer in evidence.layers}
    others = (layer for layer in evidence.layers if layer.name != name)
    return [layer for layer in others if name in distances and layer.distance >= distances[name]]


def _ratios(evidence: Evidence, name: str) -> tuple[float, float]:
    """Return ‖gradient‖ / ‖weight‖ of a weight and of the layer nearest to the loss; 1 and 1 for other parameters."""
    ratios = {layer.name: layer.ratio for layer in evidence.layers}
    return (ratios[name], evidence.layers[0].ratio) if name in ratios else (1.0, 1.0)


def _steps(evidence: Evidence) -> list[tuple[float, str, str]]:
    """List the factor of the ratio from each layer to the next one away from the loss, and both names."""
    return [(far.ratio / near.ratio, near.name, far.name) for near, far in pairwise(evidence.layers)]


def _finding(verdict: Verdict, evidence: Evidence, name: str, far: str, why: str, suggestion: str) -> Finding:
    forward, (ratio, reference) = evidence.double.forward, _ratios(evidence, name)
    location = forward.log.last_use.get(forward.bit(far)) or CodeLocation()
    detail = f"‖gradient‖ / ‖weight‖ is {ratio:.2g}, next to the loss it is {reference:.2g}"
    return Finding(verdict, (Cause(f"the way back to '{far}'", location, why, suggestion),), detail)


def find_exploding_through_time(evidence: Evidence) -> list[Finding]:
    """Find a recurrence whose early steps dominate the gradient."""
    series = evidence.double.series
    return [Finding(Verdict.EXPLODING, (_of_series(found),)) for found in series if found.trend == "explodes"]


def _of_series(found: TimeSeries) -> Cause:
    late = next((norm for norm in reversed(found.norms) if norm), 1.0)
    why = (
        f"‖∂loss/∂{found.name}‖ grows from {late:.2g} at the last of {len(found.norms)} steps to "
        f"{max(found.norms):.2g} at step {found.step}: a small step of training moves the loss out of bounds."
    )
    suggestion = "start recurrent weights orthogonal and small, use an LSTM or GRU, or shorten the steps; and clip"
    return Cause(f"the steps of {found.name}", found.location, why, suggestion)


_SAME = 1e-5
_UNIT_AXES = (0, 1)
"""Axis of the units for weights of shape (outputs, inputs), as in nn.Linear, and (inputs, outputs)."""


def find_symmetric(evidence: Evidence, name: str) -> Finding | None:
    """Find a weight with equal units, whose gradients are equal too."""
    gradient, weight = evidence.sharpest_gradient(name), evidence.parameters[name].detach()
    if gradient is None or weight.ndim < 2 or gradient.is_sparse or not (weight.any() and gradient.any()):
        return None
    if not any(_are_alike(weight, axis) and _are_alike(gradient, axis) for axis in _UNIT_AXES):
        return None
    why = "all units of this layer start with the same weights and get the same gradient: they stay one and the same."
    suggestion = "start from random weights, as with torch.nn.init.kaiming_uniform_"
    return Finding(Verdict.SYMMETRIC, (Cause("equal weights", evidence.module_of(name), why, suggestion),))


def _are_alike(values: torch.Tensor, axis: int) -> bool:
    first = values.narrow(axis, 0, 1)
    return values.shape[axis] > 1 and bool((values - first).abs().max() <= _SAME * values.abs().max())


_USUAL_START = "nothing: such a start is usual for the last layer of a branch, and does not hinder training"


def find_zero_at_start(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is zero at initialization only, as behind a layer that starts at zero."""
    found = find_zero(evidence, name)
    return found and _at_start(Verdict.ZERO_AT_START, found, evidence.first_steps.steps_until_given(name))


def find_vanishing_at_start(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is tiny at initialization only, as behind a layer scale."""
    found = find_vanishing(evidence, name)
    if found is None:
        return None
    n_steps = evidence.first_steps.steps_until_above(name, evidence.layers[0].name, COLLAPSE)
    return _at_start(Verdict.VANISHING_AT_START, found, n_steps)


def _at_start(verdict: Verdict, found: Finding, n_steps: int | None) -> Finding | None:
    if n_steps is None:
        return None
    after = "an optimizer step" if n_steps == 1 else f"{n_steps} optimizer steps"
    detail = f"at the start only: after {after} the gradient is there"
    return Finding(verdict, tuple(replace(cause, suggestion=_USUAL_START) for cause in found.causes), detail)
