"""Filters by parts do what transforms of the whole do."""

import pytest
import torch
from cases import random

from deconv_cli.operators import torus_filter
from deconv_cli.operators.axes import half_spectrum
from deconv_cli.operators.circulant import BlockCirculant, torus_symbol
from deconv_cli.operators.torus_filter import TorusFilter

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
