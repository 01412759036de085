"""The point-spread function of a microscope: wide-field, confocal, two-photon or light-sheet.

The light around the focus follows from the vectorial integrals of Richards and Wolf (Electromagnetic diffraction in
optical systems II, Proceedings of the Royal Society A 253, 1959, section 3). A sample of another refractive index than
the immersion adds the phase of Gibson and Lanni (Experimental test of an analytical model of aberration in an
oil-immersion objective lens, Journal of the Optical Society of America A 8, 1991, for an objective that is used as
designed), refocused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional
from torch.special import bessel_j0, bessel_j1

from deconv_cli.errors import UsageError, check_type
from deconv_cli.kernels.sources.blurs import disk_kernel
from deconv_cli.kernels.sources.formula import sample_kernel
from deconv_cli.operators.axes import resized
from deconv_cli.vocabulary import Size, check_name, format_percent, format_size

MODES = ("widefield", "confocal", "two-photon", "light-sheet")
MAX_SIDE = 511
"""Samples across, of a kernel that is made for no image; more are rarely felt, and cost memory."""
N_PLANES = 32
"""Of the stack for which a kernel is made, if nobody says how deep it is."""
SHEET_REACH = 1.3
"""Full widths at half maximum from the middle of a light sheet to where it holds 1 % of its brightness."""
WAVELENGTHS = (100.0, 3000.0)
"""Of light that microscopes see, in nm."""
DISTANCES = (0.001, 20.0)
"""Of samples, in µm: what is far outside was given in another unit."""
MAX_DEPTH = 1000.0
"""In µm: the rays at greater depth are too many to be summed."""
LEAST_PINHOLE = 0.3
"""Radius in samples below which a pinhole is a point."""


@dataclass(frozen=True, kw_only=True)
class Microscope:
    """The optics that form the image of a point; wavelengths in nm, all other lengths in µm.

    Attributes:
        numerical_aperture: of the objective.
        emission: wavelength of the light that is seen.
        spacing: distance of the samples: rows and columns, or planes, rows and columns.
        mode: `widefield`, `confocal`, `two-photon` or `light-sheet`.
        immersion_index: refractive index of what is between objective and sample.
        sample_index: of the sample; `None` for that of the immersion.
        depth: of what is looked at, behind the border of the sample.
        excitation: wavelength of the light that excites, for `confocal` and `two-photon`.
        pinhole: its diameter in Airy units, for `confocal`.
        sheet: full width of the light sheet at half of its maximum, for `light-sheet`.

    Raises:
        UsageError: a value that cannot be, or one that is missing.
    """

    numerical_aperture: float
    emission: float
    spacing: tuple[float, ...]
    mode: str = "widefield"
    immersion_index: float = 1.515
    sample_index: float | None = None
    depth: float = 0.0
    excitation: float | None = None
    pinhole: float = 1.0
    sheet: float | None = None

    def __post_init__(self) -> None:
        check_name(MODES, self.mode, "mode")
        for name in ("numerical_aperture", "emission", "immersion_index", "sample_index", "excitation", "sheet"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or value <= 0):
                raise UsageError(f"{name} must be a positive number, but is {value!r}.")
        for name in ("emission", "excitation"):
            length = getattr(self, name)
            if length is not None and not WAVELENGTHS[0] <= length <= WAVELENGTHS[1]:
                raise UsageError(f"{name} must be a wavelength of {_range(WAVELENGTHS)} nm, but is {length:g}.")
        for name in ("depth", "pinhole"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise UsageError(f"{name} must be zero or a positive number, but is {value!r}.")
        if self.depth > MAX_DEPTH:
            raise UsageError(f"depth must be at most {MAX_DEPTH:g} µm, but is {self.depth:g}.")
        if self.numerical_aperture >= self.immersion_index:
            raise UsageError(
                "the numerical aperture must be below the refractive index of the immersion, "
                f"{self.immersion_index:g}, but is {self.numerical_aperture:g}."
            )
        self._check_spacing()
        if self.mode in ("confocal", "two-photon") and self.excitation is None:
            raise UsageError(f"mode {self.mode} needs excitation, the wavelength of the exciting light.")
        if self.mode == "light-sheet" and self.sheet is None:
            raise UsageError("mode light-sheet needs sheet, the width of the sheet at half of its maximum.")

    def _check_spacing(self) -> None:
        steps = self.spacing
        if (
            not isinstance(steps, tuple | list)
            or len(steps) not in (2, 3)
            or not all(_is_number(step) and step > 0 for step in steps)
        ):
            raise UsageError(f"spacing must hold two or three positive distances in µm, but is {steps}.")
        if min(steps) < DISTANCES[0] or max(steps) > DISTANCES[1]:
            listed = " × ".join(f"{step:g}" for step in steps)
            raise UsageError(f"spacing must hold distances of {_range(DISTANCES)} µm, but is {listed}.")
        if abs(steps[-1] - steps[-2]) > 1e-3 * steps[-1]:
            raise UsageError(
                f"pixels of a microscope should be squares, but are {steps[-2]:g} by {steps[-1]:g} µm; resample them."
            )

    @property
    def half_angle(self) -> float:
        """The largest angle of the light, in radians."""
        return math.asin(self.numerical_aperture / self.immersion_index)

    @property
    def finest(self) -> tuple[float, ...]:
        """The Nyquist distances of samples along each axis, in µm: half a period of the finest detail that passes."""
        exciting = self.excitation or self.emission
        lights = {"confocal": (self.emission, exciting), "two-photon": (exciting, exciting)}
        waves = sum(1000 / light for light in lights.get(self.mode, (self.emission,)))
        lateral = 2 * self.numerical_aperture * waves
        axial = self.immersion_index * (1 - math.cos(self.half_angle)) * waves
        found = (0.5 / axial, 0.5 / lateral, 0.5 / lateral)
        return found[-len(self.spacing) :]

    def psf_size(self, image_size: Size | None = None, *, is_compact: bool = False) -> Size:
        """Choose how many samples the point-spread function needs along each axis, odd.

        Across, four dark rings hold most of the light in focus. Along, four axial widths do in a confocal microscope,
        and in any mode if `is_compact`. In a wide field every plane carries the same light, so a stack of D planes
        needs 2D − 1 of them, and a light sheet those that it lights; both need the width of the cone of light in the
        outermost plane. Without the size of the image that is restored, it is a stack of `N_PLANES`.
        """
        wavelength = self.emission / 1000
        side = 4 * 0.61 * wavelength / self.numerical_aperture
        along = 4 * wavelength * self.immersion_index / self.numerical_aperture**2
        if len(self.spacing) == 3:
            whole = ((N_PLANES if image_size is None else image_size[0]) - 1) * self.spacing[0]
            reach = {"widefield": whole, "light-sheet": SHEET_REACH * (self.sheet or 0.0)}.get(self.mode)
            along = min(along if reach is None or is_compact else reach, whole)
            side += 0.0 if reach is None else along * math.tan(self.half_angle)
        lengths = (along, side, side)[-len(self.spacing) :]
        needed = [2 * math.ceil(length / step - 1e-6) + 1 for length, step in zip(lengths, self.spacing, strict=True)]
        felt = (2 * N_PLANES - 1, MAX_SIDE, MAX_SIDE) if image_size is None else tuple(2 * n - 1 for n in image_size)
        return tuple(map(min, needed, felt[-len(needed) :]))


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def microscope_psf(microscope: Microscope, size: Size | None = None) -> Tensor:
    """Compute the picture of a point in focus.

    Args:
        microscope: the optics.
        size: samples along each axis, odd; `None` for `microscope.psf_size()`.

    Returns:
        Shape `(n, n)` or `(n_planes, n, n)`, float64, of sum 1; later planes are focused deeper. It is symmetric across
        the axis, and along it where the sample has no depth: then it is a kernel of a cross-correlation too.

    Raises:
        UsageError: a size that cannot be.
    """
    check_type(microscope, Microscope, "the microscope")
    size = microscope.psf_size() if size is None else size
    n_axes = len(microscope.spacing)
    is_size = isinstance(size, tuple | list) and len(size) == n_axes
    if not is_size or not all(isinstance(n, int) and n > 0 and n % 2 for n in size):
        raise UsageError(f"size must hold an odd number of samples for each of {n_axes} axes, but is {size}.")
    planes = (size[0], microscope.spacing[0]) if n_axes == 3 else (1, 1.0)
    psf = _of_square(microscope, max(size[-2:]), *planes)
    psf = resized(psf, size[-2:])
    psf = psf / psf.sum()
    return psf if n_axes == 3 else psf[0]


def _of_square(microscope: Microscope, side: int, n_planes: int, plane: float) -> Tensor:
    """Compute planes of a square."""
    pixel = microscope.spacing[-1]
    if microscope.mode in ("widefield", "light-sheet"):
        seen = _on_camera(microscope, side, pixel, n_planes, plane)
        if microscope.mode == "widefield":
            return seen
        heights = (torch.arange(n_planes, dtype=seen.dtype) - n_planes // 2) * plane
        lit = torch.exp(-4 * math.log(2) * (heights / (microscope.sheet or 1.0)).square())
        return seen * lit[:, None, None]
    exciting = microscope.excitation or microscope.emission
    lit = torch.stack([*focus_planes(microscope, exciting, side, pixel, n_planes, plane)])
    if microscope.mode == "two-photon":
        return lit.square()
    seen = torch.stack([*focus_planes(microscope, microscope.emission, side, pixel, n_planes, plane)])
    return lit * _through_pinhole(seen, microscope, pixel)


def _through_pinhole(seen: Tensor, microscope: Microscope, pixel: float) -> Tensor:
    """Blur what is seen, plane by plane, by the disk of a pinhole as it looks in the sample."""
    airy_unit = 1.22 * microscope.emission / 1000 / microscope.numerical_aperture
    radius = 0.5 * microscope.pinhole * airy_unit / pixel
    if radius < LEAST_PINHOLE:
        return seen
    disk = sample_kernel(disk_kernel(radius))
    return functional.conv2d(seen[:, None], disk[None, None], padding=disk.shape[0] // 2)[:, 0].clamp_min(0)


def _on_camera(microscope: Microscope, side: int, pixel: float, n_planes: int, plane: float) -> Tensor:
    """Integrate the intensity over the pixels of a camera: a product of sincs in frequency."""
    finest = microscope.emission / 1000 / (4 * microscope.numerical_aperture)
    fine = 2 * (math.ceil(pixel / finest) // 2) + 1
    n = side * fine
    box = torch.sinc(torch.fft.fftfreq(n, dtype=torch.float64) * fine)
    box = box[:, None] * box[: n // 2 + 1]
    seen = []
    for intensity in focus_planes(microscope, microscope.emission, n, pixel / fine, n_planes, plane):
        blurred = torch.fft.irfft2(torch.fft.rfft2(intensity) * box, s=(n, n)).clamp_min(0)
        seen.append(blurred[fine // 2 :: fine, fine // 2 :: fine])
    return torch.stack(seen)


def sampling_notes(microscopes: Sequence[Microscope], psfs: Sequence[Tensor]) -> tuple[str, ...]:
    """Note where samples are coarser than Nyquist's, and how much light the outermost plane of a wide field keeps.

    Each channel has a microscope, all with the same distances of samples, and a point-spread function.
    """
    notes = []
    spacing = microscopes[0].spacing
    for axis, name in list(enumerate(("planes", "pixels", "pixels")[-len(spacing) :]))[:-1]:
        finest = [microscope.finest[axis] for microscope in microscopes]
        missed = [f"{resolved:.3g}" for resolved in finest if spacing[axis] > 1.001 * resolved]
        if missed:
            notes.append(
                f"{name} of {spacing[axis]:g} µm are coarser than the {', '.join(missed)} µm that the optics resolve: "
                "finer detail appears as aliasing and cannot be restored"
            )
    lights = [psf.sum((-2, -1)) for psf, each in zip(psfs, microscopes, strict=True) if each.mode == "widefield"]
    kept = [float(min(light[0], light[-1]) / light[len(light) // 2]) for light in lights if light.ndim]
    if kept:
        notes.append(
            f"every plane of a wide field carries the same light; the outermost of the kernel's {len(psfs[0])} planes "
            f"keeps {format_percent(min(kept))} of it within {format_size(psfs[0].shape[1:])} pixels"
        )
    return tuple(notes)


MIN_ANGLES, ANGLES_PER_TURN = 257, 12
N_RADII_AT_ONCE = 1024
FINE = 32
"""Radii between two of Nyquist's, where intensities are interpolated."""
FOCUS_STEP = 0.01
"""In µm, between the depths at which the focus is looked for."""


def focus_planes(
    optics: Microscope, light: float, n_pixels: int, pixel: float, n_planes: int, plane: float
) -> Iterator[Tensor]:
    """Compute the intensity around the focus, of unpolarized light, plane by plane: `(n_pixels, n_pixels)`, float64.

    The wavelength of the `light` is in nm. Both numbers are odd; `pixel` and `plane` are distances in µm. The middle
    plane is in focus, and further ones are focused deeper. The maximum of all is 1 or a little less.
    """
    wavelength = light / 1000
    reach = n_pixels * pixel / math.sqrt(2) * optics.numerical_aperture
    reach += n_planes * plane * optics.immersion_index * (1 - math.cos(optics.half_angle))
    reach += optics.depth * abs((optics.sample_index or optics.immersion_index) - optics.immersion_index)
    n_angles = 2 * (max(MIN_ANGLES, int(ANGLES_PER_TURN * reach / wavelength)) // 2) + 1
    angles = torch.linspace(0, optics.half_angle, n_angles, dtype=torch.float64)
    k = 2 * math.pi * optics.immersion_index / wavelength
    heights = (torch.arange(n_planes, dtype=torch.float64) - n_planes // 2) * plane
    waves = torch.exp(-1j * k * heights[:, None] * angles.cos()) * _aberration(optics, 2 * math.pi / wavelength, angles)
    waves = waves * angles.cos().sqrt() * angles.sin() * _simpson_weights(n_angles)
    offsets = (torch.arange(n_pixels) - n_pixels // 2).square()
    squares, places = (offsets[:, None] + offsets).unique(return_inverse=True)
    radii = squares.double().sqrt() * pixel
    step = wavelength / (4 * optics.numerical_aperture * FINE)
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


def _aberration(optics: Microscope, k: float, angles: Tensor) -> Tensor:
    """Give the factor by which the sample changes the light of each angle in the immersion medium, shape `(n,)`.

    In vacuum the wave number of the light is `k`.
    """
    sample_index = optics.sample_index or optics.immersion_index
    if optics.depth == 0 or sample_index == optics.immersion_index:
        return torch.ones_like(angles)
    across = optics.immersion_index * angles.sin()
    # Light beyond the critical angle fades with the depth.
    in_sample = torch.sqrt((sample_index**2 - across.square()).to(torch.complex128))
    along = optics.immersion_index * angles.cos()
    nominal = optics.depth * optics.immersion_index / sample_index
    weights = angles.cos().sqrt() * angles.sin() * (1 + angles.cos())
    search = 0.5 * optics.depth + 2.0
    offsets = torch.arange(-search, search, FOCUS_STEP, dtype=torch.float64)
    phases = optics.depth * in_sample - (nominal + offsets[:, None]) * along
    on_axis = (weights * torch.exp(1j * k * phases)).sum(1).abs()
    best = nominal + float(offsets[on_axis.argmax()])
    return torch.exp(1j * k * (optics.depth * in_sample - best * along))
