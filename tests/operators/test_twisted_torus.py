"""Fields that change their sign around a torus: transforms, symbols, and the convolutions that they stand for."""

import itertools

import pytest
import torch
from cases import random

from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.operators.twisted_torus import TwistedTorus

TWISTS = list(itertools.product((False, True), repeat=2))
SIZES = [(6, 7), (7, 6), (5, 5), (4, 8), (1, 3), (2, 1)]


def correlate(x, kernel, origin, twists):
    """Correlate tap by tap; what comes around a twisted axis comes back with the other sign."""
    signs = [-1.0 if twisted else 1.0 for twisted in twists]
    y = x.new_zeros(kernel.shape[0], *x.shape[1:])
    for row, column in itertools.product(range(kernel.shape[2]), range(kernel.shape[3])):
        for i, j in itertools.product(range(x.shape[1]), range(x.shape[2])):
            (down, at_row), (across, at_column) = (
                divmod(i + row - origin[0], x.shape[1]),
                divmod(j + column - origin[1], x.shape[2]),
            )
            y[:, i, j] += signs[0] ** down * signs[1] ** across * (kernel[:, :, row, column] @ x[:, at_row, at_column])
    return y


@pytest.mark.parametrize("twists", TWISTS)
@pytest.mark.parametrize("size", SIZES)
def test_a_field_comes_back(size, twists):
    torus, field = TwistedTorus(size, twists), random((2, 3, *size))
    spectrum = torus.transform(field)
    assert spectrum.shape == (2, 3, *torus.plane)
    torch.testing.assert_close(torus.restore(spectrum), field, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("twists", TWISTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("origin", [(0, 0), (1, 2)])
def test_the_symbol_is_that_of_the_correlation(size, twists, origin):
    torus, kernel, field = TwistedTorus(size, twists), random((3, 2, 2, 4)), random((2, *size), seed=1)
    symbol = torus.symbol(kernel, origin)
    found = torus.restore(FrequencyBlocks(symbol).multiply(torus.transform(field)))
    torch.testing.assert_close(found, correlate(field, kernel, origin, twists), rtol=1e-12, atol=1e-12)
    impulse = torch.zeros(1, *size, dtype=torch.float64)
    impulse[0, 0, 0] = 1
    for i in range(2):
        column = correlate(impulse, kernel[:, i : i + 1], origin, twists)
        torch.testing.assert_close(torus.kernel(symbol)[:, i], column, rtol=1e-12, atol=1e-12)


def test_no_frequency_of_a_twisted_axis_is_zero():
    laplacian = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]], dtype=torch.float64)
    for twists in TWISTS:
        smallest = float(TwistedTorus((8, 9), twists).symbol(laplacian, (1, 1)).abs().min())
        assert (smallest > 0.1) == any(twists)
