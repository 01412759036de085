"""Convolutions and filters on a torus: the symbol, its blocks, parts of a transform, and sizes that the FFT likes."""

import pytest
import torch
from cases import random
from properties import adjoint_defect, linearity_defect

from deconv_cli.operators import torus_filter
from deconv_cli.operators.axes import half_spectrum
from deconv_cli.operators.circulant import (
    MAX_TAPS_AS_SUM,
    BlockCirculant,
    next_fast_size,
    torus_symbol,
)
from deconv_cli.operators.torus_filter import TorusFilter


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
    assert [next_fast_size(n, by_parts=True) for n in (11, 1023, 2017, 4097)] == [12, 1024, 2048, 4116]


TORI = [(6, 7), (1, 8), (4, 5, 6), (5, 4, 3), (3, 2, 4, 5)]


@pytest.fixture(params=[2**17, 24], ids=["whole", "cut"])
def parts(request, monkeypatch):
    """Work on all at once, or on a few numbers at a time."""
    monkeypatch.setattr(torus_filter, "MAX_NUMBERS_IN_CACHE", request.param)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("torus", TORI)
def test_a_filter_multiplies_in_frequency(torus):
    axes = tuple(range(-len(torus), 0))
    box = random((2, 1, *(max(1, n - 1) for n in torus)))
    factor = random(half_spectrum(torus), seed=1)
    whole = torch.fft.irfftn(torch.fft.rfftn(box, s=torus, dim=axes) * factor, s=torus, dim=axes)
    by_parts = TorusFilter(torus, box)
    spectrum = by_parts.filter(
        by_parts.transform_box(box), lambda number, columns: columns * factor[:, by_parts.parts[number]]
    )
    assert (by_parts.crop(spectrum, torus) - whole).abs().max() < 1e-13
    size = tuple(max(1, n - 2) for n in torus)
    part = whole[(slice(None), slice(None), *(slice(n) for n in size))]
    assert (by_parts.crop(spectrum, size) - part).abs().max() < 1e-13


@pytest.mark.usefixtures("parts")
def test_derivatives_pass_through_the_parts():
    torus = (4, 3, 5)
    x = random((1, 2, *torus)).requires_grad_()
    taps = random((2, 2, 2, 2, 3), seed=1).requires_grad_()

    def apply(x, taps):
        return BlockCirculant(torus_symbol(taps, torus), torus).forward(x)

    assert torch.autograd.gradcheck(apply, (x, taps), fast_mode=True)
