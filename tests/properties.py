"""The laws that hold for every linear operator."""

from __future__ import annotations

import math

import numpy as np
import torch
from cases import random
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.geometry import Pads
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
    """The distance of the adjoint from the transposed dense matrix, and of the forward from the matrix itself."""
    matrix = operator.as_matrix()
    x = random(operator.input_shape, seed=5)
    y = random(operator.output_shape, seed=6)
    forward = matrix @ x.flatten() - operator.forward(x).flatten()
    adjoint = matrix.T @ y.flatten() - operator.adjoint(y).flatten()
    assert matrix.shape == (math.prod(operator.output_shape), math.prod(operator.input_shape))
    return max(float(forward.abs().max()), float(adjoint.abs().max()))


def backward_defect(operator: LinearOperator) -> float:
    """The distance of autograd's vector-Jacobian product from the adjoint."""
    x = random(operator.input_shape, seed=7).requires_grad_()
    y = random(operator.output_shape, seed=8)
    (gradient,) = torch.autograd.grad(operator.forward(x), x, y)
    return float((gradient - operator.adjoint(y)).abs().max())


def reference_convolution(x: Tensor, kernel: Tensor, pads: Pads, boundary: str) -> Tensor:
    """Convolve `(B, C, *size)` with NumPy's padding and torch's `conv1d`, `conv2d` or `conv3d`."""
    modes = {
        "zero": "constant",
        "circular": "wrap",
        "reflect": "reflect",
        "symmetric": "symmetric",
        "replicate": "edge",
    }
    if boundary in modes:
        widths = [(0, 0), (0, 0), *zip(pads.before, pads.after, strict=True)]
        x = torch.from_numpy(np.pad(x.numpy(), widths, mode=modes[boundary]))
    n_axes = len(pads.before)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[n_axes - 1]
    return convolve(x, kernel)
