"""The dense system on the unknowns of a torus's border, factored once.

Let C be the convolution on the torus of `embedding.py`, S the observed and T the unobserved outputs, and Wᵀz = 0 the
rule that ties the border's pixels. With u = the values of the unobserved outputs and ν = the multipliers of the rule,
the solution is

    z = P(Sᵀy + Tᵀu) − N W ν,     [ T M Tᵀ     T Pᴴ W  ] [u]   [ −T M Sᵀ y ]
                                  [ Wᵀ P Tᵀ   −Wᵀ N W ] [ν] = [ −Wᵀ P Sᵀ y ]

with P, M and N of `fourier.TorusBlocks`, diagonal in frequency. For λ = 0 and as many outputs as pixels P = K⁻¹, and
the second row alone decides: WᵀPTᵀ u = −WᵀPSᵀy.

The entries of the system are gathered from inverse FFTs of P, M and N. For λ = 0 a kernel of zero mean has no inverse
on a plain torus, but one on a torus around which fields change their sign (`twisted_torus.py`). Derived for this
project; Reeves (Fast image restoration without boundary artifacts, IEEE Transactions on Image Processing 14, 2005) has
the case of a single channel with an unknown border.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop
from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.operators.linear_operator import SymmetricOperator
from deconv_cli.operators.twisted_torus import Twists
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.embedding import TorusEmbedding
from deconv_cli.solvers.fourier import SingularSystemError, block_norms, full_rank_inverse, torus_blocks
from deconv_cli.solvers.inverse import Factors
from deconv_cli.solvers.problem import TikhonovProblem

# A symbol of a larger condition is taken for singular, if another torus has a better one.
MAX_CONDITION = 1e6


def choose_twists(problem: TikhonovProblem) -> Twists:
    """Find the torus on which the symbol is far from singular; a plain one if possible.

    A plain one is possible for λ > 0. It is necessary if pixels repeat others: then constants are images like any
    other, and a kernel that annihilates them has no inverse.
    """
    operator = problem.operator
    plain: Twists = (False,) * (problem.n_dims - 1)
    if problem.weight > 0 or operator.boundary.copies_pixels:
        return plain
    taps = operator.kernel.double()
    conditions: dict[Twists, float] = {}
    # The plain one first, then the first axis alone, and so on.
    for reversed_twists in itertools.product((False, True), repeat=len(plain)):
        twists = reversed_twists[::-1]
        places = TorusEmbedding.of(operator.geometry, operator.boundary, taps.device, twists)
        symbol = places.fourier.symbol(taps, places.origin)
        try:
            inverse = full_rank_inverse(symbol)
        except SingularSystemError:
            continue
        conditions[twists] = synchronize.as_number(block_norms(symbol).max() * block_norms(inverse).max())
        if conditions[twists] <= MAX_CONDITION:
            return twists
    return min(conditions, key=conditions.__getitem__, default=plain)


def restore_twists(factors: Factors, n_axes: int) -> Twists:
    """Read which axes are twisted."""
    return tuple(bool(twist) for twist in synchronize.as_numbers(factors.take("twists", (n_axes,), torch.uint8)))


class BoundarySystem(SymmetricOperator):
    """The factored system; as an operator, the inverse of AᴴA + μLᴴL with L's norm taken over the torus.

    Args:
        problem: the problem.
        twists: axes around which the torus is twisted.
        factors: the factors of an equal system, which are then not computed.
    """

    def __init__(self, problem: TikhonovProblem, twists: Twists, factors: Factors | None = None) -> None:
        operator = problem.operator
        self.input_shape = operator.input_shape
        self.output_shape = operator.input_shape
        taps = operator.kernel.double()
        self._n_outputs, self._n_inputs = taps.shape[:2]
        self._places = places = TorusEmbedding.of(operator.geometry, operator.boundary, taps.device, twists)
        self._fourier = places.fourier
        self._solver: _BorderSolver
        self._inputs: FrequencyBlocks | None = None
        self._outputs: FrequencyBlocks | None = None
        is_square = problem.weight == 0 and operator.input_shape == operator.output_shape
        if factors is not None:
            self._restore(factors, is_square=is_square)
            return
        symbol = self._fourier.symbol(taps, places.origin)
        if is_square:
            estimate = full_rank_inverse(symbol)
            self._solver = _SquareSolver.of(places, estimate)
        else:
            # A twisted torus is one of λ = 0, where the penalty is of no consequence.
            penalty = find_penalty(problem.penalty).symbol(places.torus, symbol.real.dtype, symbol.device)
            blocks = torus_blocks(symbol, problem.weight, penalty, covers_inputs=places.covers_inputs(symbol))
            estimate = blocks.estimate
            self._solver = _SaddleSolver.of(places, blocks.estimate, blocks.outputs, blocks.inputs)
            self._inputs, self._outputs = FrequencyBlocks(blocks.inputs), FrequencyBlocks(blocks.outputs)
        self._estimate = FrequencyBlocks(estimate)

    def factors(self) -> dict[str, Tensor]:
        """Return P, M and N as far as they are used, and the factors of the system."""
        blocks = {"estimate": self._estimate, "outputs": self._outputs, "inputs": self._inputs}
        matrices = {name: b.matrices for name, b in blocks.items() if b is not None}
        twists = torch.tensor(self._places.twists, dtype=torch.uint8, device=self._places.device)
        return matrices | self._solver.factors() | {"twists": twists}

    def _restore(self, factors: Factors, *, is_square: bool) -> None:
        places, n_outputs, n_inputs = self._places, self._n_outputs, self._n_inputs

        def take(name: str, n_to: int, n_from: int) -> FrequencyBlocks:
            shape = (*places.fourier.plane, n_to, n_from)
            return FrequencyBlocks(factors.take(name, shape, torch.complex128))

        n_unobserved, n_tied = n_outputs * len(places.unobserved), n_inputs * len(places.tied)
        self._estimate = take("estimate", n_inputs, n_outputs)
        if is_square:
            self._solver = _SquareSolver.restore(factors, n_tied)
            return
        self._outputs, self._inputs = take("outputs", n_outputs, n_outputs), take("inputs", n_inputs, n_inputs)
        self._solver = _SaddleSolver.restore(factors, n_unobserved, n_tied)

    def estimate(self, y: Tensor) -> Tensor:
        """Apply the inverse to data `(*batch, C_out, *output_size)`, in double precision inside."""
        data = self._fourier.transform(y.double())
        field = self._to_places(self._estimate.multiply(data))
        right_tied = -self._places.take_tied(field)
        if self._outputs is None:
            u, nu = self._solver.solve(right_tied.new_zeros(*right_tied.shape[:-1], 0), right_tied)
        else:
            right = -self._places.take_unobserved(self._to_places(self._outputs.multiply(data)))
            u, nu = self._solver.solve(right, right_tied)
        return self._places.crop_image(field + self._from_border(u, nu)).to(y.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Solve the normal equations for a right-hand side `x` of shape `(*batch, C_in, *size)`."""
        assert self._inputs is not None
        spectrum = self._fourier.transform(x.double())
        field = self._to_places(self._inputs.multiply(spectrum))
        right = self._places.take_unobserved(self._to_places(self._estimate.multiply(spectrum, adjoint=True)))
        u, nu = self._solver.solve(right, -self._places.take_tied(field))
        return self._places.crop_image(field + self._from_border(u, nu)).to(x.dtype)

    def estimate_transposed(self, g: Tensor) -> Tensor:
        """Apply the transpose of `estimate` to `g` of shape `(*batch, C_in, *size)`."""
        spectrum = self._fourier.transform(g.double())
        right = self._places.take_unobserved(self._to_places(self._estimate.multiply(spectrum, adjoint=True)))
        if self._inputs is None:
            right_tied = right.new_zeros(*right.shape[:-1], 0)
        else:
            right_tied = -self._places.take_tied(self._to_places(self._inputs.multiply(spectrum)))
        u, nu = self._solver.solve_transposed(right, right_tied)
        if nu.shape[-1]:
            spectrum = spectrum - self._fourier.transform(self._places.put_tied(nu, self._n_inputs))
        outputs = self._estimate.multiply(spectrum, adjoint=True)
        if self._outputs is not None and u.shape[-1]:
            outputs = outputs - self._outputs.multiply(
                self._fourier.transform(self._places.put_unobserved(u, self._n_outputs))
            )
        size = self._places.output_size
        return crop(self._to_places(outputs), (0,) * len(size), size).to(g.dtype)

    def _from_border(self, u: Tensor, nu: Tensor) -> Tensor:
        """Compute P Tᵀu − N W ν."""
        outputs = self._fourier.transform(self._places.put_unobserved(u, self._n_outputs))
        spectrum = self._estimate.multiply(outputs)
        if self._inputs is not None and nu.shape[-1]:
            inputs = self._fourier.transform(self._places.put_tied(nu, self._n_inputs))
            spectrum = spectrum - self._inputs.multiply(inputs)
        return self._to_places(spectrum)

    def _to_places(self, spectrum: Tensor) -> Tensor:
        return self._fourier.restore(spectrum)


@dataclass(frozen=True, eq=False)
class _SquareSolver:
    """λ = 0, as many outputs as pixels: find the outputs for which the circular inverse obeys the border's rule."""

    _factors: Tensor
    _pivots: Tensor

    @classmethod
    def of(cls, places: TorusEmbedding, estimate: Tensor) -> _SquareSolver:
        system = places.gather_tied_rows(places.fourier.kernel(estimate), places.unobserved)
        if system.shape[0] != system.shape[1]:
            raise SingularSystemError("the border has another number of rules than of unobserved outputs")
        factors, pivots, info = torch.linalg.lu_factor_ex(system)
        if synchronize.holds_anywhere(info):
            raise SingularSystemError("the system on the border is singular")
        return cls(factors, pivots)

    @classmethod
    def restore(cls, factors: Factors, n_tied: int) -> _SquareSolver:
        return cls(factors.take("factors", (n_tied, n_tied), torch.float64), factors.take_pivots(n_tied))

    def factors(self) -> dict[str, Tensor]:
        return {"factors": self._factors, "pivots": self._pivots}

    def solve(self, unobserved: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.linalg.lu_solve(self._factors, self._pivots, _as_columns(tied)).T.reshape(tied.shape)
        return u, unobserved

    def solve_transposed(self, unobserved: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        columns = _as_columns(unobserved)
        nu = torch.linalg.lu_solve(self._factors, self._pivots, columns, adjoint=True).T.reshape(unobserved.shape)
        return tied, nu


@dataclass(frozen=True, eq=False)
class _SaddleSolver:
    """The symmetric quasi-definite system, by Cholesky factors of its two definite parts."""

    _tied_factor: Tensor
    _coupling: Tensor
    _schur_factor: Tensor

    @classmethod
    def of(cls, places: TorusEmbedding, estimate: Tensor, outputs: Tensor, inputs: Tensor) -> _SaddleSolver:
        tied_factor = _cholesky(places.gather_tied(places.fourier.kernel(inputs)))
        # V = L⁻¹(Wᵀ P Tᵀ), with WᵀNW = L Lᵀ
        coupling = places.gather_tied_rows(places.fourier.kernel(estimate), places.unobserved)
        coupling = torch.linalg.solve_triangular(tied_factor, coupling, upper=False)
        schur = places.gather(places.fourier.kernel(outputs), places.unobserved, places.unobserved)
        schur.addmm_(coupling.T, coupling)
        return cls(tied_factor, coupling, _cholesky(schur))

    @classmethod
    def restore(cls, factors: Factors, n_unobserved: int, n_tied: int) -> _SaddleSolver:
        shapes = {
            "tied_factor": (n_tied, n_tied),
            "coupling": (n_tied, n_unobserved),
            "schur_factor": (n_unobserved, n_unobserved),
        }
        return cls(*(factors.take(name, shape, torch.float64) for name, shape in shapes.items()))

    def factors(self) -> dict[str, Tensor]:
        return {"tied_factor": self._tied_factor, "coupling": self._coupling, "schur_factor": self._schur_factor}

    def solve(self, unobserved: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        right_u = _as_columns(unobserved)
        right_nu = torch.linalg.solve_triangular(self._tied_factor, _as_columns(tied), upper=False)
        u = torch.cholesky_solve(right_u + self._coupling.T @ right_nu, self._schur_factor)
        nu = torch.linalg.solve_triangular(self._tied_factor.T, self._coupling @ u - right_nu, upper=True)
        return u.T.reshape(unobserved.shape), nu.T.reshape(tied.shape)

    def solve_transposed(self, unobserved: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        return self.solve(unobserved, tied)


_BorderSolver = _SquareSolver | _SaddleSolver


def _as_columns(vectors: Tensor) -> Tensor:
    """Arrange vectors `(*batch, r)` as the columns of a matrix; r may be 0."""
    return vectors.reshape(math.prod(vectors.shape[:-1]), vectors.shape[-1]).T


def _cholesky(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if synchronize.holds_anywhere(info):
        raise SingularSystemError("the system on the border is singular")
    return factor
