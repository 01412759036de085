"""The sharp derivatives behind a blurred picture, as a distribution, and the kernel that is likeliest under it.

Variational Bayes for y = t ⋆ x + noise, one independent Gaussian of its own variance γ for each derivative x, and a
hyperprior 1 / γ: Wipf and Zhang, Revisiting Bayesian blind deconvolution, Journal of Machine Learning Research 15,
2014; Babacan, Molina, Do and Katsaggelos, Bayesian blind deconvolution with general sparse image priors, ECCV 2012.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from deconv_cli.kernels.nonnegative_taps import least_squares_kernel
from deconv_cli.operators.circulant import next_fast_size

_N_CONJUGATE = 20
_RESIDUAL = 1e-2
_LEAST_VARIANCE = 1e-12
_FIRST_VARIANCE = 2.0
_FIRST_NOISE = 0.5
"""Variances at the start, in units of the blurred derivatives' mean square: a smooth guess that forgets no edge."""


class SharpDerivatives:
    """The posterior of the sharp derivatives, for a kernel that changes.

    Attributes:
        y: derivatives of the blurred picture along both axes, shape `(2, H, W)`.
        taps: the kernel, of a cross-correlation, shape `(k, k)`.
        mean: of the posterior, on a torus that holds the `(2, H + k − 1, W + k − 1)` derivatives that are seen.
        gamma: prior variances, of the shape of the mean.
        noise_variance: of `y`.
    """

    def __init__(self, y: Tensor, taps: Tensor) -> None:
        self.y, self._k = y, len(taps)
        self._frame = y.shape[-2:]
        self._torus = tuple(next_fast_size(n + self._k - 1) for n in self._frame)
        energy = float(y.square().mean())
        self._take(taps)
        self.mean = y.new_zeros(2, *self._torus)
        self.gamma = torch.full_like(self.mean, _FIRST_VARIANCE * energy)
        self.noise_variance = _FIRST_NOISE * energy

    def _take(self, taps: Tensor) -> None:
        self.taps, self._energy = taps, float(taps.square().sum())
        self._symbol = rfft2(taps, s=self._torus)

    def _seen(self, plane: Tensor) -> Tensor:
        """Cut off what only fills the torus."""
        height, width = self._frame
        return plane[:, : height + self._k - 1, : width + self._k - 1]

    def _blurred(self, spectrum: Tensor) -> Tensor:
        height, width = self._frame
        return irfft2(spectrum * self._symbol.conj(), s=self._torus)[..., :height, :width]

    def _adjoint(self, residual: Tensor) -> Tensor:
        return irfft2(rfft2(residual, s=self._torus) * self._symbol, s=self._torus)

    def update_image(self) -> None:
        """Solve (AᵀA / σ² + 1 / γ) x = Aᵀy / σ² by conjugate gradients, and renew all variances."""
        weights = self.noise_variance / self.gamma
        inverse_diagonal = 1 / (self._energy + weights)
        x = self.mean
        residual = self._adjoint(self.y - self._blurred(rfft2(x))) - weights * x
        direction = scaled = inverse_diagonal * residual
        size = first = (residual * scaled).sum()
        for _ in range(_N_CONJUGATE):
            if size <= _RESIDUAL**2 * first:
                break
            image = self._adjoint(self._blurred(rfft2(direction))) + weights * direction
            step = size / (direction * image).sum()
            x, residual = x + step * direction, residual - step * image
            scaled = inverse_diagonal * residual
            size, previous = (residual * scaled).sum(), size
            direction = scaled + size / previous * direction
        self.mean = x
        self._variance = self.noise_variance * inverse_diagonal
        self.gamma = (x.square() + self._variance).clamp_min(_LEAST_VARIANCE)

    def _summed_variance(self) -> float:
        """Sum the variances of the derivatives that one tap meets."""
        return float(self._seen(self._variance).mean()) * self.y.numel()

    def update_kernel(self) -> None:
        """Minimize E‖y − t ⋆ x‖² over kernels.

        Of the exact quadratic the gradient is kept; its matrix is replaced by the autocorrelation on the torus, which
        is no smaller, so that every step descends.
        """
        k, spectrum, variance = self._k, rfft2(self.mean), self._summed_variance()
        power = spectrum.real.square().sum(0) + spectrum.imag.square().sum(0)
        lags = irfft2(power + 0j, s=self._torus).double()
        apart = torch.arange(k)[:, None] - torch.arange(k)
        rows, columns = apart % self._torus[0], apart % self._torus[1]
        gram = lags[rows[:, None, :, None], columns[None, :, None, :]].reshape(k * k, k * k)
        gram = gram + variance * torch.eye(k * k, dtype=gram.dtype)
        residual = rfft2(self.y - self._blurred(spectrum), s=self._torus)
        descent = irfft2((spectrum * residual.conj()).sum(0), s=self._torus)[:k, :k].double().flatten()
        start = self.taps.double().flatten()
        found = least_squares_kernel(gram, gram @ start + descent - variance * start, start)
        self._take(found.reshape(k, k).to(self.y.dtype))

    def update_noise(self, least: float) -> None:
        """Lower the noise to E‖y − t ⋆ x‖² / n, but not below a variance that is known."""
        misfit = float((self.y - self._blurred(rfft2(self.mean))).square().sum())
        expected = (misfit + self._energy * self._summed_variance()) / self.y.numel()
        self.noise_variance = max(min(expected, self.noise_variance), least)

    def free_energy(self) -> float:
        """Bound −2 log p(y | t) / n from above, up to a constant, by Wipf and Zhang's equation for independent x.

        Kernels of one size are compared by it: the least is the likeliest.
        """
        misfit = (self.y - self._blurred(rfft2(self.mean))).square().sum() / self.noise_variance
        prior = self.mean.square() / self.gamma + torch.log1p(self._energy / self.noise_variance * self.gamma)
        n = self.y.numel()
        return float(misfit + self._seen(prior).sum()) / n + math.log(self.noise_variance)
