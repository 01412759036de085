"""The regularized inverse of a convolution on a torus as a filter: one factor for each mode of the kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.torus_modes import TorusModes
from deconv_cli.operators import synchronize
from deconv_cli.regularizers import PenaltyLike


@dataclass(frozen=True)
class InverseFilter:
    """The filter σ / (σ² + μ|l|²).

    Attributes:
        weight: μ = λσ²max; 0 for the pseudo-inverse.
        penalty: which L.
        rcond: singular values up to this fraction of the largest count as zero.
    """

    weight: float
    penalty: PenaltyLike
    rcond: float

    def threshold(self, modes: TorusModes) -> float:
        """Singular values up to here count as zero, in the unit of the kernel's taps."""
        return self.rcond * synchronize.as_number(modes.sigma.max())

    def gain(self, modes: TorusModes) -> Tensor:
        """Evaluate the filter along each mode, shape `(*F, m)`.

        What neither the kernel nor the penalty sees, and for μ = 0 what is not above the threshold, is left at zero.
        """
        sigma = modes.sigma
        denominator = sigma.square() + self.weight * modes.squared_penalty(self.penalty)
        is_kept = sigma > self.threshold(modes) if self.weight == 0 else denominator > 0
        return torch.where(is_kept, sigma / torch.where(is_kept, denominator, 1), 0)

    def noise_gain(self, modes: TorusModes) -> float:
        """Compute how much stronger white noise comes back: the root mean square of the estimate of unit noise."""
        return root_mean_square(modes, self.gain(modes).square())

    def passed(self, modes: TorusModes) -> Tensor:
        """Evaluate f = σ² / (σ² + μ|l|²), the part of each mode of the image that the estimate keeps, `(*F, m)`."""
        return self.gain(modes) * modes.sigma


def root_mean_square(modes: TorusModes, power: Tensor) -> float:
    """Compute the root mean square of the samples of an image that has such a power along each mode, `(*F, m)`."""
    total = synchronize.as_number((modes.weights[..., None] * power).sum())
    return (total / (modes.vh.shape[-1] * math.prod(modes.torus))) ** 0.5
