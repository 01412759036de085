"""Least squares for taps that are not negative, or that add up to one, from the normal equations.

Block pivoting with a fallback to one tap at a time, which ends (Portugal, Júdice and Vicente, A comparison of block
pivoting and interior-point algorithms for linear least squares problems with nonnegative variables, Mathematics of
Computation 63, 1994); the sum is kept by a multiplier.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATIENCE = 3
MAX_ROUNDS = 2000
TOLERANCE = 1e-12
"""Taps and slopes of this part of the largest count as zero."""


def solve_constrained(hessian: Tensor, right: Tensor, *, nonnegative: bool, total: float | None) -> Tensor:
    """Minimize ½kᵀHk − bᵀk.

    Args:
        hessian: H, positive definite, shape `(N, N)`.
        right: b, shape `(N,)`.
        nonnegative: over k ≥ 0.
        total: what the taps add up to; `None` leaves that free.

    Returns:
        k, shape `(N,)`.
    """
    n = len(right)
    free = torch.ones(n, dtype=torch.bool)
    taps, slopes = _on_face(hessian, right, free, total)
    if not nonnegative:
        return taps
    fewest, patience = n + 1, PATIENCE
    for _ in range(MAX_ROUNDS):
        is_wrong = torch.where(free, taps < -TOLERANCE * taps.abs().max(), slopes < -TOLERANCE * right.abs().max())
        n_wrong = int(is_wrong.sum())
        if n_wrong == 0:
            break
        if n_wrong < fewest:
            fewest, patience = n_wrong, PATIENCE
        elif patience > 0:
            patience -= 1
        else:  # the last one alone, which cannot come back to where it was
            last = int(is_wrong.nonzero()[-1])
            is_wrong = torch.zeros_like(is_wrong)
            is_wrong[last] = True
        changed = free ^ is_wrong
        free = changed if bool(changed.any()) else free
        taps, slopes = _on_face(hessian, right, free, total)
    return taps.clamp_min(0)


def _on_face(hessian: Tensor, right: Tensor, free: Tensor, total: float | None) -> tuple[Tensor, Tensor]:
    """Minimize over the taps that are free, the others being zero; gives the taps and the slopes at all of them."""
    factor = torch.linalg.cholesky(hessian[free][:, free])
    taps = torch.zeros_like(right)
    taps[free] = torch.cholesky_solve(right[free, None], factor)[:, 0]
    multiplier = right.new_zeros(())
    if total is not None:
        of_ones = torch.cholesky_solve(torch.ones_like(right[free, None]), factor)[:, 0]
        multiplier = (taps.sum() - total) / of_ones.sum()
        taps[free] -= multiplier * of_ones
    return taps, hessian @ taps - right + multiplier


def variance_under_sum(variance: Tensor) -> Tensor:
    """Take out of a covariance what moves the sum of the taps, shape `(N, N)`."""
    of_ones = variance.sum(1)
    return variance - of_ones[:, None] * of_ones / of_ones.sum()
