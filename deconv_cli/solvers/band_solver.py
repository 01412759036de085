"""A band of the border's system, solved exactly by an FFT along it.

A band is a closed line on the torus, and nothing changes along it: at each frequency of the line there is one small
matrix between the unknowns across it. Its entries are sums of P, M and N over the frequencies of the other axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import multiply_lines, multiply_lines_adjoint
from deconv_cli.operators.spectrum import single_threaded
from deconv_cli.solvers.bands import Band, BandGroup, unit_phases
from deconv_cli.solvers.border_system import BorderSystem, Part
from deconv_cli.solvers.fourier import TorusBlocks

# Above this many entries a block is too large to be copied for one large product; many small ones are then as fast.
MAX_ENTRIES_TO_COPY = 64


class BandSolver:
    """The inverse of the system on a closed band, for all groups of unknowns at once.

    Args:
        system: the whole system.
        blocks: P, M and N.
        axis: 0 for the band of rows, 1 for the band of columns.
    """

    def __init__(self, system: BorderSystem, blocks: TorusBlocks, axis: int) -> None:
        self._groups = system.groups
        self._axis = axis
        self._inverse = invert_lines(_band_matrix(system, blocks, axis))

    def solve(self, part: Part) -> Part:
        """Solve for right-hand sides on whole lines: `(*batch, C, w, N)`, or `(*batch, C, N, w)` for columns."""
        across = -2 if self._axis == 0 else -1
        lines = torch.cat([_as_lines(values, across) for values in part], dim=-2)
        lines = solve_lines(self._inverse, lines)
        sizes = [group.n_channels * self._band(group).width for group in self._groups]
        result = []
        for values, group in zip(lines.split(sizes, dim=-2), self._groups, strict=True):
            shaped = values.unflatten(-2, (self._band(group).width, group.n_channels))
            result.append(shaped.transpose(-3, -2) if self._axis == 0 else shaped.movedim(-3, -1))
        return result

    def _band(self, group: BandGroup) -> Band:
        return group.rows if self._axis == 0 else group.columns


def solve_lines(inverse: Tensor, lines: Tensor, *, transposed: bool = False) -> Tensor:
    """Multiply lines `(*batch, r, N)` by a matrix `(N // 2 + 1, r, r)` at each frequency along them."""
    if lines.numel() == 0:
        return lines
    multiply = multiply_lines_adjoint if transposed else multiply_lines
    return torch.fft.irfft(multiply(inverse, torch.fft.rfft(lines, dim=-1)), n=lines.shape[-1], dim=-1)


def _as_lines(values: Tensor, across: int) -> Tensor:
    """Arrange `(*batch, C, …)` as `(*batch, w·C, N)`: the lines of the band, all channels of a line together."""
    lines = values.transpose(-3, -2) if across == -2 else values.movedim(-1, -3)
    return lines.flatten(-3, -2)


def _band_matrix(system: BorderSystem, blocks: TorusBlocks, axis: int) -> Tensor:
    """Write the system of a band out, shape `(frequencies of the line, r, r)`, groups in their order."""

    def entries(rows: BandGroup, columns: BandGroup, values: Tensor, down: Tensor, across: Tensor) -> Tensor:
        return coupling(_across(rows, axis), _across(columns, axis), values, down, across, axis)

    one_down = blocks.estimate.new_ones(system.torus[0], 1)
    one_across = blocks.estimate.new_ones(system.torus[1] // 2 + 1)
    # The lower triangle, row by row; M, P and N as they stand in the module's formulas of `border_system.py`.
    lower: list[list[Tensor]] = []
    if system.outputs is not None:
        lower.append([entries(system.outputs, system.outputs, blocks.outputs, one_down, one_across)])
    for i, first in enumerate(system.differences):
        row = []
        if system.outputs is not None:
            row.append(-entries(first.group, system.outputs, blocks.estimate, first.down, first.across))
        for second in system.differences[: i + 1]:
            down, across = first.down * second.down.conj(), first.across * second.across.conj()
            row.append(-entries(first.group, second.group, blocks.inputs, down, across))
        row[-1].diagonal(dim1=-2, dim2=-1).add_(1.0)
        lower.append(row)
    if system.ties is not None:
        row = []
        if system.outputs is not None:
            row.append(entries(system.ties, system.outputs, blocks.estimate, one_down, one_across))
        for second in system.differences:
            row.append(entries(system.ties, second.group, blocks.inputs, second.down.conj(), second.across.conj()))
        row.append(-entries(system.ties, system.ties, blocks.inputs, one_down, one_across))
        lower.append(row)
    n = len(lower)
    full = [[lower[i][j] if j <= i else lower[j][i].mH for j in range(n)] for i in range(n)]
    return torch.cat([torch.cat(row, dim=-1) for row in full], dim=-2)


def _across(group: BandGroup, axis: int) -> Band:
    return group.rows if axis == 0 else group.columns


def coupling(rows: Band, columns: Band, values: Tensor, down: Tensor, across: Tensor, axis: int) -> Tensor:
    """Write out what a block-circulant operator does from one band to another, at each frequency along the bands.

    Args:
        rows: where it is read, w lines.
        columns: where it is applied, w' lines.
        values: the operator's blocks, shape `(N1, N2 // 2 + 1, a, b)`.
        down: a factor for every row of frequencies, shape `(N1, 1)`.
        across: a factor for every column of frequencies, shape `(N2 // 2 + 1,)`.
        axis: the axis across the bands.

    Returns:
        Shape `(frequencies, w·a, w'·b)`.
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
    """Transform one axis of a symbol back, at some lags only: shape `(frequencies of the other axis, L, a, b)`."""
    n1, n_half, a, b = values.shape
    like = values.real
    if axis == 0:
        phases = unit_phases(lags, n1, length, like) * (down[:, 0] / n1)
        sums = (phases @ values.reshape(n1, -1)).reshape(len(lags), n_half, a, b)
        return sums.transpose(0, 1) * across[:, None, None, None]
    # A half spectrum stands for the whole: its inner columns count twice, once as they are and once mirrored.
    weights = torch.ones_like(across)
    weights[0] = 0.5
    if length % 2 == 0:
        weights[-1] = 0.5
    phases = unit_phases(lags, n_half, length, like) * (across * weights / length)
    if a * b <= MAX_ENTRIES_TO_COPY:
        planes = values.permute(0, 2, 3, 1).reshape(-1, n_half)
        sums = (planes @ phases.T).reshape(n1, a, b, len(lags)).permute(0, 3, 1, 2)
    else:
        sums = torch.matmul(phases, values.reshape(n1, n_half, a * b)).reshape(n1, len(lags), a, b)
    sums = sums * down[:, :, None, None]
    n_line = n1 // 2 + 1
    mirrored = sums.roll(-1, 0).flip(0)  # entry k of this is entry −k of that
    return sums[:n_line] + mirrored[:n_line].conj()


def invert_lines(matrix: Tensor) -> Tensor:
    """Invert every block; where that fails, leave the rest to the iteration."""
    if matrix.numel() == 0:
        return matrix
    with single_threaded(matrix.device):
        inverse, info = torch.linalg.inv_ex(matrix)
    doubtful = (info != 0) | ~torch.isfinite(torch.view_as_real(inverse)).all(dim=-1).all(dim=-1).all(dim=-1)
    if synchronize.holds_anywhere(doubtful):
        places = synchronize.places(doubtful)
        inverse[places] = torch.linalg.pinv(matrix[places], hermitian=True)
    return inverse
