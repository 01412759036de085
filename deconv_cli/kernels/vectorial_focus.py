"""The light around the focus of an objective, by the vectorial integrals of Richards and Wolf.

Richards and Wolf, Electromagnetic diffraction in optical systems II, Proceedings of the Royal Society A 253, 1959,
section 3. A sample of another refractive index than the immersion adds the phase of Gibson and Lanni (Experimental test
of an analytical model of aberration in an oil-immersion objective lens, Journal of the Optical Society of America A 8,
1991, for an objective that is used as designed), refocused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import bessel_j0, bessel_j1

MIN_ANGLES, ANGLES_PER_TURN = 257, 12
N_RADII_AT_ONCE = 1024
FINE = 32
"""Radii between two of Nyquist's, where intensities are interpolated."""
FOCUS_STEP = 0.01
"""In µm, between the depths at which the focus is looked for."""


@dataclass(frozen=True)
class Objective:
    """An objective for light of one wavelength in vacuum; lengths in µm, `depth` is behind the border of the sample."""

    numerical_aperture: float
    wavelength: float
    immersion_index: float
    sample_index: float
    depth: float

    @property
    def half_angle(self) -> float:
        """The largest angle of the light, in radians."""
        return math.asin(self.numerical_aperture / self.immersion_index)


def focus_planes(objective: Objective, n_pixels: int, pixel: float, n_planes: int, plane: float) -> Iterator[Tensor]:
    """Compute the intensity around the focus, of unpolarized light.

    Args:
        objective: the optics.
        n_pixels: samples along each side, odd.
        pixel: their distance, in µm.
        n_planes: planes, odd, the middle one in focus; further ones are focused deeper.
        plane: their distance, in µm.

    Returns:
        Each plane, shape `(n_pixels, n_pixels)`, float64; the maximum of all is 1 or a little less.
    """
    reach = n_pixels * pixel / math.sqrt(2) * objective.numerical_aperture
    reach += n_planes * plane * objective.immersion_index * (1 - math.cos(objective.half_angle))
    reach += objective.depth * abs(objective.sample_index - objective.immersion_index)
    n_angles = 2 * (max(MIN_ANGLES, int(ANGLES_PER_TURN * reach / objective.wavelength)) // 2) + 1
    angles = torch.linspace(0, objective.half_angle, n_angles, dtype=torch.float64)
    k = 2 * math.pi * objective.immersion_index / objective.wavelength
    heights = (torch.arange(n_planes, dtype=torch.float64) - n_planes // 2) * plane
    waves = torch.exp(-1j * k * heights[:, None] * angles.cos()) * _aberration(objective, angles)
    waves = waves * angles.cos().sqrt() * angles.sin() * _simpson_weights(n_angles)
    offsets = (torch.arange(n_pixels) - n_pixels // 2).square()
    squares, places = (offsets[:, None] + offsets).unique(return_inverse=True)
    radii = squares.double().sqrt() * pixel
    step = objective.wavelength / (4 * objective.numerical_aperture * FINE)
    nodes = (
        radii if len(radii) < radii[-1] / step else step * torch.arange(int(radii[-1] / step) + 3, dtype=radii.dtype)
    )
    intensity = torch.cat([_at_radii(waves, angles, k * part) for part in nodes.split(N_RADII_AT_ONCE)], 1)
    intensity = intensity / intensity.max()
    if nodes is not radii:
        low = (radii / step).long()
        intensity = torch.lerp(intensity[:, low], intensity[:, low + 1], radii / step - low)
    return (each[places] for each in intensity)


def _at_radii(waves: Tensor, angles: Tensor, radii: Tensor) -> Tensor:
    """Compute |I₀|² + 2|I₁|² + |I₂|², the intensity of unpolarized light, shape `(n_planes, n_radii)`.

    The waves `(n_planes, n_angles)` hold the weights of the integral; the radii are distances from the axis times the
    wave number.
    """
    argument = radii * angles.sin()[:, None]
    j0, j1 = bessel_j0(argument), bessel_j1(argument)
    j2 = torch.where(argument > 1e-6, 2 * j1 / argument, 0.0) - j0.where(argument > 1e-6, 0.0)
    cosines = angles.cos()[:, None]
    terms = (j0 * (1 + cosines), math.sqrt(2) * j1 * angles.sin()[:, None], j2 * (1 - cosines))
    return sum(((waves.real @ t).square() + (waves.imag @ t).square() for t in terms), start=torch.zeros(()))


def _simpson_weights(n: int) -> Tensor:
    """Return the weights of Simpson's rule on an odd number of points a unit apart."""
    weights = torch.full((n,), 2.0, dtype=torch.float64)
    weights[1::2] = 4
    weights[0] = weights[-1] = 1
    return weights


def _aberration(objective: Objective, angles: Tensor) -> Tensor:
    """Give the factor by which the sample changes the light of each angle in the immersion medium, shape `(n,)`."""
    if objective.depth == 0 or objective.sample_index == objective.immersion_index:
        return torch.ones_like(angles)
    k = 2 * math.pi / objective.wavelength
    across = objective.immersion_index * angles.sin()
    # Light beyond the critical angle fades with the depth.
    in_sample = torch.sqrt((objective.sample_index**2 - across.square()).to(torch.complex128))
    along = objective.immersion_index * angles.cos()
    nominal = objective.depth * objective.immersion_index / objective.sample_index
    weights = angles.cos().sqrt() * angles.sin() * (1 + angles.cos())
    search = 0.5 * objective.depth + 2.0
    offsets = torch.arange(-search, search, FOCUS_STEP, dtype=torch.float64)
    phases = objective.depth * in_sample - (nominal + offsets[:, None]) * along
    on_axis = (weights * torch.exp(1j * k * phases)).sum(1).abs()
    best = nominal + float(offsets[on_axis.argmax()])
    return torch.exp(1j * k * (objective.depth * in_sample - best * along))
