"""The band of rows and the band of columns of a torus that hold a border's unknowns, and their spectra.

A convolution on an image differs from a circular one outside a rectangle at the torus's origin: there lie outputs that
were not observed, pixels that a rule ties to others, and differences across an edge. That outside is a band of rows and
a band of columns, each a closed line. A system that couples a band with itself does not change along the line, so an
FFT along it leaves one small matrix per frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_weights
from deconv_cli.operators.circulant import multiply_lines, multiply_lines_adjoint, phases
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

    def terms(self, device: torch.device) -> list[tuple[Tensor, float]]:
        """List the places that are read at each line, shape `(w,)`, with their signs."""
        here = (torch.arange(self.first, self.length, device=device), 1.0)
        return [here] if self.sources is None else [here, (self.sources, -1.0)]

    def phases(self, n_frequencies: int, like: Tensor) -> Tensor:
        """Tabulate the phases that read each line off a spectrum: complex, shape `(w, n_frequencies)`."""
        terms = self.terms(like.device)
        return torch.stack([sign * phases(places, self.length, n_frequencies, like) for places, sign in terms]).sum(0)


class BandGroup:
    """Unknowns of one kind: C channels on a band of rows and on the rest of a band of columns.

    A vector is two tensors: `rows` of shape `(*batch, C, w1, N2)` and `columns` of shape `(*batch, C, N1 − w1, w2)`.
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
        self._along = (like.new_ones(1, 1) if down is None else down, like.new_ones(1) if across is None else across)
        self.n_channels = n_channels
        self.rows = rows
        self.columns = columns
        self.torus: Size = (rows.length, columns.length)
        self.n_columns_unknowns = n_channels * rows.first * columns.width
        # Sums over the lines, a matrix product, are cheaper than FFTs of a torus that is almost empty.
        n_half = self.torus[1] // 2 + 1
        self.down = rows.phases(self.torus[0], like) * self._along[0].T
        self._across = columns.phases(n_half, like) * self._along[1]
        self.across_weighted = self._across * half_weights(self.torus[1], like)

    def factors(self, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Place a vector on the torus and transform it; `None` means zeros. It is the transpose of `read`.

        Returns:
            Complex, shapes `(*batch, C, N1, w)` and `(*batch, C, w, N2 // 2 + 1)`; the spectrum is their product.
        """
        n1, n2 = self.torus
        left, right = [], []
        if rows is not None:
            right.append(transform_lines(torch.fft.rfft, rows, n2, -1, n2 // 2 + 1) * self._along[1].conj())
            left.append(self.down.mH.expand(*rows.shape[:-2], -1, -1))
        if columns is not None:
            left.append(transform_lines(torch.fft.fft, columns, n1, -2, n1) * self._along[0].conj())
            right.append(self._across.conj().expand(*columns.shape[:-2], -1, -1))
        return torch.cat(left, dim=-1), torch.cat(right, dim=-2)

    def spectrum(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """Multiply the factors: complex, shape `(*batch, C, N1, N2 // 2 + 1)`."""
        left, right = self.factors(rows, columns)
        return left @ right

    def to_rows(self, sums: Tensor) -> Tensor:
        """Transform sums over all rows of a spectrum to the band of rows."""
        n1, n2 = self.torus
        return transform_lines(torch.fft.irfft, sums / n1 * self._along[1], n2, -1, n2)

    def to_columns(self, sums: Tensor) -> Tensor:
        """Transform sums over all columns, of shape `(*batch, C, w, N1)`, to the rest of the band of columns."""
        n1, n2 = self.torus
        sums = sums * self._along[0].expand(n1, 1)[:, 0]
        return transform_lines(torch.fft.ifft, sums, n1, -1, n1).real[..., : self.rows.first].mT / n2

    def read_rows(self, spectrum: Tensor) -> Tensor:
        """Read the band of rows off a spectrum `(*batch, C, N1, N2 // 2 + 1)`."""
        return self.to_rows(self.down @ spectrum)

    def read_columns(self, spectrum: Tensor) -> Tensor:
        """Read the rest of the band of columns off a spectrum."""
        return self.to_columns(self.across_weighted @ spectrum.mT)

    def read(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """Read both bands off a spectrum."""
        return self.read_rows(spectrum), self.read_columns(spectrum)


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
    groups: Sequence[BandGroup], spectra: Iterable[tuple[slice, Sequence[Tensor]]], *, rows: bool, columns: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Read the bands of groups off spectra, one for each, that come some rows at a time, while these are in the cache.

    Gives the rows and the columns of each group; a band that is not wanted gives an empty list.
    """
    down: list[list[Tensor]] = [[] for _ in groups]
    across: list[list[Tensor]] = [[] for _ in groups]
    for part, values in spectra:
        for group, value, sums, lines in zip(groups, values, down, across, strict=True):
            if rows:
                sums[:] = [sum(sums, group.down[:, part] @ value)]
            if columns:
                lines.append(group.across_weighted @ value.mT)
    return (
        [group.to_rows(sums[0]) for group, sums in zip(groups, down, strict=True) if rows],
        [group.to_columns(torch.cat(lines, dim=-1)) for group, lines in zip(groups, across, strict=True) if columns],
    )


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


def transform_lines(transform: Callable[..., Tensor], lines: Tensor, n: int, dim: int, n_out: int) -> Tensor:
    """Transform along an axis; the FFT itself refuses a band of no width."""
    if lines.numel() > 0:
        return transform(lines, n=n, dim=dim)
    shape = list(lines.shape)
    shape[dim] = n_out
    return transform(lines.new_zeros(n), n=n).new_zeros(shape)


def solve_lines(inverse: Tensor, lines: Tensor, *, transposed: bool = False) -> Tensor:
    """Multiply lines `(*batch, r, N)` by a matrix `(N // 2 + 1, r, r)` at each frequency along them."""
    if lines.numel() == 0:
        return lines
    multiply = multiply_lines_adjoint if transposed else multiply_lines
    return torch.fft.irfft(multiply(inverse, torch.fft.rfft(lines, dim=-1)), n=lines.shape[-1], dim=-1)


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
    doubtful = (info != 0) | ~torch.isfinite(torch.view_as_real(inverse)).all(dim=-1).all(dim=-1).all(dim=-1)
    if synchronize.holds_anywhere(doubtful):
        places = synchronize.places(doubtful)
        inverse[places] = torch.linalg.pinv(matrix[places], hermitian=True)
    return inverse
