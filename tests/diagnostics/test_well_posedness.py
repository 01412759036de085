"""The findings about a border, compared with the singular values of dense matrices."""

import pytest
import torch
from cases import random

from deconv_cli.diagnostics.well_posedness import LOST, assess
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum


def finding(kernel, geometry, boundary, lam=0.0):
    spectrum = kernel_spectrum(kernel, geometry.image_size)
    return assess(kernel, geometry, boundary, lam=lam, spectrum=spectrum)


def singular_values(kernel, geometry, boundary):
    """Descending, relative to the largest singular value of the symbol on the image's torus."""
    values = torch.linalg.svdvals(Convolution.of_geometry(kernel, geometry, boundary).as_matrix())
    return values / kernel_spectrum(kernel, geometry.image_size).sigma_max


def off_center(shape=(1, 1, 3, 3)):
    """A kernel whose weight stands one pixel above and one pixel left of its last tap's corner."""
    kernel = 0.05 * random(shape, seed=4)
    kernel[:, :, -1, 0] += torch.linalg.qr(random(shape[:2], seed=5))[0]
    return kernel


@pytest.mark.parametrize(
    ("boundary", "shape", "n"),
    [
        ("zero", (1, 1, 3, 3), 24),
        ("reflect", (1, 1, 4, 3), 24),
        ("zero", (1, 1, 5, 5), 24),
        ("reflect", (2, 2, 3, 3), 20),
    ],
)
def test_lost_modes_are_as_many_as_small_singular_values(boundary, shape, n):
    geometry = Geometry.of_image((n, n), shape[2:], "same")
    predicted, counted = [], []
    for seed in range(8):
        kernel = random(shape, seed=seed)
        found = finding(kernel, geometry, boundary)
        predicted.append(found.n_lost_modes)
        counted.append(int((singular_values(kernel, geometry, boundary) < LOST).sum()))
        assert found.n_lost_modes <= found.n_border_modes
        assert found.is_well_posed == (found.n_lost_modes == 0)
        assert counted[-1] <= found.n_border_modes + 2
        if found.n_lost_modes >= 8:
            assert counted[-1] > 0
    assert sum(counted) >= 20
    assert 0.5 * sum(counted) <= sum(predicted) <= 1.5 * sum(counted)
    correlation = torch.corrcoef(torch.tensor([predicted, counted], dtype=torch.float64))[0, 1]
    assert correlation > 0.4


@pytest.mark.parametrize(
    ("boundary", "padding"), [("zero", (2, 1)), ("symmetric", (0, 1)), ("zero", 1), ("symmetric", 2), ("zero", 3)]
)
def test_any_whole_number_of_border_pixels(boundary, padding):
    """Some borders add rows and remove columns: the deficit of one axis meets the surplus of the other."""
    predicted = counted = 0
    for seed in range(5):
        kernel = random((1, 1, 4, 4), seed=seed)
        geometry = Geometry.of_image((22, 22), (4, 4), padding)
        found = finding(kernel, geometry, boundary)
        # Except the null space that any convolution with fewer outputs than inputs has.
        values = singular_values(kernel, geometry, boundary)
        predicted += found.n_lost_modes
        counted += int((values < LOST).sum())
        if found.n_border_modes == 0:
            assert values[-1] > LOST
        if padding == (2, 1):
            assert values[-1] < LOST
            assert not found.is_well_posed
    if padding == 3:
        assert counted == predicted == 0
    else:
        assert 0.3 * counted - 5 <= predicted <= 4 * counted + 5


@pytest.mark.parametrize("shape", [(1, 1, 2, 4), (2, 2, 3, 3), (3, 2, 3, 3), (2, 3, 3, 3)])
@pytest.mark.parametrize(
    ("boundary", "padding", "word"),
    [
        ("circular", "same", "repeats without an edge"),
        ("unknown", "same", "nothing is assumed about the outside"),
        ("zero", "valid", "nothing is assumed about the outside"),
        ("zero", "full", "the whole response to every pixel"),
    ],
)
def test_harmless_borders_have_no_singular_values_below_the_symbol(shape, boundary, padding, word):
    geometry = Geometry.of_image((12, 12), shape[2:], padding)
    kernel = random(shape, seed=3)
    kernel[:, :, -1, 0] *= 3
    found = finding(kernel, geometry, boundary)
    assert found.is_well_posed
    assert (found.n_lost_modes, found.n_border_modes, found.n_frequencies) == (0, 0, 0)
    assert found.advice == ()
    assert word in found.reason
    is_tall = shape[0] > shape[1]
    if shape[0] == shape[1] or boundary == "circular" or is_tall == (padding == "full"):
        values = torch.linalg.svdvals(Convolution.of_geometry(kernel, geometry, boundary).as_matrix())
        assert values[-1] >= 0.99 * kernel_spectrum(kernel, (192, 192)).sigma_min


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (2, 3, 3, 3)])
@pytest.mark.parametrize("boundary", ["zero", "reflect"])
def test_unequal_channels_lose_nothing(shape, boundary):
    geometry = Geometry.of_image((12, 12), (3, 3), "same")
    found = finding(random(shape), geometry, boundary)
    assert found.is_well_posed
    assert "unequal numbers of channels" in found.reason
    assert singular_values(random(shape), geometry, boundary)[-1] > 3 * LOST


@pytest.mark.parametrize(
    ("boundary", "shape"), [("zero", (1, 1, 3, 3)), ("reflect", (2, 2, 3, 3)), ("replicate", (1, 1, 4, 5))]
)
def test_the_advice_mends_what_is_lost(boundary, shape):
    n = 20 if shape[0] == 1 else 14
    kernel = off_center(shape)
    geometry = Geometry.of_image((n, n), shape[2:], "same")
    symbol = kernel_spectrum(kernel, (128, 128))
    found = finding(kernel, geometry, boundary)
    assert found.is_well_posed is False
    matrix = Convolution.of_geometry(kernel, geometry, boundary).as_matrix()
    values = torch.linalg.svdvals(matrix)
    assert values[0] / values[-1] > 1e4 * symbol.condition

    # λ: noise is amplified at most five times as much as by the symbol itself, and at most as the advice states.
    assert f"λ = {found.advised_lambda:g} " in found.advice[0]
    weight = found.advised_lambda * symbol.sigma_max**2
    gain = float((values / (values**2 + weight)).max())
    assert gain <= 0.5 / weight**0.5 * 1.001
    assert gain <= 5.01 / symbol.sigma_min
    assert f"{0.5 / found.advised_lambda**0.5:.3g} / σmax" in found.advice[0]
    # ... and the weakest frequency of the symbol loses at most a few percent.
    assert weight / symbol.sigma_min**2 <= 0.025

    # Padding.
    assert "padding full" in found.advice[1]
    assert "padding valid" in found.advice[1]
    for padding in ("full", "valid"):
        other = torch.linalg.svdvals(
            Convolution.of_geometry(kernel, Geometry.of_image((n, n), shape[2:], padding), boundary).as_matrix()
        )
        assert other[0] / other[-1] < 4 * symbol.condition


def test_a_penalty_bounds_the_noise_but_what_is_lost_stays_lost():
    kernel = off_center()[..., :1]
    geometry = Geometry.of_image((36, 30), (3, 1), "same")
    found = finding(kernel, geometry, "zero", lam=1e-4)
    assert found.is_well_posed
    assert found.threshold == pytest.approx(1e-2)
    assert found.n_lost_modes == int((singular_values(kernel, geometry, "zero") < 1e-2).sum()) == 30
    assert "the penalty determines them" in found.reason
    assert found.advised_lambda is None


def test_what_is_not_tested_is_said():
    kernel = random((2, 2, 3, 3))
    kernel[1] = 3 * kernel[0]
    found = finding(kernel, Geometry.of_image((12, 12), (3, 3), "same"), "zero")
    assert (found.is_well_posed, found.n_lost_modes, found.n_border_modes) == (None, None, None)
    assert "not tested" in found.reason
