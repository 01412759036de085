"""λ = 0, as many outputs as pixels: find the outputs for which the circular inverse obeys the border's rule.

With P = K⁻¹ on the torus, T the unobserved outputs and W the rule of the tied pixels, D = WᵀPTᵀ is square, and

    D u = −WᵀP Sᵀy,        z = P(Sᵀy + Tᵀu).

Unknowns and rules lie in a band of rows and a band of columns (`bands.py`). Along the rows D does not change, and is
inverted there by an FFT along them; what is left is a dense matrix on the columns, half as large as D, which is
factored once:

    S = D_cc − D_cr D_rr⁻¹ D_rc.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import FrequencyBlocks, multiply_lines, multiply_lines_adjoint, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.bands import BandGroup, coupling, from_lines, invert_lines, outside, read_bands, to_lines
from deconv_cli.solvers.embedding import TorusEmbedding
from deconv_cli.solvers.fourier import SingularSystemError, full_rank_inverse
from deconv_cli.vocabulary import Size

# A solution is corrected if the ties of border pixels are off by more units in the last place: that saves a round.
MAX_TIE_ULPS, MAX_CORRECTIONS = 2**17, 2


class SquareBorderSystem:
    """The inverse of an operator with as many outputs as pixels, in double precision.

    Raises:
        SingularSystemError: the symbol, D, or its part on the rows is singular to working precision.
    """

    def __init__(self, operator: Convolution) -> None:
        taps = operator.kernel.double()
        self._places = places = TorusEmbedding.of(operator.geometry, operator.boundary, taps.device)
        self._outputs = outputs = outside(taps.shape[0], places.output_size, places.torus, taps)
        self._ties = ties = outside(taps.shape[1], places.image_size, places.torus, taps, places.line_sources)
        estimate = full_rank_inverse(torus_symbol(taps, places.torus, places.origin))
        self._estimate = FrequencyBlocks(estimate)
        ones = estimate.new_ones(estimate.shape[0], 1), estimate.new_ones(estimate.shape[1])
        self._rows = invert_lines(coupling(ties.rows, outputs.rows, estimate, *ones, axis=0))
        along = coupling(ties.columns, outputs.columns, estimate, *ones, axis=1)
        schur = _toeplitz(along, outputs.torus[0], outputs.rows.first)
        if outputs.rows.width and outputs.columns.width:
            _subtract_elimination(schur, outputs, ties, estimate, self._rows)
        self._factors, self._pivots, info = torch.linalg.lu_factor_ex(schur)
        if synchronize.holds_anywhere(info):
            raise SingularSystemError("the system on the border is singular")

    def estimate(self, y: Tensor) -> Tensor:
        """Apply the inverse to data `(*batch, C, H, W)`."""
        spectrum = self._estimate.multiply(self._transform(y))
        ties = _read(self._ties, spectrum, 0, 1)
        goal = MAX_TIE_ULPS * torch.finfo(y.dtype).eps * _norm(ties)
        for _ in range(MAX_CORRECTIONS):
            u = self._solve(-ties[0], -ties[1])
            spectrum = self._estimate.multiply(_spectrum(self._outputs, *u)).add_(spectrum)
            ties = _read(self._ties, spectrum, 0, 1)
            if synchronize.holds_everywhere(_norm(ties) <= goal):
                break
        return self._to_field(spectrum, self._places.image_size, y)

    def estimate_transposed(self, g: Tensor) -> Tensor:
        """Apply the transpose of `estimate` to `g` of shape `(*batch, C, H, W)`."""
        spectrum = self._transform(g)
        right = _read(self._outputs, self._estimate.multiply(spectrum, adjoint=True), 0, 1)
        nu = self._solve(*right, transposed=True)
        spectrum = self._estimate.multiply(spectrum - _spectrum(self._ties, *nu), adjoint=True)
        return self._to_field(spectrum, self._places.output_size, g)

    def _transform(self, field: Tensor) -> Tensor:
        flat = field.reshape(math.prod(field.shape[:-3]), *field.shape[-3:])
        return torch.fft.rfft2(flat.double(), s=self._places.torus)

    def _to_field(self, spectrum: Tensor, size: Size, like: Tensor) -> Tensor:
        field = torch.fft.irfft2(spectrum, s=self._places.torus)[..., : size[0], : size[1]]
        return field.to(like.dtype).reshape(like.shape)

    def _solve(self, rows: Tensor, columns: Tensor, *, transposed: bool = False) -> tuple[Tensor, Tensor]:
        """Solve D u = r or Dᵀν = r for lines of `bands.BandGroup`; unknowns where bands cross stand in the rows."""
        source, to = (self._ties, self._outputs) if transposed else (self._outputs, self._ties)
        multiply = multiply_lines_adjoint if transposed else multiply_lines

        def apply(rows: Tensor | None, columns: Tensor | None, axis: int) -> Tensor:
            return _read(to, self._estimate.multiply(_spectrum(source, rows, columns), adjoint=transposed), axis)[0]

        first = multiply(self._rows, rows)
        columns = self._solve_columns(columns - apply(first, None, 1), transposed=transposed)
        return first - multiply(self._rows, apply(None, columns, 0)), columns

    def _solve_columns(self, columns: Tensor, *, transposed: bool) -> Tensor:
        if columns.numel() == 0:
            return columns
        length, height = self._places.torus[0], self._outputs.rows.first
        values = from_lines(columns, length)[..., :height]
        flat = torch.linalg.lu_solve(self._factors, self._pivots, values.flatten(-2).T, adjoint=transposed).T
        return to_lines(functional.pad(flat.unflatten(-1, values.shape[-2:]), (0, length - height)))


def _spectrum(group: BandGroup, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    left, right = group.factors(rows, columns)
    return left @ right


def _read(group: BandGroup, spectrum: Tensor, *axes: int) -> list[Tensor]:
    return read_bands([group], [(slice(None), [spectrum])], axes)


def _norm(bands: list[Tensor]) -> Tensor:
    """Compute the norms of vectors on both bands, shape `(B,)`."""
    return torch.hypot(*(torch.linalg.vector_norm(band, dim=(-2, -1)) for band in bands))


def _toeplitz(lines: Tensor, length: int, height: int) -> Tensor:
    """Write out an operator that does not change along a line, on the first `height` places of that line.

    `lines` is its matrix at each frequency, complex, shape `(length // 2 + 1, r, r)`. The result is real, of shape
    `(r·height, r·height)`, place by place within each of the r.
    """
    kernel = torch.fft.irfft(lines, n=length, dim=0) if lines.numel() else lines.real.new_zeros(length, 0, 0)
    place = torch.arange(height, device=lines.device)
    r = lines.shape[-1]
    full = kernel[(place[:, None] - place) % length]
    return full.permute(2, 0, 3, 1).reshape(r * height, r * height)


def _subtract_elimination(
    schur: Tensor, outputs: BandGroup, ties: BandGroup, estimate: Tensor, rows_inverse: Tensor
) -> None:
    """Subtract D_cr D_rr⁻¹ D_rc in place; frequencies of the rows' lines take the place of their pixels."""
    n1, n2 = outputs.torus
    height = outputs.rows.first
    n_half = n2 // 2 + 1
    like = estimate.real
    # D_rc: a place on the columns, read at a frequency on the rows, shape (frequency, w1·a, w2·b·h).
    down = ties.rows.phases(n1, like) / n1
    from_columns = torch.stack([torch.fft.fft(estimate * phase[:, None, None, None], dim=0)[:height] for phase in down])
    across = outputs.columns.phases(n_half, like).conj()
    right = torch.einsum("rifab,cf->fracbi", from_columns, across).reshape(n_half, rows_inverse.shape[-1], -1)
    right = torch.bmm(rows_inverse, right)
    # D_cr: a frequency on the rows, read at a place on the columns, from a half spectrum.
    down = outputs.rows.phases(n1, like).conj()
    to_columns = torch.stack([torch.fft.ifft(estimate * phase[:, None, None, None], dim=0)[:height] for phase in down])
    weights = like.new_full((n_half,), 2.0 / n2)
    weights[0] = 1.0 / n2
    if n2 % 2 == 0:
        weights[-1] = 1.0 / n2
    across = ties.columns.phases(n_half, like) * weights
    left = torch.einsum("rifab,cf->caifrb", to_columns, across).reshape(len(schur), -1)
    right = right.reshape(-1, len(schur))
    schur.addmm_(left.real.contiguous(), right.real.contiguous(), alpha=-1)
    schur.addmm_(left.imag.contiguous(), right.imag.contiguous())
