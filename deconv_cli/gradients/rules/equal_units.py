"""SYMMETRIC: all units of a layer have the same weights and the same gradients, so that no step tells them apart."""

from __future__ import annotations

import torch

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict

_SAME = 1e-5
_UNIT_AXES = (0, 1)
"""Of weights of shape (outputs, inputs), as in nn.Linear, and (inputs, outputs)."""


def find_symmetric(evidence: Evidence, name: str) -> Finding | None:
    """Find a weight that was filled with one number, and whose gradient has one value for all units."""
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
