"""From settings and data to an estimate: choose λ or a weight, build the estimator, keep the linear ones, apply it.

`diagnostics/lambda_choice.py` chooses λ of one kernel. A kernel that varies gives one λ at
each of several places; the median of those costs 1 % of the least error, and at most 13 %, where the middle kernel on
all data costs 134 % (160 × 160 pixels of five photographs, strokes and Gaussians at nine places, noise of 0.7 and 4).

For the total variation: if |∇x| is exponential, of the mean b, the likeliest image has the weight σ²/b. The quadratic
estimate gives b, with a λ that is chosen from the same data: with a smaller λ its edges are those of the noise. A
weight of σ removes all noise, and a larger one removes only edges, so w is σ²/(b + σ), with the σ of the noise that the
kernel passes. On JPEG files of 21 photographs this weight lost 0.4 dB to the best one in the median and 0.9 dB at
worst; one for the edges of an estimate with λ = 0.001 up to 9 dB; and one that leaves as much unexplained as the noise
up to 13 dB.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import LambdaChoice, choose_lambda
from deconv_cli.diagnostics.noise_level import estimate_gain, estimate_noise
from deconv_cli.diagnostics.noise_spectrum import passed_sigma
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.diagnostics.stored_samples import estimate_jpeg_noise
from deconv_cli.errors import TooLargeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.operators.synchronize import free_memory
from deconv_cli.parts import PRIORS
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.clipped import CLOSE_TOLERANCE, DEFAULT_TOLERANCE, solve_clipped
from deconv_cli.solvers.estimator import Estimator, Prior
from deconv_cli.solvers.photo_prior import PhotoEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Solution, StoppingRule
from deconv_cli.solvers.total_variation import check_noise
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import LONG, ROUNDING_NOISE, LambdaRule, Size, format_size
from deconv_cli.workflows.noise_of_data import measure_noise_of_channels
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.resolve_settings import ResolvedInput

MAX_PLACES = 3
"""Places at most along each axis of a field."""
WINDOW = 0.25
"""Size of the piece of the data in which the kernel of a place applies, relative to the distance of its neighbors."""
MIN_SIDE, MIN_KERNELS = 32, 3
"""Least size of a piece, in samples, and relative to the kernel."""
_EDGES_TOLERANCE = 1e-3
"""Of the quadratic estimate whose edges give the weight of the total variation."""
EIGHT_BITS = 255
"""White of samples whose rounding and compression are a large part of the noise, and vary with the light."""


def settle_lambda(
    data: Tensor, kernel: Kernel, resolution: ResolvedInput, step: float, is_clipped: Tensor | None
) -> tuple[LambdaChoice | None, ResolvedInput]:
    """Choose λ from data without the bias if the resolution leaves it open; give the choice, and the resolution.

    `step` is the distance of neighboring values that a sample can have.
    """
    if not resolution.chooses_lambda:
        return None, resolution
    is_even = resolution.tone_curve is None or resolution.tone_curve.white > EIGHT_BITS
    settings, least_sigma = resolution.settings, step * ROUNDING_NOISE
    choice = choose_lambda_of_data(data.detach(), kernel, settings, least_sigma, is_clipped, is_noise_even=is_even)
    settings, reasons = replace(settings, lam=choice.lam), replace(resolution.reasons, lam=choice.reason)
    return choice, replace(resolution, settings=settings, reasons=reasons, chooses_lambda=False)


def choose_lambda_of_data(
    y: Tensor,
    kernel: Kernel,
    settings: ResolvedSettings,
    least_sigma: float,
    is_clipped: Tensor | None = None,
    *,
    is_noise_even: bool = True,
) -> LambdaChoice:
    """Choose λ, by the rule of the settings, whose noise is a model.

    The data `(*batch, C_out, *size)` have no bias and no graph; `is_clipped` marks samples that are only lower bounds,
    and `least_sigma` bounds an estimate of the noise, as rounding does. The noise is even if it is as large in dark
    places as in bright ones. A kernel that is larger than the data along every axis, or that of a layer with a stride,
    is a `UsageError`.
    """
    if kernel.field is not None:
        choose = partial(choose_lambda_of_data, least_sigma=least_sigma, is_noise_even=is_noise_even)
        if kernel.field.grid == (1, 1):
            return choose(y, replace(kernel, field=None), settings, is_clipped=is_clipped)
        geometry = Geometry.of_output(tuple(y.shape[-2:]), kernel.size, settings.padding)
        every = kernel.field.taps.flatten(0, 1)
        largest = max(kernel_spectrum(taps[None, None], geometry.image_size).sigma_max for taps in every)
        choices = []
        for single, start, size in _places(kernel, geometry):
            piece, bounds = (None if part is None else crop(part, start, size) for part in (y, is_clipped))
            assert piece is not None
            # A piece shows part of a larger scene, whatever lies outside the whole.
            found = choose(piece, single, replace(settings, boundary="unknown"), is_clipped=bounds)
            scale = kernel_spectrum(single.taps, size).sigma_max / largest
            choices.append(replace(found, lam=found.lam * scale**2))
        choices.sort(key=lambda choice: choice.lam)
        return replace(choices[(len(choices) - 1) // 2], n_places=len(choices))
    if not kernel.layer.is_plain:
        raise UsageError(
            "λ, or the weight of the total variation, is chosen from data only for plain convolutions, but this layer "
            f"has {kernel.layer.describe()}; give a number, such as lam=1e-3, or weight=0.1 for prior tv."
        )
    size = tuple(y.shape[-kernel.n_axes :])
    if all(n_taps > max(n, LONG) for n_taps, n in zip(kernel.size, size, strict=True)):
        raise UsageError(
            f"λ cannot be chosen from {format_size(size)} samples, since the kernel of {format_size(kernel.size)} "
            "taps is larger; give λ, such as lam=1e-3."
        )
    assert isinstance(settings.noise, NoiseModel)
    extension = PeriodicExtension(
        replace(kernel, taps=kernel.taps.detach()),
        size,
        boundary=settings.boundary,
        penalty=spaced_penalty(settings.penalty, settings.spacing),
        max_memory=settings.max_memory,
        noise=settings.noise,
    )
    rule = settings.lambda_rule or (LambdaRule.GCV if is_noise_even else None)
    return choose_lambda(extension, y, is_clipped, rule=rule, sigma=settings.noise_sigma, least_sigma=least_sigma)


def _places(kernel: Kernel, geometry: Geometry) -> list[tuple[Kernel, Size, Size]]:
    """List a few places of a field, the outermost among them.

    For each place: the kernel, and the start and size of the piece of data around it.
    """
    field, places = kernel.field, []
    assert field is not None
    numbers = [
        list(range(n)) if n <= MAX_PLACES else [round(step * (n - 1) / (MAX_PLACES - 1)) for step in range(MAX_PLACES)]
        for n in field.grid
    ]
    for i in numbers[0]:
        for j in numbers[1]:
            boxes = [_interval(geometry, axis, at) for axis, at in enumerate(((i, field.rows), (j, field.columns)))]
            starts, sizes = zip(*boxes, strict=True)
            places.append((replace(kernel, taps=field.taps[i, j][None, None], field=None), starts, sizes))
    return places


def _interval(geometry: Geometry, axis: int, place: tuple[int, tuple[float, ...]]) -> tuple[int, int]:
    """Return start and size of the outputs around a place: up to a quarter of the way to the next place or the edge."""
    at, centers = place
    n, length = geometry.output_size[axis], geometry.image_size[axis]
    shift = geometry.pads.before[axis] - (geometry.kernel_size[axis] - 1) / 2
    before, after = ([0.0, *centers][at], [*centers, 1.0][at + 1])
    least = max(MIN_SIDE, MIN_KERNELS * geometry.kernel_size[axis])
    size = min(n, max(least, round(WINDOW * (after - before) * length)))
    start = round(centers[at] * length + shift - size / 2)
    return min(max(start, 0), n - size), size


@torch.no_grad()
def find_variation_weight(y: Tensor, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> float:
    """Find w in ½‖Ax − y‖² + w·TV(x), one for all images of a batch, in the unit of the samples.

    The outputs `(*batch, C_out, *size)` have no bias and no graph; the noise of the settings is a model. Data without
    noise are a `UsageError`.
    """
    assert isinstance(settings.noise, NoiseModel)
    sigma = settings.noise.sigma or estimate_noise(y, kernel.n_axes)
    check_noise(y, sigma)
    noise = replace(settings.noise, sigma=sigma)
    passed = passed_sigma(noise, kernel.taps, y)
    quadratic = replace(
        settings,
        prior="quadratic",
        penalty="gradient",
        weight=None,
        iterations=None,
        tolerance=_EDGES_TOLERANCE,
        noise=noise,
    )
    lam = choose_lambda_of_data(y, kernel, quadratic, 0.0).lam
    inverse = PseudoInverse(kernel, image_size, replace(quadratic, lam=lam, noise=None))
    edges = inverse.problem.penalty_operator.forward(inverse.approximate(y))
    # Squared by hand: a norm along the first axis of space takes as long as twenty such sums.
    mean = edges.square().sum(dim=-inverse.n_dims - 1).sqrt().mean()
    return passed**2 / (synchronize.as_number(mean) + passed)


EVEN, CURVED = 0.45, 0.65
"""Factors on the noise for prior photo: of even noise, and after a tone curve was undone. Best on
photographs of scikit-image and scikit-learn, under four kernels and two noise levels, and under six kernels as JPEG."""
SLOPE_STEPS = 50
"""The slope of a tone curve is taken over this fraction of its range to either side."""


def build_estimator(
    kernel: Kernel, image_size: Size, settings: ResolvedSettings, y: Tensor, curve: ToneCurve | None = None
) -> Estimator:
    """Build the estimator of another objective than the quadratic one, from outputs `(*batch, C_out, *size)`.

    The outputs have no bias; the noise of the settings is a model; `curve` was undone on the outputs.
    """
    prior: Prior = PRIORS[settings.objective]
    needed, data = prior.needs(settings), y.detach()
    estimate: float | Tensor | None = None
    if needed == "noise map":
        settings, estimate = _settled_noise(data, kernel, settings, curve)
    elif needed == "weight":
        estimate = find_variation_weight(data, kernel, image_size, settings)
    elif needed == "gain":
        estimate = estimate_gain(data, kernel.n_axes)
    elif needed is not None:
        known = settings.noise.sigma if isinstance(settings.noise, NoiseModel) else None
        estimate = known or estimate_noise(data, kernel.n_axes)
    return prior.build(kernel, image_size, settings, estimate)


def solve(
    estimator: Estimator,
    data: Tensor,
    filled: Tensor,
    is_clipped: Tensor | None,
    resolution: ResolvedInput,
    listener: ProgressListener,
) -> tuple[Solution, float, Tensor | None]:
    """Apply an estimator to data without the bias; saturated samples are lower bounds where it can use bounds.

    `filled` are the data with saturated samples filled in. Gives the solution, the certificate that it had to reach,
    and which samples were bounds, arranged for the estimator; `None` for none.
    """
    settings, tolerance = resolution.settings, estimator.tolerance
    if isinstance(estimator, PseudoInverse) and estimator.problem.lam == 0:
        is_clipped = None
    if is_clipped is not None and isinstance(estimator, PseudoInverse):
        tolerance = settings.tolerance or (CLOSE_TOLERANCE if resolution.has_bounds else DEFAULT_TOLERANCE)
    bounds = None if is_clipped is None else estimator.arrange(is_clipped.to(data.dtype)) > 0
    if isinstance(estimator, PhotoEstimator):  # which takes a fixed number of steps
        listener.begin("restoring")
        return estimator.solve(data if bounds is None else filled, listener, bounds), tolerance, bounds
    listener.begin("restoring", goal=tolerance, limit=settings.max_iterations)
    if bounds is None:
        return estimator.solve(data, listener), tolerance, None
    assert isinstance(estimator, PseudoInverse)
    rule = StoppingRule(tolerance, settings.max_iterations)
    return solve_clipped(estimator.problem, estimator.arrange(data), bounds, rule, listener), tolerance, bounds


def _settled_noise(
    y: Tensor, kernel: Kernel, settings: ResolvedSettings, curve: ToneCurve | None
) -> tuple[ResolvedSettings, Tensor]:
    """Find the noise of every sample, and keep its models and levels; a block has the levels of its picture."""
    if settings.origin:
        if not settings.noise_levels:
            settings, _ = find_noise_levels(y, kernel, settings, curve)
        levels = y.new_tensor(settings.noise_levels).reshape(-1, *[1] * kernel.n_axes)
        return settings, levels * _stored_and_slope(y, kernel, curve)[1]
    if y.ndim == kernel.n_axes + 1:  # each picture of a batch has noise of its own
        settings = replace(settings, noise=measure_noise_of_channels(y, kernel, settings))
    return find_noise_levels(y, kernel, settings, curve)


def find_noise_levels(
    y: Tensor, kernel: Kernel, settings: ResolvedSettings, curve: ToneCurve | None
) -> tuple[ResolvedSettings, Tensor]:
    """Find the noise of every sample, and its average in each channel, in stored values, for the settings."""
    stored, slope = _stored_and_slope(y, kernel, curve)
    noise = _noise_map(y, stored, slope, kernel, settings, curve)
    axes = tuple(axis for axis in range(-y.ndim, 0) if axis != kernel.channel_axis)
    levels = (noise.expand_as(y).square().mean(axes) / slope.square().mean(axes)).sqrt()
    return replace(settings, noise_levels=tuple(synchronize.as_numbers(levels))), noise


def _stored_and_slope(y: Tensor, kernel: Kernel, curve: ToneCurve | None) -> tuple[Tensor, Tensor]:
    """Return the stored value of each sample, and the change of light per change of that value."""
    if curve is None:
        return y, torch.ones_like(y)
    stored, step = curve.to_stored(y, kernel.n_axes), curve.white / SLOPE_STEPS
    ends = (curve.to_light(stored + sign * step, kernel.n_axes) for sign in (1, -1))
    return stored, (next(ends) - next(ends)) / (2 * step)


def _noise_map(
    y: Tensor, stored: Tensor, slope: Tensor, kernel: Kernel, settings: ResolvedSettings, curve: ToneCurve | None
) -> Tensor:
    """Find the noise of each channel, and spread it: even noise of stored values follows the curve's slope in light.

    Rounding by JPEG counts as noise if its trace is seen; the data do not show it as noise. The standard deviation
    broadcasts to the shape of `y`.
    """
    n_axes = kernel.n_axes
    if y.ndim > n_axes + 1:
        pictures = zip(y, stored, slope, strict=True)
        return torch.stack([_noise_map(*picture, kernel, settings, curve) for picture in pictures])
    models = measure_noise_of_channels(y, kernel, settings)
    sigma = y.new_tensor([model.sigma for model in models]).reshape(-1, *[1] * n_axes)
    if curve is None:
        return EVEN * sigma
    mean_slope = slope.square().mean(dim=(*range(-n_axes, 0),), keepdim=True).sqrt()
    rounded = estimate_jpeg_noise(stored) if settings.noise_sigma is None else None
    if rounded is not None:
        sigma = sigma.maximum(rounded.reshape(-1, *[1] * n_axes) * mean_slope)
    return CURVED * sigma * slope / mean_slope


MAX_INVERSES = 8
MEMORY_SHARE = 0.125
"""Share of the usable memory that the kept inverses may take."""


class BuiltInverses:
    """Keeps the inverses of one kernel; the one that was not used for longest goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, PseudoInverse] = OrderedDict()
        self._finding = threading.Lock()

    def find(self, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> PseudoInverse:
        """Return an inverse; it is built once, even if several threads ask for it, and is the same for all noise."""
        settings = replace(settings, noise=None)
        key = (image_size, settings, kernel.taps.dtype, kernel.taps.device)
        with self._finding:
            found = self._kept.pop(key, None)
            if found is None:
                found = self._build(kernel, image_size, settings)
            self._kept[key] = found
            if len(self._kept) > 1:
                allowed = settings.max_memory or free_memory(kernel.taps.device)
                self._shrink(MAX_INVERSES, MEMORY_SHARE * allowed)
            return found

    def _build(self, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> PseudoInverse:
        self._shrink(MAX_INVERSES - 1)
        try:
            return PseudoInverse(kernel, image_size, settings)
        except TooLargeError:
            if not self._kept:
                raise
            self._kept.clear()
            return PseudoInverse(kernel, image_size, settings)

    def _shrink(self, n_left: int, n_bytes: float = math.inf) -> None:
        """Drop the oldest inverses until at most `n_left` of at most `n_bytes` remain, but never the last one."""
        sizes = [kept.cost.n_bytes_built for kept in self._kept.values()]
        while len(sizes) > n_left or (len(sizes) > 1 and sum(sizes) > n_bytes):
            self._kept.popitem(last=False)
            sizes.pop(0)
