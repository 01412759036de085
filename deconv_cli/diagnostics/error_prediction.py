"""Predicts the error of estimates, pixel by pixel, by probing the inverse that made them.

Images are drawn from the model that was fitted to the data (`image_model.py`), blurred by the operator under its real
boundary, get noise, and are restored by the same inverse: the difference is the error. One part comes from the noise.
The other is not determined by the data: the kernel and compression removed it, or it lies outside of the frame. That
part is larger where the image has more detail, so it is spread in proportion to the detail of the estimate around each
pixel. Near the edges an estimate has less detail than the image; where compression left noise, the drawn images show
how much less.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.noise_spectrum import draw_noise
from deconv_cli.diagnostics.periodic_extension import affordable_window, lambda_of_size
from deconv_cli.diagnostics.predicted_error import ErrorBand, ErrorProfile, PredictedError, smoothed_energy
from deconv_cli.diagnostics.residual import EdgeBands
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop, space_axes, squared_gradient
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.vocabulary import Size

N_PROBES = 8
"""Images to draw for 256 × 256 pixels and at most three channels; fewer if the bands hold more samples."""
_MIN_PROBES = 2
_MAX_PROBES_OF_SIGNALS = 256
"""A signal has only two samples at each distance from its ends."""
_LEAST_CONTRAST = 0.01
_LEAST_DETAIL = 0.1
"""Least detail of drawn estimates at any distance from the edge, relative to their mean."""
_MIN_DEPTH = 16
_KERNEL_WIDTHS = 4
_MAX_PIXELS = 2**21
_SIDE, _SIDE_OF_SIGNALS = 1024, 64
"""A frame with as many pixels as a square of this side has enough pixels in each band of a larger frame."""
_LEAST_INSIDE = 32
"""Pixels between bands of opposite edges."""
_WORTHWHILE = 0.5
"""A smaller frame with more than this part of the pixels of the whole saves too little to be built."""


class ErrorPredictor:
    """Predicts the errors of estimates that one inverse made; it probes the noise once for all of them.

    The errors of `n_images` estimates are pooled in the end, or those of `n_pieces` pieces of one picture, each with a
    predictor of its own. By default enough images are drawn for the size.
    """

    def __init__(
        self,
        inverse: PseudoInverse,
        *,
        n_images: int = 1,
        n_pieces: int = 1,
        n_probes: int | None = None,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self._bands, device = edge_bands_of(inverse), inverse.kernel.taps.device
        self._probed = _with_smaller_frame(inverse, self._bands.depth)
        size, n_channels = self._probed.geometry.image_size, n_images * inverse.operator.input_shape[0]
        self._probed_bands = self._bands if self._probed is inverse else EdgeBands(size, self._bands.depth, device)
        self.n_probes = _enough_probes(size, n_channels, n_pieces) if n_probes is None else n_probes
        self._noise: tuple[Tensor, Tensor] | None = None

    def predict(
        self,
        estimate: Tensor,
        model: ImageModel,
        *,
        contrast: float = math.inf,
        truth: Tensor | None = None,
    ) -> PredictedError:
        """Predict the error of the estimate of one image `(C_in, *size)`, cropped to the frame, by a model of its data.

        Nothing is trusted if the error is larger than the contrast of the image. A truth is compared with the
        prediction.
        """
        bands = self._bands
        missing, unit_noise, unit_detail = self._probe(estimate, model)
        noise, noise_detail = model.sigma**2 * unit_noise, synchronize.as_number(model.sigma**2 * unit_detail)
        by_band = synchronize.as_numbers(noise), synchronize.as_numbers(missing)
        energy = smoothed_energy(estimate, estimate.ndim - 1)
        profile = ErrorProfile.of(*by_band, noise_detail, energy, contrast)
        squares = profile.squared_parts(energy, bands.distance) | {"estimate": estimate.square()}
        if truth is not None:
            squares["actual"] = (estimate - truth).square()
        described, squared, depth = describe_bands(bands, squares), squares["predicted"], profile.trusted_depth
        del squares, energy  # each as large as the estimate
        return PredictedError(
            map=squared.expand(estimate.shape).sqrt(),
            bands=described,
            trusted=(bands.distance >= (depth if depth is not None else max(bands.distance.shape)))
            & ~profile.outweighs(estimate, squared, estimate.ndim - 1),
            trusted_depth=depth,
            sigma=model.sigma,
            exponent=model.exponent,
            n_probes=self.n_probes,
            seed=self.seed,
            profiles=(profile,),
        )

    def _probe(self, estimate: Tensor, model: ImageModel) -> tuple[Tensor, Tensor, Tensor]:
        """Restore drawn images and, the first time, noise with σ = 1.

        Gives three results: in each band, shape `(depth,)`, the squared error of images without noise, where estimates
        have their mean detail; in each band that of the noise; and the mean squared gradient that the noise leaves.
        """
        operator = self._probed.problem.operator
        images, seen = self._drawn(estimate, model)
        outputs = operator.forward(seen)
        if self._noise is None:
            # Two batches in one cost little more than either.
            noise = draw_noise(model.noise, outputs, self.seed + 1, outputs.ndim - 2)
            from_noise, restored = self._restored(torch.cat([noise, outputs])).split(self.n_probes)
            error = operator.crop_to_frame(from_noise)
            self._noise = self._probed_bands.mean_square(error), squared_gradient(error, estimate.ndim - 1).mean()
        else:
            restored = self._restored(outputs)
        missing = self._probed_bands.mean_square(operator.crop_to_frame(restored - images))
        if model.is_lossy:
            energy = smoothed_energy(operator.crop_to_frame(restored), estimate.ndim - 1)
            detail = self._probed_bands.mean(energy) / energy.mean().clamp_min(1e-30)
            missing = missing / detail.clamp_min(_LEAST_DETAIL)
        return missing, *self._noise

    def _drawn(self, estimate: Tensor, model: ImageModel) -> tuple[Tensor, Tensor]:
        """Draw images of the operator's size, around their mean; return them, before and after compression."""
        operator = self._probed.problem.operator
        _, *size = operator.input_shape
        # An image on a torus has no seam; any other is cropped from a larger one.
        is_periodic = operator.boundary.is_periodic
        torus = tuple(n if is_periodic else next_fast_size(n + n // 4) for n in size)
        images = model.draw(self.n_probes, torus, self.seed, self._probed.kernel.taps.dtype)
        seen = apply_compression(images, model, self._probed.kernel.taps) if model.is_lossy else images
        cut, kept = (crop(drawn, (0,) * len(size), tuple(size)) + estimate.mean() for drawn in (images, seen))
        return cut, kept

    def _restored(self, outputs: Tensor) -> Tensor:
        """Apply the inverse to outputs `(B, C_out, *size)` of its operator, as many at once as need little memory."""
        step = max(1, _MAX_PIXELS // (outputs[0].numel() + 1))
        shape = self._probed.problem.operator.input_shape
        return torch.cat([self._probed.solve(part).value.reshape(-1, *shape) for part in outputs.split(step)])


def apply_compression(images: Tensor, model: ImageModel, taps: Tensor) -> Tensor:
    """Compute what compression leaves of images `(B, 1, *torus)`."""
    size = tuple(images.shape[2:])
    axes, left = space_axes(len(size)), model.share_left(taps, size).to(images.dtype)
    return torch.fft.irfftn(torch.fft.rfftn(images, dim=axes) * left, s=size, dim=axes)


def _with_smaller_frame(inverse: PseudoInverse, depth: int) -> PseudoInverse:
    """Build the same inverse for a smaller frame, if one is much smaller.

    Its pixels have the errors of those of the large frame at the same distance from the edge.
    """
    size, least = inverse.geometry.image_size, 2 * depth + _LEAST_INSIDE
    if inverse.penalty == "identity" and min(size) < least:
        return inverse  # it suppresses long waves, of which a shorter thin frame has fewer
    window = affordable_window(size, _SIDE if len(size) > 1 else _SIDE_OF_SIGNALS)
    frame = tuple(min(n, max(side, least)) for n, side in zip(size, window, strict=True))
    if math.prod(frame) > _WORTHWHILE * math.prod(size):
        return inverse
    lam = lambda_of_size(inverse.settings.lam, inverse.spectrum.sigma_max, inverse.kernel, frame)
    return PseudoInverse(inverse.kernel, frame, replace(inverse.settings, lam=lam))


def edge_bands_of(estimator: Estimator) -> EdgeBands:
    """Group the pixels of an estimator's images by their distance from the edge."""
    depth = max(_MIN_DEPTH, _KERNEL_WIDTHS * max(estimator.kernel.size))
    return EdgeBands(estimator.geometry.image_size, depth, estimator.kernel.taps.device)


def describe_bands(bands: EdgeBands, squares: dict[str, Tensor]) -> tuple[ErrorBand, ...]:
    """Pool squares of the shape of the picture or of its channels over bands; their names are those of `ErrorBand`."""
    n_pixels = synchronize.as_numbers(bands.count)
    rms = {name: synchronize.as_numbers(bands.mean(values).sqrt()) for name, values in squares.items()}
    return tuple(
        ErrorBand(distance=k, n_pixels=round(n), **{name: found[k] for name, found in rms.items()})
        for k, n in enumerate(n_pixels)
    )


def _enough_probes(size: Size, n_channels: int, n_pieces: int) -> int:
    """Count the images to draw for each piece, so that all edges have as many samples as those of 256 × 256 pixels."""
    n_axes = len(size)
    along_edge = 2 * n_axes * math.prod(size) ** ((n_axes - 1) / n_axes)
    enough = round(N_PROBES * 1024 / along_edge / max(n_channels / 3, 1) / n_pieces)
    return max(-(-_MIN_PROBES // n_pieces), min(N_PROBES if n_axes > 1 else _MAX_PROBES_OF_SIGNALS, enough))


def contrast_of(output: Tensor, sigma_max: float) -> float:
    """Compute a lower bound of the contrast of an image from its data `(C_out, *space)`.

    The data have at most σmax times that contrast. A hundredth of the brightness counts as contrast, so that an image
    without detail has a scale too.
    """
    means = output.flatten(1).mean(dim=1, keepdim=True)
    spread = synchronize.as_number((output.flatten(1) - means).square().mean().sqrt())
    brightness = synchronize.as_number(output.square().mean().sqrt())
    return max(spread, _LEAST_CONTRAST * brightness) / max(sigma_max, 1e-30)
