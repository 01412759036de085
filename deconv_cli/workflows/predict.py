"""The error to be expected of a reconstruction, image by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from deconv_cli.diagnostics.continuation import Continuation
from deconv_cli.diagnostics.error_prediction import ErrorPredictor, contrast_of
from deconv_cli.diagnostics.image_model import ImageModel, fit_image_model
from deconv_cli.diagnostics.predicted_error import PredictedError, pool_errors
from deconv_cli.diagnostics.probed_image_model import fit_probed_image_model
from deconv_cli.errors import ShapeError, TooLargeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators.axes import crop
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.geometry import resolve_padding
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.solvers.estimator import common_unit
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.workflows.apply_kernel import subtract_bias
from deconv_cli.workflows.reconstruction import Reconstruction


def predict_for(
    inverse: PseudoInverse,
    result: Reconstruction,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    least_sigma: float = 0.0,
    truth: Tensor | None = None,
    n_pieces: int = 1,
) -> PredictedError:
    """Predict the error of a reconstruction, and hold it against the truth where there is one.

    Args:
        inverse: what made it; or, where the data are a part of a picture, one with the frame of that picture, whose
            image may end before that of the reconstruction does.
        result: the reconstruction.
        y: the data, in the inverse's dtype.
        bias: of each output channel.
        least_sigma: an estimate of the noise is taken to be at least this, as that of rounding.
        truth: of the shape of the estimate.
        n_pieces: of one picture, whose errors are pooled: fewer images are drawn for each.
    """
    data = subtract_bias(y, bias, inverse.kernel.n_axes).detach()
    assert result.settings.has_lambda
    kernel, sigma = inverse.kernel, result.settings.noise_sigma
    image = _within_frame(inverse, result)
    outputs, estimates = _one_by_one(kernel, data, are_outputs=True), _one_by_one(kernel, image)
    known = None if truth is None else _one_by_one(kernel, truth.to(result.image))
    periodic = _periodic_estimate(inverse, data)
    others = None if periodic is None else _one_by_one(kernel, periodic)
    predictor = ErrorPredictor(inverse, n_images=len(outputs), n_pieces=n_pieces, seed=result.settings.seed or 0)
    fit = _fit_of(inverse, result)
    # Of two sizes of images and channels, what has more numbers has as much energy in more of them.
    gain = result.spectrum.sigma_max * (estimates[0].numel() / outputs[0].numel()) ** 0.5
    parts, units = [], []
    # What one image is like, and its noise, need not be so of another.
    for i, (output, estimate) in enumerate(zip(outputs, estimates, strict=True)):
        unit = common_unit(output)
        model = fit(
            output / unit,
            estimate / unit,
            sigma=None if sigma is None else sigma / unit,
            least_sigma=least_sigma / unit,
        )
        found = predictor.predict(
            estimate / unit,
            model,
            contrast=contrast_of(output / unit, gain),
            periodic=None if others is None else others[i] / unit,
            truth=None if known is None else known[i] / unit,
        )
        parts.append(found)
        units.append(unit)
    pooled = pool_errors(parts, units, tuple(image.shape))
    operator = inverse.operator
    if not isinstance(operator, LayerConvolution):
        return pooled
    # Of pixels that no output depends on there is nothing to be trusted.
    return replace(pooled, trusted=pooled.trusted & operator.crop_to_frame(operator.touched()))


def _within_frame(inverse: PseudoInverse, result: Reconstruction) -> Tensor:
    """Cut an estimate to the image of an inverse of the same data."""
    image, geometry = result.image.detach(), inverse.geometry
    if inverse.operator.is_layer or tuple(image.shape[-len(geometry.image_size) :]) == geometry.image_size:
        return image
    before = resolve_padding(result.padding, inverse.kernel.size).before
    start = tuple(whole - part for whole, part in zip(geometry.pads.before, before, strict=True))
    return crop(image, start, geometry.image_size)


def _fit_of(inverse: PseudoInverse, result: Reconstruction) -> Callable[..., ImageModel]:
    """Give what fits a model to the data of one image: by frequency where there are such, else by probing."""
    settings = result.settings
    if inverse.operator.is_layer:
        return partial(fit_probed_image_model, inverse.operator, seed=settings.seed or 0)
    assert result.penalty is not None
    continuation = Continuation(
        inverse.kernel,
        inverse.geometry.output_size,
        boundary=result.boundary,
        penalty=spaced_penalty(result.penalty, settings.spacing),
        max_memory=inverse.settings.max_memory,
        noise=settings.noise if isinstance(settings.noise, NoiseModel) else None,
    )
    return partial(fit_image_model, continuation, lam=settings.lam)


def _one_by_one(kernel: Kernel, images: Tensor, *, are_outputs: bool = False) -> Tensor:
    """Arrange images, or the channels of a shared kernel, one by one: `(n, C, *size)`."""
    arranged = kernel.split(images, are_outputs=are_outputs)
    return arranged.reshape(-1, *arranged.shape[kernel.channel_axis :])


def _periodic_estimate(inverse: PseudoInverse, data: Tensor) -> Tensor | None:
    """Restore as if the picture repeated itself; `None` where it cannot, does not fit the memory, or was done."""
    geometry, settings = inverse.geometry, inverse.settings
    if inverse.operator.is_layer:
        return None
    if as_rule(settings.boundary).is_periodic or geometry.output_size != geometry.image_size:
        return None
    circular = replace(settings, boundary="circular", method="auto")
    try:
        return PseudoInverse(inverse.kernel, geometry.image_size, circular)(data).detach()
    except (ShapeError, TooLargeError):
        return None
