"""Regularized least squares for the taps of a kernel, with λ by the evidence and an error bar for every tap.

Taps are taken for Gaussian of precision λLᵀL/σ², the noise for white of standard deviation σ. λ and σ are those under
which the data are likeliest (MacKay, Bayesian interpolation, Neural Computation 4, 1992, section 4); the error bars are
the standard deviations of the taps given the data. In coordinates in which both quadratic forms are diagonal all of
it is sums over taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.kernels.fit.pair_equations import Misfit, PairEquations

SMALLEST, LARGEST, PER_DECADE = 1e-16, 1e4, 4
"""λ that are tried, in units of the largest generalized eigenvalue."""
N_REFINEMENTS = 4
FLOOR = 1e-15
"""Generalized eigenvalues below this part of the largest are rounding."""


@dataclass(frozen=True)
class Ridge:
    """The taps given the data.

    Attributes:
        taps: shape `(N, C_out)`.
        variance: of each tap but for the noise, shape `(N, N)`: the inverse of XᵀX + μLᵀL. Times σ² it is the
            covariance.
        weight: μ, the weight of ‖Lk‖².
        lam: the same in units of the largest generalized eigenvalue of XᵀX and LᵀL: dimensionless.
        sigma: standard deviation of the noise.
        n_effective: taps that the data determine, Σ γ/(γ + μ).
    """

    taps: Tensor
    variance: Tensor
    weight: float
    lam: float
    sigma: float
    n_effective: float


def solve_ridge(
    equations: PairEquations, penalty: Tensor, look: Callable[[Tensor], Misfit], lam: float | None = None
) -> Ridge:
    """Solve for the taps.

    Args:
        equations: of the data.
        penalty: LᵀL, positive definite, shape `(N, N)`.
        look: computes what taps leave over, from the data themselves, so that no digit is lost to squaring.
        lam: λ; `None` chooses it by the evidence.
    """
    root = torch.linalg.cholesky(penalty, upper=True)
    half = torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=True)
    gains, vectors = torch.linalg.eigh(half.T @ equations.gram @ half)
    vectors, largest = half @ vectors, gains[-1]
    gains = gains.clamp_min(FLOOR * largest)
    taps = _refined(vectors @ ((vectors.T @ equations.right) / gains[:, None]), gains, vectors, look)
    rest = look(taps).square
    coordinates = (vectors.T @ penalty @ taps).square().sum(1)
    n_data = equations.n_data * equations.right.shape[1]

    def explained(weight: Tensor) -> Tensor:
        """Give the least value of ‖Xk − y‖² + μ‖Lk‖²."""
        return rest + (coordinates * gains * weight / (gains + weight)).sum()

    def evidence(weight: Tensor) -> float:
        prior = 0.5 * equations.right.shape[1] * (weight / (gains + weight)).log().sum()
        return float(prior - 0.5 * n_data * explained(weight).clamp_min(1e-300).log())

    if lam is None:
        n = round(math.log10(LARGEST / SMALLEST) * PER_DECADE) + 1
        tried = [largest * SMALLEST * 10 ** (i / PER_DECADE) for i in range(n)]
        weight = max(tried, key=evidence)
    else:
        weight = largest * lam
    kept = (gains / (gains + weight))[:, None]
    sigma = float((explained(weight) / n_data).clamp_min(0).sqrt())
    return Ridge(
        taps=vectors @ (kept * (vectors.T @ penalty @ taps)),
        variance=(vectors / (gains + weight)) @ vectors.T,
        weight=float(weight),
        lam=float(weight / largest),
        sigma=sigma,
        n_effective=float(kept.sum()) * equations.right.shape[1],
    )


def _refined(taps: Tensor, gains: Tensor, vectors: Tensor, look: Callable[[Tensor], Misfit]) -> Tensor:
    """Solve again for what is left over, as long as that gets less."""
    best = look(taps)
    for _ in range(N_REFINEMENTS):
        tried = taps + vectors @ ((vectors.T @ best.gradient) / gains[:, None])
        found = look(tried)
        if not found.square < best.square:
            break
        taps, best = tried, found
    return taps


PATIENCE = 3
MAX_ROUNDS = 2000
TOLERANCE = 1e-12
"""Taps and slopes of this part of the largest count as zero."""


def solve_constrained(hessian: Tensor, right: Tensor, *, nonnegative: bool, total: float | None) -> Tensor:
    """Minimize ½kᵀHk − bᵀk over taps that are not negative, or that add up to one.

    Block pivoting, which falls back to one tap at a time and so ends (Portugal, Júdice and Vicente, A comparison of
    block pivoting and interior-point algorithms for linear least squares problems with nonnegative variables,
    Mathematics of Computation 63, 1994). A multiplier keeps the sum.

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
