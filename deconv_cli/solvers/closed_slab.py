"""The unknowns outside a box at the origin of a torus as one vector, and the closed slabs that hold them.

A slab lies across each axis, and goes around the torus along every other axis. Slabs meet in edges and corners, so the
vector holds disjoint pieces: of the slab across an axis the part inside the box along all axes before it.

At each frequency of the other axes, a convolution that is cut to a slab is one small Hermitian matrix between its
planes. It is inverted exactly by FFTs if that is worth its memory. Where the symbol hardly changes along the axis, as
for a blur at most frequencies, the mean of the symbol replaces the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_spectrum, half_weights, space_axes
from deconv_cli.operators.circulant import FrequencyBlocks, channels_last, multiply_lines
from deconv_cli.operators.spectrum import single_threaded
from deconv_cli.operators.torus_filter import parts_of
from deconv_cli.vocabulary import Size

Places = tuple[slice, ...]
"""The index of a part of a tensor."""


class OutsideBox:
    """The unknowns outside a box of a torus: C channels, in vectors of shape `(B, n)`."""

    def __init__(self, n_channels: int, box: Size, torus: Size) -> None:
        self.n_channels = n_channels
        self.box = box
        self.torus = torus
        self.axes = [axis for axis, (n, whole) in enumerate(zip(box, torus, strict=True)) if n < whole]
        self.n_unknowns = n_channels * (math.prod(torus) - math.prod(box))
        self._plans: dict[tuple[int, int, int], list[tuple[slice, list[int], Places, Places]]] = {}

    def put(self, vector: Tensor, field: Tensor, planes: slice) -> None:
        """Write a vector into planes of a field `(B, C, n_planes, *torus[1:])`; the box stays as it is."""
        for place, piece in self._pairs(vector, field, 0, planes):
            place.copy_(piece)

    def take(self, field: Tensor, vector: Tensor, planes: slice) -> None:
        """Read planes of a field, shape `(B, C, n_planes, *torus[1:])`, into their part of a vector `(B, n)`."""
        for place, piece in self._pairs(vector, field, 0, planes):
            piece.copy_(place)

    def slab(self, vector: Tensor, axis: int) -> Tensor:
        """Assemble the whole slab across an axis, shape `(B, C, w, *others)`."""
        shape = list(self.torus)
        shape[axis] -= self.box[axis]
        slab = vector.new_zeros(len(vector), self.n_channels, *shape)
        for place, piece in self._pairs(vector, slab, axis, slice(self.box[axis], self.torus[axis])):
            place.copy_(piece)
        return slab.movedim(2 + axis, 2)

    def add_slab(self, slab: Tensor, vector: Tensor, axis: int) -> None:
        """Add a slab `(B, C, w, *others)` to a vector `(B, n)`."""
        across = slice(self.box[axis], self.torus[axis])
        for place, piece in self._pairs(vector, slab.movedim(2, 2 + axis), axis, across):
            piece.add_(place)

    def _pairs(self, vector: Tensor, field: Tensor, axis: int, part: slice) -> list[tuple[Tensor, Tensor]]:
        """Pair the pieces of a field, given on a part of the torus along an axis, with those of a vector."""
        key = axis, part.start, part.stop
        if key not in self._plans:
            self._plans[key] = self._plan(axis, part)
        return [
            (field[place], vector[:, numbers].unflatten(-1, shape)[own])
            for numbers, shape, place, own in self._plans[key]
        ]

    def _plan(self, axis: int, part: slice) -> list[tuple[slice, list[int], Places, Places]]:
        """Find the numbers and the shape of each piece, and the places that it shares in the field and in itself."""
        whole = [slice(0, n) for n in self.torus]
        given = [*whole[:axis], part, *whole[axis + 1 :]]
        plan, first = [], 0
        for at in self.axes:
            inside = [slice(0, n) for n in self.box[:at]]
            own = [*inside, slice(self.box[at], self.torus[at]), *whole[at + 1 :]]
            shape = [self.n_channels, *(side.stop - side.start for side in own)]
            numbers, first = slice(first, first + math.prod(shape)), first + math.prod(shape)
            shared = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(own, given, strict=True)]
            if all(side.start < side.stop for side in shared):
                plan.append((numbers, shape, _within(shared, given), _within(shared, own)))
        return plan


def _within(part: list[slice], region: list[slice]) -> Places:
    """Index a part of a torus in a field that is given on a region of it."""
    places = [slice(p.start - r.start, p.stop - r.start) for p, r in zip(part, region, strict=True)]
    return (slice(None), slice(None), *places)


class OutsideBoxes:
    """Unknowns of several kinds, each outside a box of its own; their channels follow one another in fields."""

    def __init__(self, boxes: list[OutsideBox]) -> None:
        self.boxes = boxes
        self.n_channels = sum(box.n_channels for box in boxes)
        self.n_unknowns = sum(box.n_unknowns for box in boxes)

    def split(self, vector: Tensor) -> list[Tensor]:
        """View a vector `(B, n)` as one for each kind."""
        return list(vector.split([box.n_unknowns for box in self.boxes], dim=-1))

    def put(self, vector: Tensor, field: Tensor, planes: slice) -> None:
        """Write a vector into planes of a field, as `OutsideBox.put`."""
        for box, part, channels in self._kinds(vector, field):
            box.put(part, channels, planes)

    def take(self, field: Tensor, vector: Tensor, planes: slice) -> None:
        """Read planes of a field into their part of a vector, as `OutsideBox.take`."""
        for box, part, channels in self._kinds(vector, field):
            box.take(channels, part, planes)

    def _kinds(self, vector: Tensor, field: Tensor) -> Iterator[tuple[OutsideBox, Tensor, Tensor]]:
        channels = field.split([box.n_channels for box in self.boxes], dim=1)
        return zip(self.boxes, self.split(vector), channels, strict=True)


# Entries beside the diagonal are neglected if they are all below this part of it.
NEGLIGIBLE_CHANGE = 0.05
# Entries of matrices that are factored at a time.
MAX_ENTRIES_AT_ONCE = 2**18


class ClosedSlab:
    """The approximate inverse of a convolution that is cut to the closed slab across an axis: positive definite.

    The slab has `width` planes across `axis` and ends where the torus does, which has two axes or more. The symbol `(C,
    C, *half spectrum)` is Hermitian and positive definite, real for C = 1. All matrices together have at most
    `max_numbers` entries.
    """

    def __init__(self, symbol: Tensor, torus: Size, axis: int, width: int, max_numbers: int) -> None:
        self._others = tuple(n for other, n in enumerate(torus) if other != axis)
        lines, n = SymbolLines(symbol, torus, axis), len(symbol) * width
        mean = lines.mean()
        self._mean_inverse = FrequencyBlocks(_inverse(channels_last(mean.real if len(mean) == 1 else mean)))
        change = lines.change(mean).flatten()
        change, chosen = change.topk(min(max_numbers // n**2, len(change)))
        self._chosen = chosen[: synchronize.as_index((change > NEGLIGIBLE_CHANGE).sum())]
        self._matrices = symbol.new_empty(len(self._chosen), n, n, dtype=mean.dtype.to_complex())
        n_at_once = max(1, MAX_ENTRIES_AT_ONCE // n**2)
        for first in range(0, len(self._chosen), n_at_once):
            part = slice(first, first + n_at_once)
            self._matrices[part] = _invert_definite(lines.matrices(self._chosen[part], width))

    @property
    def n_numbers(self) -> int:
        """How many entries the matrices have."""
        return self._matrices.numel()

    def solve(self, slab: Tensor) -> None:
        """Solve for a right-hand side `(B, C, w, *others)`, and overwrite it; some planes at a time."""
        spectrum = self._transform(slab)
        solved = spectrum.flatten(3).index_select(-1, self._chosen).flatten(1, 2)
        if solved.numel() > 0:
            solved = multiply_lines(self._matrices, solved)
        solved = solved.unflatten(1, slab.shape[1:3])
        axes, plane = space_axes(len(self._others)), half_spectrum(self._others)
        for part in self._parts(slab):
            rest = self._mean_inverse.multiply(spectrum[:, :, part].transpose(1, 2)).transpose(1, 2)
            rest = rest.flatten(3).index_copy_(-1, self._chosen, solved[:, :, part])
            slab[:, :, part] = torch.fft.irfftn(rest.unflatten(-1, plane), s=self._others, dim=axes)

    def _transform(self, slab: Tensor) -> Tensor:
        axes, plane = space_axes(len(self._others)), half_spectrum(self._others)
        spectrum = slab.new_empty(*slab.shape[:3], *plane, dtype=slab.dtype.to_complex())
        for part in self._parts(slab):
            spectrum[:, :, part] = torch.fft.rfftn(slab[:, :, part], dim=axes)
        return spectrum

    def _parts(self, slab: Tensor) -> list[slice]:
        return parts_of(slab.shape[2], math.prod(self._others), slab.device)


class SymbolLines:
    """A symbol `(C, C, *half spectrum)` as lines along one axis, at half the frequencies of the others.

    Of lines along the last axis only one half is stored: the other half is the conjugate, mirrored, of the line at the
    opposite frequencies of the other axes. The symbol is Hermitian, and real for C = 1.
    """

    def __init__(self, symbol: Tensor, torus: Size, axis: int) -> None:
        others = tuple(n for other, n in enumerate(torus) if other != axis)
        self._length = torus[axis]
        self._plane = half_spectrum(others)
        self._lines = symbol.movedim(2 + axis, 2).flatten(3)  # (C, C, N, F)
        self._weights = self._lines.real.new_ones(self._lines.shape[2])
        self._here: Tensor | None = None
        if axis == len(torus) - 1:
            self._weights = half_weights(self._length, self._lines.real) / 2
            numbers = torch.arange(self._lines.shape[-1], device=symbol.device).reshape(others)
            mirrored = numbers.roll((-1,) * len(others), tuple(range(len(others)))).flip(tuple(range(len(others))))
            self._here, self._opposite = (n[..., : self._plane[-1]].flatten() for n in (numbers, mirrored))

    def mean(self) -> Tensor:
        """Average along the lines, shape `(C, C, *plane)`."""
        sums = torch.einsum("abnf,n->abf", self._lines, self._weights.to(self._lines.dtype))
        if self._here is not None:
            sums = sums[..., self._here] + sums[..., self._opposite].conj()
        return (sums / self._length).unflatten(-1, self._plane)

    def change(self, mean: Tensor) -> Tensor:
        """Compute how much the lines vary around their mean `(C, C, *plane)`, relative to it: `(*plane)`.

        It is in the mean square: the size of all lags but zero relative to the lag zero.
        """
        lines = torch.view_as_real(self._lines) if self._lines.is_complex() else self._lines[..., None]
        # Pair after pair of channels, as few squares are to be stored at once.
        squares = sum(torch.einsum("nfr,nfr,n->f", line, line, self._weights) for line in lines.flatten(0, 1))
        assert isinstance(squares, Tensor)
        if self._here is not None:
            squares = squares[self._here] + squares[self._opposite]
        power = mean.abs().square().sum(dim=(0, 1)).clamp_min(torch.finfo(squares.dtype).tiny)
        return (squares.unflatten(-1, self._plane) / self._length / power - 1).clamp_min(0).sqrt()

    def matrices(self, chosen: Tensor, width: int) -> Tensor:
        """Write out the matrices between the planes of a slab at some frequencies: shape `(F, C·w, C·w)`."""
        kernel = torch.fft.ifft(self._whole(chosen), dim=2)
        planes = torch.arange(width, device=chosen.device)
        lags = (planes[:, None] - planes) % self._length
        n = len(kernel) * width
        return kernel[:, :, lags].permute(4, 0, 2, 1, 3).reshape(len(chosen), n, n)

    def _whole(self, chosen: Tensor) -> Tensor:
        """Take whole lines at some frequencies, shape `(C, C, N, F)`."""
        if self._here is None:
            return self._lines.index_select(-1, chosen)
        here = self._lines.index_select(-1, self._here[chosen])
        opposite = self._lines.index_select(-1, self._opposite[chosen])
        rest = opposite[:, :, 1 : self._length - self._length // 2].flip(2).conj()
        return torch.cat([here, rest], dim=2)


def _inverse(mean: Tensor) -> Tensor:
    """Invert blocks `(*plane, C, C)`, real where C = 1."""
    if mean.shape[-1] == 1:
        return torch.where(mean > 0, mean.clamp_min(torch.finfo(mean.dtype).tiny).reciprocal(), 1)
    return _invert_definite(mean.flatten(0, -3)).unflatten(0, mean.shape[:-2])


def _invert_definite(matrices: Tensor) -> Tensor:
    """Invert Hermitian matrices `(F, n, n)`; the identity replaces those that rounding has left indefinite."""
    with single_threaded(matrices.device):
        # LAPACK's matrices lie column by column: transposed, both ways, nothing has to be copied.
        factors, info = torch.linalg.cholesky_ex(matrices.mT)
        unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        return torch.cholesky_inverse(torch.where((info > 0)[:, None, None], unit, factors)).mT
