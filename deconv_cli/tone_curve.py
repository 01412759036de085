"""How the samples of a picture encode light, and the range of their type.

Light has the scale of the samples: the brightest stored value, `white`, is light `white` too, and 0 is 0. So λ, noise
and residuals keep the unit of gray levels, but these are levels of light.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import cycle

import torch
from torch import Tensor

from deconv_cli.errors import ShapeError, UsageError, check_type

N_INTERVALS = 255 * 16
"""Intervals of a curve with a formula: 8-bit values lie on its knots; between them its error is 1e-7 of white."""
N_CELLS = 2**14
"""Cells that tell the interval of a value without a search, if none holds two knots: ten times as fast."""
MAX_AT_ONCE = 2**18
"""Samples that are converted at once."""

WHITES = {"uint8": 255.0, "uint16": 65535.0}
"""Stored value of white by sample type, by its NumPy name. Other types have no agreed white."""


@dataclass(frozen=True, eq=False)
class ToneCurve:
    """A rising curve from stored values to light, for all channels alike or one for each.

    It is linear between its knots. Below 0 it continues as its mirror image through the origin, and above `white` as
    its last piece: so it has an inverse everywhere, and an estimate that overshoots loses nothing.

    Attributes:
        light: light at stored values that lie evenly from 0 to `white`, rising from 0 to 1; shape `(1, N)` or `(C, N)`.
        white: the stored value of light 1, such as 255 or 65535.
        name: its name, such as `sRGB`.
        origin: the reason to assume it; empty for the usual curve.
        is_default: whether it is undone by default.

    Raises:
        UsageError: no such curve.
    """

    light: Tensor
    white: float
    name: str = "a tone curve"
    origin: str = "given by the caller"
    is_default: bool = True

    def __post_init__(self) -> None:
        light = self.light
        check_type(light, Tensor, "light")
        is_table = light.ndim == 2 and light.shape[0] > 0 and light.shape[1] > 1
        if not is_table or not bool((light.diff(dim=-1) > 0).all()):
            raise UsageError(
                "light must be a table of shape (1, N) or (C, N) whose rows rise from 0 to 1, but is "
                f"{'one that falls' if is_table else f'of shape {tuple(light.shape)}'}."
            )
        if not (bool((light[:, 0] == 0).all()) and bool((light[:, -1] == 1).all()) and 0 < self.white < float("inf")):
            raise UsageError(
                "light must rise from 0 to 1, and white must be a positive number; divide the table by its last value."
            )

    @classmethod
    def of_formula(cls, formula: Callable[[Tensor], Tensor], white: float, name: str) -> ToneCurve:
        """Sample a formula from stored values to light, both from 0 to 1."""
        stored = torch.linspace(0, 1, N_INTERVALS + 1, dtype=torch.float64)
        return cls(formula(stored)[None], white, name)

    @classmethod
    @cache
    def srgb(cls, white: float) -> ToneCurve:
        """Make the curve of sRGB.

        Source: IEC 61966-2-1, Default RGB colour space – sRGB, 1999, section 5.2.
        """
        return cls.of_formula(_srgb, white, "sRGB")

    @classmethod
    def gamma(cls, exponent: float, white: float) -> ToneCurve:
        """Make the curve light = stored^exponent; an exponent outside 0.1 to 10 is a `UsageError`."""
        if not 0.1 <= exponent <= 10:
            raise UsageError(f"gamma must be a number between 0.1 and 10, but is {exponent!r}.")
        return cls.of_formula(lambda stored: stored**exponent, white, f"gamma {exponent:g}")

    def check_channels(self, n_channels: int) -> None:
        """Refuse images that have neither one channel for each curve nor one curve for all, by `ShapeError`."""
        if self.light.shape[0] not in (1, n_channels):
            raise ShapeError(
                f"the tone curve has {self.light.shape[0]} channels, but the image has {n_channels}; give one for "
                "all, or one for each."
            )

    def to_light(self, stored: Tensor, n_axes: int = 2) -> Tensor:
        """Undo the curve: floating stored values `(*, C, *size)`, with `n_axes` axes of space, to light."""
        return self._by_channel(stored, self._undone, n_axes)

    def to_stored(self, light: Tensor, n_axes: int = 2) -> Tensor:
        """Apply the curve again: the inverse of `to_light`, with the same shapes and scale."""
        return self._by_channel(light, self._done, n_axes)

    def slopes(self, stored: Tensor, n_axes: int = 2) -> tuple[float, ...]:
        """Return the root mean square slope of light over stored values `(*, C, *size)` for each channel."""

        def slope(table: Tensor, position: Tensor) -> Tensor:
            return table.diff().take(_interval(position, table)) * (len(table) - 1)

        slopes = self._by_channel(stored.detach().to(torch.float32), slope, n_axes, is_odd=False).square()
        squares = slopes.flatten(-n_axes).mean(dim=-1)
        return tuple(squares.reshape(-1, squares.shape[-1]).mean(dim=0).sqrt().tolist())

    def _by_channel(
        self, samples: Tensor, convert: Callable[[Tensor, Tensor], Tensor], n_axes: int, *, is_odd: bool = True
    ) -> Tensor:
        """Convert each channel by its row of the table, on the scale from 0 to 1, negative samples as positive ones."""
        if samples.ndim <= n_axes:
            raise ShapeError(
                f"samples should have channels and {n_axes} axes of space, but have the shape {tuple(samples.shape)}."
            )
        axis = -n_axes - 1
        self.check_channels(samples.shape[axis])
        tables = self.light.to(samples.device, samples.dtype)

        # By parts, since each takes several times its memory, and stays in the cache meanwhile.
        n_planes = max(1, MAX_AT_ONCE * samples.shape[-n_axes] * samples.shape[axis] // max(samples.numel(), 1))

        def converted(table: Tensor, channel: Tensor) -> Tensor:
            found = []
            for part in channel.split(n_planes, dim=-n_axes):
                sign = torch.where(part < 0, -1.0, 1.0).to(part.dtype)
                values = convert(table, part * sign / self.white)
                found.append(values * sign * self.white if is_odd else values)
            return torch.cat(found, dim=-n_axes)

        channels = zip(cycle(tables), samples.split(1, dim=axis), strict=False)
        return torch.cat([converted(table, channel) for table, channel in channels], dim=axis)

    @staticmethod
    def _undone(table: Tensor, stored: Tensor) -> Tensor:
        low = _interval(stored, table)
        return table.take(low).lerp(table.take(low + 1), stored * (len(table) - 1) - low)

    @staticmethod
    def _done(table: Tensor, light: Tensor) -> Tensor:
        # Cells of the root of light are of about the same width as the intervals of a usual curve.
        edges = torch.linspace(0, 1, N_CELLS + 1, dtype=table.dtype, device=table.device).square()
        first, known = torch.searchsorted(table, edges, right=True) - 1, light.detach()
        if int(first.diff().max()) <= 1:
            cell = (known.clamp(0, 1).sqrt() * N_CELLS).nan_to_num(0.0).long()
            low = first.clamp_max(len(table) - 2).take(cell)
            low = (low + (known >= table.take(low + 1))).clamp_max(len(table) - 2)
        else:
            low = (torch.searchsorted(table, known.contiguous(), right=True) - 1).clamp_(0, len(table) - 2)
        return (low + (light - table.take(low)) / table.diff().take(low)) / (len(table) - 1)


def _interval(stored: Tensor, table: Tensor) -> Tensor:
    """Find the interval of the curve around stored values: the last above 1, the first for NaN."""
    return (stored.detach() * (len(table) - 1)).nan_to_num(0.0).clamp(max=len(table) - 2).long()


def _srgb(stored: Tensor) -> Tensor:
    return torch.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)


def sample_type(samples: Tensor, stored: str | None = None) -> str:
    """Name the type of samples in their file: `stored` if known.

    Else 32 bits whose largest value is the white of 16 bits count as 16 bits, which torch computes next to nothing
    with.
    """
    if stored is not None:
        return stored
    if samples.dtype == torch.int32 and samples.numel():
        lowest, highest = (int(end) for end in samples.aminmax())
        if lowest >= 0 and highest == WHITES["uint16"]:
            return "uint16"
    return str(samples.dtype).removeprefix("torch.")


def white_of(samples: Tensor, stored: str | None = None) -> float | None:
    """Return the stored value of white, or `None`; for the arguments see `sample_type`."""
    return WHITES.get(sample_type(samples, stored))


def limits_of(samples: Tensor, stored: str | None = None) -> tuple[float, float] | None:
    """Return the least and the largest value of whole numbers, or `None`; for the arguments see `sample_type`."""
    dtype = getattr(torch, sample_type(samples, stored))
    if dtype.is_floating_point or dtype == torch.bool:
        return None
    limits = torch.iinfo(dtype)
    return float(limits.min), float(limits.max)
