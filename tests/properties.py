"""The laws that hold for every linear operator."""

from __future__ import annotations

import math

import torch
from cases import random
from torch import Tensor

from deconv_cli.operators.linear_operator import LinearOperator


def adjoint_defect(operator: LinearOperator, n_batch: int = 2) -> float:
    """|⟨Ax, y⟩ − ⟨x, Aᴴy⟩| / (‖Ax‖‖y‖). Shapes are checked first: a flat dot product would not notice wrong ones."""
    x = random((n_batch, *operator.input_shape), seed=1)
    y = random((n_batch, *operator.output_shape), seed=2)
    image, back = operator.forward(x), operator.adjoint(y)
    assert image.shape == y.shape
    assert back.shape == x.shape
    scale = max(float(image.norm() * y.norm()), 1e-300)
    return abs(float((image * y).sum() - (x * back).sum())) / scale


def linearity_defect(operator: LinearOperator) -> float:
    """‖A(2x − 3z) − 2Ax + 3Az‖, relative."""
    x, z = random(operator.input_shape, seed=3), random(operator.input_shape, seed=4)
    expected = 2 * operator.forward(x) - 3 * operator.forward(z)
    return float((operator.forward(2 * x - 3 * z) - expected).norm() / max(float(expected.norm()), 1e-300))


def matrix_defect(operator: LinearOperator) -> float:
    """How far the adjoint is from the transposed dense matrix, and the forward from the matrix itself."""
    matrix = operator.as_matrix()
    x = random(operator.input_shape, seed=5)
    y = random(operator.output_shape, seed=6)
    forward = matrix @ x.flatten() - operator.forward(x).flatten()
    adjoint = matrix.T @ y.flatten() - operator.adjoint(y).flatten()
    assert matrix.shape == (math.prod(operator.output_shape), math.prod(operator.input_shape))
    return max(float(forward.abs().max()), float(adjoint.abs().max()))


def backward_defect(operator: LinearOperator) -> float:
    """How far autograd's vector-Jacobian product is from the adjoint."""
    x = random(operator.input_shape, seed=7).requires_grad_()
    y = random(operator.output_shape, seed=8)
    (gradient,) = torch.autograd.grad(operator.forward(x), x, y)
    return float((gradient - operator.adjoint(y)).abs().max())


def reference_convolution(x: Tensor, kernel: Tensor, case_pads: tuple[int, int, int, int], boundary: str) -> Tensor:
    """Convolve by torch's own padding and `conv2d`: an independent judge. Pads are left, right, top, bottom."""
    modes = {"zero": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
    if boundary == "symmetric":
        import numpy as np

        left, right, top, bottom = case_pads
        widths = [(0, 0), (0, 0), (top, bottom), (left, right)]
        padded = torch.from_numpy(np.pad(x.numpy(), widths, mode="symmetric"))
    elif boundary == "unknown":
        padded = x
    else:
        padded = torch.nn.functional.pad(x, case_pads, mode=modes[boundary])
    return torch.nn.functional.conv2d(padded, kernel)
