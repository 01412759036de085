"""How wrong the estimate is likely to be, pixel by pixel, found by probing the estimator itself.

Images are drawn from the model that was fitted to the data (`image_model.py`), blurred by the operator under its real
border, noised, and restored by the same inverse; what comes back wrong is the error. It has a part that the noise
makes, and a part that the data do not tell: what the kernel took away, and near the edges what lies outside. Errors of
the second kind are larger where the image has more detail, so they are spread in proportion to the detail of the
estimate around each pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.residual import distance_from_edge
from deconv_cli.operators import host
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.solvers.pseudo_inverse import PseudoInverse

N_PROBES = 8
TRUSTED_EXCESS = 1.25
"""A pixel is trusted where what lies outside adds at most this factor to the error of the interior."""

_DETAIL_WIDTH = 6.0
_MAX_PIXELS = 2**21
_LEAST_DETAIL = 0.05


@dataclass(frozen=True)
class ErrorBand:
    """The error over the pixels at one distance from the nearest edge, as root mean squares in units of the samples.

    Attributes:
        distance: pixels to the nearest edge; the last band gathers everything deeper.
        n_pixels: pixels of the band, of one channel.
        predicted: the error.
        noise: its part from the noise.
        hidden: its part from what the data do not tell.
        actual: the real error, where the truth is known.
    """

    distance: int
    n_pixels: int
    predicted: float
    noise: float
    hidden: float
    actual: float | None = None


@dataclass(frozen=True, eq=False)
class PredictedError:
    """What the error is likely to be.

    Attributes:
        map: root mean square error of each pixel, shape of the image.
        bands: by distance from the edge.
        trusted: pixels where the border adds little to the error, shape `(H, W)`.
        trusted_depth: from this distance on every pixel is trusted; `None` where none is.
        model: what the images were drawn from.
        n_probes: how many were drawn.
        seed: of the random numbers.
    """

    map: Tensor
    bands: tuple[ErrorBand, ...]
    trusted: Tensor
    trusted_depth: int | None
    model: ImageModel
    n_probes: int
    seed: int

    @property
    def root_mean_square(self) -> float:
        """The predicted error of the whole image."""
        return _pooled([(band.n_pixels, band.predicted) for band in self.bands])

    @property
    def actual_root_mean_square(self) -> float | None:
        """The real error of the whole image, where the truth is known."""
        known = [(band.n_pixels, band.actual) for band in self.bands if band.actual is not None]
        return _pooled(known) if known else None

    @property
    def trusted_share(self) -> float:
        """The part of the pixels that is trusted."""
        return host.as_number(self.trusted.double().mean())


def _pooled(bands: list[tuple[int, float]]) -> float:
    n_pixels = sum(n for n, _ in bands)
    return math.sqrt(sum(n * rms**2 for n, rms in bands) / n_pixels)


def predict_error(
    inverse: PseudoInverse,
    estimate: Tensor,
    model: ImageModel,
    *,
    truth: Tensor | None = None,
    n_probes: int = N_PROBES,
    seed: int = 0,
) -> PredictedError:
    """Predict the error of an estimate.

    Args:
        inverse: what made it.
        estimate: shape `(C, H, W)` or `(B, C, H, W)`, cut to the frame.
        model: fitted to the data that it came from.
        truth: the image itself, of the same shape, to hold the prediction against.
        n_probes: images to draw.
        seed: of the random numbers.
    """
    noise, hidden = _probe(inverse, estimate, model, n_probes, seed)
    size = (estimate.shape[-2], estimate.shape[-1])
    distance = distance_from_edge(size, estimate.device)
    depth = _profile_depth(inverse, size)
    band = distance.clamp_max(depth - 1)
    detail = _detail(estimate, inverse, noise)
    noise_by_band, hidden_by_band = _by_band(noise, band, depth), _by_band(hidden, band, depth)
    spread = hidden_by_band[band] * detail
    squared = noise_by_band[band] + spread
    full = squared.expand(estimate.shape)
    squared_error = None if truth is None else (estimate - truth).square().flatten(0, -3).mean(dim=0)
    predicted = _by_band(full.flatten(0, -3).mean(dim=0), band, depth)
    hidden_here = _by_band(spread.expand(estimate.shape).flatten(0, -3).mean(dim=0), band, depth)
    actual = None if squared_error is None else _by_band(squared_error, band, depth)
    n_pixels = torch.bincount(band.flatten(), minlength=depth)
    bands = tuple(
        ErrorBand(
            distance=k,
            n_pixels=host.as_index(n_pixels[k]),
            predicted=host.as_number(predicted[k].sqrt()),
            noise=host.as_number(noise_by_band[k].sqrt()),
            hidden=host.as_number(hidden_here[k].sqrt()),
            actual=None if actual is None else host.as_number(actual[k].sqrt()),
        )
        for k in range(depth)
    )
    total = noise_by_band + hidden_by_band
    is_trusted = total <= TRUSTED_EXCESS**2 * total[-1]
    depths = [k for k in range(depth) if host.holds_everywhere(is_trusted[k:])]
    first = depths[0] if depths else None
    trusted = distance >= (first if first is not None else max(size))
    return PredictedError(full.sqrt(), bands, trusted, first, model, n_probes, seed)


def _probe(
    inverse: PseudoInverse, estimate: Tensor, model: ImageModel, n_probes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Measure the squared errors from noise and from what is hidden, each of shape `(H, W)`, mean over channels."""
    operator, like = inverse.problem.operator, inverse.kernel.taps
    _, height, width = operator.input_shape
    torus = (next_fast_size(height + height // 4), next_fast_size(width + width // 4))
    images = model.draw(n_probes, torus, seed, like.dtype)[..., :height, :width]
    images = images + estimate.mean()
    generator = torch.Generator(like.device).manual_seed(seed + 1)
    outputs = operator.forward(images)
    noise = model.sigma * torch.randn(outputs.shape, generator=generator, dtype=like.dtype, device=like.device)
    from_noise = operator.crop_to_frame(_restored(inverse, noise))
    from_image = operator.crop_to_frame(_restored(inverse, outputs) - images)
    return from_noise.square().mean(dim=(0, 1)), from_image.square().mean(dim=(0, 1))


def _restored(inverse: PseudoInverse, outputs: Tensor) -> Tensor:
    """Apply an inverse to outputs `(B, C_out, H, W)` of its operator, as many at once as cost little memory."""
    shape = inverse.problem.operator.input_shape
    step = max(1, _MAX_PIXELS // (outputs[0].numel() + 1))
    return torch.cat([inverse.solve(part).value.reshape(-1, *shape) for part in outputs.split(step)])


def _profile_depth(inverse: PseudoInverse, size: tuple[int, int]) -> int:
    depth = max(16, 4 * max(inverse.kernel.size))
    return min(depth, (min(size) + 1) // 2)


def _by_band(values: Tensor, band: Tensor, depth: int) -> Tensor:
    """Average values `(H, W)` over bands, shape `(depth,)`."""
    wide = values.double() if values.device.type != "mps" else values
    total = wide.new_zeros(depth).index_add(0, band.flatten(), wide.flatten())
    n_pixels = wide.new_zeros(depth).index_add(0, band.flatten(), torch.ones_like(wide).flatten())
    return total / n_pixels


def _detail(estimate: Tensor, inverse: PseudoInverse, noise: Tensor) -> Tensor:
    """Measure the detail around each pixel, relative to its mean, shape of the image.

    The squared gradient, less what noise alone would make of it, under a Gaussian window.
    """
    images = estimate.reshape(-1, 1, *estimate.shape[-2:])
    down = functional.pad(images.diff(dim=-2), (0, 0, 0, 1))
    across = functional.pad(images.diff(dim=-1), (0, 1, 0, 0))
    energy = _smoothed(down.square() + across.square())
    energy = (energy - 2 * noise.mean()).clamp_min(0)
    mean = energy.mean().clamp_min(1e-30)
    relative = (energy / mean).clamp_min(_LEAST_DETAIL)
    return (relative / relative.mean()).reshape(estimate.shape)


def _smoothed(images: Tensor) -> Tensor:
    reach = int(3 * _DETAIL_WIDTH)
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    window = torch.exp(-0.5 * (steps / _DETAIL_WIDTH).square())
    window = window / window.sum()
    rows, columns = window[None, None, :, None], window[None, None, None, :]
    weight = functional.conv2d(
        functional.conv2d(torch.ones_like(images[:1]), rows, padding="same"), columns, padding="same"
    )
    return functional.conv2d(functional.conv2d(images, rows, padding="same"), columns, padding="same") / weight
