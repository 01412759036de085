"""The numbers of a kernel, before anything is done with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.well_posedness import LOST, WellPosedness, assess
from deconv_cli.errors import ShapeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes
from deconv_cli.operators.boundary_rules import as_rule
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import Spectrum, kernel_spectrum
from deconv_cli.parts import BOUNDARIES
from deconv_cli.vocabulary import PaddingLike, Size


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

    Args:
        taps: shape `(*k)` or `(C_out, C_in, *k)`, real and finite.
        image_size: of the images, one number for each axis of space.
        padding: how far the kernel reaches outside them.
        dimensions: axes of space, if those of the taps do not tell (see `Kernel.from_tensor`).

    Raises:
        ShapeError: another shape, or a kernel that does not fit the size.
        MalformedInputError: taps that are empty, zero or not finite.
    """
    kernel = Kernel.from_tensor(to_float64(taps), dimensions=dimensions)
    geometry = Geometry.of_image(image_size, kernel.size, padding)
    spectrum = kernel_spectrum(kernel.taps, image_size)
    weight = kernel.taps.abs().sum(dim=(0, 1))
    origin = tuple((k - 1) // 2 for k in kernel.size)
    axes = space_axes(kernel.n_axes)
    centroid = (
        synchronize.as_number(
            (weight.movedim(axis, -1) * torch.arange(weight.shape[axis]).to(weight)).sum() / weight.sum()
        )
        - start
        for axis, start in zip(axes, origin, strict=True)
    )
    return KernelProperties(
        kernel=kernel,
        origin=origin,
        centroid=tuple(centroid),
        is_symmetric=torch.equal(kernel.taps, kernel.taps.flip(axes)),
        spectrum=spectrum,
        borders=tuple(_border(kernel, geometry, boundary, spectrum) for boundary in BOUNDARIES),
    )


_LOSSY_KERNEL = (
    "the boundary loses nothing, but the kernel nearly removes some frequencies: a λ above 0 keeps noise down"
)


def _border(kernel: Kernel, geometry: Geometry, boundary: str, spectrum: Spectrum) -> BoundaryAssessment:
    try:
        geometry.check_boundary(as_rule(boundary))
    except ShapeError as error:
        return BoundaryAssessment(boundary, None, str(error))
    finding = assess(kernel.taps, geometry, boundary, lam=0.0, spectrum=spectrum)
    if finding.is_well_posed and spectrum.condition > 1 / LOST:
        finding = replace(finding, is_well_posed=False, reason=_LOSSY_KERNEL)
    return BoundaryAssessment(boundary, finding, finding.reason)
