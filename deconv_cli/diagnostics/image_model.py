"""A statistical model of an image and its noise, fitted to data by frequency.

The power spectra of photographs fall with a power of frequency (Field, "Relations between the statistics of natural
images and the response properties of cortical cells", Journal of the Optical Society of America A 4, 1987), and depend
on direction. So log E|x(θ)|² is linear in log |θ|, plus a slow function of direction; the channels have one covariance
C at all frequencies. A component of the data with the input mixture v has the power E|b|² = S²(vᴴCv)E|x|² + σ². All
frequencies give the noise. The frequencies at which the estimate turns from following the data to ignoring them then
give the image, since beyond them the data are hidden. Fisher scoring maximizes both likelihoods (Whittle, "Estimation
and information in stationary time series", Arkiv för Matematik 2, 1953). Lossy compression also removes weak detail
(`stored_samples.py`), as do smoothing and demosaicing: a component then has the power A²S²(vᴴCv)E|x|² + σ², where the
remaining part A follows from the model itself. With A = 1 images would seem smoother than they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_rules import SpectralData
from deconv_cli.diagnostics.noise_spectrum import interpolated, scoring_step
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.diagnostics.spectra import directional_functions, frequency_grid
from deconv_cli.diagnostics.stored_samples import gain_in_blocks, part_left
from deconv_cli.diagnostics.torus_modes import mean_gain
from deconv_cli.noise_model import WHITE, NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_spectrum, space_axes, squared_modulus
from deconv_cli.operators.circulant import to_float64
from deconv_cli.vocabulary import Size

_MAX_COMPONENTS = 2**16
_N_STEPS = 60
_N_HALVINGS = 12
_CONVERGED = 1e-7
_SLOPES, _SLOPE_SPREADS = {1: -0.7, 2: -1.2, 3: -1.4}, {1: 0.5, 2: 0.15, 3: 0.15}
"""Prior of the slope, by the number of axes. Most photographs have amplitudes near 1 / θ, and a line of one has half a
power less; in a stack solids have a power of 2, sheets of 1, threads of 0.5."""
_SLOPE_OF_LOSSY = {2: -1.3}
"""The same if compression removed weak detail, so that the data do not show the slope: the predicted errors of 53
photographs as JPEG files, none of them in `benchmarks/jpeg.py`, were nearest to the real ones."""
_N_ROUNDS_OF_LOSSY = 6
_CONSTANT_SPREAD, _ANGULAR_SPREAD = 1e3, 0.7
_TEMPER = 0.03
"""Weight of a component: neighboring frequencies of a real picture depend on one another."""
_LOWEST_SHARE = 0.1
_LEAST_WEIGHT = 1e-4


@dataclass(frozen=True, eq=False)
class ImageModel:
    """Power of the image and of the noise.

    Attributes:
        coefficients: of log E|x|², shape `(6,)` for two axes: the constant, its variation with direction, the slope.
        channels: a matrix G with C = GGᵀ, shape `(C_in, C_in)`.
        sigma: standard deviation of the noise, in units of the samples.
        noise: the kind of noise.
    """

    coefficients: Tensor
    channels: Tensor
    sigma: float
    noise: NoiseModel = WHITE

    @property
    def exponent(self) -> float:
        """How fast the amplitude falls with frequency: p in 1 / θᵖ, at a radian a pixel."""
        return -synchronize.as_number(self.coefficients[-1])

    def power(self, torus: Size) -> Tensor:
        """E|x|² at the frequencies of `rfftn` on a torus, shape `(*torus[:-1], torus[-1] // 2 + 1)`; zero at zero."""
        power = (_basis(torus, self.coefficients) @ self.coefficients).exp()
        power[0] = 0.0
        return power.unflatten(0, half_spectrum(torus))

    def draw(self, n_images: int, torus: Size, seed: int, dtype: torch.dtype) -> Tensor:
        """Draw images on a torus, shape `(n_images, C_in, *torus)`, of mean zero."""
        shape = (n_images, self.channels.shape[0], *torus)
        white = synchronize.normal_numbers(self.channels.to(dtype), shape, seed)
        mixed = torch.einsum("ij,bj...->bi...", self.channels.to(dtype), white)
        axes = space_axes(len(torus))
        spectrum = torch.fft.rfftn(mixed, dim=axes) * self.power(torus).sqrt().to(dtype)
        return torch.fft.irfftn(spectrum, s=torus, dim=axes)

    @property
    def is_lossy(self) -> bool:
        """Whether compression is known to have removed weak detail; false if the kernel mixes channels."""
        return not self.noise.is_white and self.channels.shape[0] == 1

    def share_left(self, taps: Tensor, torus: Size) -> Tensor:
        """Compute A, the part of the data's amplitude that compression left, at the frequencies of `rfftn`.

        The kernel has taps `(C_out, 1, *k)`; the result is of float64.
        """
        seen = self.power(torus) * gain_in_blocks(mean_gain(taps, torus), torus)
        noise = self.sigma**2 * interpolated(self.noise.spectrum, torus, seen)
        return part_left(self.sigma**2 * self.noise.spectrum[0] / (seen + noise).clamp_min(1e-30))


def fit_image_model(
    extension: PeriodicExtension,
    y: Tensor,
    estimate: Tensor,
    *,
    lam: float,
    sigma: float | None = None,
    least_sigma: float = 0.0,
) -> ImageModel:
    """Fit the model to the data `(C, *size)` or `(B, C, *size)` of a picture or a piece of it, without the bias.

    The estimate `(*, C, *size)` was restored from them with λ; it shows the covariance of its channels. σ is in the
    units of the samples, if it is known; if not, it is at least `least_sigma`.
    """
    kernel = extension.kernel
    channels = _common_factor(estimate, 1 if kernel.shared else kernel.taps.shape[1], kernel.n_axes)
    data = extension.continued(y, lam)
    components = _Components.of(data, channels, lam)
    share = data.observed_share  # only this part has noise
    coefficients, noise = components.fit(components.weight, None if sigma is None else share * sigma**2)
    weight = _TEMPER * components.weight * components.transition
    if data.noise is not None and channels.shape[0] == 1:
        coefficients = _fit_lossy(components, data, data.noise, weight, noise)
    else:
        coefficients, noise = components.fit(weight, noise, coefficients)
    # The continued part has less detail, so the power of the whole torus is smaller than that of the frame.
    coefficients[0] -= math.log(data.detailed_share)
    found = (noise / share) ** 0.5
    least = least_sigma if sigma is None else 0.0
    return ImageModel(coefficients, channels, max(found, least), extension.noise or WHITE)


@dataclass(frozen=True, eq=False)
class _Components:
    """Evenly spaced components of the data without the mean: members of shape `(n,)`, the basis `(n, m)`.

    `slope` is the mean of its prior, `n_axes` the number of axes of space.
    """

    gain: Tensor
    power: Tensor
    basis: Tensor
    weight: Tensor
    transition: Tensor
    slope: float
    n_axes: int

    @classmethod
    def of(cls, data: SpectralData, channels: Tensor, lam: float) -> _Components:
        rank = data.power.shape[1]
        kept = _kept(data)
        gain = data.gain[kept]
        if channels.shape[0] > 1:
            vh = data.modes.vh.flatten(0, -3)[kept]
            gain = gain * squared_modulus(vh @ channels.to(vh.dtype)).sum(dim=-1)
        left = lam / (data.ratio[kept] + lam)
        n_axes = len(data.modes.torus)
        return cls(
            gain=gain.flatten(),
            power=data.power[kept].flatten() / data.n_images,
            basis=_basis(data.modes.torus, data.power)[kept].repeat_interleave(rank, dim=0),
            weight=(data.multiplicity[kept] * data.n_images).repeat_interleave(rank),
            transition=(4 * left * (1 - left)).flatten() + _LEAST_WEIGHT,
            slope=_SLOPES[n_axes],
            n_axes=n_axes,
        )

    def fit(self, weight: Tensor, noise: float | None, start: Tensor | None = None) -> tuple[Tensor, float]:
        """Fit the coefficients, and the power of the noise unless it is given."""
        is_free = noise is None
        dtype, device = self.gain.dtype, self.gain.device
        center, spread = self._expectations()
        if start is None:
            start = self.start(weight)
        if noise is None:
            lowest = self.power.sort().values[: max(1, int(_LOWEST_SHARE * self.power.numel()))]
            noise = synchronize.as_number(lowest.mean())
        parameters = torch.cat([start, torch.full((1,), math.log(max(noise, 1e-30)), dtype=dtype, device=device)])
        ridge = torch.cat([spread.square().reciprocal(), spread.new_full((1,), float(not is_free))])
        middle = torch.cat([center, parameters[-1:]])
        value = self._misfit(parameters, weight, ridge, middle)
        for _ in range(_N_STEPS):
            signal, expected = self._expected(parameters)
            share = signal / expected
            slopes = torch.cat([share[:, None] * self.basis, (1 - share)[:, None] * float(is_free)], dim=1)
            step = scoring_step(slopes, weight, self.power / expected, torch.diag(ridge), parameters - middle)
            step = step.clamp(-3.0, 3.0)
            for _ in range(_N_HALVINGS):
                moved = parameters + step
                lower = self._misfit(moved, weight, ridge, middle)
                if lower <= value:
                    break
                step = step / 2
            else:
                break
            gained, parameters, value = value - lower, moved, lower
            if gained <= _CONVERGED * abs(value):
                break
        return parameters[:-1], math.exp(synchronize.as_number(parameters[-1]))

    def start(self, weight: Tensor) -> Tensor:
        """Give the mean of the prior, with the constant of the data."""
        start, _ = self._expectations()
        passed = (self.gain * (self.basis @ start).exp() * weight).sum()
        start[0] = ((self.power * weight).sum() / passed).clamp_min(1e-30).log()
        return start

    def _expectations(self) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of the prior of the coefficients, `(m,)` each."""
        center = self.gain.new_zeros(self.basis.shape[1])
        spread = torch.full_like(center, _ANGULAR_SPREAD)
        center[-1] = self.slope
        spread[0] = _CONSTANT_SPREAD
        spread[-1] = _SLOPE_SPREADS[self.n_axes]
        return center, spread

    def _expected(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        signal = self.gain * (self.basis @ parameters[:-1]).clamp(-80.0, 80.0).exp()
        return signal, signal + parameters[-1].exp()

    def _misfit(self, parameters: Tensor, weight: Tensor, ridge: Tensor, middle: Tensor) -> float:
        """Minus twice the logarithm of the likelihood and the prior."""
        _, expected = self._expected(parameters)
        fit = (weight * (expected.log() + self.power / expected)).sum()
        return synchronize.as_number(fit + 0.5 * (ridge * (parameters - middle).square()).sum())


def _kept(data: SpectralData) -> Tensor:
    """Number the frequencies to use, evenly spaced, without the first."""
    step = max(1, data.power.numel() // _MAX_COMPONENTS)
    return torch.arange(1, data.power.shape[0], step, device=data.power.device)


def _fit_lossy(components: _Components, data: SpectralData, spectrum: Tensor, weight: Tensor, noise: float) -> Tensor:
    """Fit the coefficients of an image of one channel that lost weak detail.

    `noise` is its power in the components, and the spectrum the error of strong coefficients relative to the lowest.
    """
    kept, torus, level = _kept(data), data.modes.torus, noise / data.observed_share
    gain = gain_in_blocks(data.modes.sigma.square().sum(dim=-1), torus).flatten()[kept]
    lossy = replace(components, slope=_SLOPE_OF_LOSSY.get(components.n_axes, components.slope))
    coefficients = lossy.start(weight)
    for _ in range(_N_ROUNDS_OF_LOSSY):
        power = gain * (components.basis @ coefficients).clamp(-80.0, 80.0).exp()
        left = part_left(level * spectrum[0] / (power + level * spectrum[kept]))
        coefficients, _ = replace(lossy, gain=components.gain * left.square()).fit(weight, noise, coefficients)
    return coefficients


def _common_factor(estimate: Tensor, n_channels: int, n_axes: int) -> Tensor:
    """Find G with GGᵀ the covariance of the gradients of the channels, of trace C_in."""
    images = to_float64(estimate)
    if n_channels == 1:
        return torch.ones(1, 1, dtype=images.dtype, device=images.device)
    steps = [images.diff(dim=axis).movedim(-n_axes - 1, 0).flatten(1) for axis in space_axes(n_axes)]
    covariance = sum((step @ step.T for step in steps), start=images.new_zeros(n_channels, n_channels))
    trace = covariance.trace().clamp_min(1e-30)
    identity = torch.eye(n_channels, dtype=images.dtype, device=images.device)
    factor: Tensor = torch.linalg.cholesky(covariance * (n_channels / trace) + 1e-6 * identity)
    return factor


def _basis(torus: Size, like: Tensor) -> Tensor:
    """Evaluate the functions that log E|x|² is a combination of, in the precision of `like`: `(F, m)`."""
    waves = frequency_grid(torus, like)
    radius = torch.linalg.vector_norm(waves, dim=-1)
    radius = torch.where(radius > 0, radius, 1)
    directions = directional_functions(waves / radius[..., None])
    if len(torus) == 2:
        cosine, sine = directions[1:]
        directions += [2 * cosine.square() - 1, 2 * sine * cosine]  # of four times the angle
    # Amplitudes 1 / θ have the power θ⁻²: the coefficient of the slope is −1.
    return torch.stack([*directions, 2 * radius.log()], dim=-1).flatten(0, -2)
