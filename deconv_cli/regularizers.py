"""The penalty λ·σ²max·‖Lx‖²: which L, as an operator and as a symbol on a torus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.operators.differences import CURVATURE, GRADIENT, Difference, Differences
from deconv_cli.operators.linear_operator import Identity, LinearOperator, Shape
from deconv_cli.vocabulary import Size


def penalty_terms(penalty: str) -> tuple[Difference, ...]:
    """Tell which differences a penalty is made of."""
    return {
        "identity": (Difference(0, 0),),
        "gradient": GRADIENT,
        "laplacian": CURVATURE,
    }[penalty]


def penalty_operator(penalty: str, shape: Shape, *, periodic: bool) -> LinearOperator:
    """Build L for images of `shape` `(C, H, W)`.

    `gradient` takes differences between neighbors inside the image. `laplacian` takes second differences inside the
    image, ∂xx, ∂yy and √2 ∂xy: on a torus, where everything wraps around, their energy is that of the Laplacian.
    """
    if penalty == "identity":
        return Identity(shape)
    return Differences(shape, penalty_terms(penalty), periodic=periodic)


def is_determined(lam: float, penalty: str, n_outputs: int, n_inputs: int) -> bool:
    """Tell whether kernel and penalty together see every constant image; a penalty on differences sees none."""
    return lam == 0 or penalty == "identity" or n_outputs >= n_inputs


def penalty_symbol(penalty: str, torus: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Evaluate |l(θ)|², the symbol of LᴴL on a torus.

    Returns:
        Real, shape `(N1, N2 // 2 + 1)`, zero at frequencies that L does not see.
    """
    if penalty == "identity":
        return torch.ones(torus[0], torus[1] // 2 + 1, dtype=dtype, device=device)
    rows = torch.arange(torus[0], dtype=dtype, device=device) * (math.pi / torus[0])
    columns = torch.arange(torus[1] // 2 + 1, dtype=dtype, device=device) * (math.pi / torus[1])
    gradient = 4 * rows.sin().square()[:, None] + 4 * columns.sin().square()
    return gradient if penalty == "gradient" else gradient.square()
