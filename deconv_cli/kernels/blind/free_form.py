"""A kernel of free form from one blurred picture, by ascent on the marginal likelihood, coarse to fine.

Of image and kernel together no blur is the likeliest, of the kernel alone the true one is (Levin, Weiss, Durand and
Freeman, Understanding and evaluating blind deconvolution algorithms, CVPR 2009). So the sharp derivatives x behind the
blurred ones y are a distribution: variational Bayes for y = t ⋆ x + noise, with one independent Gaussian of its own
variance γ for each derivative, and a hyperprior 1 / γ (Wipf and Zhang, Revisiting Bayesian blind deconvolution, Journal
of Machine Learning Research 15, 2014; Babacan, Molina, Do and Katsaggelos, Bayesian blind deconvolution with general
sparse image priors, ECCV 2012).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2
from torch.nn.functional import avg_pool2d, interpolate

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.nonnegative_taps import minimize_over_kernels
from deconv_cli.measured_light import center_of_mass
from deconv_cli.operators.axes import squared_modulus
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
        mean: of the posterior, on a torus that holds the `(2, H + k − 1, W + k − 1)` visible derivatives.
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
        power = squared_modulus(spectrum).sum(0)
        lags = irfft2(power + 0j, s=self._torus).double()
        apart = torch.arange(k)[:, None] - torch.arange(k)
        rows, columns = apart % self._torus[0], apart % self._torus[1]
        gram = lags[rows[:, None, :, None], columns[None, :, None, :]].reshape(k * k, k * k)
        gram = gram + variance * torch.eye(k * k, dtype=gram.dtype)
        residual = rfft2(self.y - self._blurred(spectrum), s=self._torus)
        descent = irfft2((spectrum * residual.conj()).sum(0), s=self._torus)[:k, :k].double().flatten()
        start = self.taps.double().flatten()
        moment = gram @ start + descent - variance * start
        step = 1 / float(gram.abs().sum(1).max())  # no eigenvalue exceeds the largest sum of a row's sizes
        found = minimize_over_kernels(lambda taps: gram @ taps - moment, step, start)
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


MAX_SIZE = 63
"""Taps a side."""
_CROP = 400
"""Pixels a side of the part of the picture that is looked at."""
_N_TIMES_KERNEL = 3
"""Least size of a picture, in sizes of the kernel."""
_N_ITERATIONS = 15
_N_KEPT = ((5, 8), (9, 3), (13, 2), (MAX_SIZE, 1))
"""Largest number of taps a side at a scale: number of candidates that are followed further."""
_CORNER = ((0.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
_DIAGONAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
_LEANING = 0.8
"""Share of a first kernel that is not the family's: one that equals itself turned by half a circle would stay so."""
_LEAST_TAP = 0.03
"""Of the largest; what is smaller is noise."""
_LEAST_NOISE = 0.02
"""Of the root mean square of the derivatives: rounding, and what no model has."""
_NOISE_MARGIN = 2.0
"""Noise at which the ascent ends, in standard deviations: independent derivatives explain less than the scene holds."""
_MEDIAN_OF_NORMAL = 0.6745


@dataclass(frozen=True, eq=False)
class FreeForm:
    """A kernel of free form.

    Attributes:
        taps: of a cross-correlation, as every kernel here: `flip((0, 1))` gives the point-spread function. Shape
            `(k, k)`, float64, k odd, none negative, sum 1. Where it lies cannot be known from a picture: the center of
            mass is on the middle tap, to half a pixel, so that k may differ from the size that was given.
        noise_sigma: standard deviation of the noise, in units of the light.
        n_scales: how many scales were gone through.
        n_iterations: of the ascent, on all scales together.
        part: rows and columns of the picture that were looked at.
    """

    taps: Tensor
    noise_sigma: float
    n_scales: int
    n_iterations: int
    part: tuple[slice, slice]


def free_form(light: Tensor, start: Tensor, *, size: int) -> FreeForm:
    """Estimate a kernel from its support only, without a formula.

    The light is a luminance `(H, W)`. The ascent starts on the coarsest scale at the taps of the best of the families.
    `size` are the taps a side of the support, odd; somewhat more than the blur reaches. A size that is even, below 3,
    or above `MAX_SIZE` is a `UsageError`, a picture too small for the kernel a `ShapeError`, a constant one a
    `MalformedInputError`.
    """
    _check(light, size)
    part = _richest_part(light, _CROP)
    light = light[part].float()
    # The finest diagonal detail of a blurred picture is mostly noise.
    sigma = float((light.diff(dim=0).diff(dim=1) / 2).abs().median()) / _MEDIAN_OF_NORMAL
    scales = pyramid(size)
    candidates, last = _first_kernels(resampled(start.float(), scales[0][0], 1 / scales[0][1])), scales[0][1]
    n_iterations = 0
    for n_taps, factor in scales:
        y = _derivatives(_coarser(light, factor))
        moved = [boxed(resampled(taps, n_taps, last / factor)) for taps in candidates]
        found = sorted((_ascend(y, taps, sigma) for taps in moved), key=lambda pair: pair[0])
        n_iterations += _N_ITERATIONS * len(moved)
        n_kept = next(n for most_taps, n in _N_KEPT if n_taps <= most_taps)
        candidates, last = [taps for _, taps in found[:n_kept]], factor
    best = candidates[0].double()
    return FreeForm(balanced(best / best.sum()), sigma, len(scales), n_iterations, part)


def _first_kernels(start: Tensor) -> list[Tensor]:
    """Make kernels of 3 × 3 taps that lean to each side: the power of a picture does not distinguish mirror images."""
    seeds = [torch.tensor(seed) for seed in (_CORNER, _DIAGONAL)]
    turned = [seed.rot90(turn, (0, 1)) / seed.sum() for seed in seeds for turn in range(4)]
    return [_LEANING * seed + (1 - _LEANING) * start for seed in turned]


def _ascend(y: Tensor, taps: Tensor, sigma: float) -> tuple[float, Tensor]:
    """Climb on one scale from taps `(k, k)`, by derivatives `(2, H, W)`; gives the free energy and the kernel."""
    least = max(2 * (_NOISE_MARGIN * sigma) ** 2, _LEAST_NOISE**2 * float(y.square().mean()))
    posterior = SharpDerivatives(y, taps)
    for _ in range(_N_ITERATIONS):
        posterior.update_image()
        posterior.update_kernel()
        posterior.update_noise(least)
    taps = posterior.taps
    return posterior.free_energy(), _unit_sum(torch.where(taps < _LEAST_TAP * taps.max(), 0, taps))


def _derivatives(light: Tensor) -> Tensor:
    """Take differences of neighbors along both axes: `(H, W)`, to `(2, H − 1, W − 1)`."""
    return torch.stack([light[:-1].diff(dim=1), light[:, :-1].diff(dim=0)])


def _coarser(light: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return light
    size = [max(8, int(n / factor)) for n in light.shape]
    return interpolate(light[None, None], size=size, mode="bilinear", antialias=True, align_corners=False)[0, 0]


def _richest_part(light: Tensor, size: int) -> tuple[slice, slice]:
    """Find the square that holds most edges and next to no pixel at the brightest value, where light is cut off."""
    height, width = (min(n, size) for n in light.shape)
    if light.shape == (height, width):
        return slice(0, height), slice(0, width)
    edges = _derivatives(light.float()).abs().sum(0)
    bright = (light[:-1, :-1] >= light.max()).float()
    planes = torch.stack([edges, bright])[None]
    window, stride = (height - 1, width - 1), max(size // 8, 1)
    found, saturated = avg_pool2d(planes, window, stride)[0]
    score = found / (1 + 100 * saturated)
    row, column = divmod(int(score.argmax()), score.shape[1])
    return slice(row * stride, row * stride + height), slice(column * stride, column * stride + width)


def _check(light: Tensor, size: int) -> None:
    if size % 2 == 0 or not 3 <= size <= MAX_SIZE:
        raise UsageError(f"the support of a free kernel must be odd, from 3 to {MAX_SIZE} taps, but is {size}.")
    least = _N_TIMES_KERNEL * size
    if min(light.shape) < least:
        raise ShapeError(
            f"a kernel of {size} × {size} taps needs a picture of at least {least} × {least} pixels, but it has "
            f"{light.shape[0]} × {light.shape[1]}; use a smaller support."
        )
    if float(light.max()) <= float(light.min()):
        raise MalformedInputError("the picture is constant, so it shows no blur.")


_STEP = math.sqrt(2)
_LEAST_SIZE = 3


def pyramid(size: int) -> list[tuple[int, float]]:
    """List the scales for `size` taps a side, the coarsest first: taps a side there, and how many pixels are one."""
    scales = [(size, 1.0)]
    while scales[-1][0] > _LEAST_SIZE:
        factor = _STEP ** len(scales)
        taps = 2 * (math.ceil(size / factor) // 2) + 1
        scales.append((min(taps, scales[-1][0]), factor))
    return scales[::-1]


def resampled(taps: Tensor, size: int, ratio: float) -> Tensor:
    """Draw a kernel `(kH, kW)` `ratio` times as large about its middle: `(size, size)`, of sum 1.

    The taps are uniform if nothing of the kernel falls on the support.
    """
    rows, columns = (_hats(n, size, ratio).to(taps) for n in taps.shape)
    return _unit_sum(rows @ taps @ columns.T)


def _hats(n_taps: int, size: int, ratio: float) -> Tensor:
    """Interpolate linearly, or average where the result is coarser: shape `(size, n_taps)`."""
    wanted = (torch.arange(size) - (size - 1) / 2) / ratio
    given = torch.arange(n_taps) - (n_taps - 1) / 2
    return (1 - (wanted[:, None] - given).abs() * min(1.0, ratio)).clamp_min(0)


def boxed(taps: Tensor) -> Tensor:
    """Move taps, shape `(k, k)`, so that the box around those that are not zero lies in the middle of the support."""
    shifts = []
    for axis in (0, 1):
        used = torch.nonzero(taps.sum(1 - axis) > 0).flatten()
        shifts.append(int((len(taps) - 1 - used[0] - used[-1]) // 2))
    # The box fits, so that nothing wraps around.
    return taps.roll(shifts, (0, 1))


def balanced(taps: Tensor) -> Tensor:
    """Cut zeros off taps `(k, k)`, or add them, so that the center of mass lies on the middle tap, to half a pixel.

    The result is the smallest square of odd size that holds them.
    """
    used = torch.nonzero(taps)
    center = [round(float(at)) for at in center_of_mass(taps)]
    reach = max(int((used[:, axis] - center[axis]).abs().max()) for axis in (0, 1))
    moved = taps.new_zeros(2 * reach + 1, 2 * reach + 1)
    moved[used[:, 0] - center[0] + reach, used[:, 1] - center[1] + reach] = taps[used[:, 0], used[:, 1]]
    return moved


def _unit_sum(taps: Tensor) -> Tensor:
    total = float(taps.sum())
    return taps / total if total > 0 else torch.full_like(taps, 1 / taps.numel())
