"""The band of rows and the band of columns of a torus that hold a border's unknowns, and their spectra.

A convolution on an image differs from a circular one outside a rectangle at the torus's origin: there lie outputs that
were not observed, pixels that a rule ties to others, and differences across an edge. That outside is a band of rows and
a band of columns, each a closed line. A system that couples a band with itself does not change along the line, so an
FFT along it leaves one small matrix per frequency. Bands are therefore stored transformed along their lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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

    def terms(self, device: torch.device) -> list[tuple[Tensor, float]]:
        """List the places that are read at each line, shape `(w,)`, with their signs."""
        here = (torch.arange(self.first, self.length, device=device), 1.0)
        return [here] if self.sources is None else [here, (self.sources, -1.0)]

    def phases(self, n_frequencies: int, like: Tensor) -> Tensor:
        """Tabulate the phases that read each line off a spectrum: complex, shape `(w, n_frequencies)`."""
        terms = self.terms(like.device)
        return torch.stack([sign * phases(places, self.length, n_frequencies, like) for places, sign in terms]).sum(0)


@dataclass(frozen=True)
class Unknowns:
    """One kind of unknowns: outputs, differences, or the multipliers of tied pixels.

    Attributes:
        kind: which.
        rows: the band of rows where they are.
        columns: the band of columns where they are.
        down: factor of the rows of their symbol, shape `(N1, 1)`: √μ l for differences, −1 for ties.
        across: factor of its columns, shape `(N2 // 2 + 1,)`.
    """

    kind: Literal["outputs", "differences", "ties"]
    rows: Band
    columns: Band
    down: Tensor
    across: Tensor

    def band(self, axis: int) -> Band:
        """Give the band of rows for axis 0, of columns for axis 1."""
        return self.columns if axis else self.rows


class BandGroup:
    """Kinds of unknowns on the same spectrum, on bands of rows and bands of columns, which overlap where they cross.

    A vector is two tensors of lines (see `to_lines`), all kinds and the channels of each line together: `rows` of shape
    `(B, N2 // 2 + 1, w1·C)` and `columns` of shape `(B, N1 // 2 + 1, w2·C)`. Where they cross, it is their sum.

    `sign` is that of the symbols where the system reads a spectrum. `like` has the real dtype and the device of the
    arithmetic.
    """

    def __init__(self, n_channels: int, kinds: Sequence[Unknowns], like: Tensor, sign: float = 1.0) -> None:
        self._n_channels = n_channels
        self._torus: Size = (kinds[0].rows.length, kinds[0].columns.length)
        n1, n2 = self._torus
        n_half = n2 // 2 + 1
        self.n_lines = [n_channels * sum(kind.band(axis).width for kind in kinds) for axis in (0, 1)]
        # Sums over the lines, a matrix product, are cheaper than FFTs of a torus that is almost empty.
        self._down = torch.cat([kind.rows.phases(n1, like) * kind.down.T for kind in kinds])
        self._across = torch.cat([kind.columns.phases(n_half, like) * kind.across for kind in kinds])
        self._across_weighted = self._across * half_weights(n2, like)
        # Of rows and of columns: the factors of lines that are placed on the torus or read off it.
        across = torch.cat([kind.across.expand(kind.rows.width, -1) for kind in kinds]).T[..., None]
        down = torch.cat([kind.down.T.expand(kind.columns.width, -1) for kind in kinds]).T[: n1 // 2 + 1, :, None]
        scales = _scale(n2, like)[:, None, None], _scale(n1, like)[:, None, None]
        self._placing = across.conj() / scales[0], down.conj() / scales[1]
        self._reading = sign / n1 * across * scales[0], sign / (2 * n2) * down * scales[1]

    def factors(self, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Place a vector on the torus and transform it; `None` means zeros. It is the transpose of reading.

        Returns:
            Complex, shapes `(B, C, N1, w)` and `(B, C, w, N2 // 2 + 1)`; the spectrum is their product.
        """
        left, right = [], []
        if rows is not None:
            right.append(self._place(rows, 0).transpose(-1, -3))
            left.append(self._down.mH.expand(*right[0].shape[:-2], -1, -1))
        if columns is not None:
            half = self._place(columns, 1)
            mirrored = half[:, 1 : (self._torus[0] + 1) // 2].flip(1).conj()
            left.append(torch.cat([half, mirrored], dim=1).movedim(-1, -3))
            right.append(self._across.conj().expand(*left[-1].shape[:-2], -1, -1))
        return torch.cat(left, dim=-1), torch.cat(right, dim=-2)

    def _place(self, lines: Tensor, axis: int) -> Tensor:
        return lines.unflatten(-1, (self.n_lines[axis] // self._n_channels, self._n_channels)) * self._placing[axis]

    def sum(self, spectrum: Tensor, part: slice, axis: int) -> Tensor:
        """Sum up some rows of a spectrum over all of them, axis 0, or over its columns, axis 1: see `to_lines`."""
        return self._down[:, part] @ spectrum if axis == 0 else spectrum @ self._across_weighted.mT

    def read(self, sums: Sequence[Tensor], axis: int) -> Tensor:
        """Turn the sums of all parts of a spectrum into lines of the band of rows, axis 0, or of columns, axis 1."""
        if axis == 0:
            values = sum(sums[1:], sums[0]).transpose(-1, -3)
        else:
            values = _fold(torch.cat([*sums], dim=-2), -2).movedim(-3, -1)
        return (values * self._reading[axis]).flatten(-2)


@dataclass(frozen=True)
class BandSpectrum:
    """A spectrum as the sum of a whole one and a product of narrow matrices, which is made some rows at a time.

    Attributes:
        whole: shape `(B, C, N1, N2 // 2 + 1)`; `None` for zero.
        left: shape `(B, C, N1, w)`; `None` for zero.
        right: shape `(B, C, w, N2 // 2 + 1)`.
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


def outside(
    kind: Literal["outputs", "differences", "ties"],
    size: Size,
    torus: Size,
    symbol: tuple[Tensor, Tensor],
    sources: tuple[Tensor | None, ...] = (None, None),
) -> Unknowns:
    """Give the unknowns outside a rectangle of `size` at the torus's origin; `sources` are those of `Band`."""
    rows, columns = (Band(*numbers) for numbers in zip(torus, size, sources, strict=True))
    return Unknowns(kind, rows, columns, *symbol)


def to_lines(values: Tensor) -> Tensor:
    """Transform the lines `(B, N, w)` of a band: complex, shape `(B, N // 2 + 1, w)`, with the same inner products."""
    n_batch, n, width = values.shape
    if values.numel() == 0:  # the FFT refuses a band of no width
        return values.new_zeros(n_batch, n // 2 + 1, width, dtype=values.dtype.to_complex())
    return torch.fft.rfft(values, dim=1) * _scale(n, values)[:, None]


def from_lines(lines: Tensor, n: int) -> Tensor:
    """Undo `to_lines`."""
    if lines.numel() == 0:
        return lines.real.new_zeros(len(lines), n, lines.shape[-1])
    return torch.fft.irfft(lines / _scale(n, lines.real)[:, None], n=n, dim=1)


def multiply_lines(matrices: Tensor, lines: Tensor) -> Tensor:
    """Multiply by one small matrix at each frequency: `(F, a, b)` by `(B, F, b)` gives `(B, F, a)`."""
    # Of complex matrices torch's batched product with rows is two to five times as fast as that with columns.
    return torch.bmm(lines.transpose(0, 1).contiguous(), matrices.mT).transpose(0, 1)


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
    return _fold(sums * down[:, :, None, None], 0)


def _fold(whole: Tensor, dim: int) -> Tensor:
    """Add the conjugate of the mirrored frequency to each one of the half of an axis."""
    n_half = whole.shape[dim] // 2 + 1
    mirrored = whole.roll(-1, dim).flip(dim)  # entry k of this is entry −k of that
    return whole.narrow(dim, 0, n_half) + mirrored.narrow(dim, 0, n_half).conj()


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
