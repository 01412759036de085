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
from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import next_fast_size, to_float64
from deconv_cli.solvers.pseudo_inverse import PseudoInverse

N_PROBES = 8
"""Images to draw where they have 256 × 256 pixels; of larger ones a band holds more pixels, and fewer will do."""
_MIN_PROBES = 2
TRUSTED_EXCESS = 1.25
"""A pixel is trusted where what lies outside adds at most this factor to the error of the interior."""

_LEAST_CONTRAST = 0.01

_MIN_DEPTH = 16
_KERNEL_WIDTHS = 4
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
        hidden: its part from what the kernel took away, as in the interior.
        exterior: its part from what lies outside the frame: what is hidden here beyond that.
        estimate: the estimate itself.
        periodic: how far it is from the estimate that takes the picture to repeat itself; `None` where there is no such
            estimate, or where it is this one.
        actual: the real error, where the truth is known.
    """

    distance: int
    n_pixels: int
    predicted: float
    noise: float
    hidden: float
    exterior: float
    estimate: float
    periodic: float | None = None
    actual: float | None = None


@dataclass(frozen=True, eq=False)
class PredictedError:
    """What the error is likely to be.

    Attributes:
        map: root mean square error of each pixel, shape of the image.
        bands: by distance from the edge.
        trusted: pixels where the border adds little to the error, shape `(H, W)`; none of them, if the error is larger
            than the contrast of the image.
        trusted_depth: from this distance on every pixel is trusted; `None` where none is.
        sigma: standard deviation of the noise that was drawn.
        exponent: how fast the amplitudes of the images that were drawn fall with frequency (see `ImageModel`).
        n_probes: how many were drawn.
        seed: of the random numbers.
    """

    map: Tensor
    bands: tuple[ErrorBand, ...]
    trusted: Tensor
    trusted_depth: int | None
    sigma: float
    exponent: float
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
        return synchronize.as_number(self.trusted.double().mean())


def _pooled(bands: list[tuple[int, float]]) -> float:
    n_pixels = sum(n for n, _ in bands)
    return math.sqrt(sum(n * rms**2 for n, rms in bands) / n_pixels)


def predict_error(
    inverse: PseudoInverse,
    estimate: Tensor,
    model: ImageModel,
    *,
    contrast: float = math.inf,
    periodic: Tensor | None = None,
    truth: Tensor | None = None,
    n_probes: int | None = None,
    seed: int = 0,
) -> PredictedError:
    """Predict the error of the estimate of one image.

    Args:
        inverse: what made it.
        estimate: shape `(C_in, H, W)`, cut to the frame.
        model: fitted to the data that it came from.
        contrast: of the image (see `contrast_of`); where the error is larger, nothing is trusted.
        periodic: the estimate of the same shape that takes the picture to repeat itself.
        truth: the image itself, of the same shape, to hold the prediction against.
        n_probes: images to draw; by default as many as the size asks for.
        seed: of the random numbers.
    """
    size = (estimate.shape[-2], estimate.shape[-1])
    if n_probes is None:
        n_probes = max(_MIN_PROBES, min(N_PROBES, round(N_PROBES * 256 / math.prod(size) ** 0.5)))
    noise, hidden, noise_detail = _probe(inverse, estimate, model, n_probes, seed)
    distance = distance_from_edge(size, estimate.device)
    depth = min(max(_MIN_DEPTH, _KERNEL_WIDTHS * max(inverse.kernel.size)), (min(size) + 1) // 2)
    band = distance.clamp_max(depth - 1)
    detail = _detail(estimate, noise_detail)
    noise_here, hidden_here = _by_band(noise, band, depth), _by_band(hidden, band, depth)
    excess = hidden_here - hidden_here[-1]
    # Inwards of where it first vanishes it is the scatter of the probes.
    exterior = torch.where((excess > 0).cumprod(0).bool(), excess, 0)
    squared = noise_here[band] + hidden_here[band] * detail
    squares = {
        "predicted": squared,
        "noise": noise_here[band],
        "hidden": (hidden_here - exterior)[band] * detail,
        "exterior": exterior[band] * detail,
        "estimate": estimate.square(),
    }
    if periodic is not None:
        squares["periodic"] = (estimate - periodic).square()
    if truth is not None:
        squares["actual"] = (estimate - truth).square()
    bands = _bands(squares, band, depth)
    total = noise_here + hidden_here
    is_trusted = (total <= TRUSTED_EXCESS**2 * total[-1]) & (total <= contrast**2)
    n_trusted = synchronize.as_index(is_trusted.flip(0).cumprod(0).sum())
    first = depth - n_trusted if n_trusted else None
    trusted = distance >= (first if first is not None else max(size))
    error = squared.expand(estimate.shape).sqrt()
    return PredictedError(error, bands, trusted, first, model.sigma, model.exponent, n_probes, seed)


def contrast_of(output: Tensor, sigma_max: float) -> float:
    """Tell a contrast that an image has at least, from its data `(C_out, H, W)`: they have at most σmax times as much.

    A hundredth of the brightness is conceded, so that an image without detail has a scale too.
    """
    spread = synchronize.as_number((output - output.mean(dim=(-2, -1), keepdim=True)).square().mean().sqrt())
    brightness = synchronize.as_number(output.square().mean().sqrt())
    return max(spread, _LEAST_CONTRAST * brightness) / max(sigma_max, 1e-30)


def gather_errors(parts: list[PredictedError], units: list[float], shape: tuple[int, ...]) -> PredictedError:
    """Gather what was predicted of single images, or channels, of one size.

    Args:
        parts: one for each image.
        units: what each is to be multiplied by.
        shape: of all images together.

    Returns:
        The map of all; all else pooled, and trusted only what is trusted in each.
    """
    first, n_parts = parts[0], len(parts)

    def pooled(values: list[float]) -> float:
        squares = ((unit * value) ** 2 for unit, value in zip(units, values, strict=True))
        return math.sqrt(sum(squares) / n_parts)

    def pooled_where_known(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return pooled(known) if len(known) == n_parts else None

    bands = tuple(
        ErrorBand(
            distance=same[0].distance,
            n_pixels=same[0].n_pixels,
            predicted=pooled([band.predicted for band in same]),
            noise=pooled([band.noise for band in same]),
            hidden=pooled([band.hidden for band in same]),
            exterior=pooled([band.exterior for band in same]),
            estimate=pooled([band.estimate for band in same]),
            periodic=pooled_where_known([band.periodic for band in same]),
            actual=pooled_where_known([band.actual for band in same]),
        )
        for same in zip(*(part.bands for part in parts), strict=True)
    )
    depths = [part.trusted_depth for part in parts]
    return PredictedError(
        map=torch.stack([unit * part.map for unit, part in zip(units, parts, strict=True)]).reshape(shape),
        bands=bands,
        trusted=torch.stack([part.trusted for part in parts]).all(dim=0),
        trusted_depth=None if None in depths else max(depth or 0 for depth in depths),
        sigma=pooled([part.sigma for part in parts]),
        exponent=sum(part.exponent for part in parts) / n_parts,
        n_probes=first.n_probes,
        seed=first.seed,
    )


def _bands(squares: dict[str, Tensor], band: Tensor, depth: int) -> tuple[ErrorBand, ...]:
    """Pool squares, of the shape of the picture or of all its channels, over bands."""
    height, width = band.shape
    n_pixels = synchronize.as_numbers(_sum_by_band(to_float64(torch.ones_like(band, dtype=torch.float32)), band, depth))
    rms = {
        name: synchronize.as_numbers(_by_band(values.reshape(-1, height, width).mean(dim=0), band, depth).sqrt())
        for name, values in squares.items()
    }
    return tuple(
        ErrorBand(distance=k, n_pixels=round(n_pixels[k]), **{name: found[k] for name, found in rms.items()})
        for k in range(depth)
    )


def _probe(
    inverse: PseudoInverse, estimate: Tensor, model: ImageModel, n_probes: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the squared errors from noise and from what is hidden, and the squared gradient that noise leaves.

    Returns:
        The first two of shape `(H, W)`, mean over channels; the last a single number.
    """
    operator, like = inverse.problem.operator, inverse.kernel.taps
    _, height, width = operator.input_shape
    torus = (next_fast_size(height + height // 4), next_fast_size(width + width // 4))
    if operator.boundary.is_periodic:
        torus = (height, width)  # such an image has no seam
    images = model.draw(n_probes, torus, seed, like.dtype)[..., :height, :width]
    images = images + estimate.mean()
    outputs = operator.forward(images)
    noise = model.sigma * synchronize.normal_numbers(like, tuple(outputs.shape), seed + 1)
    from_noise = operator.crop_to_frame(_restored(inverse, noise))
    from_image = operator.crop_to_frame(_restored(inverse, outputs) - images)
    detail = _squared_gradient(from_noise).mean()
    return from_noise.square().mean(dim=(0, 1)), from_image.square().mean(dim=(0, 1)), detail


def _restored(inverse: PseudoInverse, outputs: Tensor) -> Tensor:
    """Apply an inverse to outputs `(B, C_out, H, W)` of its operator, as many at once as cost little memory."""
    shape = inverse.problem.operator.input_shape
    step = max(1, _MAX_PIXELS // (outputs[0].numel() + 1))
    return torch.cat([inverse.solve(part).value.reshape(-1, *shape) for part in outputs.split(step)])


def _by_band(values: Tensor, band: Tensor, depth: int) -> Tensor:
    """Average values `(H, W)` over bands, shape `(depth,)`."""
    wide = to_float64(values)
    return _sum_by_band(wide, band, depth) / _sum_by_band(torch.ones_like(wide), band, depth)


def _sum_by_band(values: Tensor, band: Tensor, depth: int) -> Tensor:
    """Add up values `(H, W)` over bands, shape `(depth,)`."""
    return values.new_zeros(depth).index_add(0, band.flatten(), values.flatten())


def _detail(estimate: Tensor, noise_detail: Tensor) -> Tensor:
    """Measure the detail around each pixel, relative to its mean, shape of the image.

    The squared gradient under a Gaussian window, less what noise alone would make of it; where noise makes more of it
    than the image does, the detail cannot be told and is taken to be the same everywhere.
    """
    energy = _smoothed(_squared_gradient(estimate.reshape(-1, 1, *estimate.shape[-2:])))
    energy = (energy - noise_detail).clamp_min(0)
    floor = 0.25 * noise_detail + _LEAST_DETAIL * energy.mean() + 1e-30
    relative = energy + floor
    return (relative / relative.mean()).reshape(estimate.shape)


def _squared_gradient(images: Tensor) -> Tensor:
    """Add up the squared differences to the next pixel down and across, of images `(B, C, H, W)`."""
    down = functional.pad(images.diff(dim=-2), (0, 0, 0, 1))
    across = functional.pad(images.diff(dim=-1), (0, 1, 0, 0))
    return down.square() + across.square()


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
