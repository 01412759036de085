"""Make the sample stack from the one that the package sdeconv ships, and a point-spread function for it.

Run once, from this folder, after `pip install --no-deps sdeconv`. See README.md beside this file for origins and
licences.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

HERE = Path(__file__).parent
DEPTH_STEP, PIXEL = 0.5, 0.2
"""Distances of planes and of pixels in micrometers; the source does not say them, so they are illustrative."""
WAVELENGTH, NUMERICAL_APERTURE, REFRACTIVE_INDEX = 0.52, 0.7, 1.0
"""Of the emitted light in micrometers, and of a dry objective."""


def widefield_psf(n_planes: int, n_pixels: int) -> NDArray[np.float32]:
    """Compute what a wide-field microscope without aberrations makes of a point of light, in scalar diffraction.

    The field at defocus z is the Fourier transform of the pupil times exp(2πi·kz·z), with kz = √((n/λ)² − kx² − ky²);
    each plane of its intensity has the same sum (Goodman, Introduction to Fourier Optics, chapter 6).
    """
    n_grid = 256
    frequencies = np.fft.fftfreq(n_grid, PIXEL)
    squared = frequencies[:, None] ** 2 + frequencies**2
    pupil = squared <= (NUMERICAL_APERTURE / WAVELENGTH) ** 2
    axial = np.sqrt(np.maximum((REFRACTIVE_INDEX / WAVELENGTH) ** 2 - squared, 0))
    defocus = DEPTH_STEP * (np.arange(n_planes) - (n_planes - 1) // 2)
    field = np.fft.ifft2(pupil * np.exp(2j * np.pi * axial * defocus[:, None, None]))
    intensity = np.fft.fftshift(np.abs(field) ** 2, axes=(1, 2))
    start = n_grid // 2 - n_pixels // 2
    taps = intensity[:, start : start + n_pixels, start : start + n_pixels]
    return (taps / taps.sum()).astype(np.float32)


def main() -> None:
    """Write the stack and the point-spread function."""
    found = importlib.util.find_spec("sdeconv")
    assert found is not None
    assert found.origin is not None
    grains = tifffile.imread(Path(found.origin).parent / "data" / "pollen.tif")
    sizes = {"PhysicalSizeX": PIXEL, "PhysicalSizeY": PIXEL, "PhysicalSizeZ": DEPTH_STEP}
    tifffile.imwrite(
        HERE / "pollen.ome.tif",
        grains[3:27, 20:116, 148:244],
        ome=True,
        photometric="minisblack",
        compression="zlib",
        metadata={"axes": "ZYX", **sizes, **{f"{name}Unit": "µm" for name in sizes}},
    )
    tifffile.imwrite(
        HERE / "widefield_psf.tif",
        widefield_psf(n_planes=13, n_pixels=17),
        imagej=True,
        resolution=(1 / PIXEL, 1 / PIXEL),
        metadata={"axes": "ZYX", "spacing": DEPTH_STEP, "unit": "um"},
    )


if __name__ == "__main__":
    main()
