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
from deconv_cli.operators.axes import half_weights
from deconv_cli.operators.circulant import FrequencyBlocks, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.bands import BandGroup, Unknowns, from_lines, invert_lines, multiply_lines, outside, to_lines
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
        estimate = full_rank_inverse(torus_symbol(taps, places.torus, places.origin))
        ones = estimate.new_ones(places.torus[0], 1), estimate.new_ones(places.torus[1] // 2 + 1)
        outputs = outside("outputs", places.output_size, places.torus, ones)
        ties = outside("ties", places.image_size, places.torus, ones, places.line_sources)
        self._outputs, self._ties = (BandGroup(len(taps), [kind], taps) for kind in (outputs, ties))
        self._estimate = FrequencyBlocks(estimate)
        self._rows, schur = _eliminate_rows(outputs, ties, estimate)
        # LAPACK's matrices lie column by column: the transpose is factored.
        self._factors, self._pivots, info = torch.linalg.lu_factor_ex(schur.mT)
        if synchronize.holds_anywhere(info):
            raise SingularSystemError("the system on the border is singular")

    def estimate(self, y: Tensor) -> Tensor:
        """Apply the inverse to data `(*batch, C, H, W)`."""
        return self._apply(y, self._places.image_size, transposed=False)

    def estimate_transposed(self, g: Tensor) -> Tensor:
        """Apply the transpose of `estimate` to `g` of shape `(*batch, C, H, W)`."""
        return self._apply(g, self._places.output_size, transposed=True)

    def _apply(self, field: Tensor, size: Size, *, transposed: bool) -> Tensor:
        """Solve for the unknowns that make the ties vanish; the transpose exchanges unknowns and ties."""
        unknowns, ties = (self._ties, self._outputs) if transposed else (self._outputs, self._ties)
        matrices = self._rows.mH if transposed else self._rows

        def invert(rows: Tensor | None, columns: Tensor | None) -> Tensor:
            left, right = unknowns.factors(rows, columns)
            return self._estimate.multiply(left @ right, adjoint=transposed)

        def read(spectrum: Tensor, axis: int) -> Tensor:
            return ties.read([ties.sum(spectrum, slice(None), axis)], axis)

        def solve(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            """Solve D u = r, for r and u in lines; where the bands cross, u is in the rows."""
            first = multiply_lines(matrices, rows)
            columns = columns - read(invert(first, None), 1)
            columns = self._solve_columns(columns, transposed=transposed)
            return first - multiply_lines(matrices, read(invert(None, columns), 0)), columns

        torus = self._places.torus
        flat = field.reshape(math.prod(field.shape[:-3]), *field.shape[-3:]).double()
        spectrum = self._estimate.multiply(torch.fft.rfft2(flat, s=torus), adjoint=transposed)
        left = read(spectrum, 0), read(spectrum, 1)
        goal = MAX_TIE_ULPS * torch.finfo(field.dtype).eps * _norm(left)
        for _ in range(MAX_CORRECTIONS):
            u = solve(-left[0], -left[1])
            spectrum = invert(*u).add_(spectrum)
            left = read(spectrum, 0), read(spectrum, 1)
            if synchronize.holds_everywhere(_norm(left) <= goal):
                break
        restored = torch.fft.irfft2(spectrum, s=torus)[..., : size[0], : size[1]]
        return restored.to(field.dtype).reshape(field.shape)

    def _solve_columns(self, columns: Tensor, *, transposed: bool) -> Tensor:
        if columns.numel() == 0:
            return columns
        length, height = self._places.torus[0], self._places.output_size[0]
        values = from_lines(columns, length)[:, :height].mT
        solved = torch.linalg.lu_solve(self._factors, self._pivots, values.flatten(1).T, adjoint=not transposed).T
        return to_lines(functional.pad(solved.reshape(values.shape).mT, (0, 0, 0, length - height)))


def _norm(bands: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the norms of lines on both bands, shape `(B,)`."""
    return torch.hypot(*(torch.linalg.vector_norm(band, dim=(-2, -1)) for band in bands))


def _toeplitz(lags: Tensor, height: int) -> Tensor:
    """Write out an operator that does not change along a line, on the first `height` places of that line.

    `lags` are its real matrices from any place to those before and behind it, shape `(length, w, w', a, b)`. The result
    has the shape `(w·a·height, w'·b·height)`.
    """
    falling = torch.arange(height - 1, -height, -1, device=lags.device) % len(lags)
    lines = lags[falling].permute(1, 3, 2, 4, 0).contiguous()
    full = lines.new_empty(*lines.shape[:2], height, *lines.shape[2:4], height)
    for place in range(height):
        full[:, :, place] = lines[..., height - 1 - place : 2 * height - 1 - place]
    return full.flatten(3).flatten(0, 2)


def _eliminate_rows(outputs: Unknowns, ties: Unknowns, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Compute D_rr⁻¹ at each frequency along the rows, shape `(n2 // 2 + 1, w1·C, w1·C)`, and S.

    S has the shape `(w2·C·h, w2·C·h)`: line by line, channel by channel, place by place.
    """
    n1, n2 = outputs.rows.length, outputs.columns.length
    height, n_half, like = outputs.rows.first, n2 // 2 + 1, estimate.real
    # P from pixel to pixel of a column, at each frequency along the rows.
    lags = torch.fft.ifft(estimate, dim=0)
    inside, beyond = torch.arange(n1, device=estimate.device).split([height, n1 - height])

    def to_ties(source: Tensor) -> Tensor:
        (to, _), *copied = ties.rows.terms(estimate.device)
        found = lags[(to[:, None] - source) % n1]
        for position, sign in copied:
            found.add_(lags[(position[:, None] - source) % n1], alpha=sign)
        return found

    rows = invert_lines(to_ties(beyond).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2))
    # The columns at the same frequencies; the inner ones of a half spectrum count twice.
    reads = ties.columns.phases(n_half, like) * (half_weights(n2, like) / n2)
    writes = outputs.columns.phases(n_half, like).conj()
    along = ((reads[:, None] * writes).flatten(0, 1) @ lags.flatten(2)).real
    schur = _toeplitz(along.unflatten(2, lags.shape[2:]).unflatten(1, (len(reads), len(writes))), height)
    n_rows, n_columns = rows.shape[-1], len(schur)
    right = torch.einsum("rifab,cf->fracbi", to_ties(inside), writes).reshape(n_half, n_rows, n_columns)
    right = torch.bmm(rows, right).flatten(0, 1)
    left = torch.einsum("irfab,cf->caifrb", lags[(inside[:, None] - beyond) % n1], reads)
    left = left.reshape(n_columns, n_half * n_rows)
    schur.addmm_(left.real.contiguous(), right.real.contiguous(), alpha=-1)
    schur.addmm_(left.imag.contiguous(), right.imag.contiguous())
    return rows, schur
