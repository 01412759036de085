"""The system on a border's unknowns, whose solution and FFTs give the solution of a convolution under its real border.

On the torus of `embedding.py` let A_j be the rows of the augmented convolution: K, and the differences √μ l_j of the
penalty. Some rows do not belong to the problem: outputs that were not observed, differences that cross an edge or
repeat others. Let q be their values at the solution z, Wᵀz = 0 the rule that ties border pixels to others or to zero,
and ν its multipliers. With the data y and a further right-hand side g of the normal equations,

    z = P(y + u) + N(g + √μ Σ l̄_j q_j − Wν),            u = the outputs in q
    0 = M(y + u) − Pᴴ(g + √μ Σ l̄_j q_j − Wν)             where outputs were not observed,
    q_j = √μ l_j z                                        where differences do not belong,
    0 = Wᵀz                                               where pixels are tied.

P, M and N are diagonal in frequency (`fourier.TorusBlocks`). The system is Hermitian and as large as the border. Its
unknowns lie in a band of rows and a band of columns (`bands.py`).

The embedding with boundary unknowns is Reeves's (Fast image restoration without boundary artifacts, IEEE Transactions
on Image Processing 14, 2005) for a single channel and an unknown border; the rest was derived for this project.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.operators.torus_filter import parts_of
from deconv_cli.regularizers import PenaltyLike, find_penalty
from deconv_cli.solvers.bands import BandGroup, BandSpectrum, Unknowns, coupling, outside
from deconv_cli.solvers.embedding import TorusEmbedding, TorusLayout
from deconv_cli.solvers.fourier import TorusBlocks
from deconv_cli.solvers.problem import TikhonovProblem

Spectra = tuple[BandSpectrum | None, BandSpectrum | None]
"""What is added to the outputs and to the inputs; `None` for nothing."""


class BorderSystem:
    """The Hermitian system of the module's formulas, applied by FFTs, in the dtype of the blocks."""

    def __init__(
        self, places: TorusEmbedding, blocks: TorusBlocks, boundary: BoundaryRule, penalty: PenaltyLike, weight: float
    ) -> None:
        self.kinds = kinds = _list_unknowns(places, blocks, boundary, penalty, weight)
        n1, n_half, n_inputs, n_outputs = blocks.estimate.shape
        parts = parts_of(n1, n_half * max(n_inputs, n_outputs), blocks.estimate.device)
        self._parts = [RowBlocks(blocks, part) for part in parts]
        like = blocks.estimate.real.new_empty(0)
        outputs = [kind for kind in kinds if kind.kind == "outputs"]
        sides = (n_outputs, outputs, 1.0), (n_inputs, kinds[len(outputs) :], -1.0)
        # Of outputs and of inputs.
        self._groups = [BandGroup(n, side, like, sign) if side else None for n, side, sign in sides]
        # Ones in the band of columns, zeros where each of its lines crosses the rows: (N1, w2·C).
        firsts = [kind.rows.first for n, side, _ in sides for kind in side for _ in range(n * kind.columns.width)]
        pixels = torch.arange(n1, device=like.device)[:, None]
        self.outside_rows = (pixels < torch.tensor(firsts, device=like.device)).to(like.dtype)

    @property
    def has_ties(self) -> bool:
        """Whether pixels are tied to others or to zero."""
        return bool(self.kinds) and self.kinds[-1].kind == "ties"

    @property
    def is_definite(self) -> bool:
        """Whether conjugate gradients can solve it: pixels are not tied, or nothing else is unknown."""
        return not self.has_ties or len(self.kinds) == 1

    def spectra(self, rows: Tensor | None, columns: Tensor | None, given: Spectra = (None, None)) -> Spectra:
        """Transform unknowns to u, which is added to the outputs, and √μ Σ l̄_j q_j − Wν, which is added to the inputs.

        The lines of `bands.BandGroup` of all kinds are one tensor for the rows and one for the columns.

        Returns:
            Their sums with `given`, which are whole.
        """
        found = list(given)
        for side, (group, *bands) in enumerate(
            zip(self._groups, self._split(rows, 0), self._split(columns, 1), strict=True)
        ):
            if group is not None:
                added = given[side]
                found[side] = BandSpectrum(None if added is None else added.whole, *group.factors(*bands))
        return found[0], found[1]

    def _split(self, lines: Tensor | None, axis: int) -> Sequence[Tensor | None]:
        if lines is None:
            return None, None
        return lines.split([0 if group is None else group.n_lines[axis] for group in self._groups], dim=-1)

    def image(self, spectra: Spectra) -> Tensor:
        """Compute the spectrum of z = P·outputs + N·inputs."""
        return torch.cat([rows.image(*rows.at(spectra)) for rows in self._parts], dim=-2)

    def defect(self, spectra: Spectra) -> Tensor:
        """Compute the spectrum of M·outputs − Pᴴ·inputs."""
        return torch.cat([rows.defect(*rows.at(spectra)) for rows in self._parts], dim=-2)

    def read(self, spectra: Spectra, axes: Sequence[int] = (0, 1)) -> list[Tensor]:
        """Evaluate the left-hand side in the band of rows, axis 0, and in that of columns, axis 1."""
        # A spectrum is made some rows at a time, and summed up while these are in the cache.
        sums: list[list[list[Tensor]]] = [[[] for _ in axes] for _ in self._groups]
        for rows in self._parts:
            given = rows.at(spectra)
            for group, compute, found in zip(self._groups, (rows.defect, rows.image), sums, strict=True):
                if group is not None:
                    side = compute(*given)
                    for axis, of_parts in zip(axes, found, strict=True):
                        of_parts.append(group.sum(side, rows.part, axis))
        groups = [(group, found) for group, found in zip(self._groups, sums, strict=True) if group is not None]
        return [
            torch.cat([group.read(found[place], axis) for group, found in groups], dim=-1)
            for place, axis in enumerate(axes)
        ]

    def couple(self, lines: Tensor, axis: int) -> Tensor:
        """Evaluate the left-hand side in the band of rows, axis 0, for unknowns in the columns; for axis 1 reversed.

        Where the bands cross it lacks the differences themselves: the unknowns in the columns are zero there.
        """
        return self.read(self.spectra(None, lines) if axis == 0 else self.spectra(lines, None), (axis,))[0]


class RowBlocks:
    """The blocks P, M and N in some rows of frequencies, so few that spectra of them stay in the processor's cache."""

    def __init__(self, blocks: TorusBlocks, part: slice) -> None:
        self.part = part
        self._estimate = FrequencyBlocks(blocks.estimate[part])
        self._outputs = FrequencyBlocks(as_real(blocks.outputs[part]))
        self._inputs = FrequencyBlocks(as_real(blocks.inputs[part]))

    def at(self, spectra: Spectra) -> tuple[Tensor | None, Tensor | None]:
        """Evaluate spectra in these rows."""
        u, v = (None if spectrum is None else spectrum.at(self.part) for spectrum in spectra)
        return u, v

    def image(self, outputs: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Compute P·outputs + N·inputs."""
        if outputs is None:
            assert inputs is not None
            return self._inputs.multiply(inputs)
        estimate = self._estimate.multiply(outputs)
        return estimate if inputs is None else self._inputs.add_product(estimate, inputs)

    def defect(self, outputs: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Compute M·outputs − Pᴴ·inputs."""
        if outputs is None:
            assert inputs is not None
            return self._estimate.multiply(inputs, adjoint=True).neg_()
        defect = self._outputs.multiply(outputs)
        return defect if inputs is None else self._estimate.add_product(defect, inputs, adjoint=True, sign=-1.0)


def band_matrix(kinds: Sequence[Unknowns], blocks: TorusBlocks, axis: int) -> Tensor:
    """Write out the system on the closed band of rows, axis 0, or of columns, axis 1, for all kinds of unknowns.

    At each frequency along the band it is one small matrix, whose entries are sums of P, M and N over the frequencies
    of the other axis: shape `(frequencies of the line, r, r)`, kinds in their order.
    """
    lower: list[list[Tensor]] = []
    for first in kinds:
        row = []
        for second in kinds[: len(lower) + 1]:
            down, across = first.down * second.down.conj(), first.across * second.across.conj()
            values = blocks.estimate if second.kind == "outputs" else blocks.inputs
            values = blocks.outputs if first.kind == "outputs" else values
            to, source = first.band(axis), second.band(axis)
            entry = coupling(to, source, values, down, across, axis)
            row.append(entry if first.kind == "outputs" else -entry)
        if first.kind == "differences":
            row[-1].diagonal(dim1=-2, dim2=-1).add_(1.0)
        lower.append(row)
    n = len(lower)
    full = [[lower[i][j] if j <= i else lower[j][i].mH for j in range(n)] for i in range(n)]
    return torch.cat([torch.cat(row, dim=-1) for row in full], dim=-2)


def count_indefinite_unknowns(problem: TikhonovProblem) -> int:
    """Count the unknowns in the band of columns of a system that is not definite; 0 for one that is."""
    boundary, penalty = problem.operator.boundary, problem.penalty
    layout = TorusLayout.plan(problem.operator.geometry, boundary)
    if layout.image_size == layout.torus:
        return 0
    sizes = [(problem.n_outputs, layout.output_size)] if layout.output_size != layout.torus else []
    if problem.lam > 0 and not _is_free_outside(boundary, penalty):
        observed = [term.observed(layout.image_size) for term in find_penalty(penalty).terms(len(layout.torus))]
        sizes += [(problem.n_inputs, size) for size in observed if size != layout.torus]
    if not sizes:
        return 0
    sizes.append((problem.n_inputs, layout.image_size))
    return sum(n_channels * layout.torus[0] * (layout.torus[1] - width) for n_channels, (_, width) in sizes)


def _is_free_outside(boundary: BoundaryRule, penalty: PenaltyLike) -> bool:
    """Return whether pixels outside cost nothing: they are zero, and no differences are penalized."""
    return boundary.is_zero and not find_penalty(penalty).takes_differences


def as_real(blocks: Tensor) -> Tensor:
    """Drop the imaginary part of Hermitian blocks of one entry, where it is zero: half the memory."""
    return blocks.real if blocks.shape[-1] == 1 else blocks


def _list_unknowns(
    places: TorusEmbedding, blocks: TorusBlocks, boundary: BoundaryRule, penalty: PenaltyLike, weight: float
) -> list[Unknowns]:
    """List missing outputs, differences that the torus has and the image has not, and tied pixels."""
    torus = places.torus
    ones = blocks.estimate.new_ones(torus[0], 1), blocks.estimate.new_ones(torus[1] // 2 + 1)
    found = []
    if places.output_size != torus:
        found.append(outside("outputs", places.output_size, torus, ones))
    if weight > 0 and not _is_free_outside(boundary, penalty):
        like = blocks.estimate.real
        for term in find_penalty(penalty).terms(len(torus)):
            observed = term.observed(places.image_size)
            if observed != torus:
                down, across = term.symbol(torus, like.dtype, like.device)
                found.append(outside("differences", observed, torus, (weight**0.5 * down, across)))
    if places.image_size != torus:
        found.append(outside("ties", places.image_size, torus, (-ones[0], ones[1]), places.line_sources))
    return found
