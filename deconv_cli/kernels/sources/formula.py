"""How a kernel is written in words: `disk:5.2`, `motion:15@30`, `disk:4*motion:9@30`, `disk:0.6um*shift:0.3@-0.2`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.band_limited import FINENESS, sample_band_limited
from deconv_cli.kernels.sources.kernel_source import MAX_REACH, KernelSource
from deconv_cli.operators.axes import crop
from deconv_cli.operators.correlation import ValidCorrelation
from deconv_cli.parts import KERNEL_SOURCES

SHIFT = "shift"
"""The factor that moves the others by a part of a sample along each axis."""
MICROMETERS = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "mm": 1e3}
"""Length of each unit."""
_NUMBER = re.compile(r"(.*?)(nm|um|µm|μm|mm)?")
_MAX_SHIFT = 64.0
_SAME = 0.01
"""Rows and columns are equally far apart up to this share."""


@dataclass(frozen=True)
class Factor:
    """One of the blurs whose product a kernel is.

    Attributes:
        name: of its source.
        source: how it is made.
        values: what it is made of, lengths in samples.
    """

    name: str
    source: KernelSource
    values: tuple[Any, ...]

    def make(self, n_times: int = 1) -> torch.Tensor:
        """Make its taps, for samples that are so many times finer."""
        if n_times == 1:
            return self.source.make(*self.values)
        if not self.source.along:
            raise UsageError(f"which numbers of {self.name} are lengths is not known, so that it cannot be shifted.")
        lengths = zip(self.values, self.source.along, strict=True)
        return self.source.make(*(value if axis is None else value * n_times for value, axis in lengths))


def make_kernel(text: str, *, spacing: tuple[float, ...] | None = None) -> torch.Tensor:
    """Make a kernel from the name of a source and its numbers, for instance `disk:5.2` or `motion:15@30`.

    Blurs that follow one another are a product: `disk:4*motion:9@30` is out of focus and moved. A factor
    `shift:0.3@-0.2` moves the picture down by 0.3 and to the left by 0.2 pixels; such a kernel is sampled as its
    transform says rather than integrated over pixels, see `sample_band_limited`.

    Args:
        text: the words; lengths in samples, or in nm, um or mm, as in `disk:0.6um`.
        spacing: distances of the samples along each axis of space in µm, which lengths with a unit need.

    Returns:
        Taps of shape `(kH, kW)`, or `(kD, kH, kW)` of `gaussian3d`, float64. Those of the sources that come with this
        package are of odd size and of sum 1, and centered if not shifted.

    Raises:
        UsageError: no such source, a number too many or too few, or one that the source cannot take.
    """
    written = [factor.strip() for factor in text.split("*")]
    shifts = [factor for factor in written if factor.partition(":")[0] == SHIFT]
    factors = [_read_factor(factor, spacing) for factor in written if factor not in shifts]
    if not shifts:
        return _product([factor.make() for factor in factors])
    if not factors:
        raise UsageError(f"'{text[:60]}' moves nothing; write it behind a blur, as in gaussian:1*shift:0.3@0.2.")
    return _shifted(factors, [_read_shift(shift) for shift in shifts])


def has_units(text: str) -> bool:
    """Tell whether a formula has lengths in a unit, for which the distance of samples must be known."""
    return bool(re.search(rf"[0-9.]({'|'.join(MICROMETERS)})(@|\*|\s|$)", text))


def _product(taps: list[torch.Tensor], *, use_fft: bool = False) -> torch.Tensor:
    product, *others = taps
    for other in others:
        product = _convolved(product, other, use_fft=use_fft)
    return product


def _shifted(factors: list[Factor], shifts: list[tuple[float, ...]]) -> torch.Tensor:
    reach = max(max(factor.make().shape) for factor in factors) // 2
    n_times = min(FINENESS, MAX_REACH // (reach * len(factors) + 1))
    if n_times < 2:
        raise UsageError(f"a kernel that reaches {reach} pixels is too large to be shifted by a part of one.")
    fine = _product([factor.make(n_times) for factor in factors], use_fft=True)
    if any(len(shift) != fine.ndim for shift in shifts):
        raise UsageError(f"a shift of this kernel takes {fine.ndim} numbers, one for each axis, as in shift:0.3@-0.2.")
    # A cross-correlation moves a picture against its taps.
    center = tuple(-sum(moved) for moved in zip(*shifts, strict=True))
    return sample_band_limited(fine, n_times, center)


def _read_shift(text: str) -> tuple[float, ...]:
    numbers = _floats(text.partition(":")[2].split("@"))
    if not numbers or not all(abs(number) <= _MAX_SHIFT for number in numbers):
        raise UsageError(
            f"a shift is written shift:DOWN@RIGHT, in pixels and at most {_MAX_SHIFT:g}, but is '{text[:60]}'."
        )
    return numbers


def _read_factor(text: str, spacing: tuple[float, ...] | None) -> Factor:
    name, _, rest = text.partition(":")
    source: KernelSource = KERNEL_SOURCES[KERNEL_SOURCES.check(name[:40])]
    if source.read is not None:
        return Factor(name, source, (source.read(rest),))
    parts = [_NUMBER.fullmatch(part.strip()) for part in rest.split("@")] if rest else []
    numbers = _floats([part[1] for part in parts if part is not None])
    if len(numbers) != len(source.parameters) or not all(map(math.isfinite, numbers)):
        usage = f"{name}:{'@'.join(source.parameters)}"
        raise UsageError(f"a kernel of this kind is written {usage} with a number for each, but is '{text[:60]}'.")
    along = source.along or (None,) * len(numbers)
    units = [part[2] for part in parts if part is not None]
    samples = (
        number if unit is None else number * MICROMETERS[unit] / _distance(axis, parameter, spacing)
        for number, unit, axis, parameter in zip(numbers, units, along, source.parameters, strict=True)
    )
    return Factor(name, source, tuple(samples))


def _floats(texts: list[str]) -> tuple[float, ...]:
    """Read numbers; none where one is no number."""
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        return ()


def _distance(axis: int | None, parameter: str, spacing: tuple[float, ...] | None) -> float:
    """Give the distance of samples in µm along the axis of a length."""
    if axis is None:
        raise UsageError(f"{parameter} is no length that could be given in a unit; give a plain number.")
    if spacing is None or len(spacing) < -axis:
        raise UsageError(
            f"{parameter} is a length in a unit, but how far apart the samples are is not known; give the length in "
            "pixels, or a picture whose metadata say it."
        )
    if axis == -1 and len(spacing) > 1 and abs(spacing[-2] / spacing[-1] - 1) > _SAME:
        raise UsageError(
            f"pixels should be squares for a length in a unit, but are {spacing[-2]:g} by {spacing[-1]:g} µm; resample "
            "them, or give the length in pixels."
        )
    return spacing[axis]


def _convolved(first: torch.Tensor, second: torch.Tensor, *, use_fft: bool) -> torch.Tensor:
    """Convolve two kernels of shape `(*k)`; the result is larger by the second, less one tap along each axis.

    Raises:
        UsageError: they have another number of axes, or together reach too far.
    """
    if first.ndim != second.ndim:
        raise UsageError(
            f"the factors of a kernel should have the same number of axes, but have {first.ndim} and {second.ndim}."
        )
    size = tuple(a + b - 1 for a, b in zip(first.shape, second.shape, strict=True))
    if max(size) > 2 * MAX_REACH + 1:
        raise UsageError(
            f"a product of kernels may reach at most {MAX_REACH} pixels from its center; take smaller ones."
        )
    correlation = ValidCorrelation(
        second.flip(tuple(range(second.ndim)))[None, None], _wide(size, second), use_fft=use_fft
    )
    wide = first.new_zeros(1, *_wide(size, second))
    start = tuple(n - 1 for n in second.shape)
    crop(wide[0], start, tuple(first.shape)).copy_(first)
    return correlation.forward(wide)[0]


def _wide(size: tuple[int, ...], kernel: torch.Tensor) -> tuple[int, ...]:
    return tuple(n + k - 1 for n, k in zip(size, kernel.shape, strict=True))
