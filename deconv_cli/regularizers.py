"""The penalty λ·σ²max·‖Lx‖²: which L, as an operator and as a symbol on a torus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.operators.differences import Gradient
from deconv_cli.operators.linear_operator import Identity, LinearOperator, Shape
from deconv_cli.vocabulary import Penalty, Size


def penalty_operator(penalty: Penalty, shape: Shape, *, periodic: bool) -> LinearOperator:
    """Build L for images of `shape` `(C, H, W)`.

    `gradient` takes differences between neighbors inside the image; `laplacian` is the transposed gradient of the
    gradient, so that no pixel outside the image is ever assumed. On a torus both wrap around.
    """
    if penalty is Penalty.IDENTITY:
        return Identity(shape)
    gradient = Gradient(shape, periodic=periodic)
    return gradient if penalty is Penalty.GRADIENT else gradient.gram


def is_determined(lam: float, penalty: Penalty, n_outputs: int, n_inputs: int) -> bool:
    """Tell whether kernel and penalty together see every constant image; a penalty on differences sees none."""
    return lam == 0 or penalty is Penalty.IDENTITY or n_outputs >= n_inputs


def penalty_symbol(penalty: Penalty, torus: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Evaluate |l(θ)|², the symbol of LᴴL on a torus.

    Returns:
        Real, shape `(N1, N2 // 2 + 1)`, zero at frequencies that L does not see.
    """
    if penalty is Penalty.IDENTITY:
        return torch.ones(torus[0], torus[1] // 2 + 1, dtype=dtype, device=device)
    rows = torch.arange(torus[0], dtype=dtype, device=device) * (math.pi / torus[0])
    columns = torch.arange(torus[1] // 2 + 1, dtype=dtype, device=device) * (math.pi / torus[1])
    gradient = 4 * rows.sin().square()[:, None] + 4 * columns.sin().square()
    return gradient if penalty is Penalty.GRADIENT else gradient.square()
