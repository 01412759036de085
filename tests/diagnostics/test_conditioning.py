"""Conditioning, null space and resolution, judged by the dense matrix of the same circular convolution."""

import math

import pytest
import torch
from cases import random

from deconv_cli.diagnostics import torus_modes as modes_module
from deconv_cli.diagnostics.conditioning import measure_conditioning, measure_resolution, removed_share, widest
from deconv_cli.diagnostics.torus_modes import InverseFilter, torus_modes
from deconv_cli.operators.convolution import Convolution
from deconv_cli.regularizers import find_penalty

SIZES = [(9,), (6, 7), (8, 6), (4, 5, 6)]
SHAPES = [(1, 1), (2, 2), (3, 2), (2, 3)]


def circular(taps, size):
    return Convolution(taps, size, padding="same", boundary="circular")


def estimator(taps, size, weight, penalty):
    """The dense matrix that takes data to the estimate, and that of the convolution."""
    a = circular(taps, size).as_matrix()
    if weight == 0:
        return torch.linalg.pinv(a), a
    differences = find_penalty(penalty).operator((taps.shape[1], *size), periodic=True).as_matrix()
    return torch.linalg.solve(a.T @ a + weight * differences.T @ differences, a.T), a


@pytest.mark.parametrize(
    ("shape", "weight", "penalty"),
    [
        *((shape, weight, "identity") for shape in SHAPES for weight in (0.0, 0.05)),
        # With fewer outputs, this penalty leaves constants undetermined.
        *((shape, 0.05, "gradient") for shape in SHAPES if shape[0] >= shape[1]),
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_the_numbers_are_those_of_the_dense_matrix(shape, size, weight, penalty):
    taps = random((*shape, *(3, 2, 3)[: len(size)]))
    inverse, a = estimator(taps, size, weight, penalty)
    values = torch.linalg.svdvals(a)
    found = measure_conditioning(torus_modes(taps, size), InverseFilter(weight, penalty, 1e-10))
    assert (found.n_unknowns, found.n_values) == (a.shape[1], len(values))
    assert found.rank == int((values > 1e-10 * values.max()).sum())
    # White noise e has an estimate Pe with E‖Pe‖² = ‖P‖²; the degrees of freedom are the trace of AP.
    assert found.noise_gain == pytest.approx(float(inverse.norm()) / math.sqrt(a.shape[1]), rel=1e-9)
    assert found.degrees_of_freedom == pytest.approx(float((a @ inverse).trace()), rel=1e-9)
    assert not found.is_sampled


@pytest.mark.parametrize(
    ("taps", "size"),
    [
        # A mean over 2 × 2 pixels removes the highest frequencies of an even torus.
        (torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64), (6, 8)),
        *((random((*shape, 3, 3)), (6, 8)) for shape in [(3, 2), (2, 3)]),
        (random((2, 3, 3, 2, 3)), (4, 5, 6)),
    ],
)
def test_rank_and_null_shares_are_those_of_the_dense_matrix(taps, size):
    operator = circular(taps, size)
    a = operator.as_matrix()
    u, values, vh = torch.linalg.svd(a, full_matrices=False)
    modes = torus_modes(taps, size)
    found = measure_conditioning(modes, InverseFilter(0.0, "identity", 1e-10))
    kept = values > found.threshold
    assert found.rank == int(kept.sum())
    pseudo_inverse = vh[kept].T @ (u[:, kept] / values[kept]).T
    assert found.noise_gain == pytest.approx(float(pseudo_inverse.norm()) / math.sqrt(a.shape[1]), rel=1e-9)
    x, y = random((2, *operator.input_shape), seed=3), random((2, *operator.output_shape), seed=4)
    for coefficients, images, basis in [(modes.of_inputs, x, vh[kept].T), (modes.of_outputs, y, u[:, kept])]:
        flat, spectrum = images.reshape(2, -1), modes.transformed(images)
        expected = 1 - float((flat @ basis).square().sum() / flat.square().sum())
        share = modes.null_share(coefficients(spectrum), spectrum, found.threshold)
        assert share == pytest.approx(expected, abs=1e-12)
    blurred = modes.transformed(operator.forward(x))
    assert modes.null_share(modes.of_outputs(blurred), blurred, found.threshold) == pytest.approx(0, abs=1e-12)


def gaussian(width, side):
    places = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-places.square() / (2 * width**2))
    line /= line.sum()
    return (line[:, None] * line)[None, None]


def test_the_width_is_that_at_half_of_the_height():
    """A Gaussian blur under a very large λ becomes K convolved with itself."""
    taps, smooth = gaussian(3.0, 41), InverseFilter(1e6, "identity", 1e-10)
    twice = pytest.approx(2.3548 * 3 * 2**0.5, rel=0.01)
    assert widest(measure_resolution(taps, (128, 128), smooth)) == twice
    delta = torch.zeros_like(taps)
    delta[..., 20, 20] = 1
    perfect = measure_resolution(delta, (128, 128), InverseFilter(0.0, "identity", 1e-10))
    assert perfect == ((pytest.approx(1), pytest.approx(1)),)
    assert measure_resolution(taps[:, :, 20:21], (128, 128), smooth) == ((pytest.approx(1), twice),)
    line = measure_resolution(taps[:, :, 20], (128,), smooth)
    assert line == ((twice,),)


def test_a_channel_that_is_lost_has_no_width():
    taps = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    taps[0, 0] = 1
    found = measure_resolution(taps, (8, 8), InverseFilter(0.0, "identity", 1e-10))
    assert found[1] == (None, None)
    assert widest(found) is None


@pytest.mark.parametrize(("shape", "size"), [((1, 1, 3, 4), (8, 9)), ((3, 2, 3, 3), (7, 6)), ((2, 2, 3), (9,))])
def test_the_share_of_removed_frequencies(shape, size):
    taps = random(shape)
    symbol = torch.fft.fftn(taps, s=size, dim=tuple(range(-len(size), 0))).movedim((0, 1), (-2, -1))
    smallest = torch.linalg.svdvals(symbol).amin(-1)
    expected = float((smallest < 0.5 * smallest.max()).double().mean())
    assert removed_share(taps, size, 0.5) == pytest.approx(expected, abs=1e-12)


def test_the_work_is_bounded_and_a_sample_represents_all(monkeypatch):
    taps = gaussian(1.0, 7)
    whole = torus_modes(taps, (120, 90))
    monkeypatch.setattr(modes_module, "MAX_FREQUENCIES", 700)
    sampled = torus_modes(taps, (120, 90))
    assert sampled.sigma.numel() <= 700
    assert not sampled.is_complete
    assert float(sampled.weights.sum()) == pytest.approx(120 * 90)
    reports = [measure_conditioning(modes, InverseFilter(1e-3, "gradient", 1e-6)) for modes in (whole, sampled)]
    assert reports[1].is_sampled
    assert reports[1].noise_gain == pytest.approx(reports[0].noise_gain, rel=0.05)
    assert reports[1].degrees_of_freedom == pytest.approx(reports[0].degrees_of_freedom, rel=0.05)
    assert reports[1].n_unknowns == reports[0].n_unknowns
