"""Build what estimates the images where that is not a linear inverse, with what it needs to know of the noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.gain import estimate_gain
from deconv_cli.diagnostics.jpeg_noise import estimate_jpeg_noise
from deconv_cli.diagnostics.noise_level import estimate_noise
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.parts import PRIORS
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.estimator import DataEstimate, Estimator, Prior
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.find_noise import measure_noise_of_channels
from deconv_cli.workflows.variation_weight import find_variation_weight

EVEN, CURVED = 0.45, 0.8
"""Parts of the noise that prior photo is told, where it is even and where a tone curve was undone. Best on
photographs of scikit-image and scikit-learn, under four kernels and two noise levels, and under six kernels as JPEG."""
SLOPE_STEPS = 50
"""The slope of a tone curve is that over this part of its range to either side."""


def build_estimator(
    kernel: Kernel, image_size: Size, settings: ResolvedSettings, y: Tensor, curve: ToneCurve | None = None
) -> Estimator:
    """Build what minimizes the objective of the settings, which is not the quadratic one.

    Args:
        kernel: canonical kernel, in the precision of the arithmetic.
        image_size: height and width of the images that are wanted back.
        settings: what was resolved; their noise is a model of what the data have.
        y: the outputs, less a bias, shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`: what the prior needs to know
            of them is estimated.
        curve: the tone curve that was undone on the outputs, whose noise was even before; `None` where there is none.

    Raises:
        UsageError: settings that the prior cannot follow.
        TooLargeError: it does not fit the memory.
    """
    prior: Prior = PRIORS[settings.objective]
    needed = prior.needs(settings)
    if needed == "noise map":
        settings, noise = _settled_noise(y.detach(), kernel, settings, curve)
        return prior.build(kernel, image_size, settings, noise)
    return prior.build(kernel, image_size, settings, _estimate(needed, kernel, image_size, settings, y))


def _settled_noise(
    y: Tensor, kernel: Kernel, settings: ResolvedSettings, curve: ToneCurve | None
) -> tuple[ResolvedSettings, Tensor]:
    """Find the noise of every sample; that of a block by its levels, which are found first if they are not known."""
    if not settings.origin:
        return settings, _noise_map(y, kernel, settings, curve)
    if not settings.noise_levels:
        settings = find_noise_levels(y, kernel, settings, curve)
    levels = y.new_tensor(settings.noise_levels).reshape(-1, *[1] * kernel.n_axes)
    return settings, levels * _slope(y, kernel, curve)


def find_noise_levels(
    y: Tensor, kernel: Kernel, settings: ResolvedSettings, curve: ToneCurve | None
) -> ResolvedSettings:
    """Find the noise of each channel of a picture in stored values, and settle it for its parts.

    Args:
        y: as for `build_estimator`, of the whole picture or of a piece that stands for it.
        kernel: likewise.
        settings: what was resolved; their noise is a model.
        curve: the tone curve that was undone on the outputs; `None` where there is none.
    """
    axes = tuple(axis for axis in range(-y.ndim, 0) if axis != kernel.channel_axis)
    noise, slope = _noise_map(y, kernel, settings, curve).expand_as(y), _slope(y, kernel, curve)
    levels = (noise.square().mean(axes) / slope.square().mean(axes)).sqrt()
    return replace(settings, noise_levels=tuple(synchronize.as_numbers(levels)))


def _slope(y: Tensor, kernel: Kernel, curve: ToneCurve | None) -> Tensor:
    """Tell how far light moves with stored values at each sample."""
    if curve is None:
        return torch.ones_like(y)
    stored, step = curve.to_stored(y, kernel.n_axes), curve.white / SLOPE_STEPS
    ends = (curve.to_light(stored + sign * step, kernel.n_axes) for sign in (1, -1))
    return (next(ends) - next(ends)) / (2 * step)


def _noise_map(y: Tensor, kernel: Kernel, settings: ResolvedSettings, curve: ToneCurve | None) -> Tensor:
    """Find the noise of each channel, and spread it: even stored values, in light, follow the slope of their curve.

    What JPEG rounded away is no noise that the data show: it counts as noise where its trace is seen.

    Returns:
        The standard deviation; of the shape of `y`, or one that broadcasts to it.
    """
    n_axes = kernel.n_axes
    if y.ndim > n_axes + 1:
        return torch.stack([_noise_map(picture, kernel, settings, curve) for picture in y])
    models = measure_noise_of_channels(y, kernel, settings)
    sigma = y.new_tensor([model.sigma for model in models]).reshape(-1, *[1] * n_axes)
    if curve is None:
        return EVEN * sigma
    stored, slope = curve.to_stored(y, n_axes), _slope(y, kernel, curve)
    mean_slope = slope.square().mean(dim=(*range(-n_axes, 0),), keepdim=True).sqrt()
    rounded = estimate_jpeg_noise(stored) if settings.noise_sigma is None else None
    if rounded is not None:
        sigma = sigma.maximum(rounded.reshape(-1, *[1] * n_axes) * mean_slope)
    return CURVED * sigma * slope / mean_slope


def _estimate(
    needed: DataEstimate | None, kernel: Kernel, image_size: Size, settings: ResolvedSettings, y: Tensor
) -> float | None:
    """Estimate what a prior needs to know of the data."""
    data = y.detach()
    if needed == "weight":
        return find_variation_weight(data, kernel, image_size, settings)
    if needed == "gain":
        return estimate_gain(data, kernel.n_axes)
    known = settings.noise.sigma if isinstance(settings.noise, NoiseModel) else None
    return None if needed is None else known or estimate_noise(data, kernel.n_axes)
