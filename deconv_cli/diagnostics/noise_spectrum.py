"""The spectrum of the noise in one picture, separated from that of the blurred scene.

The data have the power E P(θ) = S(θ)|K(θ)|² + N(θ) at a frequency θ. The scene's power S falls with a power of
frequency and is a slow function of direction, as in `image_model.py`. log N is linear in |θ| between knots, and
constant at low frequencies, where the scene hides it. Compression, demosaicing and smoothing in cameras leave noise
that is weaker at high frequencies: the error of a rounded coefficient depends on its divisor, but that of a coefficient
that is rounded to zero is at most the coefficient itself. Fisher scoring maximizes the quasi-likelihood of a
periodogram that is averaged in polar bins (Whittle, "Estimation and information in stationary time series", Arkiv för
Matematik 2, 1953; Wedderburn, "Quasi-likelihood functions, generalized linear models, and the Gauss-Newton method",
Biometrika 61, 1974).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.spectra import LOWEST, FadedImages, PolarBins, polar_bins
from deconv_cli.diagnostics.torus_modes import mean_gain
from deconv_cli.noise_model import FREQUENCIES, NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_weights, space_axes
from deconv_cli.operators.circulant import to_float64
from deconv_cli.vocabulary import Size

# Neighboring coefficients under a Hann window depend on one another: a sum of n scatters like one of n / 3.8.
_DEPENDENCE_BY_AXIS = 35 / 18
# The scene of a picture departs from a power law by about its own size.
_MISFIT = 1.0
_SLOPE, _SLOPE_PER_AXIS = -1.2, -0.5
_CONSTANT_SPREAD, _ANGULAR_SPREAD, _SLOPE_SPREAD = 1e3, 0.7, 0.3
# How much log N changes from knot to knot, and the spread of that. For the noise of 55 JPEG files of 18 photographs the
# first four steps were 0.0 ± 0.2 and the others -0.4 ± 0.2.
_STEPS = (*(0.0,) * 4, *(-0.4,) * 9)
_STEP_SPREADS = (*(0.1,) * 4, *(0.5,) * 9)
_N_STEPS = 60
_CONVERGED = 1e-4
# Noise is colored if white noise has a misfit that is larger by the first number, and if levels that the data show well
# differ by at least the second. Of 216 pictures with white noise none had more than 25; of 72 JPEG files 61 had more
# than 60 and a factor of 2.3, and the others, whose noise exceeds the divisors, at most 26.
_EVIDENCE = 35.0
_LEAST_RATIO = 2.0
_SHOWN = slice(3, 11)
# Noise is as large under any window; what leaks from a scene without noise is not. Under the squared window 0.89 or
# more of σ remained if there was noise, and 0.09 or less if there was none; for other photographs 0.52 and 0.24. The
# bound is near the geometric mean of either pair.
_SQUARED = 2
_LEAST_LEFT = 0.3


@dataclass(frozen=True, eq=False)
class SpectrumBasis:
    """The part of a fit that depends on the kernel and the size of the data alone: n polar bins, and functions on them.

    Attributes:
        bins: n of them.
        gain: |K|² in each, shape `(n,)`.
        scene: functions whose sum is the logarithm of the scene's power, shape `(n, m)`.
        noise: the same for the noise, shape `(n, 14)`.
        n_axes: axes of space.
    """

    bins: PolarBins
    gain: Tensor
    scene: Tensor
    noise: Tensor
    n_axes: int

    @classmethod
    def of(cls, taps: Tensor, size: Size) -> SpectrumBasis:
        """Lay out the bins of a size, and average the gain of taps `(C_out, C_in, *k)` in them."""
        gain = mean_gain(taps, size)
        bins = polar_bins(size, gain.dtype, gain.device)
        radius = bins.radius
        scene = torch.stack([torch.ones_like(radius), *bins.directions, 2 * (2 * math.pi * radius).log()], dim=-1)
        return cls(bins, bins.mean(gain), scene, hat_functions(radius), len(size))


def fit_noise_spectrum(
    y: Tensor,
    basis: SpectrumBasis,
    *,
    is_colored: bool = False,
    observed_share: float = 1.0,
    faded: FadedImages | None = None,
) -> NoiseModel:
    """Find the noise in data `(n, C_out, *size)` that a kernel made of a scene.

    `is_colored` says that the noise is known to be colored; `observed_share` is the part of the data that is noisy,
    since an estimate predicted the rest; `faded` holds the same data under a window. Gives the size and the spectrum of
    the noise, or white noise of unknown size if that explains the data as well, or if the noise that was found is light
    of the scene, spread by the window.
    """
    white = NoiseModel(source="auto")
    if len(basis.bins.count) < 4 * len(FREQUENCIES):
        return white
    power = _binned(y, basis, faded)
    count = basis.bins.count * (y.shape[0] * y.shape[1] / _DEPENDENCE_BY_AXIS**basis.n_axes)
    levels, misfit = _fit(power, count, basis, basis.noise)
    if not is_colored:
        shown = levels[_SHOWN]
        if max(shown) - min(shown) < math.log(_LEAST_RATIO):
            return white
        _, misfit_of_flat = _fit(power, count, basis, torch.ones_like(basis.noise[:, :1]))
        if misfit_of_flat - misfit < _EVIDENCE:
            return white
    mean = _mean_power(levels, y)
    if not is_colored:
        squared, _ = _fit(_binned(y, basis, fade=_SQUARED), count, basis, basis.noise)
        if _mean_power(squared, y) < _LEAST_LEFT**2 * mean:
            return white
    return replace(
        white, sigma=math.sqrt(mean / observed_share), spectrum=tuple(math.exp(level) / mean for level in levels)
    )


def _mean_power(levels: Sequence[float], y: Tensor) -> float:
    """Compute the power of noise in data `(n, C, *size)` from the logarithms of its spectrum."""
    size: Size = tuple(y.shape[2:])
    power = interpolated([math.exp(level) for level in levels], size, to_float64(y))
    return synchronize.as_number((power * half_weights(size[-1], power)).sum() / math.prod(size))


def interpolated(
    spectrum: Sequence[float], torus: Size, like: Tensor, numbers: Sequence[Tensor] | None = None
) -> Tensor:
    """Interpolate powers at `FREQUENCIES` to the frequencies of `torch.fft.rfftn` on a torus, or to the numbered ones.

    The logarithm is linear between them, and constant beyond. The result has the dtype and the device of `like`.
    """
    squared = like.new_zeros(1)
    for axis, length in enumerate(torus):
        fftfreq = torch.fft.rfftfreq if axis == len(torus) - 1 else torch.fft.fftfreq
        frequencies = fftfreq(length, device=like.device)
        if numbers is not None:
            frequencies = frequencies[numbers[axis]]
        squared = squared[..., None] + frequencies.to(like.dtype).square()
    logarithms = like.new_tensor([math.log(power) for power in spectrum])
    position = _position(squared[0].sqrt())
    lower = position.long().clamp_max(len(spectrum) - 2)
    rise = logarithms.diff()[lower]
    return (logarithms[lower] + rise * (position - lower)).exp()


def passed_sigma(model: NoiseModel, taps: Tensor, y: Tensor) -> float:
    """Compute the size of noise in data `(*batch, C, *size)`, weighted by the |K| of a kernel `(C_out, C_in, *k)`."""
    assert model.sigma is not None
    if model.is_white:
        return model.sigma
    size: Size = tuple(y.shape[2 - taps.ndim :])
    gain = mean_gain(taps, size).sqrt()
    gain, power = gain * half_weights(size[-1], gain), interpolated(model.spectrum, size, gain)
    return model.sigma * math.sqrt(synchronize.as_number((power * gain).sum() / gain.sum()))


def draw_noise(model: NoiseModel, like: Tensor, seed: int, n_axes: int = 2) -> Tensor:
    """Draw noise of the spectrum of a model with σ = 1, of the shape `(*batch, C, *size)` of `like`."""
    white = synchronize.normal_numbers(like, tuple(like.shape), seed)
    if model.is_white:
        return white
    size: Size = tuple(like.shape[-n_axes:])
    power, axes = interpolated(model.spectrum, size, like), space_axes(n_axes)
    return torch.fft.irfftn(torch.fft.rfftn(white, dim=axes) * power.sqrt(), s=size, dim=axes)


def _binned(y: Tensor, basis: SpectrumBasis, faded: FadedImages | None = None, fade: int = 1) -> Tensor:
    """Average the periodogram in each bin, shape `(n,)`."""
    # The window spreads the mean to the first frequency of each axis, which only the bins of larger data leave out.
    if faded is None or math.hypot(*(1 / n for n in y.shape[2:])) >= LOWEST:
        wide = to_float64(y)
        faded = FadedImages(wide - wide.mean(dim=space_axes(basis.n_axes), keepdim=True), fade)
    return basis.bins.mean(faded.mean_power)


def hat_functions(radius: Tensor) -> Tensor:
    """Evaluate functions of cycles a pixel that are 1 at one knot and linear to 0 at the next, `(*shape, 14)`."""
    at = torch.arange(len(FREQUENCIES), dtype=radius.dtype, device=radius.device)
    return (1 - (_position(radius)[..., None] - at).abs()).clamp_min(0)


def _position(radius: Tensor) -> Tensor:
    """Give the number of the knot at each frequency, with a fraction in between."""
    return ((radius - FREQUENCIES[0]) / (FREQUENCIES[1] - FREQUENCIES[0])).clamp(0, len(FREQUENCIES) - 1)


def _fit(power: Tensor, count: Tensor, basis: SpectrumBasis, noise: Tensor) -> tuple[list[float], float]:
    """Fit scene and noise; gives the logarithms of the noise at the knots and the misfit.

    Each of n bins has the power of the data and a number of independent coefficients; the noise has functions `(n, K)`.
    """
    gain, scene = basis.gain, basis.scene
    center = power.new_zeros(scene.shape[1])
    spread = torch.full_like(center, _ANGULAR_SPREAD)
    center[-1] = _SLOPE + _SLOPE_PER_AXIS * (basis.n_axes - 2)
    spread[0], spread[-1] = _CONSTANT_SPREAD, _SLOPE_SPREAD
    n_scene = len(center)
    middle, precision = _expected_noise(noise.shape[1], power)
    ridge = torch.block_diag(torch.diag(spread.square().reciprocal()), precision)
    middle = torch.cat([center, middle])
    parameters = middle.clone()
    parameters[n_scene:] = power.quantile(0.1).clamp_min(1e-30).log()
    shape = (scene @ center).exp() * gain
    weight = (count * gain).clamp_min(0)
    parameters[0] = ((power * weight).sum() / (shape * weight).sum()).clamp_min(1e-30).log()
    for _ in range(_N_STEPS):
        signal = gain * (scene @ parameters[:n_scene]).clamp(-80, 80).exp()
        expected = signal + (noise @ parameters[n_scene:]).clamp(-80, 80).exp()
        share = signal / expected
        weight = count / (1 + count * (_MISFIT * share).square())
        slopes = torch.cat([share[:, None] * scene, (1 - share)[:, None] * noise], dim=1)
        step = scoring_step(slopes, weight, power / expected, ridge, parameters - middle).clamp(-1.0, 1.0)
        parameters = parameters + step
        if synchronize.as_number(step.abs().max()) < _CONVERGED:
            break
    ratio = power / expected
    departure = parameters - middle
    misfit = (2 * weight * (ratio - 1 - ratio.clamp_min(1e-30).log())).sum() + departure @ ridge @ departure
    return synchronize.as_numbers(parameters[n_scene:]), synchronize.as_number(misfit)


def scoring_step(slopes: Tensor, weight: Tensor, ratio: Tensor, ridge: Tensor, departure: Tensor) -> Tensor:
    """Compute a step of Fisher scoring for m logarithms of powers, shape `(m,)`.

    Each of n components has the slopes `(n, m)` of the logarithm of its expected power, a weight, and the ratio of
    measured to expected power. The prior has the precision `ridge`, `(m, m)`; `departure` is from its mean.
    """
    gradient = slopes.T @ (weight * (1 - ratio)) + ridge @ departure
    curvature = slopes.T @ (weight[:, None] * slopes) + ridge
    # Without noise, or without a scene, nothing curves along some parameter.
    diagonal = curvature.diagonal()
    step: Tensor = torch.linalg.solve(curvature + torch.diag(1e-9 * (diagonal + diagonal.max()) + 1e-30), -gradient)
    return step


def _expected_noise(n_noise: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Give the prior of the levels of the noise relative to the first: means and precision."""
    if n_noise == 1:
        return like.new_zeros(1), like.new_zeros(1, 1)
    steps = torch.eye(n_noise, dtype=like.dtype, device=like.device).diff(dim=0)
    departures = steps / like.new_tensor(_STEP_SPREADS)[:, None]
    return torch.cat([like.new_zeros(1), like.new_tensor(_STEPS)]).cumsum(0), departures.T @ departures
