"""The exact inverse under any border: a torus, and one dense system on its boundary.

Let C be the convolution on the torus of `embedding.py`, S the observed and T the unobserved outputs, and Wᵀz = 0 the
rule that ties the border's pixels. With u = the values of the unobserved outputs and ν = the multipliers of the rule,
the solution is

    z = P(Sᵀy + Tᵀu) − N W ν,     [ T M Tᵀ     T Pᴴ W  ] [u]   [ −T M Sᵀ y ]
                                  [ Wᵀ P Tᵀ   −Wᵀ N W ] [ν] = [ −Wᵀ P Sᵀ y ]

where P, M and N are diagonal in frequency:

    λ > 0:                P = (KᴴK + μ|l|²)⁻¹Kᴴ,   M = I − KP,      N = (KᴴK + μ|l|²)⁻¹
    λ = 0, more outputs:  P = K⁺,                  M = I − KK⁺,     N = (KᴴK)⁻¹
    λ = 0, fewer outputs: P = K⁺,                  M = (KKᴴ)⁻¹,     N = I − K⁺K
    λ = 0, as many:       P = K⁻¹, and the second row alone decides:  WᵀPTᵀ u = −WᵀPSᵀy

The entries of the system are gathered from inverse FFTs of P, M and N. It is as large as the border, is factored
once, and serves any number of outputs. For λ = 0 a kernel of zero mean has no inverse on a plain torus, but one on a
torus around which fields change their sign (`twisted_torus.py`); the rest stays as it is. Derived for this project;
Reeves (IEEE Transactions on Image Processing 14, 2005) has the case of a single channel with an unknown border.

The norms run over the torus. Where border pixels repeat pixels of the image, or where a penalty on differences would
wrap around, that is not quite ‖Lx‖²: then the inverse preconditions conjugate gradients on the true problem, which
end after a few steps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.boundaries.rule import BoundaryRule
from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.operators.twisted_torus import Twists
from deconv_cli.regularizers import find_penalty, is_determined
from deconv_cli.solvers.cgls import conjugate_gradients, iterate
from deconv_cli.solvers.embedding import TorusEmbedding, TorusLayout
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.fourier import SingularSystemError, block_norms, full_rank_inverse, torus_blocks
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import TikhonovProblem, check_constants, norm
from deconv_cli.solvers.refinement import Course, Progress, StoppingRule, refine_equations
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.square_border import MAX_PROBE_ERROR, SquareBorderSystem

BYTES_PER_NUMBER = 8
PLAIN: Twists = (False, False)
# A symbol of a larger condition is taken for singular, if another torus has a better one.
MAX_CONDITION = 1e6


@dataclass(frozen=True)
class Cost:
    """What the direct method would take, estimated before anything is allocated.

    Attributes:
        n_unknowns: size of the system on the border.
        n_eliminated: how many of them FFTs eliminate before the rest is factored, where the kernel allows it.
        n_bytes: memory at the peak.
        n_operations: floating-point operations of the factorization.
    """

    n_unknowns: int
    n_eliminated: int
    n_bytes: int
    n_operations: float


def estimate_cost(geometry: Geometry, boundary: BoundaryRule, *, lam: float, n_outputs: int, n_inputs: int) -> Cost:
    """Estimate what the direct method would take."""
    places = TorusLayout.plan(geometry, boundary)
    n_unobserved, n_tied = n_outputs * places.n_unobserved, n_inputs * places.n_tied
    # Half as many complex frequencies as places, for the symbol, P, M, N and one real kernel at a time.
    n_frequencies = places.torus[0] * (places.torus[1] // 2 + 1)
    n_blocks = 2 * n_frequencies * (4 * max(n_outputs, n_inputs) ** 2 + 2 * n_outputs * n_inputs)
    if lam == 0 and n_outputs == n_inputs and geometry.output_size == places.image_size:
        # About half of the unknowns are eliminated by FFTs before the rest is factored (`square_border.py`).
        n_columns = n_outputs * places.image_size[0] * (places.torus[1] - places.image_size[1])
        n_rows = n_unobserved - n_columns
        n_entries = n_columns**2 + 8 * n_columns * n_rows
        n_operations = 2 * n_columns**2 * n_rows + 2 / 3 * n_columns**3
        return Cost(n_unobserved, n_rows, BYTES_PER_NUMBER * (n_entries + n_blocks), n_operations)
    n_entries = 2 * n_tied**2 + 2 * n_tied * n_unobserved + 3 * n_unobserved**2
    n_operations = (n_tied**3 + n_unobserved**3) / 3 + n_tied * n_unobserved * (n_tied + n_unobserved)
    return Cost(n_unobserved + n_tied, 0, BYTES_PER_NUMBER * (n_entries + n_blocks), n_operations)


def covers(
    geometry: Geometry, boundary: BoundaryRule, *, lam: float, penalty: str, n_outputs: int, n_inputs: int
) -> bool:
    """Tell whether this method can be right for a problem.

    λ > 0 is, unless there are images that neither the kernel nor the penalty sees. For λ = 0 the problem must have
    full rank by its shape: outputs that determine the image, or, without pixels that repeat others, an image with
    room for every output.
    """
    if lam > 0:
        return is_determined(lam, penalty, n_outputs, n_inputs)
    outside = boundary.is_unknown
    image_size = geometry.extended_size if outside else geometry.image_size
    bigger = [o - i for o, i in zip(geometry.output_size, image_size, strict=True)]
    if n_outputs >= n_inputs and min(bigger) >= 0:
        return True
    repeats = boundary.copies_pixels and any(geometry.pads.total)
    return n_outputs <= n_inputs and max(bigger) <= 0 and not repeats


class DirectInverse(Inverse):
    """Inverse of one problem, ready for many outputs.

    Args:
        problem: one that `covers` accepts.
        rule: when the refinement ends.
        kept: the factors of an equal inverse, which are then not computed.

    Raises:
        SingularSystemError: the system on the border is singular to working precision.
    """

    def __init__(self, problem: TikhonovProblem, rule: StoppingRule, kept: Factors | None = None) -> None:
        self.problem = problem
        self.rule = rule
        self._system = _factor(problem, kept)

    def factors(self) -> dict[str, Tensor]:
        """Give the factors of the system on the border."""
        return self._system.factors()

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, H_y, W_y)`."""
        if self.problem.weight == 0:
            return self._refine(NormalEquations.of_data(self.problem, y), self._system.estimate, progress)
        assert isinstance(self._system, BoundarySystem)
        return conjugate_gradients(
            self.problem,
            y,
            self.rule,
            start=self._system.estimate(y),
            preconditioner=self._system,
            progress=progress,
        )

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, H, W)`."""
        if self.problem.weight == 0:
            equations = NormalEquations.of_image(self.problem, self.solve_transposed(g))
            return self._refine(equations, self._system.estimate).warn_for_status().value
        assert isinstance(self._system, BoundarySystem)
        equations, start = NormalEquations.of_gradient(self.problem, g), self._system.forward(g)
        return iterate(equations, self.rule, start=start, preconditioner=self._system).warn_for_status().value

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, H, W)`; for λ = 0 with the factors themselves, transposed."""
        if self.problem.weight > 0:
            return super().solve_transposed(g)
        equations = NormalEquations.of_transpose(self.problem, g)
        return self._refine(equations, self._system.estimate_transposed).warn_for_status().value

    def _refine(
        self, equations: NormalEquations, approximate: Callable[[Tensor], Tensor], progress: Progress | None = None
    ) -> Solution:
        """Add what an approximate inverse makes of the residual, until that is small enough."""

        def improve(x: Tensor, gradient: Tensor, course: Course) -> Tensor:
            better = x + approximate(equations.residual(x))
            course.note(norm(gradient))
            return better

        return refine_equations(equations, approximate(equations.y), self.rule, improve, progress)


def _factor(problem: TikhonovProblem, kept: Factors | None) -> BoundarySystem | SquareBorderSystem:
    """Factor the system on the border, with its rows eliminated first where it is square and that can be done."""
    operator = problem.operator
    was_eliminated = (kept is None or "rows" in kept) and not operator.boundary.has_factors
    if problem.weight == 0 and operator.input_shape == operator.output_shape and was_eliminated:
        with contextlib.suppress(SingularSystemError):
            return SquareBorderSystem(operator, kept)
    if kept is not None:
        return BoundarySystem(problem, _recall_twists(kept), kept)
    check_constants(problem)
    system = BoundarySystem(problem, _choose_twists(problem))
    if problem.weight == 0 and not _is_sound(problem, system):
        raise SingularSystemError("the system on the border is singular to working precision")
    return system


def _is_sound(problem: TikhonovProblem, system: BoundarySystem) -> bool:
    """Invert what is known: A⁺AA⁺y = A⁺y, unless rounding has been divided by a singular value that is none."""
    shape = problem.operator.output_shape
    taps = problem.operator.kernel
    # Numbers without a pattern, the same on every device.
    y = torch.arange(math.prod(shape), dtype=torch.float64, device=taps.device).square().cos().reshape(shape)
    x = system.estimate(y)
    again = system.estimate(problem.operator.forward(x.to(taps.dtype)).double())
    return synchronize.as_number(norm(again - x)) <= MAX_PROBE_ERROR * synchronize.as_number(norm(x))


def _choose_twists(problem: TikhonovProblem) -> Twists:
    """Find the torus on which the symbol is far from singular; a plain one, if it will do.

    For λ > 0 it will. So it must where pixels repeat others: then a constant is an image like any other, and a kernel
    that annihilates it has no inverse.
    """
    operator = problem.operator
    if problem.weight > 0 or operator.boundary.copies_pixels:
        return PLAIN
    taps = operator.kernel.double()
    conditions: dict[Twists, float] = {}
    for twists in (PLAIN, (True, False), (False, True), (True, True)):
        places = TorusEmbedding.of(operator.geometry, operator.boundary, taps.device, twists)
        symbol = places.fourier.symbol(taps, places.origin)
        try:
            inverse = full_rank_inverse(symbol)
        except SingularSystemError:
            continue
        conditions[twists] = synchronize.as_number(block_norms(symbol).max() * block_norms(inverse).max())
        if conditions[twists] <= MAX_CONDITION:
            return twists
    return min(conditions, key=conditions.__getitem__, default=PLAIN)


def _recall_twists(kept: Factors) -> Twists:
    down, across = synchronize.as_numbers(kept.take("twists", (2,), torch.uint8))
    return bool(down), bool(across)


class BoundarySystem(LinearOperator):
    """The factored system; as an operator, the inverse of AᴴA + μLᴴL with L's norm taken over the torus.

    Args:
        problem: what is solved.
        twists: axes around which the torus is twisted.
        kept: the factors of an equal system, which are then not computed.
    """

    def __init__(self, problem: TikhonovProblem, twists: Twists, kept: Factors | None = None) -> None:
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
        is_square = self._n_outputs == self._n_inputs and places.output_size == places.image_size
        if kept is not None:
            self._recall(kept, is_square=problem.weight == 0 and is_square)
            return
        symbol = self._fourier.symbol(taps, places.origin)
        if problem.weight == 0 and is_square:
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
        """Give what was costly to compute: P, and M and N where they are used, and the factors of the system."""
        blocks = {"estimate": self._estimate, "outputs": self._outputs, "inputs": self._inputs}
        matrices = {name: b.matrices for name, b in blocks.items() if b is not None}
        twists = torch.tensor(self._places.twists, dtype=torch.uint8, device=self._places.device)
        return matrices | self._solver.factors() | {"twists": twists}

    def _recall(self, kept: Factors, *, is_square: bool) -> None:
        places, n_outputs, n_inputs = self._places, self._n_outputs, self._n_inputs

        def recall(name: str, n_to: int, n_from: int) -> FrequencyBlocks:
            shape = (*places.fourier.plane, n_to, n_from)
            return FrequencyBlocks(kept.take(name, shape, torch.complex128))

        n_unobserved, n_tied = n_outputs * len(places.unobserved), n_inputs * len(places.tied)
        self._estimate = recall("estimate", n_inputs, n_outputs)
        if is_square:
            self._solver = _SquareSolver.recall(kept, n_tied)
            return
        self._outputs, self._inputs = recall("outputs", n_outputs, n_outputs), recall("inputs", n_inputs, n_inputs)
        self._solver = _SaddleSolver.recall(kept, n_unobserved, n_tied)

    def estimate(self, y: Tensor) -> Tensor:
        """Apply the inverse to data `(*batch, C_out, H_y, W_y)`, in double precision inside."""
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
        """Solve the normal equations for a right-hand side `x` of shape `(*batch, C_in, H, W)`."""
        assert self._inputs is not None
        spectrum = self._fourier.transform(x.double())
        field = self._to_places(self._inputs.multiply(spectrum))
        right = self._places.take_unobserved(self._to_places(self._estimate.multiply(spectrum, adjoint=True)))
        u, nu = self._solver.solve(right, -self._places.take_tied(field))
        return self._places.crop_image(field + self._from_border(u, nu)).to(x.dtype)

    def estimate_transposed(self, g: Tensor) -> Tensor:
        """Apply the transpose of `estimate` to `g` of shape `(*batch, C_in, H, W)`."""
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
        height, width = self._places.output_size
        return self._to_places(outputs)[..., :height, :width].to(g.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose, which is the operator itself."""
        return self.forward(y)

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
    def recall(cls, kept: Factors, n_tied: int) -> _SquareSolver:
        return cls(kept.take("factors", (n_tied, n_tied), torch.float64), kept.take_pivots(n_tied))

    def factors(self) -> dict[str, Tensor]:
        return {"factors": self._factors, "pivots": self._pivots}

    def solve(self, unobserved: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for right-hand sides `(*batch, ·)`."""
        u = torch.linalg.lu_solve(self._factors, self._pivots, _as_columns(tied)).T.reshape(tied.shape)
        return u, unobserved

    def solve_transposed(self, unobserved: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the transposed system for right-hand sides `(*batch, ·)`."""
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
    def recall(cls, kept: Factors, n_unobserved: int, n_tied: int) -> _SaddleSolver:
        shapes = {
            "tied_factor": (n_tied, n_tied),
            "coupling": (n_tied, n_unobserved),
            "schur_factor": (n_unobserved, n_unobserved),
        }
        return cls(*(kept.take(name, shape, torch.float64) for name, shape in shapes.items()))

    def factors(self) -> dict[str, Tensor]:
        return {"tied_factor": self._tied_factor, "coupling": self._coupling, "schur_factor": self._schur_factor}

    def solve(self, unobserved: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for right-hand sides `(*batch, ·)`."""
        right_u = _as_columns(unobserved)
        right_nu = torch.linalg.solve_triangular(self._tied_factor, _as_columns(tied), upper=False)
        u = torch.cholesky_solve(right_u + self._coupling.T @ right_nu, self._schur_factor)
        nu = torch.linalg.solve_triangular(self._tied_factor.T, self._coupling @ u - right_nu, upper=True)
        return u.T.reshape(unobserved.shape), nu.T.reshape(tied.shape)

    def solve_transposed(self, unobserved: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the transposed system, which is the system itself."""
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
