"""Gradients that cancel: all that comes up to a parameter adds up to nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from deconv_cli.gradients.finite_differences.directional import N_ERROR_BARS, TOLERANCE, Comparison, Outcome
from deconv_cli.gradients.finite_differences.scalar_function import Direction, ScalarFunction, TensorGradient
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace

_CANCELED = 1e-10
"""A gradient so many times smaller than what comes up to its parameter has canceled."""


def _arriving(parameter: torch.Tensor, backward: BackwardTrace) -> float:
    """Measure the largest gradient that comes up to what reads a parameter."""
    nodes = (node for node, _ in backward.readers_of(parameter) if node in backward.arriving)
    return max((backward.arriving[node].largest or 0.0 for node in nodes), default=0.0)


def is_constant(
    parameter: nn.Parameter, gradient: torch.Tensor, backward: BackwardTrace, function: ScalarFunction
) -> bool:
    """Return whether a bias cannot matter: gradients come up to it and cancel, and the loss does not move with it."""
    readers, arriving = backward.readers_of(parameter), _arriving(parameter, backward)
    if parameter.ndim > 1 or not arriving or float(gradient.abs().max()) > _CANCELED * arriving:
        return False
    if any("Mul" in type(node).__name__ for node, _ in readers):
        return False
    moved = TensorGradient("", parameter, gradient)
    generator = torch.Generator().manual_seed(0)
    values = [function.at([Direction.random(moved, generator)], step) for step in (0.1, 1.0)]
    return all(abs(value - function.base) <= 1e-9 * abs(function.base) + 4 * function.noise for value in values)


def canceled_alike(
    tensors: list[TensorGradient], results: Mapping[str, Comparison | None], backward: BackwardTrace
) -> dict[str, Comparison]:
    """Find gradients that cancel, though not by construction, and finite differences that are as small.

    There is no relative error of nothing; beside what comes up to the parameter, both are nothing.
    """
    settled = {}
    for moved in tensors:
        found = results.get(moved.name)
        size = _arriving(moved.tensor, backward) * moved.scale * math.sqrt(moved.tensor.numel())
        if found is None or found.outcome is not Outcome.UNSURE or not size:
            continue
        resolution = (abs(found.autograd) + abs(found.numeric) + N_ERROR_BARS * found.error_bar) / size
        if resolution <= TOLERANCE:
            settled[moved.name] = replace(found, outcome=Outcome.AGREES, resolution=resolution)
    return settled
