"""The band of rows and the band of columns of a torus that hold a border's unknowns, and their spectra.

A convolution on an image differs from a circular one outside a rectangle at the torus's origin: there lie outputs that
were not observed, pixels that a rule ties to others, and differences across an edge. That outside is a band of rows and
a band of columns, each a closed line. A system that couples a band with itself does not change along the line, so an
FFT along it leaves one small matrix per frequency. Bands are therefore stored transformed along their lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_weights
from deconv_cli.operators.circulant import phases
from deconv_cli.operators.spectrum import factor_by_parts
from deconv_cli.vocabulary import Size

# Above this many entries a block is too large to be copied for one large product; many small ones are then as fast.
MAX_ENTRIES_TO_COPY = 64


@dataclass(frozen=True)
class Band:
    """The places `first, …, length − 1` of a torus along the axis across a band.

    Attributes:
        length: pixels of the torus along this axis, N.
        first: first place of the band.
        sources: places whose values are subtracted from those on the band, shape `(w,)`; `None` for none.
    """

    length: int
    first: int
    sources: Tensor | None = None

    @property
    def width(self) -> int:
        """Number of lines."""
        return self.length - self.first

    def places(self, device: torch.device) -> Tensor:
        """List the places, shape `(w,)`."""
        return torch.arange(self.first, self.length, device=device)

    def terms(self, device: torch.device) -> list[tuple[Tensor, float]]:
        """List the places that are read at each line, shape `(w,)`, with their signs."""
        here = (self.places(device), 1.0)
        return [here] if self.sources is None else [here, (self.sources, -1.0)]

    def phases(self, n_frequencies: int, like: Tensor) -> Tensor:
        """Tabulate the phases that read each line off a spectrum: complex, shape `(w, n_frequencies)`."""
        terms = self.terms(like.device)
        return torch.stack([sign * phases(places, self.length, n_frequencies, like) for places, sign in terms]).sum(0)


class BandGroup:
    """Unknowns of one kind: C channels on a band of rows and on a band of columns, which overlap where they cross.

    A vector is two tensors of lines (see `to_lines`), the channels of each line of a band together: `rows` of shape
    `(*batch, w1·C, N2 // 2 + 1)` and `columns` of shape `(*batch, w2·C, N1 // 2 + 1)`. Where they cross, it is their
    sum.

    `like` has the real dtype and the device of the arithmetic. `down`, shape `(N1, 1)`, and `across`, shape `(N2 // 2 +
    1,)`, are factors by which a spectrum is multiplied before it is read, as a rule on a few lines alone; `None` for 1.
    """

    def __init__(
        self,
        n_channels: int,
        rows: Band,
        columns: Band,
        like: Tensor,
        down: Tensor | None = None,
        across: Tensor | None = None,
    ) -> None:
        down, across = like.new_ones(1, 1) if down is None else down, like.new_ones(1) if across is None else across
        self.n_channels = n_channels
        self.rows = rows
        self.columns = columns
        self.torus: Size = (rows.length, columns.length)
        n1, n2 = self.torus
        n_half = n2 // 2 + 1
        # Sums over the lines, a matrix product, are cheaper than FFTs of a torus that is almost empty.
        self.down = rows.phases(n1, like) * down.T
        self._across = columns.phases(n_half, like) * across
        self.across_weighted = self._across * half_weights(n2, like)
        # Of rows and of columns: the factors of lines that are placed on the torus or read off it, and the lines of
        # single places in the other band.
        scales = _scale(n2, like), _scale(n1, like)
        along = across, down[: n1 // 2 + 1, 0]
        self._placing = [a.conj() / scale for a, scale in zip(along, scales, strict=True)]
        self._reading = [a * scale / n for a, scale, n in zip(along, scales, (n1, 2 * n2), strict=True)]
        pairs = zip((columns, rows), scales, strict=True)
        self._places = [phases(band.places(like.device), band.length, len(s), like).conj() * s for band, s in pairs]

    def across(self, axis: int) -> Band:
        """Give the band of rows for axis 0, of columns for axis 1."""
        return self.columns if axis else self.rows

    def factors(self, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Place a vector on the torus and transform it; `None` means zeros. It is the transpose of `read_bands`.

        Returns:
            Complex, shapes `(*batch, C, N1, w)` and `(*batch, C, w, N2 // 2 + 1)`; the spectrum is their product.
        """
        left, right = [], []
        if rows is not None:
            right.append(self._by_channel(rows, 0) * self._placing[0])
            left.append(self.down.mH.expand(*right[0].shape[:-2], -1, -1))
        if columns is not None:
            half = self._by_channel(columns, 1) * self._placing[1]
            mirrored = half[..., 1 : (self.torus[0] + 1) // 2].flip(-1).conj()
            left.append(torch.cat([half, mirrored], dim=-1).mT)
            right.append(self._across.conj().expand(*half.shape[:-2], -1, -1))
        return torch.cat(left, dim=-1), torch.cat(right, dim=-2)

    def _by_channel(self, lines: Tensor, axis: int) -> Tensor:
        return lines.unflatten(-2, (self.across(axis).width, self.n_channels)).transpose(-3, -2)

    def sums_to_lines(self, sums: Tensor, axis: int) -> Tensor:
        """Turn sums of a spectrum into lines of one band.

        Args:
            sums: over all rows, `(*batch, C, w, N2 // 2 + 1)`, or weighted over half the columns, `(*batch, C, w, N1)`.
            axis: 0 for the band of rows, 1 for that of columns.
        """
        if axis == 1:
            n_half = self.torus[0] // 2 + 1
            mirrored = sums.roll(-1, -1).flip(-1)  # entry k of this is entry −k of that
            sums = sums[..., :n_half] + mirrored[..., :n_half].conj()
        return (sums * self._reading[axis]).transpose(-3, -2).flatten(-3, -2)

    def cross(self, lines: Tensor, axis: int) -> Tensor:
        """Copy the values of one band to the other, of rows for axis 0 or columns for axis 1, where they cross."""
        values = (self._by_channel(lines, 1 - axis) @ self._places[1 - axis].mH).real.mT
        return (values.to(lines.dtype) @ self._places[axis]).transpose(-3, -2).flatten(-3, -2)

    def without_crossing(self, columns: Tensor) -> Tensor:
        """Set the band of columns to zero where it crosses that of rows."""
        values = (columns @ self._places[1].mH).real.to(columns.dtype)
        return columns - values @ self._places[1]


@dataclass(frozen=True)
class BandSpectrum:
    """A spectrum as the sum of a whole one and a product of narrow matrices, which is made some rows at a time.

    Attributes:
        whole: shape `(*batch, C, N1, N2 // 2 + 1)`; `None` for zero.
        left: shape `(*batch, C, N1, w)`; `None` for zero.
        right: shape `(*batch, C, w, N2 // 2 + 1)`.
    """

    whole: Tensor | None
    left: Tensor | None = None
    right: Tensor | None = None

    def at(self, part: slice) -> Tensor:
        """Evaluate a part of the rows; it may not be written to."""
        if self.left is None or self.right is None:
            assert self.whole is not None
            return self.whole[..., part, :]
        product = self.left[..., part, :] @ self.right
        return product if self.whole is None else product.add_(self.whole[..., part, :])


def read_bands(
    groups: Sequence[BandGroup], spectra: Iterable[tuple[slice, Sequence[Tensor]]], axes: Sequence[int]
) -> list[Tensor]:
    """Read the bands of groups off spectra, one for each, that come some rows at a time, while these are in the cache.

    Gives the lines of all groups for each of `axes`: 0 for the band of rows, 1 for that of columns.
    """
    down: list[list[Tensor]] = [[] for _ in groups]
    across: list[list[Tensor]] = [[] for _ in groups]
    for part, values in spectra:
        for group, value, sums, lines in zip(groups, values, down, across, strict=True):
            if 0 in axes:
                sums[:] = [sum(sums, group.down[:, part] @ value)]
            if 1 in axes:
                lines.append(group.across_weighted @ value.mT)
    found = []
    for axis in axes:
        read = [torch.cat(lines, dim=-1) for lines in across] if axis == 1 else [sums[0] for sums in down]
        found.append(
            torch.cat([group.sums_to_lines(sums, axis) for group, sums in zip(groups, read, strict=True)], dim=-2)
        )
    return found


def outside(
    n_channels: int,
    size: Size,
    torus: Size,
    like: Tensor,
    sources: tuple[Tensor | None, ...] = (None, None),
    symbol: tuple[Tensor | None, Tensor | None] = (None, None),
) -> BandGroup:
    """Give the unknowns outside a rectangle of `size` at the torus's origin.

    `sources` are those of `Band`, for each axis, and `symbol` the factors of `BandGroup`.
    """
    rows, columns = (Band(*numbers) for numbers in zip(torus, size, sources, strict=True))
    return BandGroup(n_channels, rows, columns, like, *symbol)


def to_lines(values: Tensor) -> Tensor:
    """Transform the lines `(*, N)` of a band: complex, shape `(*, N // 2 + 1)`, with the same inner products."""
    n = values.shape[-1]
    if values.numel() == 0:  # the FFT refuses a band of no width
        return values.new_zeros(*values.shape[:-1], n // 2 + 1, dtype=values.dtype.to_complex())
    return torch.fft.rfft(values) * _scale(n, values)


def from_lines(lines: Tensor, n: int) -> Tensor:
    """Undo `to_lines`."""
    if lines.numel() == 0:
        return lines.real.new_zeros(*lines.shape[:-1], n)
    return torch.fft.irfft(lines / _scale(n, lines.real), n=n)


def _scale(n: int, like: Tensor) -> Tensor:
    return (half_weights(n, like) / n).sqrt()


def coupling(rows: Band, columns: Band, values: Tensor, down: Tensor, across: Tensor, axis: int) -> Tensor:
    """Compute what a block-circulant operator does from a band `columns` of w' lines to a band `rows` of w.

    The operator has the blocks `values`, shape `(N1, N2 // 2 + 1, a, b)`, times a factor for each row of frequencies,
    `down` `(N1, 1)`, and for each column, `across` `(N2 // 2 + 1,)`. The bands lie across `axis`. Gives a matrix at
    each frequency along them: shape `(frequencies, w·a, w'·b)`.
    """
    length = rows.length
    lags, signs = [], []
    for to, to_sign in rows.terms(values.device):
        for source, source_sign in columns.terms(values.device):
            lags.append((to[:, None] - source) % length)
            signs.append(to_sign * source_sign)
    distinct, index = synchronize.distinct(torch.stack(lags))
    at_lags = _sum_over_axis(values, distinct, down, across, axis, length)
    total = torch.stack([sign * at_lags[:, where] for sign, where in zip(signs, index, strict=True)]).sum(0)
    # (frequency, w, w', a, b) → (frequency, w·a, w'·b)
    return total.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _sum_over_axis(values: Tensor, lags: Tensor, down: Tensor, across: Tensor, axis: int, length: int) -> Tensor:
    """Transform one axis of a symbol back at some lags: shape `(frequencies of the other axis, L, a, b)`."""
    n1, n_half, a, b = values.shape
    like = values.real
    if axis == 0:
        waves = phases(lags, length, n1, like) * (down[:, 0] / n1)
        sums = _combine(waves, values.reshape(n1, -1)).reshape(len(lags), n_half, a, b)
        return sums.transpose(0, 1) * across[:, None, None, None]
    # The inner columns of a half spectrum count twice, once as they are and once mirrored.
    waves = phases(lags, length, n_half, like) * (across * half_weights(length, like) / (2 * length))
    if a * b <= MAX_ENTRIES_TO_COPY:
        planes = values.permute(0, 2, 3, 1).reshape(-1, n_half)
        sums = _combine(waves, planes.T).T.reshape(n1, a, b, len(lags)).permute(0, 3, 1, 2)
    else:
        sums = torch.matmul(waves, values.reshape(n1, n_half, a * b)).reshape(n1, len(lags), a, b)
    sums = sums * down[:, :, None, None]
    n_line = n1 // 2 + 1
    mirrored = sums.roll(-1, 0).flip(0)  # entry k of this is entry −k of that
    return sums[:n_line] + mirrored[:n_line].conj()


def _combine(phases: Tensor, values: Tensor) -> Tensor:
    """Multiply complex phases `(L, n)` by values `(n, m)`, which may be real."""
    if values.is_complex():
        return phases @ values
    parts = torch.view_as_real(phases).movedim(-1, 0) @ values
    return torch.complex(parts[0], parts[1])


def invert_lines(matrix: Tensor) -> Tensor:
    """Invert each matrix; a singular one gets its pseudo-inverse, and the iteration corrects the rest."""
    if matrix.numel() == 0:
        return matrix
    inverse, info = factor_by_parts(torch.linalg.inv_ex, matrix)
    doubtful = (info != 0) | ~torch.isfinite(inverse.sum(dim=(-2, -1)))
    if synchronize.holds_anywhere(doubtful):
        places = synchronize.places(doubtful)
        inverse[places] = torch.linalg.pinv(matrix[places], hermitian=True)
    return inverse
