"""The expected error of a reconstruction, image by image."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import removed_share
from deconv_cli.diagnostics.error_prediction import ErrorPredictor, contrast_of, describe_bands, edge_bands_of
from deconv_cli.diagnostics.image_model import fit_image_model
from deconv_cli.diagnostics.noise_spectrum import draw_noise
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.diagnostics.predicted_error import ErrorProfile, PredictedError, pool_errors, smoothed, smoothed_energy
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, crop, squared_gradient
from deconv_cli.operators.geometry import resolve_padding
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.solvers.estimator import Estimator, common_unit
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.workflows.noise_of_data import measure_noise_of_channels
from deconv_cli.workflows.reconstruction import Reconstruction

UNSEEN, UNSEEN_OF_LOST, UNSEEN_OF_SMOOTHED = 1.9, 0.55, 0.3
"""The real error is 1.9 times e^(0.55·the share of frequencies that the kernel nearly removes) times the 0.3th power of
the squared gradient that the estimate lost over that of the change, as large as the change of an estimate that is
blurred and restored again. Least squares on logarithms, for five photographs of scikit-image and scikit-learn as JPEG
and linear files under the kernels of `benchmarks/photographs.py`, which tests it on others."""
ALL_BUT_REMOVED = 0.01
"""The kernel nearly removes a frequency below this part of the largest singular value."""
SMOOTHED_LIMITS = 0.3, 2.0
MAX_COLUMNS = 256
"""Columns of a picture whose error in samples is added up at a time."""


def error_in_samples(image: Tensor, error: Tensor, curve: ToneCurve, n_axes: int) -> float:
    """Convert the error of an image in light to stored values: the root mean square over the image.

    A file holds nothing below black, where the curve is steepest, or above white. Columns are taken by parts, to save
    memory.
    """
    squares = 0.0
    for part, spread in zip(image.split(MAX_COLUMNS, -1), error.split(MAX_COLUMNS, -1), strict=True):
        low, high = (curve.to_stored(end, n_axes).clamp(0, curve.white) for end in (part - spread, part + spread))
        squares += synchronize.as_number((high - low).square().sum(dtype=accumulation_dtype(part)))
    return math.sqrt(squares / image.numel()) / 2


def predict_for(
    inverse: PseudoInverse,
    result: Reconstruction,
    data: Tensor,
    least_sigma: float,
    truth: Tensor | None,
    n_pieces: int,
) -> PredictedError:
    """Predict the error of a reconstruction by probing the inverse that made it; compare it with the truth if known.

    The data have no bias. For a part of a picture, the inverse has the frame of the picture, whose image may be smaller
    than that of the reconstruction. `least_sigma` is a lower bound of the noise, such as that of rounding. Fewer images
    are drawn for each of `n_pieces` pieces of one picture, whose errors are pooled.
    """
    assert result.settings.has_lambda
    kernel, sigma = inverse.kernel, result.settings.noise_sigma
    image = _within_frame(inverse, result)
    outputs, estimates = _one_by_one(kernel, data, are_outputs=True), _one_by_one(kernel, image)
    known = None if truth is None else _one_by_one(kernel, truth.to(result.image))
    predictor = ErrorPredictor(inverse, n_images=len(outputs), n_pieces=n_pieces, seed=result.settings.seed or 0)
    extension = PeriodicExtension(
        kernel,
        inverse.geometry.output_size,
        boundary=result.boundary,
        penalty=spaced_penalty(result.settings.penalty, result.settings.spacing),
        max_memory=inverse.settings.max_memory,
        noise=result.settings.noise if isinstance(result.settings.noise, NoiseModel) else None,
    )
    # If image and data differ in size, the same energy is spread over another number of values.
    gain = result.spectrum.sigma_max * (estimates[0].numel() / outputs[0].numel()) ** 0.5
    parts, units = [], []
    n_more = outputs[0].numel() - math.prod(inverse.operator.input_shape)
    # Images, and their noise, differ.
    for i, (output, estimate) in enumerate(zip(outputs, estimates, strict=True)):
        unit = common_unit(output)
        model = fit_image_model(
            extension,
            output / unit,
            estimate / unit,
            lam=result.settings.lam,
            sigma=None if sigma is None else sigma / unit,
            least_sigma=least_sigma / unit,
        )
        if sigma is None and n_more > 0 and estimate.shape == inverse.operator.input_shape:
            # Noise leaves at least this residual, in the directions that no image reaches.
            left = synchronize.as_number(torch.dist(output, inverse.operator.forward(estimate)))
            model = replace(model, sigma=min(model.sigma, max(left / math.sqrt(n_more), least_sigma) / unit))
        found = predictor.predict(
            estimate / unit,
            model,
            contrast=contrast_of(output / unit, gain),
            truth=None if known is None else known[i] / unit,
        )
        parts.append(found)
        units.append(unit)
    return pool_errors(parts, units, tuple(image.shape))


def predict_by_restoring_again(
    estimator: Estimator,
    result: Reconstruction,
    data: Tensor,
    curve: ToneCurve | None,
    least_sigma: float,
    truth: Tensor | None,
) -> PredictedError:
    """Predict the error of a nonlinear estimate, in stored values, as `predict_for` does that of a linear one.

    The estimate is blurred, gets noise like that of the data, and is restored in the same way again. The change is a
    sample of the error (the parametric bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section
    6.5). Its squares are averaged around each pixel. A factor compensates the detail that the estimate lacks. Data and
    truth are light if the tone curve `curve` was undone.
    """
    kernel, settings, value = estimator.kernel, estimator.settings, result.solution.value
    n_axes, axis, seed = kernel.n_axes, kernel.channel_axis, settings.seed or 0

    def stored(images: Tensor) -> Tensor:
        return images if curve is None else curve.to_stored(images, n_axes)

    samples, seen = stored(data), stored(kernel.join(estimator.operator.forward(value)))
    models = measure_noise_of_channels(data, kernel, settings)
    slopes = (1.0,) if curve is None else curve.slopes(samples, n_axes)
    sigmas = data.new_tensor([max(model.sigma or 0.0, least_sigma) for model in models])
    drawn = [
        draw_noise(model, part, seed + number, n_axes)
        for number, (model, part) in enumerate(zip(models, seen.chunk(len(models), axis), strict=True))
    ]
    sizes = (sigmas / data.new_tensor(slopes)).reshape(-1, *[1] * n_axes)
    noised = (seen + sizes * torch.cat(drawn, dim=axis)).clamp(*samples.aminmax())
    again = estimator.solve(noised if curve is None else curve.to_light(noised, n_axes)).value
    image, other = (stored(estimator.frame(found)) for found in (value, again))
    bands, energy = edge_bands_of(estimator), smoothed_energy(image, n_axes)
    squared = (_unseen(estimator, image, other) * (other - image)).square()
    squares = {"predicted": squared, "estimate": image.square()}
    if truth is not None:
        squares["actual"] = (image - stored(truth)).square()
    # Bands with more detail have larger errors for that reason alone.
    missing = bands.mean(squared) / bands.mean(energy).clamp_min(1e-30)
    contrast = contrast_of(samples.reshape(-1, *samples.shape[-n_axes:]), result.spectrum.sigma_max)
    by_band = synchronize.as_numbers(missing * energy.mean())
    # What lies outside of the frame reaches about one kernel inwards. Deeper than that one sample only scatters.
    n_near = max(kernel.size)
    if len(by_band) > n_near:
        deep = bands.distance >= n_near
        inside = squared[..., deep].mean() / energy[..., deep].mean().clamp_min(1e-30) * energy.mean()
        by_band = [*by_band[:n_near], *[synchronize.as_number(inside)] * (len(by_band) - n_near)]
    profile = ErrorProfile.of([0.0] * len(by_band), by_band, 0.0, energy, contrast)
    # One sample scatters: further inwards than its first value as small as deep inside, its excess means nothing.
    profile = replace(profile, missing=tuple(by_band[-1] + more for more in profile.outside))
    depth, around = profile.trusted_depth, smoothed(squared, n_axes)
    outweighed = profile.outweighs(image, around, n_axes).reshape(-1, *image.shape[-n_axes:]).any(dim=0)
    return PredictedError(
        map=around.sqrt(),
        bands=describe_bands(bands, squares),
        trusted=(bands.distance >= (depth if depth is not None else max(bands.distance.shape))) & ~outweighed,
        trusted_depth=depth,
        sigma=synchronize.as_number(sigmas.square().mean().sqrt()),
        exponent=None,
        n_probes=1,
        seed=seed,
        profiles=(profile,),
    )


def _unseen(estimator: Estimator, image: Tensor, again: Tensor) -> float:
    """Compute the factor from the change of an estimate that was restored again to its real error."""
    lost = removed_share(estimator.operator.kernel, estimator.geometry.image_size, ALL_BUT_REMOVED)
    before, after, change = (
        synchronize.as_number(squared_gradient(part, estimator.kernel.n_axes).mean())
        for part in (image, again, again - image)
    )
    low, high = SMOOTHED_LIMITS
    smoothed_away = min(max((before - after) / max(change, 1e-30), low), high)
    return float(UNSEEN * math.exp(UNSEEN_OF_LOST * lost) * smoothed_away**UNSEEN_OF_SMOOTHED)


def _within_frame(inverse: PseudoInverse, result: Reconstruction) -> Tensor:
    """Crop an estimate to the image of an inverse of the same data."""
    image, geometry = result.image.detach(), inverse.geometry
    if tuple(image.shape[-len(geometry.image_size) :]) == geometry.image_size:
        return image
    before = resolve_padding(result.padding, inverse.kernel.size).before
    start = tuple(whole - part for whole, part in zip(geometry.pads.before, before, strict=True))
    return crop(image, start, geometry.image_size)


def _one_by_one(kernel: Kernel, images: Tensor, *, are_outputs: bool = False) -> Tensor:
    """Arrange images, or the channels that share a kernel, along one axis: `(n, C, *size)`."""
    arranged = kernel.split(images, are_outputs=are_outputs)
    return arranged.reshape(-1, *arranged.shape[kernel.channel_axis :])
