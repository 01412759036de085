"""Layers as plain convolutions of rearranged pixels: stride, dilation and the transposed direction, one axis at a time.

With `coarse[o] = Σ_t K[t]·fine[s·o + d·t − b]` along an axis:

- stride: pixel s·q + r of the fine grid becomes pixel q of channel r, called phase r (pixel unshuffle). Tap t meets
  phase (d·t − b) mod s at q − o = ⌊(d·t − b)/s⌋, so the rest is a convolution with stride 1 and more channels.
- dilation: outputs o = d·o' + j depend on the pixels of phase (j − b) mod d alone. Each j is a problem of its own, with
  the same taps and its own border.
- transposed: the transpose of a convolution under zeros is one with flipped taps and a border that completes it to
  full.

A rearrangement is a permutation that leaves out pixels that no output depends on and outputs that depend on none, so
the pseudo-inverse of the layer is that of the plain convolutions, rearranged. None exists if the pixels beyond the end
of the fine grid differ between phases, or if a border mirrors one phase into another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.geometry import GridAxis, Pads
from deconv_cli.vocabulary import Size

NOTHING = -1
"""The index of a missing pixel or tap."""


@dataclass(frozen=True)
class AxisPart:
    """One plain convolution along an axis: the places of its pixels, and its border.

    Attributes:
        fine: positions on the fine grid, one row for each phase, `NOTHING` for pixels beyond its end; the pixels of a
            phase make up an image of `len(fine[0])` pixels.
        coarse: positions on the coarse grid.
        before: pixels of the border ahead of the image.
        after: pixels of the border behind it.
    """

    fine: tuple[tuple[int, ...], ...]
    coarse: tuple[int, ...]
    before: int
    after: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The numbers of pixels of both grids and of the border; parts with equal numbers are the same problem."""
        return len(self.fine[0]), len(self.coarse), self.before, self.after


def tap_table(axis: GridAxis, *, on_torus: bool = False) -> tuple[tuple[int, ...], ...]:
    """Find the tap that meets each phase at each step: rows of tap numbers, `NOTHING` for no tap.

    Without a stride the dilation is left to the parts. `on_torus` keeps phases that no tap meets and the gaps of a
    dilation: the layer is taken as a whole.
    """
    if axis.stride == 1 and not on_torus:
        return (tuple(range(axis.n_taps)),)
    places = _places(axis)
    met = range(axis.stride) if on_torus else sorted({r for _, r in places})
    first, last = min(q for q, _ in places), max(q for q, _ in places)
    taps = {(r, q): t for t, (q, r) in enumerate(places)}
    return tuple(tuple(taps.get((r, q), NOTHING) for q in range(first, last + 1)) for r in met)


def _places(axis: GridAxis) -> list[tuple[int, int]]:
    """Find the step and the phase that each tap meets, seen from coarse pixel 0."""
    return [divmod(axis.dilation * t - axis.before, axis.stride) for t in range(axis.n_taps)]


def split_axis(axis: GridAxis, boundary: BoundaryRule) -> list[AxisPart] | None:
    """Divide an axis into plain convolutions; `None` if that is not exact."""
    if axis.stride == 1 and axis.dilation == 1:
        part = AxisPart((tuple(range(axis.n_fine)),), tuple(range(axis.n_coarse)), axis.before, axis.after)
        return [_trimmed(part, axis.n_taps) if boundary.is_zero else part]
    has_border = axis.before > 0 or axis.after > 0
    if has_border and not (boundary.is_zero or boundary.is_periodic):
        return None
    wraps = has_border and boundary.is_periodic
    if axis.stride > 1:
        found = _of_stride(axis, wraps=wraps)
        parts = None if found is None else [found]
    else:
        parts = _of_dilation(axis, wraps=wraps)
    if parts is None or wraps:
        return parts
    trimmed = (_trimmed(part, len(tap_table(axis)[0])) for part in parts)
    return [part for part in trimmed if part.coarse]


def _of_stride(axis: GridAxis, *, wraps: bool) -> AxisPart | None:
    places = _places(axis)
    first, last = min(q for q, _ in places), max(q for q, _ in places)
    ends = {r: axis.n_coarse + max(q for q, phase in places if phase == r) for _, r in places}
    n_there = {r: -(-(axis.n_fine - r) // axis.stride) for r in ends}
    if wraps:
        n_pixels = axis.n_fine // axis.stride
        if axis.n_fine % axis.stride or axis.n_coarse + last < n_pixels:
            return None
    else:
        n_pixels = max(min(n_there[r], ends[r]) for r in ends)
        # A phase that ends earlier than the others would look at a border that they have not.
        if any(n_there[r] < min(n_pixels, ends[r]) for r in ends):
            return None
    rows = _phase_rows(axis, sorted(ends), n_pixels)
    return AxisPart(rows, tuple(range(axis.n_coarse)), -first, axis.n_coarse + last - n_pixels)


def _phase_rows(axis: GridAxis, phases: Sequence[int], n_pixels: int) -> tuple[tuple[int, ...], ...]:
    """List the first pixels of phases on the fine grid."""
    positions = [[axis.stride * q + phase for q in range(n_pixels)] for phase in phases]
    return tuple(tuple(p if p < axis.n_fine else NOTHING for p in row) for row in positions)


def _of_dilation(axis: GridAxis, *, wraps: bool) -> list[AxisPart] | None:
    if wraps and axis.n_fine % axis.dilation:
        return None
    parts = []
    for j in range(min(axis.dilation, axis.n_coarse)):
        shift, phase = divmod(j - axis.before, axis.dilation)
        coarse = tuple(range(j, axis.n_coarse, axis.dilation))
        end = len(coarse) + axis.n_taps - 1 + shift
        n_pixels = -(-(axis.n_fine - phase) // axis.dilation)
        if wraps and end < n_pixels:
            return None
        n_pixels = n_pixels if wraps else min(n_pixels, end)
        if n_pixels > 0:
            fine = tuple(phase + axis.dilation * q for q in range(n_pixels))
            parts.append(AxisPart((fine,), coarse, -shift, end - n_pixels))
    return parts


def _trimmed(part: AxisPart, n_taps: int) -> AxisPart:
    """Drop the outputs at either end that depend only on zeros."""
    ahead, behind = (max(pad - (n_taps - 1), 0) for pad in (part.before, part.after))
    coarse = part.coarse[ahead : len(part.coarse) - behind]
    return AxisPart(part.fine, coarse, part.before - ahead, part.after - behind)


@dataclass(frozen=True)
class Part:
    """One of the plain convolutions of a layer: an `AxisPart` along each axis."""

    axes: tuple[AxisPart, ...]

    @property
    def sizes(self) -> tuple[tuple[int, int, int, int], ...]:
        """The sizes along each axis: parts with the same sizes are the same problem."""
        return tuple(axis.sizes for axis in self.axes)

    def _rows(self, *, are_coarse: bool) -> list[tuple[tuple[int, ...], ...]]:
        """List the positions on one of the two grids along each axis, one row for each phase."""
        return [(axis.coarse,) if are_coarse else axis.fine for axis in self.axes]

    def take(self, images: Tensor, *, are_coarse: bool = False) -> Tensor:
        """Rearrange `(*batch, C, *size)` of a grid to `(*batch, C · phases, *part size)`; zeros where no pixel is."""
        rows, n_axes = self._rows(are_coarse=are_coarse), len(self.axes)
        for at, own in enumerate(rows):
            positions = torch.tensor(own, device=images.device).flatten()
            images = images.index_select(at - n_axes, positions.clamp_min(0))
            if any(NOTHING in row for row in own):
                images = images * (positions != NOTHING).to(images.dtype).reshape(-1, *[1] * (n_axes - 1 - at))
        return _phases_to_channels(images, list(map(len, rows)))

    def put(self, images: Tensor, values: Tensor, *, are_coarse: bool = False) -> None:
        """Write `values` of shape `(*batch, C · phases, *part size)` to their places in `(*batch, C, *size)`."""
        rows, n_axes = self._rows(are_coarse=are_coarse), len(self.axes)
        spread, places = _channels_to_phases(values, list(map(len, rows))), list[Tensor]()
        for at, own in enumerate(rows):
            flat = [position for row in own for position in row]
            there = [number for number, position in enumerate(flat) if position != NOTHING]
            if len(there) < len(flat):
                spread = spread.index_select(at - n_axes, torch.tensor(there, device=values.device))
            positions = torch.tensor([flat[number] for number in there], device=values.device)
            places.append(positions.reshape(-1, *[1] * (n_axes - 1 - at)))
        images[_at(places)] = spread


def _at(places: list[Tensor]) -> Any:  # noqa: ANN401 (torch names no type for indices)
    return (..., *places)


def split_layer(axes: Sequence[GridAxis], boundary: BoundaryRule) -> list[Part] | None:
    """Divide a layer into plain convolutions of the taps `plain_taps`; `None` if that is not exact."""
    along = [split_axis(axis, boundary) for axis in axes]
    if any(parts is None for parts in along):
        return None
    return [Part(tuple(chosen)) for chosen in product(*[parts for parts in along if parts is not None])]


def whole_layer(axes: Sequence[GridAxis]) -> Part:
    """Rearrange a layer with all its phases, whatever its sizes and its border, for an approximation."""
    parts = []
    for axis in axes:
        rows = _phase_rows(axis, range(axis.stride), -(-axis.n_fine // axis.stride))
        before = -min(q for q, _ in _places(axis))
        parts.append(AxisPart(rows, tuple(range(axis.n_coarse)), before, 0))
    return Part(tuple(parts))


def rearranged_taps(taps: Tensor, axes: Sequence[GridAxis], groups: int, *, on_torus: bool = False) -> Tensor:
    """Rearrange the taps `(C_coarse, C_fine / groups, *k)` of a layer to those of its plain convolutions.

    These lead from the fine grid to the coarse one: `(groups, C_coarse / groups, C_fine / groups · phases, *k')`. For
    `on_torus` see `tap_table`.
    """
    found, n_phases = taps.unflatten(0, (groups, -1)), []
    for at, axis in enumerate(axes):
        table = tap_table(axis, on_torus=on_torus)
        n_phases.append(len(table))
        numbers = torch.tensor(table, device=taps.device).flatten()
        dim = at - len(axes)
        is_there = (numbers != NOTHING).to(taps.dtype).reshape(-1, *[1] * (-1 - dim))
        found = found.index_select(dim, numbers.clamp_min(0)) * is_there
    return _phases_to_channels(found, n_phases)


def transposed_taps(taps: Tensor) -> Tensor:
    """Turn taps `(groups, O, I, *k)` into those of the transposed convolutions, `(groups, I, O, *k)`."""
    return taps.flip(tuple(range(3, taps.ndim))).transpose(1, 2)


def plain_pads(part: Part, taps_size: Size, *, transposed: bool) -> Pads:
    """Give the border of one of the plain convolutions, in the direction of the layer."""
    before = tuple(axis.before for axis in part.axes)
    after = tuple(axis.after for axis in part.axes)
    if transposed:
        before, after = (tuple(k - 1 - pad for k, pad in zip(taps_size, pads, strict=True)) for pads in (before, after))
    return Pads(before, after)


def _phases_to_channels(images: Tensor, n_phases: list[int]) -> Tensor:
    """Turn `(*, C, p_1·n_1, …, p_d·n_d)`, the phases first along each axis, into `(*, C · p_1 ⋯ p_d, n_1, …, n_d)`."""
    n_axes = len(n_phases)
    lead = images.ndim - n_axes - 1
    for at, n in enumerate(n_phases):
        images = images.unflatten(lead + 1 + 2 * at, (n, -1))
    phases = [lead + 1 + 2 * at for at in range(n_axes)]
    images = images.permute(*range(lead + 1), *phases, *[p + 1 for p in phases])
    return images.flatten(lead, lead + n_axes)


def _channels_to_phases(images: Tensor, n_phases: list[int]) -> Tensor:
    """Undo `_phases_to_channels`."""
    n_axes = len(n_phases)
    lead = images.ndim - n_axes - 1
    images = images.unflatten(lead, (-1, *n_phases))
    order = [axis for at in range(n_axes) for axis in (lead + 1 + at, lead + 1 + n_axes + at)]
    images = images.permute(*range(lead + 1), *order)
    for at in range(n_axes):
        images = images.flatten(lead + 1 + at, lead + 2 + at)
    return images
