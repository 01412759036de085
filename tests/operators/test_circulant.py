"""Convolutions on a torus: the symbol, its blocks, and sizes that the FFT likes."""

import pytest
import torch
from cases import random
from properties import adjoint_defect, linearity_defect

from deconv_cli.operators.circulant import (
    MAX_TAPS_AS_SUM,
    BlockCirculant,
    next_fast_size,
    torus_symbol,
)


def circular_reference(x, kernel, origin):
    """Correlate on a torus, tap by tap."""
    n_outputs, _, height, width = kernel.shape
    y = x.new_zeros(n_outputs, *x.shape[1:])
    for row in range(height):
        for column in range(width):
            shifted = x.roll((origin[0] - row, origin[1] - column), (-2, -1))
            y += torch.einsum("oi,ihw->ohw", kernel[:, :, row, column], shifted)
    return y


@pytest.mark.parametrize("channels", [(1, 1), (3, 2), (5, 6)])
@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 5), (4, MAX_TAPS_AS_SUM + 3), (13, 12)])
@pytest.mark.parametrize("torus", [(8, 9), (9, 10), (6, 5)])
@pytest.mark.parametrize("origin", [(0, 0), (1, 2)])
def test_symbol_is_that_of_the_correlation(channels, kernel_size, torus, origin):
    kernel, x = random((*channels, *kernel_size)), random((channels[1], *torus), seed=1)
    operator = BlockCirculant(torus_symbol(kernel, torus, origin), torus)
    torch.testing.assert_close(operator.forward(x), circular_reference(x, kernel, origin), rtol=1e-11, atol=1e-11)
    assert adjoint_defect(operator) <= 1e-12
    assert linearity_defect(operator) <= 1e-12


def test_planes_and_blocks_agree_with_a_batch():
    kernel, x = random((5, 4, 3, 3)), random((2, 3, 4, 7, 8), seed=1)
    by_blocks = BlockCirculant(torus_symbol(kernel, (7, 8)), (7, 8)).forward(x)
    by_planes = torch.cat(
        [BlockCirculant(torus_symbol(kernel[o : o + 1], (7, 8)), (7, 8)).forward(x) for o in range(5)], dim=-3
    )
    torch.testing.assert_close(by_blocks, by_planes, rtol=1e-12, atol=1e-12)


def test_fast_sizes():
    assert [next_fast_size(n) for n in (1, 7, 11, 13, 33, 121, 2017, 4097)] == [1, 7, 12, 14, 36, 128, 2100, 4116]
