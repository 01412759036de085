"""Conditioning, null space, Picard data and resolution, judged by the dense matrix of the same circular convolution."""

import math

import pytest
import torch
from cases import random

from deconv_cli.diagnostics import torus_modes as modes_module
from deconv_cli.diagnostics.conditioning import (
    gain_map,
    measure_conditioning,
    null_share_of_inputs,
    null_share_of_outputs,
)
from deconv_cli.diagnostics.inverse_filter import InverseFilter
from deconv_cli.diagnostics.picard import measure_picard
from deconv_cli.diagnostics.spatial_resolution import measure_resolution
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.regularizers import find_penalty

SHAPES = [(1, 1, 3, 3), (1, 1, 4, 2), (2, 2, 3, 3), (3, 2, 3, 2), (2, 3, 1, 3)]
SIZES = [(6, 7), (8, 6)]
WEIGHTS = [0.0, 0.05]


def circular(taps, size):
    return Convolution.of_geometry(taps, Geometry.of_image(size, tuple(taps.shape[-2:]), "same"), "circular")


def estimator(taps, size, weight, penalty):
    """The dense matrix that takes data to the estimate."""
    a = circular(taps, size).as_matrix()
    if weight == 0:
        return torch.linalg.pinv(a), a
    penalty_matrix = find_penalty(penalty).operator((taps.shape[1], *size), periodic=True)
    n = a.shape[1]
    differences = penalty_matrix.forward(torch.eye(n, dtype=a.dtype).reshape(n, taps.shape[1], *size)).reshape(n, -1).T
    return torch.linalg.solve(a.T @ a + weight * differences.T @ differences, a.T), a


@pytest.mark.parametrize(
    ("shape", "weight", "penalty"),
    [
        *((shape, weight, "identity") for shape in SHAPES for weight in WEIGHTS),
        # Where the outputs are fewer, this penalty leaves constants undetermined.
        *((shape, 0.05, "gradient") for shape in SHAPES if shape[0] >= shape[1]),
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_the_numbers_are_those_of_the_dense_matrix(shape, size, weight, penalty):
    taps = random(shape)
    inverse, a = estimator(taps, size, weight, penalty)
    values = torch.linalg.svdvals(a)
    found = measure_conditioning(torus_modes(taps, size), InverseFilter(weight, penalty, 1e-10))
    assert found.sigma_max == pytest.approx(float(values.max()), rel=1e-12)
    assert found.sigma_min == pytest.approx(float(values.min()), rel=1e-9)
    assert (found.n_unknowns, found.n_values) == (a.shape[1], len(values))
    assert found.n_values == len(values)
    assert found.rank == int((values > 1e-10 * values.max()).sum())
    # White noise e has an estimate Pe with E‖Pe‖² = ‖P‖²; the degrees of freedom are the trace of AP.
    assert found.noise_gain == pytest.approx(float(inverse.norm()) / math.sqrt(a.shape[1]), rel=1e-9)
    assert found.degrees_of_freedom == pytest.approx(float((a @ inverse).trace()), rel=1e-9)
    assert not found.is_sampled


def differences_kernel():
    """A mean over 2 × 2 pixels: on an even torus it removes the highest frequencies altogether."""
    return torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)


@pytest.mark.parametrize("taps", [differences_kernel(), random((3, 2, 3, 3)), random((2, 3, 3, 3))])
def test_rank_and_null_shares_are_those_of_the_dense_matrix(taps):
    size = (6, 8)
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
    for share, images, basis in [
        (null_share_of_inputs, x, vh[kept].T),
        (null_share_of_outputs, y, u[:, kept]),
    ]:
        flat = images.reshape(2, -1)
        expected = 1 - float((flat @ basis).square().sum() / flat.square().sum())
        assert share(modes, images, found.threshold) == pytest.approx(expected, abs=1e-12)
    assert null_share_of_outputs(modes, operator.forward(x), found.threshold) == pytest.approx(0, abs=1e-12)
    if found.rank < a.shape[1]:
        assert null_share_of_inputs(modes, x, found.threshold) > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_picard_data_are_those_of_the_dense_matrix(shape):
    """Pairs of frequencies share a singular value: the energy of the data in each group of them is compared."""
    size, taps = (6, 7), random(shape)
    operator = circular(taps, size)
    y = random(operator.output_shape, seed=5)
    u, values, _ = torch.linalg.svd(operator.as_matrix(), full_matrices=False)
    modes = torus_modes(taps, size)
    sigma = modes.sigma.flatten()
    energy = (modes.of_outputs(modes.transformed(y)).abs().square() * modes.weights[..., None]).flatten()
    dense = (u.T @ y.flatten()).square()
    for value in sigma.unique():
        near, near_dense = (sigma - value).abs() < 1e-9, (values - value).abs() < 1e-9
        assert near_dense.sum() == modes.weights[..., None].expand_as(modes.sigma).flatten()[near].sum()
        assert float(energy[near].sum()) == pytest.approx(float(dense[near_dense].sum()), rel=1e-9)


def gaussian(width, side):
    places = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-places.square() / (2 * width**2))
    line /= line.sum()
    return (line[:, None] * line)[None, None]


def test_picard_finds_the_noise_and_what_stands_above_it():
    size, taps = (64, 64), gaussian(1.5, 13)
    x = torch.zeros(1, *size, dtype=torch.float64)
    x[:, 10:40, 20:30] = 100
    blurred = circular(taps, size).forward(x)
    modes = torus_modes(taps, size)
    coefficients = modes.of_outputs(modes.transformed(blurred)).abs()
    for noise in (0.01, 1.0):
        found = measure_picard(modes, blurred + noise * random((1, *size), seed=6), is_periodic=True)
        assert found.noise_floor == pytest.approx(noise * math.sqrt(math.log(2)), rel=0.1)
        assert found.n_modes == 64 * 64
        # With about 4096 complex normal numbers, √log₂ 4096 times the floor is what the largest of them reaches.
        expected = float((modes.weights[..., None] * (coefficients > 12**0.5 * found.noise_floor)).sum())
        assert found.n_recoverable == pytest.approx(expected, rel=0.15)
        assert sorted(found.sigma, reverse=True) == list(found.sigma)
    pure = measure_picard(modes, random((1, *size), seed=7), is_periodic=True)
    assert pure.n_recoverable <= 6


def test_fading_out_keeps_jumps_at_the_edges_out_of_the_noise():
    """A product of ramps jumps from edge to edge: taken as periodic, it is energy in every frequency."""
    size, taps = (64, 64), gaussian(1.5, 13)
    line = torch.linspace(0, 15, 64, dtype=torch.float64)
    ramp = line[:, None] * line + 0.1 * random((1, *size), seed=8)
    modes = torus_modes(taps, size)
    assert measure_picard(modes, ramp, is_periodic=False).noise_floor == pytest.approx(0.083, rel=0.15)
    assert measure_picard(modes, ramp, is_periodic=False).n_recoverable < 200
    assert measure_picard(modes, ramp, is_periodic=True).n_recoverable > 400


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_response_is_a_column_of_the_dense_resolution_matrix(shape, weight):
    size, taps = (6, 8), random(shape)
    inverse, a = estimator(taps, size, weight, "identity")
    found = measure_resolution(taps, size, InverseFilter(weight, "identity", 1e-10))
    n_inputs = shape[1]
    resolution = (inverse @ a).reshape(n_inputs, *size, n_inputs, *size)
    for channel in range(n_inputs):
        column = torch.fft.fftshift(resolution[channel, :, :, channel, 0, 0])
        assert torch.allclose(found.response[channel], column, atol=1e-10)


def test_the_width_is_that_at_half_of_the_height():
    """A Gaussian blur that little is done about comes back as wide as it is twice over: K turned upon itself."""
    taps = gaussian(3.0, 41)
    found = measure_resolution(taps, (128, 128), InverseFilter(1e6, "identity", 1e-10))
    assert found.widest == pytest.approx(2.3548 * 3 * 2**0.5, rel=0.01)
    perfect = measure_resolution(taps * 0 + delta(41), (128, 128), InverseFilter(0.0, "identity", 1e-10))
    assert perfect.widths == ((pytest.approx(1), pytest.approx(1)),)
    across = measure_resolution(gaussian(3.0, 41)[:, :, 20:21], (128, 128), InverseFilter(1e6, "identity", 0))
    assert across.widths[0][0] == pytest.approx(1)
    assert across.widths[0][1] == pytest.approx(2.3548 * 3 * 2**0.5, rel=0.01)


def delta(side):
    taps = torch.zeros(1, 1, side, side, dtype=torch.float64)
    taps[..., side // 2, side // 2] = 1
    return taps


def test_a_channel_that_is_lost_has_no_width():
    taps = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    taps[0, 0] = 1
    found = measure_resolution(taps, (8, 8), InverseFilter(0.0, "identity", 1e-10))
    assert found.widths[1] == (None, None)
    assert found.widest is None


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (3, 2, 3, 3)])
@pytest.mark.parametrize("size", [(8, 9), (7, 6)])
def test_the_map_covers_the_whole_plane(shape, size):
    taps = random(shape)
    values = torch.linalg.svdvals(torch.fft.fft2(taps, s=size).permute(2, 3, 0, 1))
    expected = torch.fft.fftshift(torch.stack([values.amax(-1), values.amin(-1)]), dim=(-2, -1))
    assert torch.allclose(gain_map(taps, size), expected, atol=1e-12)


def test_the_work_is_bounded_and_a_sample_stands_for_all(monkeypatch):
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


@pytest.mark.parametrize("shape", [(1, 1, 15, 15), (3, 3, 3, 3), (32, 32, 3, 3)])
def test_a_photograph_and_many_channels_stay_within_the_bounds(shape):
    """Counted, not timed: 4096² frequencies are not looked at one by one."""
    modes = torus_modes(random(shape).float(), (4096, 4096))
    blocks = modes.weights.numel()
    assert blocks <= modes_module.MAX_FREQUENCIES
    assert shape == (1, 1, 15, 15) or blocks * max(shape[0] ** 3, 512) <= modes_module.MAX_BLOCK_OPERATIONS
    assert modes.sigma.dtype == torch.float64
    assert float(modes.sigma.max()) <= kernel_spectrum(random(shape).float(), (4096, 4096)).sigma_max * (1 + 1e-9)
