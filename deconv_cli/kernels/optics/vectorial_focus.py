"""The light around the focus of an objective, by the vectorial integrals of Richards and Wolf.

Richards and Wolf, Electromagnetic diffraction in optical systems II, Proceedings of the Royal Society A 253, 1959. The
integrals are those of the package psf-generator. A sample of another refractive index than the immersion adds the phase
of Gibson and Lanni (Experimental test of an analytical model of aberration in an oil-immersion objective lens, Journal
of the Optical Society of America A 8, 1991, for an objective that is used as designed), focused anew.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deconv_cli.errors import UsageError

UNIT = 1e6
"""Lengths are given to the package in picometers: it rounds the ends of a stack to whole units."""
MIN_ANGLES, ANGLES_PER_TURN = 257, 12
FOCUS_STEP = 0.01
"""In µm, between the depths at which the focus is looked for."""


@dataclass(frozen=True)
class Objective:
    """What an objective does to light of one wavelength: lengths in µm.

    Attributes:
        numerical_aperture: NA.
        wavelength: in vacuum.
        immersion_index: refractive index between objective and sample.
        sample_index: of the sample.
        depth: of what is looked at behind the border of the sample.
    """

    numerical_aperture: float
    wavelength: float
    immersion_index: float
    sample_index: float
    depth: float

    @property
    def half_angle(self) -> float:
        """The largest angle of the light, in radians."""
        return math.asin(self.numerical_aperture / self.immersion_index)


def focus_intensity(objective: Objective, n_pixels: int, pixel: float, n_planes: int, plane: float) -> Tensor:
    """Compute the intensity around the focus, of unpolarized light.

    Args:
        objective: the optics.
        n_pixels: samples along each side, odd.
        pixel: their distance, in µm.
        n_planes: planes, odd, the middle one in focus; further ones are focused deeper.
        plane: their distance, in µm.

    Returns:
        Shape `(n_planes, n_pixels, n_pixels)`, float64, of maximum 1 or a little less.

    Raises:
        UsageError: the package is not there.
    """
    propagator = _propagator_class()
    reach = n_pixels * pixel / math.sqrt(2) * objective.numerical_aperture
    reach += n_planes * plane * objective.immersion_index * (1 - math.cos(objective.half_angle))
    reach += objective.depth * abs(objective.sample_index - objective.immersion_index)
    n_angles = 2 * (max(MIN_ANGLES, int(ANGLES_PER_TURN * reach / objective.wavelength)) // 2) + 1
    total = torch.zeros(n_planes, n_pixels, n_pixels, dtype=torch.float64)
    for polarization in ((1.0, 0.0), (0.0, 1.0)):
        made = propagator(
            n_pix_pupil=n_angles,
            n_pix_psf=n_pixels,
            wavelength=objective.wavelength * UNIT,
            na=objective.numerical_aperture,
            # The package spreads n samples over n pixels, ends included, and planes likewise.
            pix_size=pixel * UNIT * (n_pixels - 1) / n_pixels,
            defocus_step=plane * UNIT * (n_planes - 1) / n_planes,
            n_defocus=n_planes,
            apod_factor=True,
            e0x=polarization[0],
            e0y=polarization[1],
            n_i=objective.immersion_index,
            n_i0=objective.immersion_index,
        )
        made.correction_factor = made.correction_factor * _aberration(objective, made.thetas.double()).conj()
        filters = made.defocus_filters
        for i in range(n_planes):  # one at a time: all at once would hold every plane's integrands
            made.defocus_filters = filters[i : i + 1]
            total[i] += made.compute_focus_field()[0].abs().double().square().sum(0)
    return total / total.max()


def _propagator_class() -> Any:  # noqa: ANN401  (the package has no types)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from psf_generator import VectorialSphericalPropagator
    except ImportError as error:
        raise UsageError(
            "the kernel of a microscope is computed by the package psf-generator, which is not there; install it with "
            "pip install 'deconv-cli[microscope]'."
        ) from error
    return VectorialSphericalPropagator


def _aberration(objective: Objective, angles: Tensor) -> Tensor:
    """Give the factor by which the sample changes the light of each angle in the immersion medium, shape `(n,)`."""
    if objective.depth == 0 or objective.sample_index == objective.immersion_index:
        return torch.ones_like(angles).to(torch.complex64)
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
    return torch.exp(1j * k * (objective.depth * in_sample - best * along)).to(torch.complex64)
