"""The spectrum of the noise, told from that of the blurred scene in one picture.

What is seen at a frequency θ has the power E P(θ) = S(θ)|K(θ)|² + N(θ). The scene's power S falls with a power of
frequency and has a slow function of direction, as in `image_model.py`; log N is linear in |θ| between knots, and goes
on at its level at low frequencies, where the scene hides it. Compression, demosaicing and smoothing in cameras leave
noise that is weaker at high frequencies than at low ones: a coefficient that is rounded errs by as much as its divisor
allows, but one that is rounded to zero by no more than itself.
Both are fitted by the largest quasi-likelihood of a periodogram that is averaged in polar bins (Whittle, "Estimation
and information in stationary time series", Arkiv för Matematik 2, 1953; Wedderburn, "Quasi-likelihood functions,
generalized linear models, and the Gauss-Newton method", Biometrika 61, 1974), by Fisher scoring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.hann_window import FadedImages
from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.diagnostics.polar_bins import LOWEST, PolarBins, polar_bins
from deconv_cli.diagnostics.torus_modes import symbol_at
from deconv_cli.noise_model import FREQUENCIES, NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_spectrum, space_axes
from deconv_cli.operators.circulant import to_float64
from deconv_cli.vocabulary import Size

# Neighboring coefficients under a Hann window are not independent: a sum of n of them scatters like one of n / 3.8.
_DEPENDENCE_BY_AXIS = 35 / 18
# The scene of a picture departs from a power law by about its own size.
_MISFIT = 1.0
_SLOPE, _SLOPE_PER_AXIS = -1.2, -0.5
_CONSTANT_SPREAD, _ANGULAR_SPREAD, _SLOPE_SPREAD = 1e3, 0.7, 0.3
# By how much log N changes from knot to knot, and how far it departs from that. What rounds a strong coefficient errs
# alike at all frequencies, and weak ones, at high frequencies, by no more than themselves: of the noise of 55 JPEG
# files of 18 photographs the first four steps were 0.0 ± 0.2 and the others -0.4 ± 0.2.
_STEPS = (*(0.0,) * 4, *(-0.4,) * 9)
_STEP_SPREADS = (*(0.1,) * 4, *(0.5,) * 9)
_N_STEPS = 60
_CONVERGED = 1e-4
# White noise is given up where its misfit is larger by so much, and levels that the data show well differ by at least
# this factor: of white noise in 216 pictures none had more than 25; of 72 JPEG files 61 had more than 60 and a factor
# of 2.3, and the others, whose noise exceeds the divisors, at most 26.
_EVIDENCE = 35.0
_LEAST_RATIO = 2.0
_SHOWN = slice(3, 11)
# Noise is as large under any window; what leaks of a scene without noise to frequencies that the kernel hides is not.
# Of σ under one window its square left 0.89 and more where there was noise, and 0.09 and less where there was none; of
# other photographs 0.52 and 0.24. The bound is near the geometric middle of either pair.
_SQUARED = 2
_LEAST_LEFT = 0.3


@dataclass(frozen=True, eq=False)
class SpectrumBasis:
    """What a kernel and the size of the data decide of a fit: polar bins, and what is fitted in them.

    Attributes:
        bins: n of them.
        gain: |K|² in each, shape `(n,)`.
        scene: functions whose sum is the logarithm of the scene's power, shape `(n, m)`.
        noise: the same for the noise, shape `(n, 14)`.
        n_axes: of space.
    """

    bins: PolarBins
    gain: Tensor
    scene: Tensor
    noise: Tensor
    n_axes: int

    @classmethod
    def of(cls, taps: Tensor, size: Size) -> SpectrumBasis:
        """Lay out the bins of a size, and average the gain of taps `(C_out, C_in, *k)` in them."""
        wide = to_float64(taps.detach())
        bins = polar_bins(size, wide.dtype, wide.device)
        numbers = tuple(torch.arange(n, device=wide.device) for n in half_spectrum(size))
        gain = squared_modulus(symbol_at(wide, size, numbers)).sum(dim=-1).mean(dim=-1)
        radius = bins.radius
        scene = torch.stack([torch.ones_like(radius), *bins.directions, 2 * (2 * math.pi * radius).log()], dim=-1)
        return cls(bins, bins.mean(gain), scene, hat_functions(radius), len(size))


@dataclass(frozen=True, eq=False)
class _Bins:
    """A periodogram in polar bins, each of shape `(n,)`, the bases `(n, m)` and `(n, 14)`."""

    power: Tensor
    gain: Tensor
    count: Tensor
    scene: Tensor
    noise: Tensor
    n_axes: int


def fit_noise_spectrum(
    y: Tensor,
    basis: SpectrumBasis,
    *,
    is_colored: bool = False,
    observed_share: float = 1.0,
    faded: FadedImages | None = None,
) -> NoiseModel:
    """Find the noise in data that a kernel made of a scene.

    Args:
        y: shape `(n, C_out, *size)`.
        basis: of the kernel, for this size.
        is_colored: the noise is known not to be white, from elsewhere.
        observed_share: the part of the data that is noisy; the rest is predicted from an estimate.
        faded: the same data under a window, where others look at them too.

    Returns:
        The size and the spectrum of the noise; white noise of unknown size where that explains the data as well, or
        where what was found is but the scene's own light, spread by the window.
    """
    bins, white = _binned(y, basis, faded), NoiseModel(source="auto")
    if bins is None:
        return white
    knots, misfit = _fit(bins, bins.noise)
    levels = synchronize.as_numbers(knots)
    if not (is_colored or _show_color(levels, misfit, bins)):
        return white
    mean = _mean_power(levels, y)
    if not is_colored:
        squared = _binned(y, basis, fade=_SQUARED)
        if squared is not None:
            knots, _ = _fit(squared, squared.noise)
            if _mean_power(synchronize.as_numbers(knots), y) < _LEAST_LEFT**2 * mean:
                return white
    return replace(
        white, sigma=math.sqrt(mean / observed_share), spectrum=tuple(math.exp(level) / mean for level in levels)
    )


def _show_color(levels: Sequence[float], misfit: float, bins: _Bins) -> bool:
    """Tell whether levels of noise differ where the data show them well, and white noise explains the data worse."""
    shown = levels[_SHOWN]
    if max(shown) - min(shown) < math.log(_LEAST_RATIO):
        return False
    _, misfit_of_flat = _fit(bins, torch.ones_like(bins.noise[:, :1]))
    return misfit_of_flat - misfit >= _EVIDENCE


def _mean_power(levels: Sequence[float], y: Tensor) -> float:
    """Give the power of noise in data `(n, C, *size)`, of the logarithms of its spectrum."""
    power = interpolated([math.exp(level) for level in levels], tuple(y.shape[2:]), to_float64(y), is_whole=True)
    return synchronize.as_number(power.mean())


def interpolated(spectrum: Sequence[float], torus: Size, like: Tensor, *, is_whole: bool = False) -> Tensor:
    """Evaluate powers that are given at `FREQUENCIES` on a torus.

    Args:
        spectrum: powers; their logarithm is linear in between, and constant beyond.
        torus: `(N1, N2, ...)`.
        like: has the dtype and the device that is wanted.
        is_whole: at all frequencies, and not at those of `torch.fft.rfftn` alone.

    Returns:
        Shape `(*torus[:-1], torus[-1] // 2 + 1)`, or that of the torus.
    """
    squared = like.new_zeros(1)
    for axis, length in enumerate(torus):
        is_half = axis == len(torus) - 1 and not is_whole
        frequencies = (torch.fft.rfftfreq if is_half else torch.fft.fftfreq)(length, device=like.device)
        squared = squared[..., None] + frequencies.to(like.dtype).square()
    logarithms = like.new_tensor([math.log(power) for power in spectrum])
    position = _position(squared[0].sqrt())
    lower = position.long().clamp_max(len(spectrum) - 2)
    rise = logarithms.diff()[lower]
    return (logarithms[lower] + rise * (position - lower)).exp()


def passed_sigma(model: NoiseModel, taps: Tensor, y: Tensor) -> float:
    """Compute how large noise is at the frequencies that a kernel passes, each counted by |K|.

    Args:
        model: what kind of noise, and how large it is on average.
        taps: shape `(C_out, C_in, *k)`.
        y: the data, shape `(*batch, C, *size)`.
    """
    assert model.sigma is not None
    if model.is_white:
        return model.sigma
    size: Size = tuple(y.shape[2 - taps.ndim :])
    numbers = tuple(torch.arange(n, device=y.device) for n in size)
    symbol = symbol_at(to_float64(taps.detach()), size, numbers)
    gain = squared_modulus(symbol).sum(dim=-1).mean(dim=-1).sqrt()
    power = interpolated(model.spectrum, size, gain, is_whole=True)
    return model.sigma * math.sqrt(synchronize.as_number((power * gain).sum() / gain.sum()))


def draw_noise(model: NoiseModel, like: Tensor, seed: int, n_axes: int = 2) -> Tensor:
    """Draw noise of the spectrum of a model with σ = 1, as much as in `like` of shape `(*batch, C, *size)`.

    Args:
        model: what kind of noise.
        like: has the shape, the dtype and the device that is wanted.
        seed: of the random numbers.
        n_axes: axes of space.
    """
    white = synchronize.normal_numbers(like, tuple(like.shape), seed)
    if model.is_white:
        return white
    size: Size = tuple(like.shape[-n_axes:])
    power, axes = interpolated(model.spectrum, size, like), space_axes(n_axes)
    return torch.fft.irfftn(torch.fft.rfftn(white, dim=axes) * power.sqrt(), s=size, dim=axes)


def _binned(y: Tensor, basis: SpectrumBasis, faded: FadedImages | None = None, fade: int = 1) -> _Bins | None:
    n_axes, bins = basis.n_axes, basis.bins
    if len(bins.count) < 4 * len(FREQUENCIES):
        return None
    # The mean is seen at the first frequency of each axis too, which the bins of larger data leave out.
    if faded is None or math.hypot(*(1 / n for n in y.shape[2:])) >= LOWEST:
        wide = to_float64(y)
        faded = FadedImages(wide - wide.mean(dim=space_axes(n_axes), keepdim=True), fade)
    count = bins.count * (y.shape[0] * y.shape[1] / _DEPENDENCE_BY_AXIS**n_axes)
    return _Bins(bins.mean(faded.mean_power), basis.gain, count, basis.scene, basis.noise, n_axes)


def hat_functions(radius: Tensor) -> Tensor:
    """Evaluate the functions of |θ| that are 1 at one knot and linear to 0 at the next, shape `(*radius.shape, 14)`.

    Args:
        radius: cycles a pixel, any shape; below the first and beyond the last knot the functions are constant.
    """
    at = torch.arange(len(FREQUENCIES), dtype=radius.dtype, device=radius.device)
    return (1 - (_position(radius)[..., None] - at).abs()).clamp_min(0)


def _position(radius: Tensor) -> Tensor:
    """Give the number of the knot at each frequency, with a fraction in between."""
    return ((radius - FREQUENCIES[0]) / (FREQUENCIES[1] - FREQUENCIES[0])).clamp(0, len(FREQUENCIES) - 1)


def _fit(bins: _Bins, noise: Tensor) -> tuple[Tensor, float]:
    """Fit scene and noise; gives the logarithms of the noise, shape `(K,)`, and the misfit."""
    like = bins.power
    center = like.new_zeros(bins.scene.shape[1])
    spread = torch.full_like(center, _ANGULAR_SPREAD)
    center[-1] = _SLOPE + _SLOPE_PER_AXIS * (bins.n_axes - 2)
    spread[0], spread[-1] = _CONSTANT_SPREAD, _SLOPE_SPREAD
    n_scene, n_noise = len(center), noise.shape[1]
    middle, precision = _expected_noise(n_noise, like)
    ridge = torch.block_diag(torch.diag(spread.square().reciprocal()), precision)
    middle = torch.cat([center, middle])
    lowest = bins.power.quantile(0.1).clamp_min(1e-30).log()
    parameters = middle.clone()
    parameters[n_scene:] = lowest
    shape = (bins.scene @ center).exp() * bins.gain
    weight = (bins.count * bins.gain).clamp_min(0)
    parameters[0] = ((bins.power * weight).sum() / (shape * weight).sum()).clamp_min(1e-30).log()
    for _ in range(_N_STEPS):
        signal = bins.gain * (bins.scene @ parameters[:n_scene]).clamp(-80, 80).exp()
        level = (noise @ parameters[n_scene:]).clamp(-80, 80).exp()
        expected = signal + level
        share = signal / expected
        weight = bins.count / (1 + bins.count * (_MISFIT * share).square())
        slopes = torch.cat([share[:, None] * bins.scene, (1 - share)[:, None] * noise], dim=1)
        gradient = slopes.T @ (weight * (1 - bins.power / expected)) + ridge @ (parameters - middle)
        curvature = slopes.T @ (weight[:, None] * slopes) + ridge
        # Where there is no noise, or no scene, nothing curves along some parameter.
        diagonal = curvature.diagonal()
        curvature = curvature + torch.diag(1e-9 * (diagonal + diagonal.max()) + 1e-30)
        step = torch.linalg.solve(curvature, -gradient).clamp(-1.0, 1.0)
        parameters = parameters + step
        if synchronize.as_number(step.abs().max()) < _CONVERGED:
            break
    ratio = bins.power / expected
    departure = parameters - middle
    misfit = (2 * weight * (ratio - 1 - ratio.clamp_min(1e-30).log())).sum() + departure @ ridge @ departure
    return parameters[n_scene:], synchronize.as_number(misfit)


def _expected_noise(n_noise: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Say what noise is before anything was seen: means and precision of its levels, but for the first."""
    if n_noise == 1:
        return like.new_zeros(1), like.new_zeros(1, 1)
    steps = torch.eye(n_noise, dtype=like.dtype, device=like.device).diff(dim=0)
    departures = steps / like.new_tensor(_STEP_SPREADS)[:, None]
    return torch.cat([like.new_zeros(1), like.new_tensor(_STEPS)]).cumsum(0), departures.T @ departures
