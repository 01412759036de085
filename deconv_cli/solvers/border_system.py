"""The system on a border's unknowns: what has to be known besides FFTs to solve a convolution under its real border.

On the torus of `embedding.py` let A_j stand for the rows of the augmented convolution, K and the differences √μ l_j
of the penalty. Of each, some rows belong to the problem and some do not: outputs that were not observed, differences
that cross an edge or repeat others. Let q be the values of the latter at the solution z, Wᵀz = 0 the rule that ties
border pixels to others or to zero, and ν its multipliers. Then, with the data y and any further right-hand side g of
the normal equations,

    z = P(y + u) + N(g + √μ Σ l̄_j q_j − Wν),            u = the part of q that holds outputs,
    0 = M(y + u) − Pᴴ(g + √μ Σ l̄_j q_j − Wν)             where outputs were not observed,
    q_j = √μ l_j z                                        where differences do not belong,
    0 = Wᵀz                                               where pixels are tied.

P, M and N are diagonal in frequency (`fourier.TorusBlocks`), and the system is Hermitian and as large as the border.
Its unknowns lie in a band of rows and a band of columns (`bands.py`).

The embedding with boundary unknowns is Reeves's (Fast image restoration without boundary artifacts, IEEE Transactions
on Image Processing 14, 2005) for a single channel and an unknown border; the rest was derived for this project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deconv_cli.operators.boundaries.rule import BoundaryRule
from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.regularizers import PenaltyLike, find_penalty
from deconv_cli.solvers.bands import Band, BandGroup
from deconv_cli.solvers.embedding import TorusEmbedding, TorusLayout
from deconv_cli.solvers.fourier import TorusBlocks
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.vocabulary import Size

Part = list[Tensor]
"""The rows, or the columns, of every group's unknowns, in the order of `BorderSystem.groups`."""


@dataclass(frozen=True)
class AbsentDifferences:
    """Differences of the torus that are none of the image's.

    Attributes:
        group: where they are.
        down: √μ times what the rows contribute to the symbol, shape `(N1, 1)`.
        across: what the columns contribute, shape `(N2 // 2 + 1,)`.
    """

    group: BandGroup
    down: Tensor
    across: Tensor

    @property
    def symbol(self) -> Tensor:
        """√μ l(θ), shape `(N1, N2 // 2 + 1)`."""
        return self.down * self.across


class BorderSystem:
    """The Hermitian system of the module's formulas, applied by FFTs.

    Args:
        places: the torus.
        blocks: P, M and N in the complex dtype of the arithmetic.
        boundary: what lies outside the image.
        penalty: which L.
        weight: μ.
    """

    def __init__(
        self, places: TorusEmbedding, blocks: TorusBlocks, boundary: BoundaryRule, penalty: PenaltyLike, weight: float
    ) -> None:
        n_inputs, n_outputs = blocks.estimate.shape[-2:]
        like = blocks.estimate.real.new_empty(0)
        self.torus = places.torus
        self.outputs: BandGroup | None = None
        if places.output_size != places.torus:
            self.outputs = _outside(n_outputs, places.output_size, places.torus, like)
        self.differences = _absent_differences(places, n_inputs, boundary, penalty, weight, like)
        self.ties: BandGroup | None = None
        if places.image_size != places.torus:
            self.ties = BandGroup(
                n_inputs,
                Band(places.torus[0], places.image_size[0], places.line_sources[0]),
                Band(places.torus[1], places.image_size[1], places.line_sources[1]),
                like,
            )
        difference_groups = [difference.group for difference in self.differences]
        self.groups = [g for g in (self.outputs, *difference_groups, self.ties) if g is not None]
        self._has_inputs = self.ties is not None or bool(self.differences)
        self._estimate = FrequencyBlocks(blocks.estimate)
        self._inputs = FrequencyBlocks(_as_real(blocks.inputs))
        self._outputs = FrequencyBlocks(_as_real(blocks.outputs))

    @property
    def is_definite(self) -> bool:
        """Whether conjugate gradients can solve it; where pixels are tied beside other unknowns they cannot."""
        return self.ties is None or len(self.groups) == 1

    def spectra(self, rows: Part | None, columns: Part | None) -> tuple[Tensor | None, Tensor | None]:
        """Transform unknowns to what they add: u to the outputs, and √μ Σ l̄_j q_j − Wν to the inputs.

        Returns:
            Spectra of shapes `(*batch, C_out, N1, N2 // 2 + 1)` and `(*batch, C_in, N1, N2 // 2 + 1)`.
        """
        nothing: list[Tensor | None] = [None] * len(self.groups)
        pairs = list(zip(rows or nothing, columns or nothing, strict=True))
        to_outputs: Tensor | None = None
        to_inputs: Tensor | None = None
        if self.outputs is not None:
            to_outputs = self.outputs.spectrum(*pairs.pop(0))
        for difference in self.differences:
            part = difference.group.spectrum(*pairs.pop(0)) * difference.symbol.conj()
            to_inputs = part if to_inputs is None else to_inputs + part
        if self.ties is not None:
            part = self.ties.spectrum(*pairs.pop(0))
            to_inputs = -part if to_inputs is None else to_inputs - part
        return to_outputs, to_inputs

    def image(self, outputs: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Compute the spectrum of z = P·outputs + N·inputs."""
        if outputs is None:
            assert inputs is not None
            return self._inputs.multiply(inputs)
        estimate = self._estimate.multiply(outputs)
        return estimate if inputs is None else estimate + self._inputs.multiply(inputs)

    def defect(self, outputs: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Compute the spectrum of M·outputs − Pᴴ·inputs."""
        if outputs is None:
            assert inputs is not None
            return -self._estimate.multiply(inputs, adjoint=True)
        defect = self._outputs.multiply(outputs)
        return defect if inputs is None else defect - self._estimate.multiply(inputs, adjoint=True)

    def read(self, outputs: Tensor | None, inputs: Tensor | None) -> tuple[Part, Part]:
        """Evaluate the system's left-hand side in both bands, for spectra that no unknowns stand behind."""
        pairs = self._read(outputs, inputs, BandGroup.read, None)
        return [rows for rows, _ in pairs], [columns for _, columns in pairs]

    def read_rows(self, outputs: Tensor | None, inputs: Tensor | None) -> Part:
        """Evaluate the system's left-hand side in the band of rows, for spectra of unknowns outside that band.

        Args:
            outputs: spectrum of what is added to the outputs.
            inputs: spectrum of what is added to the inputs.
        """
        return self._read(outputs, inputs, BandGroup.read_rows, None)

    def read_columns(self, outputs: Tensor | None, inputs: Tensor | None, own: Part | None = None) -> Part:
        """Evaluate the system's left-hand side in the rest of the band of columns.

        Args:
            outputs: spectrum of what is added to the outputs.
            inputs: spectrum of what is added to the inputs.
            own: the unknowns themselves in this band, where they are not zero.
        """
        return self._read(outputs, inputs, BandGroup.read_columns, own)

    def _read(
        self,
        outputs: Tensor | None,
        inputs: Tensor | None,
        read: Callable[[BandGroup, Tensor], Any],
        own: Part | None,
    ) -> list[Any]:
        result: list[Any] = []
        if self.outputs is not None:
            result.append(read(self.outputs, self.defect(outputs, inputs)))
        if self._has_inputs:
            image = self.image(outputs, inputs)
            for difference in self.differences:
                value = read(difference.group, -difference.symbol * image)
                result.append(value if own is None else value + own[len(result)])
            if self.ties is not None:
                result.append(read(self.ties, image))
        return result


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
    return sum(n_channels * height * (layout.torus[1] - width) for n_channels, (height, width) in sizes)


def _is_free_outside(boundary: BoundaryRule, penalty: PenaltyLike) -> bool:
    """Return whether what lies outside costs nothing: zeros, of which no differences are taken."""
    return boundary.is_zero and not find_penalty(penalty).takes_differences


def _as_real(blocks: Tensor) -> Tensor:
    """Drop the imaginary part of Hermitian blocks of one entry, where it is zero: half the memory."""
    return blocks.real if blocks.shape[-1] == 1 else blocks


def _outside(n_channels: int, size: Size, torus: Size, like: Tensor) -> BandGroup:
    return BandGroup(n_channels, Band(torus[0], size[0]), Band(torus[1], size[1]), like)


def _absent_differences(
    places: TorusEmbedding, n_inputs: int, boundary: BoundaryRule, penalty: PenaltyLike, weight: float, like: Tensor
) -> list[AbsentDifferences]:
    """List the differences that the torus has and the image has not."""
    if weight == 0 or _is_free_outside(boundary, penalty):
        return []
    absent = []
    for term in find_penalty(penalty).terms(len(places.torus)):
        observed = term.observed(places.image_size)
        if observed != places.torus:
            down, across = term.symbol(places.torus, like.dtype, like.device)
            group = _outside(n_inputs, observed, places.torus, like)
            absent.append(AbsentDifferences(group, weight**0.5 * down, across))
    return absent
