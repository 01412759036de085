"""`moffat:FWHM@BETA`: a star seen through the atmosphere.

Moffat, "A theoretical investigation of focal stellar images in the photographic emulsion and application to
photographic photometry", Astronomy and Astrophysics 3, 1969.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, Numbers, pixels_reached, unit_sum
from deconv_cli.kernels.sources.subpixels import integrate_over_pixels

_LEAST_BETA = 1.1
_SHARE_BEYOND = 0.01
_MOST_RADII = 8
"""Where the wings end at the latest, in widths at half maximum: those of a small beta never do."""


def moffat_kernel(fwhm: float, beta: float) -> torch.Tensor:
    """Integrate (1 + (r / α)²)^−β over each pixel, as far as 99 % of its light or eight widths reach.

    Args:
        fwhm: full width at half maximum, in pixels.
        beta: how fast the wings fall, at least 1.1; about 2.5 to 4.8 for the atmosphere.

    Returns:
        Shape `(k, k)`, k odd, float64, sum 1.

    Raises:
        UsageError: a width that is not positive or too large, or a beta below 1.1.
    """
    if not beta >= _LEAST_BETA:
        raise UsageError(f"BETA must be at least {_LEAST_BETA}, but is {beta:g}.")
    pixels_reached(fwhm, "FWHM")
    alpha = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    # Beyond r lies the share (1 + (r/α)²)^(1 − β).
    reach = min(alpha * math.sqrt(_SHARE_BEYOND ** (1 / (1 - beta)) - 1), _MOST_RADII * fwhm)
    n = pixels_reached(reach, "FWHM")
    return unit_sum(integrate_over_pixels(lambda y, x: (1 + (y * y + x * x) / alpha**2) ** -beta, n))


def _starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    fwhm = best["gaussian"][0] * 2.355
    return [(fwhm * ratio, beta) for ratio in (0.7, 0.85, 1.0) for beta in (2.0, 3.0, 4.5)]


MOFFAT = KernelSource(
    ("FWHM", "BETA"),
    moffat_kernel,
    BlurFamily(lambda _, best: _starts(best), lambda _: (0.15, 0.3), log_penalty=14.0),
    along=(-1, None),
)
