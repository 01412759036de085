"""The extreme singular values of a symbol, found without looking at every frequency."""

import pytest
import torch
from cases import random

from deconv_cli.operators import spectrum
from deconv_cli.operators.circulant import torus_symbol
from deconv_cli.operators.spectrum import kernel_spectrum, largest_singular_value

SHAPES = [(2, 2, 3, 3), (3, 2, 4, 2), (2, 5, 1, 6), (4, 4, 1, 1), (6, 6, 5, 3), (2, 2, 9, 12)]


def all_values(taps, torus):
    return torch.linalg.svdvals(torus_symbol(taps, torus))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("torus", [(64, 81), (7, 6), (1, 40), (50, 2)])
@pytest.mark.parametrize("kind", ["random", "lowpass", "highpass"])
def test_the_search_finds_the_largest_of_all_frequencies(shape, torus, kind):
    taps = random(shape, seed=sum(torus))
    if kind != "random":
        taps = taps.abs()
    if kind == "highpass":
        taps *= (-1.0) ** torch.arange(shape[2])[:, None] * (-1.0) ** torch.arange(shape[3])
    value, (row, column) = largest_singular_value(taps, torus)
    values = all_values(taps, torus)[..., 0]
    assert value == pytest.approx(float(values.max()), rel=1e-13)
    assert float(values[row, column]) == pytest.approx(value, rel=1e-13)


def test_the_search_finds_the_higher_of_two_narrow_peaks():
    """Two cosines of nearly one height, at frequencies that no coarse grid holds."""
    n = 63
    across = torch.arange(25, dtype=torch.float64)
    window = torch.hann_window(25, periodic=False, dtype=torch.float64)
    for heights in ((1.0, 0.999), (0.999, 1.0)):
        waves = [h * torch.cos(2 * torch.pi * k * across / n) for h, k in zip(heights, (9, 22), strict=True)]
        taps = (window * (waves[0] + waves[1]))[None, None, None] * torch.eye(2, dtype=torch.float64)[..., None, None]
        value, (_, column) = largest_singular_value(taps, (4, n))
        assert value == pytest.approx(float(all_values(taps, (4, n)).max()), rel=1e-13)
        assert column == (9, 22)[heights.index(1.0)]


def test_a_flat_symbol_ends_the_search():
    """An orthogonal mixture of shifted channels has σ = 1 everywhere: nothing can be ruled out."""
    taps = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    taps[0, 0, 0, 0] = taps[1, 1, 2, 2] = 0.6
    taps[0, 1, 1, 0], taps[1, 0, 1, 2] = 0.8, -0.8
    rotation = torch.linalg.qr(random((2, 2)))[0]
    taps = torch.einsum("ij,jkhw->ikhw", rotation, taps)
    value, _ = largest_singular_value(taps, (4096, 4096))
    assert value <= float(all_values(taps, (64, 64)).max()) * (1 + 1e-3)
    assert value >= float(all_values(taps, (64, 64)).max()) * (1 - 1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (1, 3, 3, 2), *SHAPES])
def test_the_spectrum_of_a_small_image_is_that_of_all_its_frequencies(shape):
    taps = random(shape)
    values = all_values(taps, (12, 9))
    found = kernel_spectrum(taps, (12, 9))
    assert found.grid == (12, 9)
    assert found.sigma_max == pytest.approx(float(values.max()), rel=1e-13)
    assert found.sigma_min == pytest.approx(float(values.min()), rel=1e-9)
    assert found.condition == pytest.approx(float(values.max() / values.min()), rel=1e-9)


@pytest.mark.parametrize("n", [101, 127, 254])
@pytest.mark.parametrize("degree", [2, 3, 5])
def test_symbols_that_fall_as_fast_as_they_can_mislead_the_search_nowhere(n, degree):
    """|cos dθ| meets the bound on its fall with equality, and of its peaks only that at 0 is on the grid."""
    taps = torch.zeros(2, 2, 1, 2 * degree + 1, dtype=torch.float64)
    for channel, height in ((0, 1.0), (1, 0.5)):
        taps[channel, channel, 0, 0] = taps[channel, channel, 0, -1] = height / 2
    value, peak = largest_singular_value(taps, (3, n))
    assert value == pytest.approx(1.0, rel=1e-14)
    assert float(all_values(taps, (3, n))[peak].max()) == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("row", range(1, 32, 3))
def test_a_peak_beyond_the_half_spectrum_is_told_by_its_mirror_image(row):
    down, across = torch.arange(9.0, dtype=torch.float64)[:, None] / 64, torch.arange(9.0, dtype=torch.float64) / 81
    tone = torch.cos(2 * torch.pi * (row * down + 40 * across))
    taps = tone * torch.eye(2, dtype=torch.float64)[..., None, None]
    value, peak = largest_singular_value(taps, (64, 81))
    assert float(all_values(taps, (64, 81))[peak].max()) == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_blocks_are_factored_by_parts_in_any_number_of_threads(n_threads, mode, monkeypatch):
    monkeypatch.setattr(spectrum, "MAX_ENTRIES_AT_ONCE", 3 * 16)
    sizes, n_before = [], torch.get_num_threads()

    def factor(blocks, factors):
        sizes.append((len(blocks), torch.get_num_threads()))
        return torch.linalg.inv(blocks), factors**2

    torch.set_num_threads(n_threads)
    try:
        with mode():
            blocks, factors = random((10, 4, 4)), random((10,))
            inverse, squares = spectrum.factor_by_parts(factor, blocks, factors)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(n_before)
    assert sorted(sizes) == [(1, 1), (3, 1), (3, 1), (3, 1)]
    torch.testing.assert_close(inverse @ blocks, torch.eye(4, dtype=torch.float64).expand(10, 4, 4))
    assert torch.equal(squares, factors**2)
