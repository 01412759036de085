"""The two closed bands of a torus that hold a border's unknowns, and their spectra.

What keeps a convolution from being circulant lies outside a rectangle at the torus's origin: outputs that were not
observed, pixels that a rule ties to others, differences that cross an edge. On the torus that outside is a band of
rows and a band of columns, and each band is a closed line: a system that couples a band with itself does not change
along the line, so that an FFT along it leaves one small matrix a frequency (`band_solver.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.vocabulary import Size

# Up to this many lines, sums over the lines (a matrix product) are cheaper than FFTs of a torus that is almost empty.
MAX_THIN_WIDTH = 64


@dataclass(frozen=True)
class Band:
    """The band's places along the axis across it: `first, …, length − 1`.

    Attributes:
        length: of the torus along this axis, N.
        first: the first place of the band.
        sources: the places whose values are subtracted from those on the band, shape `(w,)`; `None` for none.
    """

    length: int
    first: int
    sources: Tensor | None = None

    @property
    def width(self) -> int:
        """Lines of the band."""
        return self.length - self.first

    def terms(self, device: torch.device) -> list[tuple[Tensor, float]]:
        """Write what is read at the lines as a signed sum of values at places of shape `(w,)`."""
        here = (torch.arange(self.first, self.length, device=device), 1.0)
        return [here] if self.sources is None else [here, (self.sources, -1.0)]

    def phases(self, n_frequencies: int, like: Tensor) -> Tensor:
        """Tabulate what reads each line off a spectrum: complex, shape `(w, n_frequencies)`."""
        terms = self.terms(like.device)
        return torch.stack(
            [sign * unit_phases(places, n_frequencies, self.length, like) for places, sign in terms]
        ).sum(0)


class BandGroup:
    """Unknowns of one kind: `C` channels on a band of rows, and on what is left of a band of columns.

    A vector of them is two tensors: `rows` of shape `(*batch, C, w1, N2)`, and `columns` of shape `(*batch, C, h, w2)`
    with `h = N1 − w1`.

    Args:
        n_channels: C.
        rows: the band of rows.
        columns: the band of columns.
        like: a tensor of the real dtype and on the device of the arithmetic.
    """

    def __init__(self, n_channels: int, rows: Band, columns: Band, like: Tensor) -> None:
        self.n_channels = n_channels
        self.rows = rows
        self.columns = columns
        self.torus: Size = (rows.length, columns.length)
        self.n_columns_unknowns = n_channels * rows.first * columns.width
        self._is_thin = max(rows.width, columns.width) <= MAX_THIN_WIDTH
        if self._is_thin:
            n_half = self.torus[1] // 2 + 1
            self._down = rows.phases(self.torus[0], like)
            self._across = columns.phases(n_half, like)
            # A half spectrum stands for the whole: its inner columns count twice.
            weights = like.new_full((n_half,), 2.0)
            weights[0] = 1.0
            if self.torus[1] % 2 == 0:
                weights[-1] = 1.0
            self._across_weighted = (self._across * weights).T.contiguous()

    def spectrum(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """Place a vector on the torus (the transpose of `read`), and transform it.

        Args:
            rows: shape `(*batch, C, w1, N2)`; `None` for zero.
            columns: shape `(*batch, C, h, w2)`; `None` for zero.

        Returns:
            Complex, shape `(*batch, C, N1, N2 // 2 + 1)`.
        """
        if not self._is_thin:
            return torch.fft.rfft2(self._place(rows, columns))
        n1, n2 = self.torus
        parts = []
        if rows is not None:
            lines = transform_lines(torch.fft.rfft, rows, n2, -1, n2 // 2 + 1)
            parts.append(torch.matmul(self._down.mH, lines))
        if columns is not None:
            lines = transform_lines(torch.fft.fft, columns, n1, -2, n1)
            parts.append(torch.matmul(lines, self._across.conj()))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def read_rows(self, spectrum: Tensor) -> Tensor:
        """Read the band of rows off a spectrum `(*batch, C, N1, N2 // 2 + 1)`."""
        n1, n2 = self.torus
        if self._is_thin:
            return transform_lines(torch.fft.irfft, torch.matmul(self._down, spectrum) / n1, n2, -1, n2)
        return self._take(torch.fft.irfft2(spectrum, s=self.torus))[0]

    def read_columns(self, spectrum: Tensor) -> Tensor:
        """Read the rest of the band of columns off a spectrum."""
        if self._is_thin:
            n1, n2 = self.torus
            lines = torch.matmul(spectrum, self._across_weighted)
            return transform_lines(torch.fft.ifft, lines, n1, -2, n1).real[..., : self.rows.first, :] / n2
        return self._take(torch.fft.irfft2(spectrum, s=self.torus))[1]

    def read(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """Read both bands off a spectrum."""
        if self._is_thin:
            return self.read_rows(spectrum), self.read_columns(spectrum)
        return self._take(torch.fft.irfft2(spectrum, s=self.torus))

    def _take(self, field: Tensor) -> tuple[Tensor, Tensor]:
        rows = field[..., self.rows.first :, :]
        columns = field[..., : self.rows.first, self.columns.first :]
        if self.rows.sources is not None:
            rows = rows - field.index_select(-2, self.rows.sources)
        if self.columns.sources is not None:
            columns = columns - field[..., : self.rows.first, :].index_select(-1, self.columns.sources)
        return rows, columns

    def _place(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        given = rows if rows is not None else columns
        assert given is not None
        field = given.new_zeros(*given.shape[:-2], *self.torus)
        if columns is not None:
            part = field[..., : self.rows.first, :]
            part[..., self.columns.first :] = columns
            if self.columns.sources is not None:
                part.index_add_(-1, self.columns.sources, columns, alpha=-1)
        if rows is not None:
            field[..., self.rows.first :, :] = rows
            if self.rows.sources is not None:
                field.index_add_(-2, self.rows.sources, rows, alpha=-1)
        return field


def unit_phases(places: Tensor, n_frequencies: int, length: int, like: Tensor) -> Tensor:
    """Tabulate `exp(iθ·place)` for the first frequencies of a line, shape `(*places, n_frequencies)`."""
    frequency = torch.arange(n_frequencies, device=places.device)
    # Reduced modulo the length as whole numbers: the angle keeps every digit.
    angle = (places[..., None] * frequency % length).to(like.dtype) * (2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle)


def transform_lines(transform: Callable[..., Tensor], lines: Tensor, n: int, dim: int, n_out: int) -> Tensor:
    """Transform along an axis; a band of no width has nothing to transform, which the FFT itself would refuse."""
    if lines.numel() > 0:
        return transform(lines, n=n, dim=dim)
    shape = list(lines.shape)
    shape[dim] = n_out
    return transform(lines.new_zeros(n), n=n).new_zeros(shape)
