"""The true operator under any boundary, inverted by preconditioned conjugate gradients from an FFT estimate.

Layers have no preconditioner: on a torus the phases of a stride mix, and its inverse saves fewer iterations than it
costs. Method phases gives one to each group of a layer that differs by its groups alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from deconv_cli.operators.axes import crop, masked
from deconv_cli.operators.circulant import BlockCirculant, next_fast_size, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.operators.linear_operator import LinearOperator, SymmetricOperator
from deconv_cli.operators.spectrum import has_one_sign
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.cgls import RitzValues, iterate
from deconv_cli.solvers.fourier import gram_inverse_blocks
from deconv_cli.solvers.inverse import Inverse, IteratedInverse
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import MIN_LAMBDA_IN_FLOAT32, TikhonovProblem, check_ramps
from deconv_cli.solvers.solution import Progress, Solution, StoppingRule, default_tolerance
from deconv_cli.solvers.solver import CALL_OPERATIONS, Cost, Solver, general_refusal, transform_operations
from deconv_cli.solvers.strip import STRIP
from deconv_cli.vocabulary import Size

# Room around the image on the preconditioner's torus, so that opposite edges do not influence each other. It is at most
# as wide as the image.
TORUS_MARGIN = 16
# Iterations that may be needed where the border makes a problem ill-conditioned.
N_ITERATIONS = 2000
# Iterations that run out leave an inaccurate solution, so they count as this many times as many.
COST_OF_RUNNING_OUT = 5
# The torus leaves this part of the iterations without it: measured for blurs of one channel, and for layers.
PART_LEFT_OF_BLURS = 1 / 12
PART_LEFT = 1 / 3
# Measured for layers of trained networks and of random weights: 15 to 200 iterations.
N_ITERATIONS_OF_LAYERS = 100
# With as many outputs as pixels they run out where the layer almost loses pixels: phases or a small matrix come first.
N_ITERATIONS_OF_SQUARE_LAYERS = 1e5
# Symbols of the preconditioner, with Gram matrices, in double precision that are alive while it is built.
N_SYMBOLS = 3
# Operations that an iteration takes beyond its products, however small a layer is, and images that are alive at once.
OPERATIONS_PER_ITERATION = 4 * CALL_OPERATIONS
N_IMAGES_OF_LAYERS = 12


class IterativeSolver(Solver):
    """Conjugate gradients, which cover every problem that has one solution."""

    takes_singular = True
    takes_mixed = True
    takes_layers = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover all that is determined."""
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the preconditioner's symbols, a few images, and the iterations that the condition number asks for."""
        if isinstance(problem.operator, LayerConvolution):
            return _cost_of_layer(problem.operator)
        n_operations = 4 * expected_iterations(problem) * transform_operations(problem)
        if problem.lam == 0:
            return Cost.of_transforms(problem, n_operations, n_bytes_factored=0)
        n_places, n_channels = math.prod(_preconditioner_torus(problem.operator)), problem.n_inputs + problem.n_outputs
        n_numbers = n_places * problem.n_inputs * n_channels
        return Cost.of_transforms(
            problem,
            n_operations,
            n_bytes_factored=problem.operator.kernel.itemsize * n_numbers,
            n_bytes_while_built=N_SYMBOLS * 8 * n_numbers,
        )

    def reason(self, problem: TikhonovProblem) -> str:
        """Say that it is the shortest way."""
        if problem.operator.is_layer:
            return "an iteration covers layers of all sizes and borders"
        return (
            f"boundary {problem.operator.boundary.name} with λ {problem.lam:g} and penalty {problem.penalty} needs "
            f"about {expected_iterations(problem):.0f} iterations, and no solver is faster"
        )

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Build the preconditioner, if there is one."""
        check_ramps(problem)
        if problem.operator.is_layer:
            return IterativeInverse(problem, rule)
        if problem.weight > 0:
            on_torus = TorusPreconditioner(problem)
            return IterativeInverse(problem, rule, on_torus, on_torus.estimate)
        return IterativeInverse(problem, rule)


ITERATIVE = IterativeSolver()


def _cost_of_layer(layer: LayerConvolution) -> Cost:
    """Count the products of the layer and its transpose in each iteration, and a few images."""
    n_inputs, n_outputs = math.prod(layer.input_shape), math.prod(layer.output_shape)
    n_products = 2 * (n_inputs if layer.options.transposed else n_outputs) * layer.kernel[0].numel()
    n_coarse, n_fine = layer.plain_taps(layer.kernel).shape[1:3]
    n_iterations = N_ITERATIONS_OF_SQUARE_LAYERS if n_coarse == n_fine else N_ITERATIONS_OF_LAYERS
    n_operations = n_iterations * (n_products + OPERATIONS_PER_ITERATION)
    return Cost(n_operations, 0, N_IMAGES_OF_LAYERS * layer.kernel.itemsize * (n_inputs + n_outputs))


def expected_iterations(problem: TikhonovProblem) -> float:
    """Estimate the iterations of a problem; those that run out count as more than they are."""
    n_plain = plain_iterations(problem)
    if problem.lam > 0:
        # The strip states its distance to the solution after a few iterations, which may take these many times as long.
        is_blur = has_one_sign(problem.operator.kernel) and STRIP.covers(problem) is not None
        n_plain = 5 + n_plain * (PART_LEFT_OF_BLURS if is_blur else PART_LEFT)
    return n_plain if n_plain <= N_ITERATIONS else N_ITERATIONS * COST_OF_RUNNING_OUT


def plain_iterations(problem: TikhonovProblem) -> float:
    """Bound the iterations of conjugate gradients without a preconditioner.

    Saad, Iterative Methods for Sparse Linear Systems, 2003, equation 6.128: 2((√κ − 1)/(√κ + 1))ⁿ.
    """
    tolerance = default_tolerance(problem.operator.kernel.dtype)
    return max(1.0, 0.5 * math.sqrt(problem.condition) * math.log(2 / tolerance))


class IterativeInverse(IteratedInverse):
    """Inverse of one problem, ready for many outputs.

    For λ > 0 the inverse of a circulant approximation on a larger torus preconditions the normal equations, and the
    circular estimate starts them. For λ = 0 only a start from zero without a preconditioner keeps the iteration in the
    range of Aᴴ, where the solution of least norm lies.

    Args:
        problem: the problem.
        rule: when to stop.
        preconditioner: close to the inverse of AᴴA + μLᴴL; `None` for none.
        estimate: restores data `(*batch, C_out, *output_size)` roughly, as the start; `None` starts from zero.
    """

    def __init__(
        self,
        problem: TikhonovProblem,
        rule: StoppingRule,
        preconditioner: LinearOperator | None = None,
        estimate: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.problem, self.rule, self._preconditioner, self._estimate = problem, rule, preconditioner, estimate

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`, and bound the error if λ > 0 or for a layer."""
        problem, is_layer, ritz = self.problem, self.problem.operator.is_layer, None
        start = None if self._estimate is None else self._estimate(y)
        if problem.weight > 0 or is_layer:
            ritz = RitzValues(
                self._preconditioner,
                least=None if is_layer else lambda: problem.least_eigenvalue,
                determined=(lambda x: problem.split_null_space(x)[0])
                if 0 < problem.lam < MIN_LAMBDA_IN_FLOAT32
                else None,
            )
        equations = NormalEquations.of_data(problem, y)
        return iterate(
            equations, self.rule, start=start, preconditioner=self._preconditioner, progress=progress, ritz=ritz
        )

    def _iterate(self, equations: NormalEquations, *, transposed: bool = False) -> Solution:
        return iterate(equations, self.rule, preconditioner=None if transposed else self._preconditioner)


def _preconditioner_torus(operator: Convolution) -> Size:
    """Find the torus of the preconditioner: the image, with room around it along each axis with edges."""
    geometry = operator.geometry
    sizes = zip(geometry.extended_size, geometry.kernel_size, strict=True)
    roomy = tuple(next_fast_size(n + max(k, min(TORUS_MARGIN, n))) for n, k in sizes)
    lengths = zip(roomy, geometry.image_size, operator.boundary.wraps_beside_edges(len(roomy)), strict=True)
    return tuple(n if is_wrapped else room for room, n, is_wrapped in lengths)


class TorusPreconditioner(SymmetricOperator):
    """`Eᵀ(KᴴK + μ|l|²)⁻¹E`: zero-pad onto a torus, divide in frequency, crop.

    On the torus `gram_inverse` is (KᴴK + μ|l|²)⁻¹, and `symbol` is K.
    """

    def __init__(self, problem: TikhonovProblem) -> None:
        operator = problem.operator
        self.input_shape = self.output_shape = operator.input_shape
        self._operator = operator
        geometry, dtype = operator.geometry, operator.kernel.dtype
        self._wraps = operator.boundary.wraps_beside_edges(problem.n_dims - 1)
        torus = _preconditioner_torus(operator)
        wide = problem.taps_to_factor
        symbol = torus_symbol(wide, torus, masked(geometry.pads.before, self._wraps))
        penalty = find_penalty(problem.penalty).symbol(torus, wide.dtype, wide.device)
        gram_inverse = gram_inverse_blocks(symbol, problem.weight, penalty)
        narrow = dtype.to_complex()
        self.gram_inverse = BlockCirculant(gram_inverse.to(narrow), torus)
        self.symbol = BlockCirculant(symbol.to(narrow), torus)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, C_in, *size)`, in the precision of the kernel."""
        size = self.input_shape[1:]
        solved = self.gram_inverse.forward(x.to(self._operator.kernel.dtype))
        return crop(solved, (0,) * len(size), size).to(x.dtype)

    def estimate(self, y: Tensor) -> Tensor:
        """Restore data as if they were periodic on the torus; shape `(*batch, C_in, *size)`.

        Beyond the frame the data are zero if the image is known to be, else a blend of mirror images of the opposite
        edges, so that the torus has no seam.
        """
        operator, torus = self._operator, self.gram_inverse.torus
        if not operator.boundary.is_zero:
            y = close_smoothly(y, torus)
        estimate = self.gram_inverse.forward(self.symbol.adjoint(y))
        sides = zip(operator.geometry.pads.before, self._wraps, strict=True)
        start = tuple(0 if w or operator.boundary.is_unknown else before for before, w in sides)
        return crop(estimate, start, self.input_shape[1:])
