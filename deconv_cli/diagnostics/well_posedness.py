"""Whether a boundary loses part of the image, what would help, and the numbers of a kernel under every boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.boundary_modes import count_lost_modes
from deconv_cli.errors import ShapeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.measured_light import center_of_mass
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes
from deconv_cli.operators.boundary_rules import BoundaryRule, as_rule
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import Spectrum, kernel_spectrum
from deconv_cli.parts import BOUNDARIES
from deconv_cli.vocabulary import PaddingLike, Size, counted

# Without λ, modes with singular values below this fraction of the largest are lost: they amplify noise more than a
# thousand times.
LOST = 1e-3
# The advised λ is the square of this fraction of the symbol's smallest singular value. It changes no frequency by more
# than one percent, and amplifies noise at most five times as much as the symbol itself does.
ADVISED_FRACTION = 0.1
MIN_ADVISED_LAMBDA = 1e-6
UNTESTED = "the boundary was not tested: the channels of the kernel depend on one another, or there are too many"


@dataclass(frozen=True)
class WellPosedness:
    """What the boundary does to the problem, from the kernel alone, before anything is solved.

    Attributes:
        is_well_posed: the boundary loses no modes, or λ > 0 bounds their amplification; `None` if it was not tested.
        threshold: √λ, below which the penalty decides instead of the data; 1e-3 for λ = 0. In units of σmax.
        reason: the finding as a clause.
        n_border_modes: about how many singular values vanish as the image grows, though those of the symbol do not.
        n_lost_modes: those below `threshold` at this size; several times too many if a padding adds rows
            and removes columns.
        windings: the least and the largest winding number of det K along each axis; `None` if no test is needed.
        n_frequencies: number of tested frequencies along the edges.
        advice: what would make the problem well posed, a clause each; empty if nothing is lost.
        advised_lambda: a λ that bounds the noise; `None` if none is needed.
    """

    is_well_posed: bool | None
    threshold: float
    reason: str
    n_border_modes: int | None = 0
    n_lost_modes: int | None = 0
    windings: tuple[Size, ...] | None = None
    n_frequencies: int = 0
    advice: tuple[str, ...] = ()
    advised_lambda: float | None = None


def assess(
    taps: Tensor,
    geometry: Geometry,
    boundary: str | BoundaryRule,
    *,
    lam: float,
    spectrum: Spectrum,
) -> WellPosedness:
    """Assess a problem by the zeros of its kernel's polynomial, without building it.

    The taps have the shape `(C_out, C_in, *k)`; the spectrum is that of the same kernel on the torus of the image.
    """
    threshold = math.sqrt(lam) if lam > 0 else LOST
    size, rule = geometry.image_size, as_rule(boundary)
    harmless = _harmless(geometry, rule, is_tall=taps.shape[0] > taps.shape[1])
    finding = WellPosedness(is_well_posed=True, threshold=threshold, reason=harmless or UNTESTED)
    if harmless is not None:
        return finding
    # The modes are counted relative to the mean square of the symbol, which is a sum over the taps.
    ordinary = synchronize.as_number(to_float64(taps).square().sum() / min(taps.shape[:2])) ** 0.5
    modes = count_lost_modes(taps, geometry.pads, size, threshold * spectrum.sigma_max / ordinary)
    if modes is None:
        return replace(finding, is_well_posed=None, n_border_modes=None, n_lost_modes=None)
    n_border, n_lost, windings, n_frequencies = modes
    is_lossy = n_lost > 0
    advised_lambda = _advised_lambda(spectrum) if is_lossy and lam == 0 else None
    return replace(
        finding,
        is_well_posed=lam > 0 or not is_lossy,
        n_border_modes=n_border,
        n_lost_modes=n_lost,
        windings=windings,
        n_frequencies=n_frequencies,
        reason=_reason(n_lost, lam, is_square=taps.shape[0] == taps.shape[1]),
        advice=_advice(advised_lambda) if is_lossy else (),
        advised_lambda=advised_lambda,
    )


def _harmless(geometry: Geometry, boundary: BoundaryRule, *, is_tall: bool) -> str | None:
    """Return why a boundary cannot lose anything, or `None` if it can.

    `valid` has A Aᵀ = T(K Kᴴ) and `full` with zeros AᵀA = T(KᴴK), sections of the symbol whose eigenvalues lie between
    those of the symbol. A tall `valid` convolution also has a null space: exponentials at the common roots of all
    outputs, as many at every size.
    """
    if boundary.is_periodic:
        return (
            "the image repeats without an edge: the singular values are the magnitudes of the kernel's transfer "
            "function"
        )
    pads = geometry.pads
    if boundary.is_unknown or not any(pads.total):
        if is_tall:
            return "nothing is assumed about the outside, so the border can lose nothing"
        return (
            "nothing is assumed about the outside, so no singular value is below the smallest of the kernel's "
            "transfer function"
        )
    if all(
        pad >= k - 1 for side in (pads.before, pads.after) for pad, k in zip(side, geometry.kernel_size, strict=True)
    ):
        return "the output contains the whole response to every pixel, so the boundary loses nothing"
    return None


def _advised_lambda(spectrum: Spectrum) -> float:
    """Round up to one digit what keeps the noise within five times that of the symbol."""
    wanted = max((ADVISED_FRACTION / spectrum.condition) ** 2, MIN_ADVISED_LAMBDA)
    power = 10.0 ** math.floor(math.log10(wanted))
    return float(f"{math.ceil(wanted / power - 1e-9) * power:.0e}")


def _reason(n_lost: int, lam: float, *, is_square: bool) -> str:
    if n_lost == 0:
        if is_square:
            return "the boundary loses nothing that the kernel passes"
        return "the boundary loses nothing: with unequal numbers of channels no image along an edge escapes all outputs"
    modes = f"about {counted(n_lost, 'mode')} along the edges"
    if lam > 0:
        return f"{modes} are too weak under this boundary for the data to determine; the penalty determines them"
    return (
        f"{modes} nearly vanish under this boundary, though the kernel itself passes them: undoing them amplifies "
        f"noise and rounding more than {1 / LOST:.0f} times"
    )


def _advice(lam: float | None) -> tuple[str, ...]:
    of_padding = (
        "if you can choose the convolution, padding full keeps them all; padding valid also loses none, but "
        "determines the outermost pixels only by the least norm"
    )
    if lam is None:
        return (of_padding,)
    gain = 0.5 / math.sqrt(lam)
    return (f"λ = {lam:g} with penalty identity amplifies no noise more than {gain:.3g} / σmax times", of_padding)


@dataclass(frozen=True)
class BoundaryAssessment:
    """The effect of a boundary on images of one size.

    Attributes:
        boundary: its name.
        finding: the judgment without a penalty; `None` if this boundary is impossible.
        reason: the finding, or the reason why it is missing, as a sentence.
    """

    boundary: str
    finding: WellPosedness | None
    reason: str


@dataclass(frozen=True, eq=False)
class KernelProperties:
    """A kernel in numbers.

    Attributes:
        kernel: in canonical form.
        origin: the tap that meets the output pixel under padding same, as `conv2d` applies them.
        centroid: center of the absolute weights less the origin: the shift of a blurred image along each axis.
        is_symmetric: whether it is the same when mirrored about its middle.
        spectrum: the extreme singular values on the torus of the image.
        borders: the effect of each boundary.
    """

    kernel: Kernel
    origin: Size
    centroid: tuple[float, ...]
    is_symmetric: bool
    spectrum: Spectrum
    borders: tuple[BoundaryAssessment, ...]


def inspect_kernel(
    taps: Tensor, image_size: Size, padding: PaddingLike = "same", *, dimensions: int | None = None
) -> KernelProperties:
    """Describe a kernel, and the effect of every boundary on images of one size, without a penalty.

    The taps have the shape `(*k)` or `(C_out, C_in, *k)`; `dimensions` counts the axes of space if the shape leaves it
    open (see `Kernel.from_tensor`). Taps that do not fit the size are a `ShapeError`, and those that are empty, zero or
    not finite a `MalformedInputError`.
    """
    kernel = Kernel.from_tensor(to_float64(taps), dimensions=dimensions)
    geometry = Geometry.of_image(image_size, kernel.size, padding)
    spectrum = kernel_spectrum(kernel.taps, image_size)
    weight = kernel.taps.abs().sum(dim=(0, 1))
    origin = tuple((k - 1) // 2 for k in kernel.size)
    axes = space_axes(kernel.n_axes)
    center = synchronize.as_numbers(center_of_mass(weight))
    return KernelProperties(
        kernel=kernel,
        origin=origin,
        centroid=tuple(at - start for at, start in zip(center, origin, strict=True)),
        is_symmetric=torch.equal(kernel.taps, kernel.taps.flip(axes)),
        spectrum=spectrum,
        borders=tuple(_border(kernel, geometry, boundary, spectrum) for boundary in BOUNDARIES),
    )


_LOSSY_KERNEL = "the kernel nearly removes some frequencies, whatever the boundary; a λ above 0 keeps the noise low"


def _border(kernel: Kernel, geometry: Geometry, boundary: str, spectrum: Spectrum) -> BoundaryAssessment:
    try:
        geometry.check_boundary(as_rule(boundary))
    except ShapeError as error:
        return BoundaryAssessment(boundary, None, str(error))
    finding = assess(kernel.taps, geometry, boundary, lam=0.0, spectrum=spectrum)
    if finding.is_well_posed and spectrum.condition > 1 / LOST:
        finding = replace(finding, is_well_posed=False, reason=_LOSSY_KERNEL)
    return BoundaryAssessment(boundary, finding, finding.reason)
