"""Least squares over kernels: no tap is negative, and they sum to one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_N_STEPS = 80
_TOLERANCE = 1e-6


def nearest_kernel(values: Tensor) -> Tensor:
    """Project onto the kernels: shape `(n,)`, none negative, sum 1.

    Held and Wolfe and Crowder, Validation of subgradient optimization, Mathematical Programming 6, 1974.
    """
    descending = values.sort(descending=True).values
    excess = (descending.cumsum(0) - 1) / torch.arange(1, len(values) + 1).to(values)
    n_positive = int((descending > excess).sum())
    return (values - excess[n_positive - 1]).clamp_min(0)


def least_squares_kernel(gram: Tensor, moment: Tensor, start: Tensor) -> Tensor:
    """Minimize ½ tᵀGt − mᵀt over kernels t.

    Args:
        gram: G, symmetric and positive definite, shape `(n, n)`.
        moment: m, shape `(n,)`.
        start: a kernel, shape `(n,)`.
    """
    # No eigenvalue exceeds the largest sum of a row's sizes.
    step = 1 / float(gram.abs().sum(1).max())
    return minimize_over_kernels(lambda kernel: gram @ kernel - moment, step, start)


def minimize_over_kernels(slope: Callable[[Tensor], Tensor], step: float, start: Tensor) -> Tensor:
    """Minimize a convex function over kernels, by accelerated projected gradients that restart.

    Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, SIAM Journal on Imaging Sciences 2, 2009;
    O'Donoghue and Candès, Adaptive restart for accelerated gradient schemes, Foundations of Computational Mathematics
    15, 2015.

    Args:
        slope: its gradient, shape `(n,)`.
        step: one over the most by which the gradient can change in a distance of one.
        start: a kernel, shape `(n,)`.
    """
    kernel, ahead, momentum = start, start, 1.0
    for _ in range(_N_STEPS):
        found = nearest_kernel(ahead - step * slope(ahead))
        if float((ahead - found) @ (found - kernel)) > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = found + (momentum - 1) / following * (found - kernel)
        change = float((found - kernel).abs().max())
        kernel, momentum = found, following
        if change < _TOLERANCE:
            break
    return kernel
