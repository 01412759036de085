"""The two closed bands of a torus on which nothing was observed, each solved exactly by FFTs along it.

Where an output has not been observed, its value is an unknown u. On the smallest torus these positions are a band of
rows and a band of columns, and each band is a closed line: the system that couples a band with itself does not change
along the line, so that an FFT along it leaves one small matrix a frequency. A gradient penalty adds the difference
across the torus's seam, which is not a difference of neighbors in the image, as one more line to either band.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.circulant import multiply_lines
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class StripLayout:
    """Where the unknowns stand, and how they lie in one vector.

    Attributes:
        torus: `(N1, N2)`.
        observed: rows and columns of observed outputs; the strip is everything beyond them.
        n_outputs: channels of the outputs.
        n_seams: channels of the differences across the seam: `C_in` under a gradient penalty, else 0.
    """

    torus: Size
    observed: Size
    n_outputs: int
    n_seams: int

    @property
    def widths(self) -> Size:
        """Rows of the row band and columns of the column band."""
        return self.torus[0] - self.observed[0], self.torus[1] - self.observed[1]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Unknowns in the row band, in the rest of the column band, and on the two seams."""
        rows, columns = self.widths
        return (
            self.n_outputs * rows * self.torus[1],
            self.n_outputs * self.observed[0] * columns,
            self.n_seams * self.torus[1],
            self.n_seams * self.torus[0],
        )

    def split(self, unknowns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """View a vector `(*batch, r)` as row band, rest of the column band, and the two seams.

        Returns:
            Shapes `(*batch, C_out, w1, N2)`, `(*batch, C_out, n1, w2)`, `(*batch, C_in, N2)` and `(*batch, C_in, N1)`.
        """
        batch = unknowns.shape[:-1]
        rows, columns, across_rows, across_columns = unknowns.split(self.sizes, dim=-1)
        return (
            rows.reshape(*batch, self.n_outputs, self.widths[0], self.torus[1]),
            columns.reshape(*batch, self.n_outputs, self.observed[0], self.widths[1]),
            across_rows.reshape(*batch, self.n_seams, self.torus[1]),
            across_columns.reshape(*batch, self.n_seams, self.torus[0]),
        )

    def join(self, rows: Tensor, columns: Tensor, across_rows: Tensor, across_columns: Tensor) -> Tensor:
        """Undo `split`."""
        return torch.cat(
            [rows.flatten(-3), columns.flatten(-3), across_rows.flatten(-2), across_columns.flatten(-2)], dim=-1
        )

    def embed(self, unknowns: Tensor) -> Tensor:
        """Put the outputs among the unknowns onto the torus, zero elsewhere: `(*batch, C_out, N1, N2)`."""
        rows, columns, _, _ = self.split(unknowns)
        field = unknowns.new_zeros(*unknowns.shape[:-1], self.n_outputs, *self.torus)
        field[..., self.observed[0] :, :] = rows
        field[..., : self.observed[0], self.observed[1] :] = columns
        return field

    def gather(self, field: Tensor, across_rows: Tensor, across_columns: Tensor) -> Tensor:
        """Take the unknowns out of a field `(*batch, C_out, N1, N2)` and two seams; the transpose of `embed`."""
        rows = field[..., self.observed[0] :, :]
        columns = field[..., : self.observed[0], self.observed[1] :]
        return self.join(rows, columns, across_rows, across_columns)


class BandPreconditioner:
    """Solve each band exactly, and add the two answers (an additive Schwarz method with the crossing as overlap).

    Args:
        layout: where the unknowns stand.
        outputs: real kernel of the strip's system between outputs, shape `(C_out, C_out, N1, N2)`.
        seams: for the row and the column seam, the kernels output–seam `(C_out, C_in, N1, N2)` and seam–seam
            `(C_in, C_in, N1, N2)`; an empty tuple without a gradient penalty.
        dtype: precision in which the bands are applied.
    """

    def __init__(
        self, layout: StripLayout, outputs: Tensor, seams: tuple[tuple[Tensor, Tensor], ...], dtype: torch.dtype
    ) -> None:
        self._layout = layout
        self._rows = _band_inverse(outputs, seams[0] if seams else None, layout.widths[0], dtype)
        transposed = tuple(kernel.transpose(-2, -1) for kernel in seams[1]) if seams else None
        self._columns = _band_inverse(
            outputs.transpose(-2, -1), (transposed[0], transposed[1]) if transposed else None, layout.widths[1], dtype
        )

    def __call__(self, residual: Tensor) -> Tensor:
        """Apply to a vector of unknowns, shape `(*batch, r)`."""
        layout = self._layout
        rows, columns, across_rows, across_columns = layout.split(residual)
        n1, n2 = layout.observed
        new_rows, new_across_rows = _solve_band(self._rows, rows, across_rows)
        # The column band runs through the row band: the crossing belongs to both.
        whole = torch.cat([columns, rows[..., n2:]], dim=-2).transpose(-2, -1)
        crossing, new_across_columns = _solve_band(self._columns, whole, across_columns)
        crossing = crossing.transpose(-2, -1)
        new_rows[..., n2:] += crossing[..., n1:, :]
        return layout.join(new_rows, crossing[..., :n1, :], new_across_rows, new_across_columns)


def _band_inverse(outputs: Tensor, seam: tuple[Tensor, Tensor] | None, width: int, dtype: torch.dtype) -> Tensor:
    """Invert the system of a band of rows at each frequency along it.

    The band holds the last `width` rows of the torus; its seam lies behind the very last row.

    Returns:
        Complex, shape `(N2 // 2 + 1, w·C_out + C_in, w·C_out + C_in)`.
    """
    offsets = torch.arange(width, device=outputs.device)
    between = (offsets[:, None] - offsets) % outputs.shape[-2]
    # (C, C', w, w', frequency) → (frequency, w·C, w'·C')
    spectrum = _rfft(outputs[:, :, between])
    system = spectrum.permute(4, 2, 0, 3, 1).flatten(3, 4).flatten(1, 2)
    if seam is not None:
        to_seam, within = seam
        distance = (offsets - (width - 1)) % outputs.shape[-2]
        corner = _rfft(within[:, :, 0]).permute(2, 0, 1)
        side = _rfft(to_seam[:, :, distance]).permute(3, 2, 0, 1)
        side = side.flatten(1, 2)
        system = torch.cat([torch.cat([system, side], dim=-1), torch.cat([side.mH, corner], dim=-1)], dim=-2)
    identity = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device).expand_as(system)
    factor, info = torch.linalg.cholesky_ex(system)
    inverse = torch.cholesky_solve(identity, factor)
    doubtful = info > 0
    if bool(doubtful.any()):
        # Rounding has made a nearly singular block indefinite: what it cannot tell is left to the iteration.
        inverse[doubtful] = torch.linalg.pinv(system[doubtful], hermitian=True, rtol=1e-12)
    return inverse.to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def _solve_band(inverse: Tensor, rows: Tensor, seam: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a band's inverse to rows `(*batch, C_out, w, N)` and a seam `(*batch, C_in, N)`."""
    *batch, n_outputs, width, length = rows.shape
    lines = torch.cat([rows.transpose(-3, -2).reshape(*batch, width * n_outputs, length), seam], dim=-2)
    if lines.shape[-2] == 0:
        return rows.clone(), seam
    result = torch.fft.irfft(multiply_lines(inverse, torch.fft.rfft(lines, dim=-1)), n=length, dim=-1)
    new_rows = result[..., : width * n_outputs, :].reshape(*batch, width, n_outputs, length).transpose(-3, -2)
    return new_rows.contiguous(), result[..., width * n_outputs :, :]


def _rfft(lines: Tensor) -> Tensor:
    """Transform the last axis; a band of no width has nothing to transform, which the FFT itself would refuse."""
    if lines.numel() == 0:
        frequencies = torch.fft.rfft(lines.new_zeros(lines.shape[-1]))
        return frequencies.expand(*lines.shape[:-1], -1)
    return torch.fft.rfft(lines, dim=-1)
