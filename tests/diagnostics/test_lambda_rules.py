"""The rules for λ against the dense matrix: what they call residual, parameters and likelihood is what it is."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.problems import cells, microscope_psf
from deconv_cli.diagnostics import lambda_rules
from deconv_cli.diagnostics.lambda_choice import choose_lambda
from deconv_cli.diagnostics.lambda_rules import (
    LambdaCurve,
    SpectralData,
    choose_by_rule,
    effective_parameters,
    residual_square_sum,
)
from deconv_cli.diagnostics.noise_level import estimate_noise_of_spectrum
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.regularizers import find_penalty
from deconv_cli.vocabulary import LambdaRule

SIZES = [(6, 5), (5, 8)]
CHANNELS = [(1, 1), (2, 2), (3, 2), (2, 3), (1, 3)]
DETERMINED = [(c, "identity") for c in CHANNELS] + [(c, "gradient") for c in CHANNELS if c[0] >= c[1]]
"""With fewer outputs than inputs a penalty on differences leaves constants undetermined."""


class Dense:
    """A circular problem as matrices, with data and the power by frequency of the same data."""

    def __init__(self, size, channels, penalty, n_images=2):
        generator = torch.Generator().manual_seed(sum(size) + 10 * channels[0] + channels[1])
        taps = torch.randn(*channels, 3, 3, generator=generator, dtype=torch.float64)
        operator = Convolution.of_geometry(taps, Geometry.of_image(size, (3, 3), "same"), "circular")
        self.sigma_max = kernel_spectrum(taps, size).sigma_max
        self.a = operator.as_matrix()
        self.ltl = find_penalty(penalty).operator(operator.input_shape, periodic=True).as_matrix()
        self.ltl = self.sigma_max**2 * self.ltl.T @ self.ltl
        self.y = torch.randn(n_images, *operator.output_shape, generator=generator, dtype=torch.float64)
        self.columns = self.y.reshape(n_images, -1).T
        self.data = SpectralData.of(torus_modes(taps, size), self.y, penalty=penalty, sigma_max=self.sigma_max)

    def influence(self, lam):
        """The matrix that turns data into what the estimate explains of them."""
        return self.a @ torch.linalg.solve(self.a.T @ self.a + lam * self.ltl, self.a.T)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lam", [1e-3, 0.2])
class TestAgainstMatrices:
    @pytest.mark.parametrize(("channels", "penalty"), DETERMINED)
    def test_residual_and_parameters(self, size, channels, penalty, lam):
        dense = Dense(size, channels, penalty)
        influence = dense.influence(lam)
        residual = dense.columns - influence @ dense.columns
        n_images = dense.y.shape[0]
        energy = dense.data.multiplicity * (dense.data.power.sum(-1) + dense.data.outside)
        assert float(energy.sum()) == pytest.approx(float(dense.y.square().sum()), rel=1e-12)
        assert dense.data.n_data == dense.y.numel()
        assert float(residual_square_sum(dense.data, lam)) == pytest.approx(float(residual.square().sum()), rel=1e-9)
        assert float(effective_parameters(dense.data, lam)) == pytest.approx(
            n_images * float(influence.trace()), rel=1e-9
        )

    @pytest.mark.parametrize("channels", CHANNELS)
    def test_the_marginal_likelihood(self, size, channels, lam):
        """Of the identity alone: the prior of differences is improper."""
        dense = Dense(size, channels, "identity")
        curve = choose_by_rule(LambdaRule.ML, dense.data, 0.0)
        index = min(range(len(curve.lams)), key=lambda k: abs(math.log(curve.lams[k] / lam)))
        exact = curve.lams[index]
        covariance = torch.eye(len(dense.a), dtype=torch.float64) + dense.a @ dense.a.T / (exact * dense.sigma_max**2)
        n, n_images = dense.y.numel(), dense.y.shape[0]
        quadratic = (dense.columns * torch.linalg.solve(covariance, dense.columns)).sum()
        expected = 0.5 * math.log(float(quadratic) / n) + 0.5 * n_images * float(torch.logdet(covariance)) / n
        assert curve.values[index] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rule", [LambdaRule.GCV, LambdaRule.UPRE, LambdaRule.DISCREPANCY, LambdaRule.WHITENESS])
def test_a_rule_takes_the_least_of_what_it_looks_at(rule):
    dense = Dense((12, 10), (2, 2), "identity")
    curve = choose_by_rule(rule, dense.data, 0.9)
    lower, chosen, higher = (
        choose_by_rule(rule, dense.data, 0.9).values[k] if 0 <= k < len(curve.lams) else math.inf
        for k in _neighbors(curve)
    )
    assert chosen <= min(lower, higher)


@pytest.mark.parametrize("rule", LambdaRule)
def test_groups_of_gains_say_what_all_gains_do(rule, monkeypatch):
    """Some gains are zero, one is infinite."""
    taps = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    taps[..., :4, :4] = 1 / 16
    size = (160, 128)
    y = Convolution.of_geometry(taps, Geometry.of_image(size, (8, 8), "same"), "circular").forward(
        torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(-1)
    )
    y = y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def chosen():
        data = SpectralData.of(torus_modes(taps, size), y, penalty="gradient", sigma_max=1.0)
        return len(data.by_gain[0][0]), choose_by_rule(rule, data, 0.1)

    n_groups, grouped = chosen()
    monkeypatch.setattr(lambda_rules, "_N_GROUPS", 10**9)
    n_gains, alone = chosen()
    assert n_groups < 2500 < n_gains  # of 4802: those that hold anything
    assert grouped.values == pytest.approx(alone.values, rel=1e-5, abs=1e-5)
    assert grouped.chosen == pytest.approx(alone.chosen, rel=1e-3)


@pytest.mark.parametrize("size", [(40, 30), (160, 128)])
@pytest.mark.parametrize("rule", [LambdaRule.GCV, LambdaRule.ML, LambdaRule.DISCREPANCY])
def test_a_derivative_keeps_no_constant_and_has_a_lambda(rule, size):
    """At frequency zero neither the kernel passes anything nor the penalty holds anything back."""
    taps = torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64)
    x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.fft.ifftn(torch.fft.fftn(x) / (0.1 + torch.fft.fftfreq(size[1]).abs())).real
    y = Convolution.of_geometry(taps, Geometry.of_image(size, (1, 2), "same"), "circular").forward(x)
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = SpectralData.of(torus_modes(taps, size), y, penalty="gradient", sigma_max=2.0)
    curve = choose_by_rule(rule, data, 1.0)
    assert all(math.isfinite(value) for value in curve.values)
    assert not curve.is_at_end


def _neighbors(curve: LambdaCurve) -> tuple[int, int, int]:
    best = min(range(len(curve.values)), key=lambda k: curve.values[k])
    assert best in (0, len(curve.lams) - 1) or curve.lams[best - 1] < curve.chosen < curve.lams[best + 1]
    return best - 1, best, best + 1


@pytest.mark.parametrize("n_images", [1, 3])
def test_the_floor_of_data_that_the_kernel_passes_little_of(n_images):
    steps = torch.arange(-6, 7, dtype=torch.float64)
    line = torch.exp(-0.5 * (steps / 2.5).square())
    taps = (line[:, None] * line / line.sum() ** 2)[None, None]
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n_images, 1, 64, 64, generator=generator, dtype=torch.float64).cumsum(-1)
    kernel = Kernel.from_tensor(taps)
    operator = Convolution.of_geometry(kernel.taps, Geometry.of_image((64, 64), (13, 13), "same"), "circular")
    y = operator.forward(x)
    y = y + 0.05 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    data = SpectralData.of(torus_modes(taps, (64, 64)), y, penalty="gradient", sigma_max=1.0)
    assert estimate_noise_of_spectrum(data) == pytest.approx(0.05, rel=0.1)


def test_lambda_settles_together_with_the_estimate():
    """A stack hardly larger than its kernel; judged by the λ that the exact estimate asks for."""
    psf = microscope_psf((9, 15, 15)).float()
    y = torch.nn.functional.conv3d(cells((20, 46, 46)).float()[None], psf[None, None])
    y = y + 0.02 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    extension = PeriodicExtension(
        Kernel.from_tensor(psf, dimensions=3), y.shape[1:], boundary="unknown", penalty="gradient"
    )
    found = choose_lambda(extension, y)
    assert found.is_converged
    exact = choose_by_rule(LambdaRule.GCV, extension.continued(y, found.lam), 0.0).chosen
    assert abs(math.log(exact / found.lam)) < 0.05
