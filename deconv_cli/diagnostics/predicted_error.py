"""How wrong an estimate is likely to be: by distance from the edge, at every pixel, and where to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes, squared_gradient

TRUSTED_EXCESS = 1.25
"""A pixel is trusted if the outside of the frame raises the error of the interior by at most this factor."""
_NUMBERS_AT_ONCE = 2**20
_DETAIL_WIDTH = 6.0
DETAIL_REACH = int(3 * _DETAIL_WIDTH) + 1
"""Pixels around a pixel that its detail depends on."""
_LEAST_DETAIL = 0.05
_LEAST_CONTRAST = 0.025


@dataclass(frozen=True)
class ErrorProfile:
    """Mean squares of the parts of the error at each distance from the nearest edge; the last one is for all deeper.

    Attributes:
        noise: the part from the noise.
        missing: the part that the data do not determine, where the image has its mean detail.
        noise_detail: squared gradient that noise alone leaves in the estimate.
        energy: mean of the squared gradient of the estimate, less that.
        contrast: of the image; nothing is trusted if the error is larger.
    """

    noise: tuple[float, ...]
    missing: tuple[float, ...]
    noise_detail: float
    energy: float
    contrast: float = math.inf

    @classmethod
    def of(
        cls, noise: Sequence[float], missing: Sequence[float], noise_detail: float, smoothed: Tensor, contrast: float
    ) -> ErrorProfile:
        """Take the mean detail from the `smoothed_energy` of an estimate, shape `(C, *size)`."""
        energy = synchronize.as_number((smoothed - noise_detail).clamp_min(0).mean())
        return cls(tuple(noise), tuple(missing), noise_detail, energy, contrast)

    @property
    def outside(self) -> tuple[float, ...]:
        """The part of `missing` that comes from outside of the frame: its excess over the innermost band."""
        found = []
        for value in self.missing:
            # Deeper than its first zero it is only the scatter of the probes.
            if value <= self.missing[-1]:
                break
            found.append(value - self.missing[-1])
        return (*found, *[0.0] * (len(self.missing) - len(found)))

    @property
    def trusted_depth(self) -> int | None:
        """The distance from which on the outside adds little to the error; `None` if nothing is to be trusted."""
        total = [noise + missing for noise, missing in zip(self.noise, self.missing, strict=True)]
        allowed = min(TRUSTED_EXCESS**2 * total[-1], self.contrast**2)
        n_beyond = [depth for depth, value in enumerate(total, start=1) if not value <= allowed]
        depth = max(n_beyond, default=0)
        return depth if depth < len(total) else None

    def detail(self, smoothed: Tensor) -> Tensor:
        """Measure the detail around each pixel relative to the mean, from the `smoothed_energy` of an estimate.

        It is the squared gradient under a Gaussian window, less the part of the noise. If the noise outweighs the
        image, the detail is unknown, and the same everywhere.
        """
        floor = 0.25 * self.noise_detail + _LEAST_DETAIL * self.energy + 1e-30
        return ((smoothed - self.noise_detail).clamp_min(0) + floor) / (self.energy + floor)

    def squared_parts(self, smoothed: Tensor, distance: Tensor) -> dict[str, Tensor]:
        """Compute the expected squared error of each pixel of an estimate, or of a part of one, and its parts.

        `distance` is that of each pixel from the nearest edge of the whole, shape `size`. The parts have the names of
        `ErrorBand` and the shape `(C, *size)` of `smoothed`, the estimate's `smoothed_energy`; that of the noise has
        the shape `size`.
        """
        band, detail = distance.clamp(0, len(self.noise) - 1), self.detail(smoothed)
        noise, missing, outside = (
            torch.tensor(values, dtype=smoothed.dtype, device=smoothed.device)[band]
            for values in (self.noise, self.missing, self.outside)
        )
        return {
            "predicted": noise + missing * detail,
            "noise": noise,
            "null_space": (missing - outside) * detail,
            "outside_frame": outside * detail,
        }

    def outweighs(self, images: Tensor, squared: Tensor, n_axes: int) -> Tensor:
        """Find the pixels whose error exceeds both the contrast around them and a small part of that of the whole.

        Images and their expected squared error have the shape `(*batch, C, *size)`, the result `(*batch, *size)`.
        """
        mean = smoothed(images, n_axes)
        contrast = smoothed((images - mean).square(), n_axes).mean(dim=-n_axes - 1)
        return squared.mean(dim=-n_axes - 1) > contrast.clamp_min((_LEAST_CONTRAST * self.contrast) ** 2)

    def scaled(self, unit: float) -> ErrorProfile:
        """Give the profile of images whose values are `unit` times as large."""
        return ErrorProfile(
            noise=tuple(unit**2 * value for value in self.noise),
            missing=tuple(unit**2 * value for value in self.missing),
            noise_detail=unit**2 * self.noise_detail,
            energy=unit**2 * self.energy,
            contrast=unit * self.contrast,
        )


def pool_profiles(parts: Sequence[ErrorProfile]) -> ErrorProfile:
    """Pool the profiles of equally large pieces of one picture."""

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    return ErrorProfile(
        noise=tuple(map(mean, zip(*(part.noise for part in parts), strict=True))),
        # Not weighted by the detail of each piece: the pooled energy scales what is missing at each place.
        missing=tuple(map(mean, zip(*(part.missing for part in parts), strict=True))),
        noise_detail=mean([part.noise_detail for part in parts]),
        energy=mean([part.energy for part in parts]),
        contrast=math.sqrt(mean([part.contrast**2 for part in parts])),
    )


def smoothed_energy(images: Tensor, n_axes: int) -> Tensor:
    """Average the squared gradient of images `(*batch, C, *space)` around each pixel."""
    return smoothed(squared_gradient(images, n_axes), n_axes)


def smoothed(images: Tensor, n_axes: int) -> Tensor:
    """Average images `(*batch, C, *space)` under a Gaussian window, which ends at the edges."""
    reach = int(3 * _DETAIL_WIDTH)
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    window = torch.exp(-0.5 * (steps / _DETAIL_WIDTH).square())[None, None]
    for axis in space_axes(n_axes):
        lines = images.movedim(axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        weight = functional.conv1d(torch.ones_like(flat[:1]), window, padding="same")
        # By parts: a convolution takes sixteen times the memory of what it convolves.
        parts = flat.split(max(1, _NUMBERS_AT_ONCE // flat.shape[-1]))
        smooth = torch.cat([functional.conv1d(part, window, padding="same") / weight for part in parts])
        images = smooth.reshape(lines.shape).movedim(-1, axis)
    return images


@dataclass(frozen=True)
class ErrorBand:
    """The error over the pixels at one distance from the nearest edge, as root mean squares in units of the samples.

    The squares of the three parts add up to that of `predicted`; a nonlinear estimate has no parts.

    Attributes:
        distance: pixels to the nearest edge; the last band has all deeper pixels.
        n_pixels: pixels of the band, of one channel.
        predicted: the error.
        estimate: the estimate itself.
        noise: the part from the noise.
        null_space: the part that the kernel removed and λ does not restore, as in the interior.
        outside_frame: the part from outside of the frame: what is missing here beyond the interior's part.
        actual: the real error, if the truth is known.
    """

    distance: int
    n_pixels: int
    predicted: float
    estimate: float
    noise: float | None = None
    null_space: float | None = None
    outside_frame: float | None = None
    actual: float | None = None


@dataclass(frozen=True, eq=False)
class ExpectedError:
    """How large the error of a whole picture is likely to be.

    Attributes:
        bands: by distance from the edge.
        trusted_depth: from this distance on the border adds little; `None` if nothing is trusted.
        sigma: standard deviation of the drawn noise, in units of the samples.
        exponent: how fast the amplitudes of the drawn images fall with frequency (see `ImageModel`). `None` if the
            estimate itself was blurred and restored again: all numbers except `sigma` are then in stored values.
        n_probes: how many images were drawn.
        seed: of the random numbers.
        in_samples: the predicted error of the whole image in stored values, if all else is in light; else `None`.
    """

    bands: tuple[ErrorBand, ...]
    trusted_depth: int | None
    sigma: float
    exponent: float | None
    n_probes: int
    seed: int
    in_samples: float | None = field(default=None, kw_only=True)

    @property
    def root_mean_square(self) -> float:
        """The predicted error of the whole image."""
        return _over_bands(self.bands, [band.predicted for band in self.bands])

    @property
    def size(self) -> float:
        """The same in stored values."""
        return self.root_mean_square if self.in_samples is None else self.in_samples

    @property
    def actual_root_mean_square(self) -> float | None:
        """The real error of the whole image, if the truth is known."""
        known = [band.actual for band in self.bands if band.actual is not None]
        return _over_bands(self.bands, known) if known else None

    @property
    def trusted_share(self) -> float:
        """The part of the pixels that is trusted."""
        depth = math.inf if self.trusted_depth is None else self.trusted_depth
        n_trusted = sum(band.n_pixels for band in self.bands if band.distance >= depth)
        return n_trusted / sum(band.n_pixels for band in self.bands)


@dataclass(frozen=True, eq=False)
class PredictedError(ExpectedError):
    """How large the error of every pixel is likely to be.

    Attributes:
        map: root mean square error of each pixel, shape of the image, in units of the samples.
        trusted: pixels at which the outside of the frame adds little to the error, and the error is no larger than the
            contrast around them, of the shape of one channel; none if it is larger than the contrast of the image.
        profiles: by distance from the edge, one for each image that was restored separately.
    """

    map: Tensor
    trusted: Tensor
    profiles: tuple[ErrorProfile, ...] = ()

    @property
    def trusted_share(self) -> float:
        """The part of the pixels that is trusted."""
        return synchronize.as_index(self.trusted.sum()) / self.trusted.numel()

    def without_trust(self) -> PredictedError:
        """Give the same prediction with no trusted pixel, for a result that failed another check."""
        return replace(self, trusted=torch.zeros_like(self.trusted), trusted_depth=None)


def pool_errors(parts: Sequence[PredictedError], units: Sequence[float], shape: tuple[int, ...]) -> PredictedError:
    """Pool the predictions of single images, or channels, of one size, each times its unit.

    Gives the map of all in a shape, and as trusted the pixels that are trusted in each.
    """
    depths, exponents = [part.trusted_depth for part in parts], [part.exponent for part in parts]
    return replace(
        parts[0],
        map=torch.stack([unit * part.map for unit, part in zip(units, parts, strict=True)]).reshape(shape),
        bands=tuple(_pooled_band(same, units) for same in zip(*(part.bands for part in parts), strict=True)),
        trusted=torch.stack([part.trusted for part in parts]).all(dim=0),
        trusted_depth=None if None in depths else max(depth or 0 for depth in depths),
        sigma=_pooled([part.sigma for part in parts], units),
        exponent=None if None in exponents else sum(value or 0.0 for value in exponents) / len(parts),
        profiles=tuple(
            profile.scaled(unit) for unit, part in zip(units, parts, strict=True) for profile in part.profiles
        ),
    )


def _pooled_band(bands: Sequence[ErrorBand], units: Sequence[float]) -> ErrorBand:
    pooled: dict[str, Any] = {}
    for name in ("predicted", "noise", "null_space", "outside_frame", "estimate", "actual"):
        values = [getattr(band, name) for band in bands]
        pooled[name] = None if None in values else _pooled(values, units)
    return replace(bands[0], **pooled)


def _pooled(values: Sequence[float], units: Sequence[float]) -> float:
    """Pool root mean squares of equally many pixels."""
    return math.hypot(*(unit * value for unit, value in zip(units, values, strict=True))) / math.sqrt(len(values))


def _over_bands(bands: Sequence[ErrorBand], rms: Sequence[float]) -> float:
    n_pixels = [band.n_pixels for band in bands]
    return math.sqrt(sum(n * value**2 for n, value in zip(n_pixels, rms, strict=True)) / sum(n_pixels))
