"""What the error of one kind of image is made of by the distance from the edge: found on samples, spread by detail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes, squared_gradient

TRUSTED_EXCESS = 1.25
"""A pixel is trusted where what lies outside adds at most this factor to the error of the interior."""

_DETAIL_WIDTH = 6.0
DETAIL_REACH = int(3 * _DETAIL_WIDTH) + 1
"""Pixels around a pixel that its detail is measured on."""
_LEAST_DETAIL = 0.05
_LEAST_CONTRAST = 0.025


@dataclass(frozen=True)
class ErrorProfile:
    """Mean squares of the parts of the error at each distance from the nearest edge; the last holds for all deeper.

    Attributes:
        noise: what the noise makes.
        missing: what the data do not determine, where the image has as much detail as it has on average.
        noise_detail: squared gradient of the estimate that noise alone makes.
        energy: mean of the squared gradient of the estimate, less that.
        contrast: of the image (see `contrast_of`); where the error is larger, nothing is trusted.
    """

    noise: tuple[float, ...]
    missing: tuple[float, ...]
    noise_detail: float
    energy: float
    contrast: float = math.inf

    @classmethod
    def of(
        cls, noise: Sequence[float], missing: Sequence[float], noise_detail: float, smoothed: Tensor
    ) -> ErrorProfile:
        """Take the mean detail from the `smoothed_energy` of an estimate, shape `(C, *size)`."""
        energy = synchronize.as_number(_less(smoothed, noise_detail).mean())
        return cls(tuple(noise), tuple(missing), noise_detail, energy)

    @property
    def outside(self) -> tuple[float, ...]:
        """The part of `missing` that lies outside of the frame: what is more than deep inside."""
        found = []
        for value in self.missing:
            # Inwards of where it first vanishes it is the scatter of the probes.
            if value <= self.missing[-1]:
                break
            found.append(value - self.missing[-1])
        return (*found, *[0.0] * (len(self.missing) - len(found)))

    @property
    def trusted_depth(self) -> int | None:
        """From this distance on what lies outside adds little to the error; `None` where nothing is to be trusted."""
        total = [noise + missing for noise, missing in zip(self.noise, self.missing, strict=True)]
        allowed = min(TRUSTED_EXCESS**2 * total[-1], self.contrast**2)
        n_beyond = [depth for depth, value in enumerate(total, start=1) if not value <= allowed]
        depth = max(n_beyond, default=0)
        return depth if depth < len(total) else None

    def detail(self, smoothed: Tensor) -> Tensor:
        """Measure the detail around each pixel by the `smoothed_energy` of an estimate, relative to the mean.

        The squared gradient under a Gaussian window, less what noise alone would make of it; where noise makes more of
        it than the image does, the detail is unknown and is taken to be the same everywhere.
        """
        floor = 0.25 * self.noise_detail + _LEAST_DETAIL * self.energy + 1e-30
        return (_less(smoothed, self.noise_detail) + floor) / (self.energy + floor)

    def squared_parts(self, smoothed: Tensor, distance: Tensor) -> dict[str, Tensor]:
        """Give the squared error to be expected of each pixel of an estimate, or of a part of one, and what makes it.

        Args:
            smoothed: `smoothed_energy` of it, shape `(C, *size)`.
            distance: of each pixel from the nearest edge of the whole, shape `size`.

        Returns:
            By the names of `ErrorBand`; all of the estimate's shape but that of the noise, which has the shape `size`.
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
        """Find the pixels whose error is larger than the contrast around them; a part of that of the whole is conceded.

        Args:
            images: estimates or parts of them, shape `(*batch, C, *size)`.
            squared: the squared error to be expected, of the same shape.
            n_axes: how many axes of space there are.

        Returns:
            Shape `(*batch, *size)`.
        """
        mean = smoothed(images, n_axes)
        contrast = smoothed((images - mean).square(), n_axes).mean(dim=-n_axes - 1)
        return squared.mean(dim=-n_axes - 1) > contrast.clamp_min((_LEAST_CONTRAST * self.contrast) ** 2)

    def scaled(self, unit: float) -> ErrorProfile:
        """Give the same of images whose values are so many times as large."""
        return replace(
            self,
            noise=tuple(unit**2 * value for value in self.noise),
            missing=tuple(unit**2 * value for value in self.missing),
            noise_detail=unit**2 * self.noise_detail,
            energy=unit**2 * self.energy,
            contrast=unit * self.contrast,
        )


def pool_profiles(parts: Sequence[ErrorProfile]) -> ErrorProfile:
    """Put together what was found on equally large pieces of one picture."""

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    return ErrorProfile(
        noise=tuple(map(mean, zip(*(part.noise for part in parts), strict=True))),
        # Together with the energy: what is missing of a place goes by its detail, whatever the pieces have of it.
        missing=tuple(map(mean, zip(*(part.missing for part in parts), strict=True))),
        noise_detail=mean([part.noise_detail for part in parts]),
        energy=mean([part.energy for part in parts]),
        contrast=math.sqrt(mean([part.contrast**2 for part in parts])),
    )


def _less(smoothed: Tensor, noise_detail: float) -> Tensor:
    """Take away of the squared gradient around each pixel what noise makes of it."""
    return (smoothed - noise_detail).clamp_min(0)


def smoothed_energy(images: Tensor, n_axes: int) -> Tensor:
    """Average the squared gradient of images `(*batch, C, *space)` around each pixel."""
    return smoothed(squared_gradient(images, n_axes), n_axes)


def smoothed(images: Tensor, n_axes: int) -> Tensor:
    """Average images `(*batch, C, *space)` under a Gaussian window, cut at the edges."""
    reach = int(3 * _DETAIL_WIDTH)
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    window = torch.exp(-0.5 * (steps / _DETAIL_WIDTH).square())[None, None]
    for axis in space_axes(n_axes):
        lines = images.movedim(axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        weight = functional.conv1d(torch.ones_like(flat[:1]), window, padding="same")
        smooth = functional.conv1d(flat, window, padding="same") / weight
        images = smooth.reshape(lines.shape).movedim(-1, axis)
    return images
