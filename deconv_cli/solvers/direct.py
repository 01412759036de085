"""λ = 0, as many outputs as pixels: find the outputs for which the circular inverse obeys the border's rule.

With P = K⁻¹ on the torus of `embedding.py`, T the unobserved outputs and W the rule of the tied pixels, D = WᵀPTᵀ is
square, and

    D u = −WᵀP Sᵀy,        z = P(Sᵀy + Tᵀu).

D is as large as the border. It is written out and factored once, and serves any number of outputs. In two dimensions
FFTs eliminate half of it first (`square_border.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop, half_spectrum, norm, space_axes
from deconv_cli.operators.circulant import FrequencyBlocks, channels_first, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.embedding import TorusLayout
from deconv_cli.solvers.fourier import SingularSystemError, full_rank_inverse
from deconv_cli.solvers.inverse import Inverse, IteratedInverse
from deconv_cli.solvers.normal_equations import NormalEquations, refine_equations
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import GradientLog, Progress, Solution, StoppingRule
from deconv_cli.solvers.solver import CALL_OPERATIONS, Cost, Solver, general_refusal
from deconv_cli.solvers.square_border import SquareBorderSystem

BYTES_PER_NUMBER = 8
# A factorization was measured to run this many times more operations a second than an iteration does.
FACTORIZATION_SPEED = 4.0
# Finding the place of an entry of its matrices takes about as long as this many operations (measured).
OPERATIONS_PER_PLACE = 60
N_CALLS = 40
# Largest relative error of a known image that is found again; above it the factors are given up.
MAX_PROBE_ERROR = 1e-3
# Copies of a matrix that are alive while it is written out, and images that an application keeps.
N_COPIES, N_IMAGES = 5, 4


class DirectSolver(Solver):
    """A factorization of the system on the border."""

    memory_grows_with_border = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover λ = 0 with as many outputs as pixels."""
        operator = problem.operator
        if operator.kernel.device.type == "mps":
            return "needs double precision, which this device does not support"
        if problem.lam > 0 or operator.input_shape != operator.output_shape:
            return "is for λ = 0 and an output of the shape of the image"
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the dense matrices, the blocks at every frequency, and the operations of the factorization."""
        n_eliminated, n_left = _unknowns(problem)
        layout = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary)
        # P is complex. For a while the symbol and the work space of its factorization are alive too.
        n_blocks = 2 * math.prod(half_spectrum(layout.torus)) * problem.n_outputs**2
        n_entries = n_left**2 + 5 * n_left * n_eliminated if n_eliminated else N_COPIES * n_left**2
        n_operations = (2 * n_left**2 * n_eliminated + 2 / 3 * n_left**3) / FACTORIZATION_SPEED
        n_operations += OPERATIONS_PER_PLACE * n_entries / problem.n_outputs**2 + N_CALLS * CALL_OPERATIONS
        return Cost.of_transforms(
            problem,
            n_operations,
            n_bytes_factored=BYTES_PER_NUMBER * (n_left**2 + n_blocks),
            n_bytes_while_built=BYTES_PER_NUMBER * (n_entries + 3 * n_blocks),
            n_images=N_IMAGES,
        )

    def reason(self, problem: TikhonovProblem) -> str:
        """Name the size of the system."""
        n_eliminated, n_left = _unknowns(problem)
        if not n_eliminated:
            return f"the border's system of {n_left} unknowns is factored once, exactly"
        return (
            f"the border's system of {n_eliminated + n_left} unknowns is solved exactly: FFTs eliminate "
            f"{n_eliminated} of them, and the others are factored once"
        )

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Factor the system."""
        return DirectInverse(problem, rule)


DIRECT = DirectSolver()


def _eliminates_rows(problem: TikhonovProblem) -> bool:
    """Return whether FFTs may eliminate rows: in two dimensions, where a border copies pixels unchanged."""
    return problem.n_dims == 3 and not problem.operator.boundary.has_factors


def _unknowns(problem: TikhonovProblem) -> tuple[int, int]:
    """Count the unknowns that FFTs eliminate, and the remaining ones."""
    layout = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary)
    n_unobserved = problem.n_outputs * layout.n_unobserved
    if not _eliminates_rows(problem):
        return 0, n_unobserved
    n_columns = problem.n_outputs * layout.image_size[0] * (layout.torus[1] - layout.image_size[1])
    return n_unobserved - n_columns, n_columns


class DirectInverse(IteratedInverse):
    """Inverse of one problem, ready for many outputs.

    Raises:
        SingularSystemError: the system on the border is singular to working precision.
    """

    def __init__(self, problem: TikhonovProblem, rule: StoppingRule) -> None:
        self.problem = problem
        self.rule = rule
        self._system = _factor(problem)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C, *size)`."""
        return self._refine(NormalEquations.of_data(self.problem, y), self._system.estimate, progress)

    def _iterate(self, equations: NormalEquations, *, transposed: bool = False) -> Solution:
        return self._refine(equations, self._system.estimate_transposed if transposed else self._system.estimate)

    def _refine(
        self, equations: NormalEquations, approximate: Callable[[Tensor], Tensor], progress: Progress | None = None
    ) -> Solution:
        def improve(equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
            better = x + approximate(equations.residual(x))
            log.add(equations.norm(gradient))
            return better

        return refine_equations(equations, approximate(equations.y), self.rule, improve, progress)


def _factor(problem: TikhonovProblem) -> DenseBorderSystem | SquareBorderSystem:
    """Factor the system on the border, with its rows eliminated first if that can be done."""
    if _eliminates_rows(problem):
        with contextlib.suppress(SingularSystemError):
            square = SquareBorderSystem(problem.operator)
            if _is_sound(problem, square):
                return square
    system = DenseBorderSystem(problem.operator)
    if not _is_sound(problem, system):
        raise SingularSystemError("the system on the border is singular to working precision")
    return system


def _is_sound(problem: TikhonovProblem, system: DenseBorderSystem | SquareBorderSystem) -> bool:
    """Invert a known image: A⁺AA⁺y = A⁺y, unless rounding was divided by a singular value that is zero."""
    shape = problem.operator.output_shape
    taps = problem.operator.kernel
    # Numbers without a pattern, the same on every device.
    y = torch.arange(math.prod(shape), dtype=torch.float64, device=taps.device).square().cos().reshape(shape)
    x = system.estimate(y)
    again = system.estimate(problem.operator.forward(x.to(taps.dtype)).double())
    n_dims = problem.n_dims
    return synchronize.as_number(norm(again - x, n_dims)) <= MAX_PROBE_ERROR * synchronize.as_number(norm(x, n_dims))


class DenseBorderSystem:
    """The inverse of an operator with as many outputs as pixels, in any number of dimensions, in double precision.

    Raises:
        SingularSystemError: the symbol or D is singular.
    """

    def __init__(self, operator: Convolution) -> None:
        taps = operator.kernel.double()
        self._places = places = TorusLayout.plan(operator.geometry, operator.boundary)
        self._copies = operator.extension if operator.boundary.copies_pixels else None
        self._before = operator.geometry.pads.before
        self._n_channels, self._axes = len(taps), space_axes(len(places.torus))
        is_outside = torch.ones(places.torus, dtype=torch.bool, device=taps.device)
        self._crop(is_outside).fill_(False)
        self._outside = synchronize.places(is_outside.flatten())
        estimate = full_rank_inverse(torus_symbol(taps, places.torus, places.origin))
        self._estimate = FrequencyBlocks(estimate)
        system = self._write_out(self._restore(channels_first(estimate)))
        self._factors, self._pivots, info = torch.linalg.lu_factor_ex(system)
        if synchronize.holds_anywhere(info):
            raise SingularSystemError("the system on the border is singular")

    def estimate(self, y: Tensor) -> Tensor:
        """Apply the inverse to data `(*batch, C, *size)`."""
        field = self._restore(self._estimate.multiply(self._transform(y.double())))
        added = self._transform(self._put(self._solve(-self._ties(field))))
        return self._crop(field + self._restore(self._estimate.multiply(added))).to(y.dtype)

    def estimate_transposed(self, g: Tensor) -> Tensor:
        """Apply the transpose of `estimate` to `g` of shape `(*batch, C, *size)`."""
        spectrum = self._transform(g.double())
        right = self._take(self._restore(self._estimate.multiply(spectrum, adjoint=True)))
        spectrum = spectrum - self._transform(self._ties_transposed(self._solve(right, transposed=True)))
        return self._crop(self._restore(self._estimate.multiply(spectrum, adjoint=True))).to(g.dtype)

    def _write_out(self, kernel: Tensor) -> Tensor:
        """Gather D from the kernel `(C, C, *torus)` of P: from unobserved outputs to ties, channel by channel."""
        system = self._between(kernel, self._outside)
        if self._copies is not None:
            one = torch.ones_like(kernel[0, :1])
            numbers = one.flatten().cumsum(0).sub_(1).reshape(one.shape)
            factors, scaled = (self._take(self._extend(self._crop(field), self._copies)) for field in (one, numbers))
            sources = (scaled / factors).nan_to_num().round().long()
            system -= factors[:, None] * self._between(kernel, sources)
        n = len(kernel) * len(self._outside)
        return system.transpose(1, 2).reshape(n, n)

    def _between(self, kernel: Tensor, positions: Tensor) -> Tensor:
        """Gather the entries from the places outside to others of a convolution: shape `(C, C, n_to, n_outside)`."""
        torus = self._places.torus
        pairs = zip(*(torch.unravel_index(at, torus) for at in (positions, self._outside)), torus, strict=True)
        return kernel[(slice(None), slice(None), *((to[:, None] - start) % n for to, start, n in pairs))]

    def _ties(self, field: Tensor) -> Tensor:
        """Subtract the pixels that the border repeats from those beyond the image: Wᵀz, shape `(*batch, n)`."""
        return self._take(field if self._copies is None else field - self._extend(self._crop(field), self._copies))

    def _extend(self, image: Tensor, copies: LinearOperator) -> Tensor:
        """Add the pixels that the border repeats to an image: on the torus all of them follow it."""
        return copies.forward(image).roll(tuple(-n for n in self._before), self._axes)

    def _ties_transposed(self, nu: Tensor) -> Tensor:
        """Compute Wν, shape `(*batch, C, *torus)`."""
        field = self._put(nu)
        if self._copies is not None:
            self._crop(field).sub_(self._copies.adjoint(field.roll(self._before, self._axes)))
        return field

    def _take(self, field: Tensor) -> Tensor:
        """Take the places outside the image, which are those of the unobserved outputs, out of a field."""
        return field.flatten(-len(self._axes))[..., self._outside].flatten(-2)

    def _put(self, values: Tensor) -> Tensor:
        """Apply the transpose of `_take`."""
        values = values.unflatten(-1, (self._n_channels, -1))
        flat = values.new_zeros(*values.shape[:-1], math.prod(self._places.torus))
        return flat.index_copy_(-1, self._outside, values).unflatten(-1, self._places.torus)

    def _solve(self, right: Tensor, *, transposed: bool = False) -> Tensor:
        columns = right.reshape(math.prod(right.shape[:-1]), right.shape[-1]).T
        solved = torch.linalg.lu_solve(self._factors, self._pivots, columns, adjoint=transposed)
        return solved.T.reshape(right.shape)

    def _transform(self, field: Tensor) -> Tensor:
        return torch.fft.rfftn(field, s=self._places.torus, dim=self._axes)

    def _restore(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfftn(spectrum, s=self._places.torus, dim=self._axes)

    def _crop(self, field: Tensor) -> Tensor:
        """View the image in a field on the torus."""
        return crop(field, (0,) * len(self._axes), self._places.image_size)
