"""A blur that varies over the frame, compared with a loop over dense matrices."""

import numpy as np
import pytest
import torch
from cases import random

from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.varying_convolution import VaryingConvolution
from deconv_cli.parts import BOUNDARIES

ROWS, COLUMNS, SIZE = (0.2, 0.7), (0.1, 0.5, 0.95), (9, 11)


def hat(places, position, number):
    """One hat, by NumPy's interpolation."""
    return np.interp(position, places, np.eye(len(places))[number])


def dense(taps, boundary, padding):
    """Σ K_j diag(w_j) with a dense matrix for each kernel, and the weights pixel by pixel."""
    total = 0
    for i in range(len(ROWS)):
        for j in range(len(COLUMNS)):
            single = Convolution(taps[i, j], SIZE, padding=padding, boundary=boundary)
            _, height, width = single.input_shape
            top, left = single.geometry.pads.before if boundary == "unknown" else (0, 0)
            weights = [
                hat(ROWS, (r - top + 0.5) / SIZE[0], i) * hat(COLUMNS, (c - left + 0.5) / SIZE[1], j)
                for r in range(height)
                for c in range(width)
            ]
            total = total + single.as_matrix() * torch.tensor(weights, dtype=taps.dtype)
    return total


@pytest.mark.parametrize("boundary", [*BOUNDARIES])
@pytest.mark.parametrize(("padding", "size"), [("same", (4, 3)), ("valid", (3, 3)), ("full", (2, 5)), ((2, 1), (6, 6))])
def test_it_is_the_weighted_sum_of_its_kernels(boundary, padding, size):
    taps = random((2, 3, *size))
    operator = VaryingConvolution(taps, ROWS, COLUMNS, SIZE, padding=padding, boundary=boundary)
    expected = dense(taps, boundary, padding)
    torch.testing.assert_close(operator.as_matrix(), expected)
    torch.testing.assert_close(operator.H.as_matrix(), expected.T)
