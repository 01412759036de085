"""How wrong an estimate is likely to be: the error of each pixel, its parts near the edge, and where to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deconv_cli.diagnostics.error_profile import ErrorProfile
from deconv_cli.operators import synchronize


@dataclass(frozen=True)
class ErrorBand:
    """The error over the pixels at one distance from the nearest edge, as root mean squares in units of the samples.

    The squares of the three parts add up to that of `predicted`; an estimate that is not linear in the data has none.

    Attributes:
        distance: pixels to the nearest edge; the last band gathers everything deeper.
        n_pixels: pixels of the band, of one channel.
        predicted: the error.
        estimate: the estimate itself.
        noise: its part from the noise.
        null_space: its part from what the kernel took away and λ does not bring back, as in the interior.
        outside_frame: its part from what lies outside the frame: what is missing here beyond the interior's part.
        periodic: how far it is from the estimate that takes the picture to repeat itself; `None` where there is no such
            estimate, or where it is this one.
        actual: the real error, where the truth is known.
    """

    distance: int
    n_pixels: int
    predicted: float
    estimate: float
    noise: float | None = None
    null_space: float | None = None
    outside_frame: float | None = None
    periodic: float | None = None
    actual: float | None = None


@dataclass(frozen=True, eq=False)
class ExpectedError:
    """How large the error of a whole picture is likely to be.

    Attributes:
        bands: by distance from the edge.
        trusted_depth: from this distance on the border adds little; `None` where nothing is trusted.
        sigma: standard deviation of the noise that was drawn, in units of the samples.
        exponent: how fast the amplitudes of the images that were drawn fall with frequency (see `ImageModel`); `None`
            where the estimate itself was blurred and restored again: all but `sigma` is then in stored values.
        n_probes: how many were drawn.
        seed: of the random numbers.
        in_samples: the predicted error of the whole image in stored values, where all else is of light; else `None`.
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
    def actual_root_mean_square(self) -> float | None:
        """The real error of the whole image, where the truth is known."""
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
    """What the error of every pixel is likely to be.

    Attributes:
        map: root mean square error of each pixel, shape of the image, in units of the samples.
        trusted: pixels where the pixels outside the frame add little to the error, and the error is no larger than the
            contrast around them, of the shape of one channel; none, if it is larger than the contrast of the image.
        profiles: what was found by distance from the edge, one for each image that was restored by itself.
    """

    map: Tensor
    trusted: Tensor
    profiles: tuple[ErrorProfile, ...] = ()

    @property
    def trusted_share(self) -> float:
        """The part of the pixels that is trusted."""
        return synchronize.as_index(self.trusted.sum()) / self.trusted.numel()

    def without_trust(self) -> PredictedError:
        """Give the same prediction with no pixel trusted, for an estimate that is doubted for another reason."""
        return replace(self, trusted=torch.zeros_like(self.trusted), trusted_depth=None)


def pool_errors(parts: Sequence[PredictedError], units: Sequence[float], shape: tuple[int, ...]) -> PredictedError:
    """Put together what was predicted of single images, or channels, of one size.

    Args:
        parts: one for each image.
        units: what each is to be multiplied by.
        shape: of all images together.

    Returns:
        The map of all; all else pooled, and trusted only what is trusted in each.
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
    for name in ("predicted", "noise", "null_space", "outside_frame", "estimate", "periodic", "actual"):
        values = [getattr(band, name) for band in bands]
        pooled[name] = None if None in values else _pooled(values, units)
    return replace(bands[0], **pooled)


def _pooled(values: Sequence[float], units: Sequence[float]) -> float:
    """Pool root mean squares of equally many pixels."""
    return math.hypot(*(unit * value for unit, value in zip(units, values, strict=True))) / math.sqrt(len(values))


def _over_bands(bands: Sequence[ErrorBand], rms: Sequence[float]) -> float:
    n_pixels = [band.n_pixels for band in bands]
    return math.sqrt(sum(n * value**2 for n, value in zip(n_pixels, rms, strict=True)) / sum(n_pixels))
