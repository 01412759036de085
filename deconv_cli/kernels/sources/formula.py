"""How a kernel is written in words: `disk:5.2`, `motion:15@30`, `disk:4*motion:9@30`, `disk:0.6um*shift:0.3@-0.2`."""

from __future__ import annotations

import math
import re

import torch

from deconv_cli.errors import UsageError, check_type
from deconv_cli.kernels.sources.kernel_source import ContinuousKernel, KernelSource, product, sample_kernel
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import Size, shortened

MICROMETERS = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "mm": 1e3}
"""Length of each unit."""
_NUMBER = re.compile(r"(.*?)(nm|um|µm|μm|mm|px|deg|°)?")
_SAME = 0.01
"""Rows and columns are equally far apart up to this share."""


def make_kernel(
    text: str,
    *,
    spacing: tuple[float, ...] | None = None,
    dimensions: int | None = None,
    size: int | Size | None = None,
) -> torch.Tensor:
    """Make a kernel from the name of a source and its numbers, for instance `disk:5.2` or `motion:15@30`.

    Blurs that follow one another are a product: `disk:4*motion:9@30` is out of focus and moved. A factor
    `shift:0.3@-0.2` moves the picture down by 0.3 and to the left by 0.2 pixels. The kernel is sampled so that its
    transform is right, see `sample_kernel`; beside sharp edges it has small negative taps.

    Args:
        text: the words; lengths in samples, or in nm, um or mm, as in `disk:0.6um`.
        spacing: distances of the samples along each axis of space in µm, which lengths with a unit need.
        dimensions: 1 gives the kernel of signals of one axis, what lines across the last axis become.
        size: samples along each axis, odd, or one number for all; for kernels with tails, of which more then remain.

    Returns:
        Taps of shape `(kH, kW)`, or `(kD, kH, kW)` of `gaussian3d`, or `(kW,)`, float64, of odd size and of sum 1.

    Raises:
        UsageError: no such source, a number too many or too few, one that the source cannot take, or a size that is too
            small or too large.
    """
    kernel = read_formula(text, spacing, dimensions)
    psf = sample_kernel(kernel, (size,) * len(kernel.reach) if isinstance(size, int) else size)
    # A cross-correlation meets what a point becomes turned by half a turn.
    return psf.flip(tuple(range(psf.ndim)))


def read_formula(
    text: str, spacing: tuple[float, ...] | None = None, dimensions: int | None = None
) -> ContinuousKernel:
    """Read what a formula describes, for the same arguments as `make_kernel`."""
    check_type(text, str, "the description of a kernel")
    factors = [factor.strip() for factor in text.split("*")]
    if len(factors) > 1 and not all(factors):
        raise UsageError(
            "a kernel must be described by blurs with * between them, such as 'disk:4*motion:9@30', but one factor is "
            f"missing in '{shortened(text)}'."
        )
    kernel = product([_read_factor(factor, spacing) for factor in factors])
    return kernel.along_last() if dimensions == 1 else kernel


def has_units(text: str) -> bool:
    """Tell whether a formula has lengths in a unit, for which the distance of samples must be known."""
    return bool(re.search(rf"[0-9.]({'|'.join(MICROMETERS)})(@|\*|\s|$)", text))


def _read_factor(text: str, spacing: tuple[float, ...] | None) -> ContinuousKernel:
    name, _, rest = text.partition(":")
    source: KernelSource = KERNEL_SOURCES[KERNEL_SOURCES.check(name[:40])]
    if source.read is not None and rest:
        return source.make(source.read(rest))
    parts = [_NUMBER.fullmatch(part.strip()) for part in rest.split("@")] if rest else []
    numbers = _floats([part[1] for part in parts if part is not None])
    if len(numbers) != len(source.parameters) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"this kernel must be written {source.usage(name)}, but is '{shortened(text)}'.")
    along = source.along or (None,) * len(numbers)
    units = [part[2] for part in parts if part is not None]
    samples = (
        number if _is_plain(unit, axis, parameter) else number * MICROMETERS[unit] / _distance(axis, parameter, spacing)
        for number, unit, axis, parameter in zip(numbers, units, along, source.parameters, strict=True)
    )
    return source.make(*samples)


def _is_plain(unit: str | None, axis: int | None, parameter: str) -> bool:
    """Tell whether a number means the same without its unit: pixels of a length, degrees of an angle, or none.

    Raises:
        UsageError: pixels of an angle or a ratio, or degrees of anything but an angle.
    """
    if unit is None or unit in MICROMETERS:
        return unit is None
    if (axis is None) if unit == "px" else (parameter != "ANGLE"):
        raise UsageError(f"{parameter} cannot be given in '{unit}'; give a plain number.")
    return True


def _floats(texts: list[str]) -> tuple[float, ...]:
    """Read numbers; none where one is no number."""
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        return ()


def _distance(axis: int | None, parameter: str, spacing: tuple[float, ...] | None) -> float:
    """Return the distance between samples in µm along the axis of a length."""
    if axis is None:
        raise UsageError(f"{parameter} is not a length and takes no unit; give a plain number.")
    if spacing is None or len(spacing) < -axis:
        raise UsageError(
            f"{parameter} is a length in a unit, but the distance between samples is not known; give the length in "
            "pixels, or a picture whose metadata hold the distance."
        )
    if axis == -1 and len(spacing) > 1 and abs(spacing[-2] / spacing[-1] - 1) > _SAME:
        raise UsageError(
            f"pixels should be squares for a length in a unit, but are {spacing[-2]:g} by {spacing[-1]:g} µm; resample "
            "them, or give the length in pixels."
        )
    return spacing[axis]
