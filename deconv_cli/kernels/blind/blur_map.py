"""Whether the blur is the same everywhere in a picture: the kernel of each of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.errors import UntrustworthyResultError
from deconv_cli.kernels.blind.blurred_picture import BlurredPicture
from deconv_cli.kernels.blind.estimate import (
    NO_BLUR,
    KernelEstimate,
    Parameter,
    estimate_family,
    estimate_near,
    kernel_text,
)
from deconv_cli.kernels.blind.polar_spectrum import side_for
from deconv_cli.kernels.kernel import stack_kernels
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.tone_curve import ToneCurve

_MOST_PARTS = 6
"""Along each axis."""
_PART_IN_PIECES = 1.5
"""Side of a part, in sides of the pieces whose spectra are averaged."""
_SIMPLE = ("gaussian", "disk", "motion")
_LIMIT = 3.0
"""Mean squared deviation from the mean, in standard errors, above which a blur varies."""
_LEAST_SPREAD = 0.05
"""Least variation of a number, in the number itself; of an angle, in radians."""


@dataclass(frozen=True, eq=False)
class BlurMap:
    """The kernel in each part of a picture.

    Attributes:
        rows: middles of the parts, as shares of the height.
        columns: the same of the width.
        parts: the estimate for each part, row by row, all of one family or no blur.
        whole: the estimate for the whole picture.
    """

    rows: tuple[float, ...]
    columns: tuple[float, ...]
    parts: tuple[tuple[KernelEstimate, ...], ...]
    whole: KernelEstimate

    @property
    def found(self) -> list[KernelEstimate]:
        """The parts in which a blur was found."""
        return [part for row in self.parts for part in row if part.found]

    @property
    def is_uniform(self) -> bool | None:
        """Whether the parts agree within their errors; `None` if fewer than two show a blur."""
        if len(self.found) < 2:
            return None
        columns = zip(*(part.parameters for part in self.found), strict=True)
        return all(_agree(numbers) for numbers in columns if numbers[0].error)

    def field(self) -> KernelField:
        """Return the kernels with their places; a part without a blur gets the median of the others.

        Raises:
            UntrustworthyResultError: no part shows a blur.
        """
        if not self.found:
            raise UntrustworthyResultError("no blur was found in any part of the picture, so there is no blur to map.")
        numbers = torch.tensor([[p.value for p in part.parameters] for part in self.found], dtype=torch.float64)
        typical = kernel_text(self.found[0].family, tuple(numbers.median(0).values.tolist()))
        made = [make_kernel(part.text if part.found else typical) for row in self.parts for part in row]
        taps = stack_kernels(made).unflatten(0, (len(self.rows), len(self.columns)))
        return KernelField(taps, self.rows, self.columns)


def _agree(numbers: tuple[Parameter, ...]) -> bool:
    """Return whether one number is the same in all parts, by its errors or for all practical purposes."""
    values = torch.tensor([p.value for p in numbers], dtype=torch.float64)
    scale = float(values.median())
    if period := numbers[0].period:  # 179° lies beside 1°
        values, scale = (values - values[0] + period / 2) % period - period / 2, math.degrees(1)
    weights = torch.tensor([p.error for p in numbers], dtype=torch.float64).clamp_min(1e-6) ** -2
    deviations = values - (weights * values).sum() / weights.sum()
    excess = float((weights * deviations.square()).sum()) / (len(numbers) - 1)
    return excess < _LIMIT or float(deviations.std()) < _LEAST_SPREAD * scale


def map_blur(
    image: Tensor,
    *,
    tone_curve: ToneCurve | None = None,
    jpeg_table: Tensor | None = None,
    families: Sequence[str] | None = None,
    whole: KernelEstimate | None = None,
) -> BlurMap:
    """Find the kernel of a picture, and that of each of its parts.

    Args:
        image: samples as stored, shape `(C, H, W)` or `(1, C, H, W)`.
        tone_curve: how they encode light.
        jpeg_table: of a JPEG, shape `(8, 8)`.
        families: kernel sources to choose from; by default all that can be found.
        whole: the estimate for the whole picture; by default it is computed.

    Raises:
        ShapeError: no picture, or one that is too small.
        MalformedInputError: samples that are not finite.
        UsageError: an unknown family.
    """
    picture = BlurredPicture.of(image, tone_curve=tone_curve, jpeg_table=jpeg_table)
    if whole is None:
        whole = estimate_family(picture.spectrum(), families)
    # What varies looks like another family on the whole: that of the parts counts.
    starts = [c for c in whole.candidates if c.family in {whole.family, *_SIMPLE} - {NO_BLUR}]
    starts = starts or [c for c in whole.candidates if c.family != NO_BLUR][:1]
    if not starts:
        return BlurMap((0.5,), (0.5,), ((whole,),), whole)
    height, width = (int(n) for n in picture.luminance.shape)
    side = side_for((height, width))
    rows, columns = _slices(height, side), _slices(width, side)
    spectra = [[picture.spectrum(r, c, side) for c in columns] for r in rows]
    tried = [tuple(tuple(estimate_near(s, start) for s in row) for row in spectra) for start in starts]
    parts = min(tried, key=_misfit)
    return BlurMap(_middles(rows, height), _middles(columns, width), parts, whole)


def _misfit(parts: tuple[tuple[KernelEstimate, ...], ...]) -> float:
    return sum(c.misfit for row in parts for part in row for c in part.candidates if c.family != NO_BLUR)


def _slices(length: int, side: int) -> list[slice]:
    """Cut an axis into parts that overlap a little, or take it whole."""
    part = min(length, round(_PART_IN_PIECES * side))
    n = min(_MOST_PARTS, max(1, round(length / part)))
    part = max(part, -(-length // n))
    starts = [round(i * (length - part) / max(1, n - 1)) for i in range(n)]
    return [slice(start, start + part) for start in starts]


def _middles(slices: list[slice], length: int) -> tuple[float, ...]:
    return tuple((s.start + s.stop) / (2 * length) for s in slices)
