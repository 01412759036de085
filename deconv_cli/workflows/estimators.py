"""Build estimators that are not linear, keep the linear inverses that were built last, and apply either to data."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.noise_level import estimate_gain, estimate_noise
from deconv_cli.diagnostics.stored_samples import estimate_jpeg_noise
from deconv_cli.errors import TooLargeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.synchronize import free_memory
from deconv_cli.parts import PRIORS
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.clipped import CLOSE_TOLERANCE, DEFAULT_TOLERANCE, solve_clipped
from deconv_cli.solvers.estimator import DataEstimate, Estimator, Prior
from deconv_cli.solvers.photo_prior import PhotoEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Solution, StoppingRule
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.lambda_of_data import find_variation_weight
from deconv_cli.workflows.noise_of_data import measure_noise_of_channels
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.resolve_settings import ResolvedInput

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
    needed = prior.needs(settings)
    if needed == "noise map":
        settings, noise = _settled_noise(y.detach(), kernel, settings, curve)
        return prior.build(kernel, image_size, settings, noise)
    return prior.build(kernel, image_size, settings, _estimate(needed, kernel, image_size, settings, y))


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


def _estimate(
    needed: DataEstimate | None, kernel: Kernel, image_size: Size, settings: ResolvedSettings, y: Tensor
) -> float | None:
    """Estimate the number that a prior needs to know of the data."""
    data = y.detach()
    if needed == "weight":
        return find_variation_weight(data, kernel, image_size, settings)
    if needed == "gain":
        return estimate_gain(data, kernel.n_axes)
    known = settings.noise.sigma if isinstance(settings.noise, NoiseModel) else None
    return None if needed is None else known or estimate_noise(data, kernel.n_axes)


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
