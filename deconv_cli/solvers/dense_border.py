"""The dense system on the unknowns of a torus's border, factored once.

Let C be the convolution on the torus of `embedding.py`, S the observed and T the unobserved outputs, and Wᵀz = 0 the
rule that ties the border's pixels. With u = the values of the unobserved outputs and ν = the multipliers of the rule,
the solution is

    z = P(Sᵀy + Tᵀu) − N W ν,     [ T M Tᵀ     T Pᴴ W  ] [u]   [ −T M Sᵀ y ]
                                  [ Wᵀ P Tᵀ   −Wᵀ N W ] [ν] = [ −Wᵀ P Sᵀ y ]

with P, M and N of `fourier.TorusBlocks`, diagonal in frequency. For λ = 0 and as many outputs as pixels P = K⁻¹, and
the second row alone decides: WᵀPTᵀ u = −WᵀPSᵀy.

The entries of the system are gathered from inverse FFTs of P, M and N. For λ = 0 a kernel of zero mean has no inverse
on a plain torus, but one on a torus around which fields change their sign (`embedding.py`). Derived for this
project; Reeves (Fast image restoration without boundary artifacts, IEEE Transactions on Image Processing 14, 2005) has
the case of a single channel with an unknown border.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop
from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.operators.linear_operator import SymmetricOperator
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.embedding import TorusEmbedding, Twists
from deconv_cli.solvers.fourier import SingularSystemError, block_norms, full_rank_inverse, torus_blocks
from deconv_cli.solvers.problem import TikhonovProblem

# A symbol of a larger condition counts as singular, if another torus has a better one.
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


class BoundarySystem(SymmetricOperator):
    """The factored system; as an operator, the inverse of AᴴA + μLᴴL with L's norm taken over the torus."""

    def __init__(self, problem: TikhonovProblem, twists: Twists) -> None:
        operator = problem.operator
        self.input_shape = self.output_shape = operator.input_shape
        taps = operator.kernel.double()
        self._n_outputs, self._n_inputs = taps.shape[:2]
        self._places = TorusEmbedding.of(operator.geometry, operator.boundary, taps.device, twists)
        self._fourier = self._places.fourier
        self._is_square = problem.weight == 0 and operator.input_shape == operator.output_shape
        self._factors = self._compute(problem, taps)
        self._estimate = self._hold("estimate")
        if not self._is_square:
            self._outputs, self._inputs = self._hold("outputs"), self._hold("inputs")

    def _compute(self, problem: TikhonovProblem, taps: Tensor) -> dict[str, Tensor]:
        """Factor the square system by LU, and the symmetric one by Cholesky factors of its two definite parts."""
        places, kernel_of = self._places, self._fourier.kernel
        symbol = self._fourier.symbol(taps, places.origin)
        if self._is_square:
            estimate = full_rank_inverse(symbol)
            system = places.gather_tied_rows(kernel_of(estimate), places.unobserved)
            if system.shape[0] != system.shape[1]:
                raise SingularSystemError("the border has a different number of rules and of unobserved outputs")
            lu, pivots, info = torch.linalg.lu_factor_ex(system)
            if synchronize.holds_anywhere(info):
                raise SingularSystemError("the system on the border is singular")
            return {"estimate": estimate, "factors": lu, "pivots": pivots}
        # A twisted torus is one of λ = 0, where the penalty is of no consequence.
        penalty = find_penalty(problem.penalty).symbol(places.torus, symbol.real.dtype, symbol.device)
        blocks = torus_blocks(symbol, problem.weight, penalty, covers_inputs=places.covers_inputs(symbol))
        tied_factor = _cholesky(places.gather_tied(kernel_of(blocks.inputs)))
        # V = L⁻¹(Wᵀ P Tᵀ), with WᵀNW = L Lᵀ
        coupling = places.gather_tied_rows(kernel_of(blocks.estimate), places.unobserved)
        coupling = torch.linalg.solve_triangular(tied_factor, coupling, upper=False)
        schur = places.gather(kernel_of(blocks.outputs), places.unobserved, places.unobserved)
        schur.addmm_(coupling.T, coupling)
        return {
            "estimate": blocks.estimate,
            "outputs": blocks.outputs,
            "inputs": blocks.inputs,
            "tied_factor": tied_factor,
            "coupling": coupling,
            "schur_factor": _cholesky(schur),
        }

    def _hold(self, name: str) -> FrequencyBlocks:
        """Give a factor as blocks, and keep the memory that these keep."""
        blocks = FrequencyBlocks(self._factors[name])
        self._factors[name] = blocks.matrices
        return blocks

    def estimate(self, y: Tensor) -> Tensor:
        """Apply the inverse to data `(*batch, C_out, *output_size)`, in double precision inside."""
        data = self._fourier.transform(y.double())
        field = self._fourier.restore(self._estimate.multiply(data))
        right_tied = -self._places.take_tied(field)
        if self._is_square:
            u, nu = self._solve(right_tied.new_zeros(*right_tied.shape[:-1], 0), right_tied)
        else:
            right = -self._places.take_unobserved(self._fourier.restore(self._outputs.multiply(data)))
            u, nu = self._solve(right, right_tied)
        return self._places.crop_image(field + self._from_border(u, nu)).to(y.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Solve the normal equations for a right-hand side `x` of shape `(*batch, C_in, *size)`."""
        spectrum = self._fourier.transform(x.double())
        field = self._fourier.restore(self._inputs.multiply(spectrum))
        outputs = self._fourier.restore(self._estimate.multiply(spectrum, adjoint=True))
        u, nu = self._solve(self._places.take_unobserved(outputs), -self._places.take_tied(field))
        return self._places.crop_image(field + self._from_border(u, nu)).to(x.dtype)

    def estimate_transposed(self, g: Tensor) -> Tensor:
        """Apply the transpose of `estimate` to `g` of shape `(*batch, C_in, *size)`."""
        spectrum = self._fourier.transform(g.double())
        outputs = self._fourier.restore(self._estimate.multiply(spectrum, adjoint=True))
        right = self._places.take_unobserved(outputs)
        if self._is_square:
            right_tied = right.new_zeros(*right.shape[:-1], 0)
        else:
            right_tied = -self._places.take_tied(self._fourier.restore(self._inputs.multiply(spectrum)))
        u, nu = self._solve(right, right_tied, transposed=True)
        if nu.shape[-1]:
            spectrum = spectrum - self._fourier.transform(self._places.put_tied(nu, self._n_inputs))
        outputs = self._estimate.multiply(spectrum, adjoint=True)
        if not self._is_square and u.shape[-1]:
            border = self._fourier.transform(self._places.put_unobserved(u, self._n_outputs))
            outputs = outputs - self._outputs.multiply(border)
        size = self._places.output_size
        return crop(self._fourier.restore(outputs), (0,) * len(size), size).to(g.dtype)

    def _from_border(self, u: Tensor, nu: Tensor) -> Tensor:
        """Compute P Tᵀu − N W ν."""
        spectrum = self._estimate.multiply(self._fourier.transform(self._places.put_unobserved(u, self._n_outputs)))
        if not self._is_square and nu.shape[-1]:
            inputs = self._fourier.transform(self._places.put_tied(nu, self._n_inputs))
            spectrum = spectrum - self._inputs.multiply(inputs)
        return self._fourier.restore(spectrum)

    def _solve(self, unobserved: Tensor, tied: Tensor, *, transposed: bool = False) -> tuple[Tensor, Tensor]:
        """Solve for u and ν; a square system takes its right-hand side as `tied`, its transpose as `unobserved`."""
        factors = self._factors
        if self._is_square:
            given, other = (unobserved, tied) if transposed else (tied, unobserved)
            columns = _as_columns(given)
            solved = torch.linalg.lu_solve(factors["factors"], factors["pivots"], columns, adjoint=transposed)
            found = solved.T.reshape(given.shape)
            return (other, found) if transposed else (found, other)
        tied_factor, coupling = factors["tied_factor"], factors["coupling"]
        right_nu = torch.linalg.solve_triangular(tied_factor, _as_columns(tied), upper=False)
        u = torch.cholesky_solve(_as_columns(unobserved) + coupling.T @ right_nu, factors["schur_factor"])
        nu = torch.linalg.solve_triangular(tied_factor.T, coupling @ u - right_nu, upper=True)
        return u.T.reshape(unobserved.shape), nu.T.reshape(tied.shape)


def _as_columns(vectors: Tensor) -> Tensor:
    return vectors.reshape(math.prod(vectors.shape[:-1]), vectors.shape[-1]).T


def _cholesky(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if synchronize.holds_anywhere(info):
        raise SingularSystemError("the system on the border is singular")
    return factor
