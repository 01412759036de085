"""Inverses in closed form: of a periodic convolution frequency by frequency, of a small problem as a dense matrix.

The matrix may be that of any operator, with any number of outputs, well-posed or not:

    [A; √μ L] = U S Vᵀ,    x = V S⁺ U_Aᵀ y,    (AᵀA + μLᵀL)⁺ = V (S⁺)² Vᵀ,

where U_A are the rows of U that belong to A. With μ = 0 the result is the Moore–Penrose inverse: singular values no
larger than the rounding of the largest one count as zero (Golub and Van Loan, Matrix Computations, 2013, section 5.5).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import norm, relative, space_axes
from deconv_cli.operators.boundary_rules import SymmetricBoundary
from deconv_cli.operators.circulant import (
    BlockCirculant,
    channels_last,
    phase_tables,
    sum_taps,
    to_float64,
    torus_symbol,
)
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.cosines import BlockCosine
from deconv_cli.operators.differences import difference_energies
from deconv_cli.operators.linear_operator import Shape
from deconv_cli.operators.spectrum import largest_singular_value
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.fourier import block_norms, default_rcond, gram_inverse_blocks, inverse_blocks
from deconv_cli.solvers.inverse import ClosedFormInverse, Inverse
from deconv_cli.solvers.problem import MIN_LAMBDA_IN_FLOAT32, TikhonovProblem, check_ramps
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import (
    CALL_OPERATIONS,
    Cost,
    Solver,
    general_refusal,
    symbol_bytes,
    transform_operations,
)
from deconv_cli.vocabulary import Size

# Symbols in double precision that are alive at once while they are inverted; and images that an application keeps.
N_SYMBOLS, N_SYMBOLS_PENALIZED = 3.5, 2.4
N_IMAGES = 3.5


class CircularSolver(Solver):
    """Division in frequency, for boundary `circular` and an output as large as the image."""

    why = "a circular convolution of unchanged size is diagonal in frequency"

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover periodic problems of unchanged size."""
        geometry = problem.operator.geometry
        if not (problem.operator.boundary.is_periodic and geometry.output_size == geometry.image_size):
            return "inverts circular convolutions of unchanged size only"
        return None

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the symbol, its inverse, and a few images."""
        # Without neighbors the division is for nothing.
        is_wasted = max(problem.operator.geometry.kernel_size) == 1
        n_operations = transform_operations(problem) if is_wasted else 0.0
        while_built = symbol_bytes(problem, N_SYMBOLS_PENALIZED if problem.lam > 0 else N_SYMBOLS)
        n_bytes = symbol_bytes(problem, problem.operator.kernel.itemsize / 8)
        return Cost.of_transforms(
            problem, n_operations, n_bytes_factored=n_bytes, n_bytes_while_built=while_built, n_images=N_IMAGES
        )

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Invert the symbol."""
        return CircularInverse(problem)


CIRCULAR = CircularSolver()


class CircularInverse(ClosedFormInverse):
    """Inverse of one circular problem, ready for many outputs.

    Args:
        problem: boundary `circular`, and an output as large as the image.
    """

    def __init__(self, problem: TikhonovProblem) -> None:
        self.problem = problem
        self._inverse = self.operator(self._invert_symbol())

    @property
    def torus(self) -> Size:
        """The torus on which the problem is circular."""
        return self.problem.operator.geometry.image_size

    def symbol(self, taps: Tensor) -> Tensor:
        """Evaluate the symbol at all frequencies: complex, shape `(*plane, C_out, C_in)`."""
        return torus_symbol(taps, self.torus, self.problem.operator.geometry.pads.before)

    def penalty(self, taps: Tensor) -> Tensor:
        """Evaluate |l(θ)|² at the same frequencies: shape `(*plane,)`."""
        return find_penalty(self.problem.penalty).symbol(self.torus, taps.dtype, taps.device)

    def operator(self, blocks: Tensor) -> BlockCirculant | BlockCosine:
        """Build the convolution with these blocks, in the precision of the data."""
        return BlockCirculant(blocks.to(self.problem.operator.kernel.dtype.to_complex()), self.torus)

    def _invert_symbol(self) -> Tensor:
        problem, wide = self.problem, self.problem.taps_to_factor
        taps = problem.operator.kernel
        blocks = inverse_blocks(
            self.symbol(wide),
            problem.weight,
            self.penalty(wide),
            default_rcond(taps.dtype),
            lambda: largest_singular_value(taps, self.torus)[0],
            overwrite=True,
        )
        # Constants that nothing determines have a gain by rounding alone, and would take the digits of all else.
        of_constants = blocks[(0,) * len(self.torus)]
        for constant in problem.null_space_constants:
            line = constant.flatten().to(blocks.dtype)
            of_constants -= torch.outer(line, line @ of_constants)
        return blocks

    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, without its certificate."""
        return self._inverse.forward(y)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, *size)`."""
        if self.problem.weight == 0:
            # (AᴴA)⁺ = A⁺(A⁺)ᴴ: the truncation is the same, and nothing is squared.
            return self._inverse.forward(self._inverse.adjoint(g))
        return self._gram_inverse.forward(g)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, *size)`: the transposed blocks."""
        return self._inverse.adjoint(g)

    def _bound_rounding(self, x: Tensor, y: Tensor) -> float:
        """Bound what rounding may do to x = By, relative to ‖x‖: (1 + √log₂ N) units in the last place of ‖B‖‖y‖.

        The FFTs' part is Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 24.1, for errors that
        are independent of one another. Those of the symbol itself, in double precision, a small λ enlarges once more.
        """
        n_dims = self.problem.n_dims
        ulps = torch.finfo(x.dtype).eps * (1 + math.sqrt(math.log2(max(2, math.prod(x.shape[1 - n_dims :])))))
        gain = ulps * self._norm
        if x.dtype == torch.float64 and self.problem.lam < MIN_LAMBDA_IN_FLOAT32:
            taps = self.problem.operator.kernel
            gain += torch.finfo(x.dtype).eps * synchronize.as_number(taps.abs().sum()) * self._gram_norm
        return synchronize.as_number((gain * relative(norm(y, n_dims), norm(x, n_dims))).max())

    @cached_property
    def _gram_norm(self) -> float:
        """‖(KᴴK + μ|l|²)⁺‖, by the largest block's Frobenius norm; for λ = 0 it is ‖B‖²."""
        if self.problem.lam == 0:
            return self._norm**2
        return synchronize.as_number(block_norms(self._gram_inverse.blocks.matrices).max())

    @cached_property
    def _norm(self) -> float:
        """‖B‖, by the largest block's Frobenius norm."""
        return synchronize.as_number(block_norms(self._inverse.blocks.matrices).max())

    @cached_property
    def _gram_inverse(self) -> BlockCirculant | BlockCosine:
        """(KᴴK + μ|l|²)⁺, which only the derivative in the kernel needs."""
        wide = to_float64(self.problem.operator.kernel)
        return self.operator(gram_inverse_blocks(self.symbol(wide), self.problem.weight, self.penalty(wide)))


class MirroredSolver(CircularSolver):
    """Division in the cosine transform, for boundary `symmetric` and even kernels, in any number of dimensions."""

    why = "a kernel that is even along every axis is diagonal in the cosine transform under boundary symmetric"

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover outputs of unchanged size, and penalties on pixels or first differences."""
        operator, geometry = problem.operator, problem.operator.geometry
        axes = space_axes(len(geometry.image_size))
        is_centered = geometry.pads.before == geometry.pads.after and geometry.output_size == geometry.image_size
        if not (isinstance(operator.boundary, SymmetricBoundary) and is_centered):
            return "is for whole images with boundary symmetric, and kernels centered on the pixel of their output"
        if not all(synchronize.holds_everywhere(operator.kernel == operator.kernel.flip(axis)) for axis in axes):
            return "is for kernels that are even along every axis, but this one is not"
        if problem.lam > 0 and any(max(term.orders) > 1 for term in find_penalty(problem.penalty).terms(len(axes))):
            return f"is for penalties on pixels or first differences, but penalty {problem.penalty} takes others"
        return None

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Invert the symbol."""
        return MirroredInverse(problem)


MIRRORED = MirroredSolver()


class MirroredInverse(CircularInverse):
    """Inverse of one problem that `MIRRORED` covers, ready for many outputs."""

    @property
    def torus(self) -> Size:
        """The torus that holds all mirror images."""
        return tuple(2 * n for n in self.problem.operator.geometry.image_size)

    def symbol(self, taps: Tensor) -> Tensor:
        """Evaluate the symbol, which is real, at the cosine frequencies: shape `(*size, C_out, C_in)`."""
        geometry = self.problem.operator.geometry
        numbers = [torch.arange(n, device=taps.device) for n in geometry.image_size]
        tables = phase_tables(taps, self.torus, numbers, geometry.pads.before)
        return channels_last(sum_taps(taps, [table.real for table in tables], first_axis=2))

    def penalty(self, taps: Tensor) -> Tensor:
        """Evaluate |l(θ)|² at the same frequencies."""
        energies = difference_energies(self.torus, taps.dtype, taps.device)
        sizes = zip(energies, self.problem.operator.geometry.image_size, strict=True)
        return find_penalty(self.problem.penalty).symbol_at([energy[:n] for energy, n in sizes])

    def operator(self, blocks: Tensor) -> BlockCosine:
        """Build the convolution with these blocks, in the precision of the data."""
        return BlockCosine(blocks.to(self.problem.operator.kernel.dtype))


# Operations of a singular value decomposition of an n × n matrix, and of the orthogonal triangularization of a taller
# one with m rows before it: factors of n³ and m·n² (Golub and Van Loan, figure 8.6.1 and section 5.2).
SVD_OPERATIONS, QR_OPERATIONS = 20.0, 2.0
# Speed of these operations relative to those of an FFT, measured from 40 to 800 columns.
SVD_SPEED = 2.0
N_CALLS = 4
BYTES_PER_NUMBER = 8
# Arrays as large as the matrix, and as its square of columns, that are alive at once.
N_MATRICES, N_SQUARES = 3, 5


class DenseSolver(Solver):
    """A singular value decomposition of the whole matrix, or of that of one pixel if no pixel depends on another."""

    memory_grows_with_border = True
    takes_singular = True
    takes_layers = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover all that is determined."""
        if problem.operator.device is not None and problem.operator.device.type == "mps":
            return "needs double precision, which this device does not support"
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Estimate the operations of the decomposition, and the memory of its arrays."""
        part = _part_to_decompose(problem)
        n_rows, n_columns = math.prod(part.operator.output_shape), math.prod(part.operator.input_shape)
        n_numbers = 2 * (math.prod(problem.operator.output_shape) + math.prod(problem.operator.input_shape))
        if problem.lam > 0:
            n_rows += n_columns * len(find_penalty(problem.penalty).terms(problem.n_dims - 1))
        squares = SVD_OPERATIONS * n_columns * min(n_rows, n_columns) ** 2
        n_operations = (squares + QR_OPERATIONS * n_rows * n_columns**2) / SVD_SPEED
        n_entries = N_MATRICES * n_rows * n_columns + N_SQUARES * n_columns**2
        # A division in frequency would decompose a matrix like that of one pixel for every pixel.
        n_operations = 0.0 if part is not problem else n_operations + N_CALLS * CALL_OPERATIONS
        return Cost(n_operations, BYTES_PER_NUMBER * n_entries, BYTES_PER_NUMBER * n_numbers)

    def reason(self, problem: TikhonovProblem) -> str:
        """Name the size of the matrix."""
        part = _part_to_decompose(problem)
        n_rows, n_columns = math.prod(part.operator.output_shape), math.prod(part.operator.input_shape)
        if part is not problem:
            return f"no pixel depends on another, and a matrix of {n_rows} × {n_columns} undoes each of them, exactly"
        return f"a matrix of {n_rows} × {n_columns} is so small that it is decomposed as a whole, exactly"

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Decompose the matrix."""
        check_ramps(problem)
        return DenseInverse(problem)


DENSE = DenseSolver()


class DenseInverse(ClosedFormInverse):
    """The decomposition of one small problem, in double precision, ready for many outputs.

    Args:
        problem: one that `DENSE` covers.
    """

    def __init__(self, problem: TikhonovProblem) -> None:
        self.problem, part = problem, _part_to_decompose(problem)
        self._is_of_pixels = part is not problem
        self._u, self._s, self._v = _decompose(part)
        n_parts = math.prod(problem.operator.geometry.image_size) if self._is_of_pixels else 1
        self.rank = n_parts * len(self._s) if problem.lam == 0 else None
        self._least = synchronize.as_number(self._s[-1]) if len(self._s) else 1.0
        self._inverse = 1 / self._s

    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, without its certificate."""
        return self._apply(self._u, self._inverse, self._v, y, self.problem.operator.input_shape)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, *size)`."""
        return self._apply(self._v, self._inverse.square(), self._v, g, self.problem.operator.input_shape)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, *size)`."""
        return self._apply(self._v, self._inverse, self._u, g, self.problem.operator.output_shape)

    def _apply(self, before: Tensor, factor: Tensor, after: Tensor, x: Tensor, shape: Shape) -> Tensor:
        """Multiply `x` of shape `(*batch, *any)` by `after · diag(factor) · beforeᵀ`; shape `(*batch, *shape)`."""
        batch, last = x.shape[: x.ndim - len(shape)], -len(shape)
        if self._is_of_pixels:
            lines = to_float64(x).movedim(last, -1)
            return (((lines @ before) * factor) @ after.T).movedim(-1, last).to(x.dtype)
        found = ((to_float64(x).reshape(-1, len(before)) @ before) * factor) @ after.T
        return found.reshape(*batch, *shape).to(x.dtype)

    def _bound_rounding(self, x: Tensor, y: Tensor) -> float:
        """Estimate the rounding of x = By relative to ‖x‖: √n units in the last place of ‖B‖‖y‖, and one of ‖x‖."""
        n_dims = self.problem.n_dims
        wide = torch.finfo(torch.float64).eps * math.prod(self.problem.operator.input_shape) ** 0.5
        ratio = synchronize.as_number(relative(norm(y, n_dims), norm(x, n_dims)).max())
        return wide * ratio / self._least + torch.finfo(x.dtype).eps


def _part_to_decompose(problem: TikhonovProblem) -> TikhonovProblem:
    """Return the problem of one pixel if no pixel depends on another, as in layers of one tap; else the whole."""
    operator, geometry = problem.operator, problem.operator.geometry
    has_one_tap = max(geometry.kernel_size) == 1 and geometry.output_size == geometry.image_size
    compares = problem.lam > 0 and find_penalty(problem.penalty).takes_differences
    if operator.is_layer or compares or not has_one_tap:
        return problem
    pixel = Convolution(operator.kernel, (1,) * len(geometry.image_size), boundary=operator.boundary)
    return replace(problem, operator=pixel, known_sigma_max=problem.sigma_max)


def _decompose(problem: TikhonovProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Give U_A, S and V without what the rank leaves out: shapes `(n, r)`, `(r,)` and `(m, r)`."""
    # Rounding of the data decides a rank only where there is no penalty.
    rcond = default_rcond(problem.operator.kernel.dtype if problem.lam == 0 else torch.float64)
    matrix = to_float64(problem.operator.in_float64().as_matrix())
    n_outputs = len(matrix)
    if problem.weight > 0:
        matrix = torch.cat([matrix, problem.weight**0.5 * problem.penalty_operator.as_matrix().to(matrix)])
    # Rounding of the taps leaves a gain to constants that are annihilated.
    for constant in problem.null_space_constants:
        line = to_float64(constant).expand(problem.operator.input_shape).flatten()
        matrix = matrix - torch.outer(matrix @ line, line) / (line @ line)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = synchronize.as_index((s > rcond * s.amax()).sum())
    return u[:n_outputs, :rank].contiguous(), s[:rank].contiguous(), vh[:rank].T.contiguous()
