"""Conjugate gradients and GMRES for a small system given by its action, for a batch of right-hand sides at once.

Every right-hand side has its own coefficients, so that a batch gives the same as its members one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, safe_ratio

Action = Callable[[Tensor], Tensor]
"""A linear map of vectors `(B, n)`."""
Watch = Callable[[Tensor], bool]
"""Takes the norm of the residual, shape `(B,)`, after every iteration; returns whether to go on."""

# A cycle of GMRES that does not bring the residual below this part of what it was is the last.
MIN_GAIN = 0.9
# A residual that grows by this factor shows that rounding dominates the recurrence.
DIVERGED = 100.0
# Products that are added up at once.
MAX_NUMBERS_AT_ONCE = 2**20


def solve_definite(
    apply: Action,
    precondition: Action,
    right: Tensor,
    watch: Watch,
    measure: Action | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Solve a symmetric positive definite system by preconditioned conjugate gradients.

    Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952; preconditioned as in Saad,
    Iterative Methods for Sparse Linear Systems, 2003, algorithm 9.1.

    The right-hand sides `(B, n)` are overwritten to save memory. `watch` decides when to stop, from `measure` of the
    residual, by default its norm. The solution is added to `start`, by default zero, in place.
    """
    x = torch.zeros_like(right) if start is None else start
    residual = right
    z = precondition(residual)
    gamma = dot(residual, z)
    direction = z.clone() if z is residual else z
    del z
    goes_on, least = gamma > 0, torch.full_like(gamma, math.inf)
    while synchronize.holds_anywhere(goes_on):
        image = apply(direction)
        # Beyond what rounding allows the recurrence diverges: what is lost stays as it is.
        alpha = torch.where(goes_on, safe_ratio(gamma, dot(direction, image)), 0).to(right.dtype)[:, None]
        x.addcmul_(alpha, direction)
        residual.addcmul_(alpha, image, value=-1)
        del image
        remaining = measure(residual) if measure is not None else dot(residual, residual).sqrt()
        if not watch(remaining):
            break
        least = torch.minimum(least, remaining)
        goes_on = goes_on & (remaining <= DIVERGED * least)
        z = precondition(residual)
        previous, gamma = gamma, dot(residual, z)
        direction = direction.mul_(safe_ratio(gamma, previous).to(right.dtype)[:, None]).add_(z)
        del z
    return x


def solve_indefinite(apply: Action, precondition: Action, right: Tensor, watch: Watch, n_vectors: int) -> Tensor:
    """Solve any system by GMRES, preconditioned from the right and started again after `n_vectors` iterations.

    Saad and Schultz, GMRES, SIAM Journal on Scientific and Statistical Computing 7, 1986. The basis is orthogonalized
    twice by the classical process, which keeps it orthogonal to rounding. Arguments as for `solve_definite`.
    """
    x = torch.zeros_like(right)
    residual, going = right, True
    while going:
        correction, going, has_gained = _cycle(apply, precondition, residual, watch, n_vectors)
        x = x + correction
        if going and has_gained:
            residual = right - apply(x)
        else:
            break
    return x


def _cycle(
    apply: Action, precondition: Action, residual: Tensor, watch: Watch, n_vectors: int
) -> tuple[Tensor, bool, bool]:
    """Run one cycle; returns the correction, whether to go on, and whether it has brought the residual down."""
    wide = accumulation_dtype(residual)
    n_batch, n_unknowns = residual.shape
    beta = residual.norm(dim=-1)
    # Allocated at once, but touched as it fills up.
    basis = residual.new_empty(n_batch, n_vectors + 1, n_unknowns)
    basis[:, 0] = residual / _nonzero(beta)[:, None]
    # The Hessenberg matrix is made triangular by rotations, whose product is stored.
    rotation = torch.eye(n_vectors + 1, dtype=wide, device=residual.device).repeat(n_batch, 1, 1)
    triangle = rotation.new_zeros(n_batch, n_vectors, n_vectors)
    reduced = rotation.new_zeros(n_batch, n_vectors + 1)
    reduced[:, 0] = beta
    n = 0
    going = synchronize.holds_anywhere(beta > 0)
    while going and n < n_vectors:
        stored = basis[:, : n + 1]
        vector = apply(precondition(stored[:, n]))
        height = (stored @ vector[..., None])[..., 0]
        vector = vector - (height[:, None] @ stored)[:, 0]
        again = (stored @ vector[..., None])[..., 0]
        vector = vector - (again[:, None] @ stored)[:, 0]
        below = vector.norm(dim=-1)
        basis[:, n + 1] = vector / _nonzero(below)[:, None]
        column = (rotation[:, : n + 1, : n + 1] @ (height + again).to(wide)[..., None])[..., 0]
        length = torch.hypot(column[:, n], below.to(wide))
        cosine, sine = column[:, n] / _nonzero(length), below.to(wide) / _nonzero(length)
        turn = torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)], -2)
        rotation[:, n : n + 2] = turn @ rotation[:, n : n + 2]
        reduced[:, n : n + 2] = (turn @ reduced[:, n : n + 2, None])[..., 0]
        triangle[:, :n, n], triangle[:, n, n] = column[:, :n], length
        n += 1
        going = watch(reduced[:, n].abs())
    if n == 0:
        return torch.zeros_like(residual), False, False
    triangle = triangle[:, :n, :n]
    # A right-hand side that was done before the others has zeros on the diagonal, and no part in what follows.
    idle = triangle.diagonal(dim1=-2, dim2=-1) == 0
    triangle.diagonal(dim1=-2, dim2=-1).add_(idle.to(wide))
    weights = torch.linalg.solve_triangular(triangle, reduced[:, :n, None], upper=True)
    weights = torch.where(idle[..., None], 0, weights).to(residual.dtype)
    combined = (weights.mT @ basis[:, :n])[:, 0]
    has_gained = synchronize.holds_anywhere(reduced[:, n].abs() < MIN_GAIN * beta)
    return precondition(combined), going, has_gained


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute inner products of vectors `(B, n)`, added up in double precision where the device has it."""
    # By parts: the products of long vectors, also in double precision, take three times their memory.
    parts = zip(a.split(MAX_NUMBERS_AT_ONCE, -1), b.split(MAX_NUMBERS_AT_ONCE, -1), strict=True)
    return torch.stack([(p * q).sum(dim=-1, dtype=accumulation_dtype(a)) for p, q in parts]).sum(dim=0)
