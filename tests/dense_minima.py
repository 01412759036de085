"""Minima found with nothing but products of dense matrices, to hold the estimates of priors against."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def projected_gradient(H: Tensor, b: Tensor, n_steps: int = 30_000) -> Tensor:
    """Minimize ½xᴴHx − bᴴx over x ≥ 0: accelerated, and started again whenever it turns back."""
    length = 1 / torch.linalg.matrix_norm(H, 2)
    x = ahead = torch.zeros_like(b)
    momentum = 1.0
    for _ in range(n_steps):
        new = (ahead - length * (H @ ahead - b)).clamp_min(0)
        if torch.dot(ahead - new, new - x) > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - x)
        if torch.equal(new, x):
            break
        x, momentum = new, following
    return x


def chambolle_pock(A: Tensor, D: Tensor, y: Tensor, weight: float, n_differences: int, n_steps: int = 6_000) -> Tensor:
    """Minimize ½‖Ax − y‖² + w·Σ|Dx| by primal and dual steps; A. Chambolle and T. Pock, JMIV 40, 2011, algorithm 1.

    Args:
        A: the operator.
        D: the differences along each axis, one below the other.
        y: data.
        weight: w.
        n_differences: how many there are.
        n_steps: how many are taken.
    """
    norm = torch.linalg.matrix_norm(torch.cat([A, D]), 2)
    tau = sigma = 0.99 / norm
    x = ahead = torch.zeros(A.shape[1], dtype=A.dtype)
    q, p = torch.zeros_like(y), torch.zeros(D.shape[0], dtype=A.dtype)
    for _ in range(n_steps):
        q = (q + sigma * (A @ ahead - y)) / (1 + sigma)
        p = (p + sigma * (D @ ahead)).reshape(n_differences, -1)
        p = (p / (p.norm(dim=0) / weight).clamp_min(1)).flatten()
        new = x - tau * (A.T @ q + D.T @ p)
        ahead, x = 2 * new - x, new
    return x
