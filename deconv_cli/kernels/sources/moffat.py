"""`moffat:FWHM@BETA`: a star seen through the atmosphere.

Moffat, "A theoretical investigation of focal stellar images in the photographic emulsion and application to
photographic photometry", Astronomy and Astrophysics 3, 1969. With ν = β − 1 and z = 2παf its transform is
2 (z/2)^ν K_ν(z) / Γ(ν), where K_ν(z) = ∫ exp(−z cosh t) cosh(νt) dt (NIST Digital Library of Mathematical Functions,
equation 10.32.9).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel, check_length
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, Numbers

_BETAS = (1.1, 30.0)
_SHARE_BEYOND = 0.002
_MOST_RADII = 12
"""Where the wings end at the latest, in widths at half maximum: those of a small beta never do."""
_STEP, _LAST = 0.15, 15.0
"""Of the rule of trapezoids in t."""
_N_NODES = 1000
"""Places between which the transform is taken for straight: right to 1e-4."""


def moffat_kernel(fwhm: float, beta: float) -> ContinuousKernel:
    """Describe (1 + (r / α)²)^−β, as far as 99.8 % of its light or twelve widths reach.

    Args:
        fwhm: full width at half maximum, in pixels.
        beta: how fast the wings fall, from 1.1 to 30; about 2.5 to 4.8 for the atmosphere.

    Raises:
        UsageError: a width that is not positive or too large, or such a beta.
    """
    if not _BETAS[0] <= beta <= _BETAS[1]:
        raise UsageError(f"BETA must be from {_BETAS[0]} to {_BETAS[1]:g}, but is {beta:g}.")
    check_length(fwhm, "FWHM")
    alpha = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    # Beyond r lies the share (1 + (r/α)²)^(1 − β).
    reach = min(alpha * math.sqrt(_SHARE_BEYOND ** (1 / (1 - beta)) - 1), _MOST_RADII * fwhm)
    order = beta - 1
    highest = 40 + 10 * math.sqrt(order)
    # Close to each other where the transform has its cusp.
    nodes = _transform(order, highest * torch.linspace(0, 1, _N_NODES + 1, dtype=torch.float64).square())

    def profile(frequency: torch.Tensor) -> torch.Tensor:
        at = (2 * math.pi * alpha / highest * frequency).clamp(max=1).sqrt() * _N_NODES
        before = at.long().clamp(max=_N_NODES - 1)
        return torch.lerp(nodes[before], nodes[before + 1], at - before)

    return ContinuousKernel.radial(check_length(reach, "FWHM"), profile)


def _transform(order: float, z: torch.Tensor) -> torch.Tensor:
    """Give 2 (z/2)^ν K_ν(z) / Γ(ν), shape `(n,)`; 1 at z = 0."""
    t = torch.arange(0, _LAST, _STEP, dtype=z.dtype)
    weights = torch.full_like(t, _STEP)
    weights[0] /= 2
    scale = order * (z / 2).log() - math.lgamma(order)
    exponents = scale[:, None] - z[:, None] * t.cosh() + order * t
    return torch.where(z > 0, (exponents.exp() * (1 + (-2 * order * t).exp())) @ weights, 1.0)


def _starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    fwhm = best["gaussian"][0] * 2.355
    return [(fwhm * ratio, beta) for ratio in (0.7, 0.85, 1.0) for beta in (2.0, 3.0, 4.5)]


MOFFAT = KernelSource(
    ("FWHM", "BETA"),
    moffat_kernel,
    BlurFamily(lambda _, best: _starts(best), lambda _: (0.15, 0.3), log_penalty=14.0),
    along=(-1, None),
    example="4@3",
)
