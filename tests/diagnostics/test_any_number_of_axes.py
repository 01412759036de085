"""Diagnostics of signals and volumes: the same numbers, by brute force and by dense matrices, in one and three axes."""

from __future__ import annotations

import math

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.diagnostics.conditioning import gain_map, measure_conditioning, null_share_of_inputs
from deconv_cli.diagnostics.continuation import Continuation
from deconv_cli.diagnostics.edge_bands import EdgeBands
from deconv_cli.diagnostics.hann_window import FadedImages, apply_hann_window
from deconv_cli.diagnostics.image_model import ImageModel, fit_image_model
from deconv_cli.diagnostics.inverse_filter import InverseFilter
from deconv_cli.diagnostics.picard import measure_picard
from deconv_cli.diagnostics.residual import border_profile, summarize_residual
from deconv_cli.diagnostics.spatial_resolution import measure_resolution
from deconv_cli.diagnostics.spectral_data import SpectralData
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.diagnostics.whiteness import measure_whiteness
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.convolution import Convolution

CASES = [((9,), (3,)), ((8,), (4,)), ((4, 5, 6), (3, 2, 3))]
CHANNELS = [(1, 1), (3, 2), (2, 3)]


def dense(taps, size):
    return Convolution(taps, size, padding="same", boundary="circular").as_matrix()


def distances(size):
    """Pixels between each pixel and the nearest edge, one by one."""
    places = torch.cartesian_prod(*(torch.arange(n) for n in size)).reshape(-1, len(size))
    last = torch.tensor(size) - 1
    return torch.minimum(places, last - places).amin(-1).reshape(size)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("size", "kernel_size"), CASES)
class TestAgainstTheDenseMatrix:
    def test_conditioning(self, size, kernel_size, channels):
        taps = random((*channels, *kernel_size))
        a = dense(taps, size)
        modes = torus_modes(taps, size)
        found = measure_conditioning(modes, InverseFilter(0.05, "identity", 1e-10))
        inverse = torch.linalg.solve(a.T @ a + 0.05 * torch.eye(a.shape[1], dtype=a.dtype), a.T)
        values = torch.linalg.svdvals(a)
        assert modes.is_complete
        assert found.sigma_max == pytest.approx(float(values.max()), rel=1e-12)
        assert (found.n_values, found.n_unknowns) == (len(values), a.shape[1])
        assert found.noise_gain == pytest.approx(float(inverse.square().sum() / a.shape[1]) ** 0.5, rel=1e-9)
        assert found.degrees_of_freedom == pytest.approx(float((inverse @ a).trace()), rel=1e-9)

    def test_the_null_space(self, size, kernel_size, channels):
        taps, x = random((*channels, *kernel_size)), random((2, channels[1], *size), seed=3)
        a = dense(taps, size)
        columns = x.reshape(2, -1).T
        share = 1 - float((torch.linalg.pinv(a) @ a @ columns).square().sum() / columns.square().sum())
        found = null_share_of_inputs(torus_modes(taps, size), x, 1e-10)
        assert found == pytest.approx(share, abs=1e-9)

    def test_resolution(self, size, kernel_size, channels):
        taps = random((*channels, *kernel_size))
        a = dense(taps, size)
        whole = torch.linalg.solve(a.T @ a + 0.1 * torch.eye(a.shape[1], dtype=a.dtype), a.T @ a)
        found = measure_resolution(taps, size, InverseFilter(0.1, "identity", 0.0))
        first = whole.reshape(channels[1], -1, channels[1], math.prod(size))
        for channel in range(channels[1]):
            expected = torch.fft.fftshift(first[channel, :, channel, 0].reshape(size))
            assert torch.allclose(found.response[channel], expected, atol=1e-10)
        assert all(len(widths) == len(size) for widths in found.widths)

    def test_the_power_of_outputs_along_the_modes(self, size, kernel_size, channels):
        modes, y = torus_modes(random((*channels, *kernel_size)), size), random((2, channels[0], *size), seed=5)
        spectrum = modes.transformed(apply_hann_window(y, len(size)))
        expected = modes.of_outputs(spectrum).abs().square().mean(0)
        assert torch.allclose(modes.power_of_outputs(FadedImages(y)), expected, rtol=1e-9)

    def test_spectral_data_hold_all_the_energy(self, size, kernel_size, channels):
        taps, y = random((*channels, *kernel_size)), random((2, channels[0], *size), seed=5)
        data = SpectralData.of(torus_modes(taps, size), y, penalty="gradient", sigma_max=1.0)
        energy = (data.multiplicity * (data.power.sum(-1) + data.outside)).sum()
        assert float(energy) == pytest.approx(float(y.square().sum()), rel=1e-12)
        assert data.n_data == y.numel()


@pytest.mark.parametrize(("size", "kernel_size"), [((900,), (3,)), ((16, 20, 24), (3, 2, 3))])
def test_picard_data_of_white_noise_are_flat(size, kernel_size):
    modes = torus_modes(random((1, 1, *kernel_size)), size)
    found = measure_picard(modes, random((4, 1, *size), seed=7), is_periodic=False)
    assert found.noise_floor == pytest.approx(math.sqrt(math.log(2)), rel=0.1)
    assert found.n_modes == math.prod(size)


@pytest.mark.parametrize(("size", "kernel_size"), CASES)
def test_the_map_of_gains(size, kernel_size):
    taps = random((2, 2, *kernel_size))
    axes = tuple(range(-len(size), 0))
    symbol = torch.fft.fftn(taps, s=size, dim=axes).movedim((0, 1), (-2, -1))
    values = torch.linalg.svdvals(symbol)
    expected = torch.fft.fftshift(torch.stack([values.amax(-1), values.amin(-1)]), dim=axes)
    assert torch.allclose(gain_map(taps, size), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(7,), (6, 9), (5, 6, 7)])
def test_bands_by_distance_from_the_edge(size):
    values = random((2, 3, *size))
    bands = EdgeBands(size, 3, values.device)
    distance = distances(size)
    assert torch.equal(bands.distance, distance)
    for k in range(bands.depth):
        chosen = distance == k if k < bands.depth - 1 else distance >= k
        assert int(bands.count[k]) == int(chosen.sum())
        assert float(bands.mean(values)[k]) == pytest.approx(float(values[..., chosen].mean()))


@pytest.mark.parametrize("size", [(40,), (36, 41), (33, 34, 35)])
def test_the_residual_by_channel_and_by_distance(size):
    residual, data = random((2, 3, *size)), random((2, 3, *size), seed=1)
    found = summarize_residual(residual, data, n_axes=len(size))
    for channel, ratio in enumerate(found.per_channel):
        expected = residual[:, channel].square().sum() / data[:, channel].square().sum()
        assert ratio == pytest.approx(float(expected) ** 0.5)
    profile = border_profile(residual, (3,) * len(size))
    on_edge = residual[..., distances(size) == 0]
    assert profile[0].residual_rms == pytest.approx(float(on_edge.square().mean()) ** 0.5)


def test_sizes_of_residuals_whose_squares_leave_their_type():
    """2^90 is a number of single precision, and its square is none."""
    residual, data = random((3, 20, 24)).float(), random((3, 20, 24), seed=1).float()
    plain, huge = summarize_residual(residual, data), summarize_residual(2.0**90 * residual, 2.0**90 * data)
    assert (huge.relative, huge.per_channel) == (plain.relative, plain.per_channel)
    assert huge.root_mean_square == pytest.approx(2.0**90 * plain.root_mean_square)
    bands = [border_profile(factor * residual, (3, 3)) for factor in (1.0, 2.0**90)]
    for one, other in zip(*bands, strict=True):
        assert other.residual_rms == pytest.approx(2.0**90 * one.residual_rms)


@pytest.mark.parametrize("size", [(400,), (40, 50), (12, 14, 16)])
def test_a_window_keeps_the_power_of_white_noise(size):
    images = random((50, 1, *size))
    faded = apply_hann_window(images, len(size))
    assert float(faded.square().mean()) == pytest.approx(float(images.square().mean()), rel=0.05)
    corner = faded[(..., *(0,) * len(size))]
    assert float(corner.abs().max()) < 1e-2


@pytest.mark.parametrize(("size", "n_lags"), [((500,), 5), ((30, 40), 60), ((24, 25, 26), 665)])
class TestWhiteness:
    def test_p_values_of_white_noise_are_even(self, size, n_lags):
        found = [measure_whiteness(random((1, *size), seed=seed), len(size)) for seed in range(60)]
        assert {one.n_lags for one in found} == {n_lags}
        ranks = sorted(one.p_value for one in found)
        # Kolmogorov and Smirnov's distance from even p-values: 1.63 / √60 is exceeded once in a hundred times.
        assert max(abs(rank - (at + 0.5) / 60) for at, rank in enumerate(ranks)) < 1.63 / 60**0.5

    def test_correlations_are_those_of_pairs_of_pixels(self, size, n_lags):
        residual = random((1, *size), seed=9)
        found = measure_whiteness(residual, len(size))
        centered = (residual - residual.mean())[0]
        ahead, behind = centered.narrow(0, 1, size[0] - 1), centered.narrow(0, 0, size[0] - 1)
        expected = float((ahead * behind).mean() / centered.square().mean())
        middle = (found.max_lag,) * len(size)
        lag = (found.max_lag + 1, *middle[1:])
        assert float(found.autocorrelation[middle]) == pytest.approx(1)
        assert float(found.autocorrelation[lag]) == pytest.approx(expected, abs=2 / math.prod(size))


def test_the_tail_of_an_odd_number_of_lags():
    """For five degrees of freedom the tail is known in closed form."""
    found = measure_whiteness(random((1, 300), seed=2), n_axes=1)
    half = found.statistic / 2
    expected = math.erfc(half**0.5) + math.exp(-half) * (half**0.5 / math.gamma(1.5) + half**1.5 / math.gamma(2.5))
    assert found.n_lags == 5
    assert found.p_value == pytest.approx(expected, rel=1e-12)


def test_the_power_of_a_small_stack_is_not_spread_over_what_it_is_continued_to():
    """Of 12 planes behind a kernel of 9 most of the torus is continued, without detail."""
    known = ImageModel.isotropic(1.4, torch.eye(1, dtype=torch.float64), (40, 48, 48))
    scene = known.draw(1, (40, 48, 48), seed=3, dtype=torch.float64)[0, :, :20, :40, :40]
    kernel = deconv_cli.make_kernel("gaussian3d:1.2@1.2")
    kernel = kernel[tuple(slice((n - 9) // 2, (n + 9) // 2) if n > 9 else slice(None) for n in kernel.shape)]
    y = deconv_cli.forward(scene, kernel, dimensions=3, padding="valid")
    y = y + 0.02 * random(tuple(y.shape), seed=4)
    result = deconv_cli.invert(y, kernel, dimensions=3, boundary="unknown", lam=1e-3)
    continuation = Continuation(
        Kernel.of_any(kernel, dimensions=3), tuple(y.shape[1:]), boundary="unknown", penalty="gradient"
    )
    found = fit_image_model(continuation, y, result.image, lam=1e-3)
    size = (16, 32, 32)
    wave = (1, 4, 4)  # one that the kernel passes
    assert 0.3 < float(found.power(size)[wave] / known.power(size)[wave]) < 2  # 0.2 where it is spread
