"""What the power spectra of sharp photographs look like: a power law, with what varies from one to another.

The logarithm of a scene's power is linear in a few functions of frequency and direction. Their coefficients have a
Gaussian prior, whose means and spreads were taken from sharp photographs in linear light. The power law is that of
Field, "Relations between the statistics of natural images and the response properties of cortical cells", Journal of
the Optical Society of America A 4, 1987.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.kernels.blind.polar_spectrum import PolarGrid

_MIDDLE = 0.1
"""Cycles a pixel, where the prior of the slope does not move the level."""
_AXIS_WIDTH = math.radians(6)

_TERMS = (
    (-3.5, 100.0),  # level
    (-2.7, 0.45),  # slope of the logarithm of power in that of frequency
    (-0.08, 0.15),  # softness of lenses and of resampling: minus the variance of a Gaussian, in square pixels
    (0.0, 0.5),  # twofold variation with direction, cosine
    (0.0, 0.3),  # sine
    (0.0, 0.3),  # fourfold, cosine
    (0.0, 0.25),  # sine
    (0.0, 0.25),  # twofold, growing with frequency, cosine
    (0.0, 0.15),  # sine
    (0.4, 0.9),  # vertical edges
    (0.3, 0.8),  # horizontal edges
)
"""Mean and standard deviation of each coefficient."""


def scene_basis(grid: PolarGrid) -> Tensor:
    """Give the functions of frequency and direction in each cell, shape `(n, 11)`."""
    f, direction = grid.frequency, grid.direction
    u = (f / _MIDDLE).log()
    c2, s2 = (2 * direction).cos(), (2 * direction).sin()
    c4, s4 = (4 * direction).cos(), (4 * direction).sin()
    softness = (2 * math.pi * f).square()
    axes = [_near(direction, 0.0), _near(direction, math.pi / 2)]
    return torch.stack([torch.ones_like(u), u, softness, c2, s2, c4, s4, u * c2, u * s2, *axes], 1)


def scene_prior() -> tuple[Tensor, Tensor]:
    """Give the means and the standard deviations of the coefficients, each of shape `(11,)`."""
    means, spreads = torch.tensor(_TERMS, dtype=torch.float64).unbind(1)
    return means, spreads


def _near(direction: Tensor, axis: float) -> Tensor:
    distance = torch.remainder(direction - axis + math.pi / 2, math.pi) - math.pi / 2
    return (-0.5 * (distance / _AXIS_WIDTH).square()).exp()
