"""Small problems: the operator as a matrix, and its singular value decomposition.

The operator may be any, with any number of outputs, well-posed or not:

    [A; √μ L] = U S Vᵀ,    x = V S⁺ U_Aᵀ y,    (AᵀA + μLᵀL)⁺ = V (S⁺)² Vᵀ,

where U_A are the rows of U beside A. Groups of channels that a layer does not mix have a matrix each, decomposed as one
batch. With μ = 0 the result is the Moore–Penrose inverse: singular values no larger than the rounding of the largest
one count as zero (Golub and Van Loan, Matrix Computations, 2013, section 5.5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import norm, relative
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.layer_convolution import GroupedLayer, LayerConvolution
from deconv_cli.operators.linear_operator import LinearOperator, Shape
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.inverse import ClosedFormInverse, Factors, Inverse
from deconv_cli.solvers.problem import TikhonovProblem, check_ramps
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import CALL_OPERATIONS, Cost, Solver, general_refusal

# Operations of a singular value decomposition of an n × n matrix, and of the orthogonal triangularization of a taller
# one with m rows before it: so many times n³ and m·n² (Golub and Van Loan, figure 8.6.1 and section 5.2).
SVD_OPERATIONS, QR_OPERATIONS = 20.0, 2.0
# Measured from 40 to 800 columns: so many times as many of these operations are done in a second as those of an FFT.
SVD_SPEED = 2.0
N_CALLS = 4
BYTES_PER_NUMBER = 8
# Arrays as large as the matrix, and as its square of columns, that are alive at once.
N_MATRICES, N_SQUARES = 3, 5


class DenseSolver(Solver):
    """A singular value decomposition of the whole matrix."""

    memory_grows_with_border = True
    takes_singular = True
    takes_layers = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover all that is determined."""
        if problem.operator.device is not None and problem.operator.device.type == "mps":
            return "needs double precision, which this device does not have"
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the decomposition, and the arrays that it takes."""
        n_groups, n_rows, n_columns = _matrix_size(problem)
        squares = SVD_OPERATIONS * n_columns * min(n_rows, n_columns) ** 2
        n_operations = (squares + QR_OPERATIONS * n_rows * n_columns**2) / SVD_SPEED
        n_entries = N_MATRICES * n_rows * n_columns + N_SQUARES * n_columns**2
        n_numbers = 2 * (math.prod(problem.operator.output_shape) + math.prod(problem.operator.input_shape))
        n_bytes = BYTES_PER_NUMBER * n_groups * n_entries
        return Cost(n_groups * n_operations + N_CALLS * CALL_OPERATIONS, n_bytes, BYTES_PER_NUMBER * n_numbers)

    def reason(self, problem: TikhonovProblem) -> str:
        """Name the size of the matrix."""
        operator, n_groups = problem.operator, _count_groups(problem)
        n_rows, n_columns = (math.prod(shape) // n_groups for shape in (operator.output_shape, operator.input_shape))
        many = "" if n_groups == 1 else f" for each of {n_groups} groups"
        return f"a matrix of {n_rows} × {n_columns}{many} is so small that it is decomposed as a whole, exactly"

    def build(self, problem: TikhonovProblem, rule: StoppingRule, factors: Factors | None = None) -> Inverse:
        """Decompose the matrix."""
        if factors is None:
            check_ramps(problem)
        return DenseInverse(problem, factors)


DENSE = DenseSolver()


def _count_groups(problem: TikhonovProblem) -> int:
    operator = problem.operator
    return operator.options.groups if isinstance(operator, LayerConvolution) else 1


def _matrix_size(problem: TikhonovProblem) -> tuple[int, int, int]:
    """Count the groups of channels, and the rows and columns of each group's [A; √μ L]."""
    operator, n_groups = problem.operator, _count_groups(problem)
    n_columns = math.prod(operator.input_shape) // n_groups
    n_rows = math.prod(operator.output_shape) // n_groups
    if problem.lam > 0:
        n_rows += n_columns * len(find_penalty(problem.penalty).terms(len(operator.input_shape) - 1))
    return n_groups, n_rows, n_columns


class DenseInverse(ClosedFormInverse):
    """The decomposition of one small problem, in double precision, ready for many outputs.

    Args:
        problem: one that `DENSE` covers.
        factors: those of an equal inverse, which are then not computed.
    """

    def __init__(self, problem: TikhonovProblem, factors: Factors | None = None) -> None:
        self.problem = problem
        wide = problem.operator.in_float64()
        operator = GroupedLayer(wide) if isinstance(wide, LayerConvolution) else wide
        self._u, self._s, self._v = (
            _decompose(problem, operator) if factors is None else _restored(factors, problem, operator)
        )
        kept = self._s[self._s > 0]
        self.rank, self.rcond = (
            (len(kept), default_rcond(problem.operator.kernel.dtype)) if problem.lam == 0 else (None, None)
        )
        self._least = synchronize.as_number(kept.min()) if len(kept) else 1.0
        self._inverse = torch.where(self._s > 0, 1 / self._s, 0)

    def factors(self) -> dict[str, Tensor]:
        """Return U, S and V, zeros for what was dropped: shapes `(groups, n, r)`, `(groups, r)`, `(groups, m, r)`."""
        return {"u": self._u, "s": self._s, "v": self._v}

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
        n_groups, n_numbers = before.shape[:2]
        rows = to_float64(x).reshape(-1, n_groups, n_numbers).transpose(0, 1)
        found = (((rows @ before) * factor[:, None]) @ after.mT).transpose(0, 1)
        batch = x.shape[: x.ndim - len(shape)]
        return found.reshape(*batch, *shape).to(x.dtype)

    def _bound_rounding(self, x: Tensor, y: Tensor) -> float:
        """Estimate the rounding of x = By relative to ‖x‖: √n units in the last place of ‖B‖‖y‖, and one of ‖x‖."""
        n_dims = self.problem.n_dims
        wide = torch.finfo(torch.float64).eps * math.prod(self.problem.operator.input_shape) ** 0.5
        ratio = synchronize.as_number(relative(norm(y, n_dims), norm(x, n_dims)).max())
        return wide * ratio / self._least + torch.finfo(x.dtype).eps


def _decompose(problem: TikhonovProblem, operator: LinearOperator) -> tuple[Tensor, Tensor, Tensor]:
    # Rounding of the data decides a rank only where there is no penalty.
    rcond = default_rcond(problem.operator.kernel.dtype if problem.lam == 0 else torch.float64)
    matrices = to_float64(operator.as_matrices() if isinstance(operator, GroupedLayer) else operator.as_matrix()[None])
    n_outputs = matrices.shape[1]
    if problem.weight > 0:
        periodic = problem.operator.boundary.is_periodic
        penalty = find_penalty(problem.penalty).operator(operator.input_shape, periodic=periodic)
        below = problem.weight**0.5 * penalty.as_matrix().to(matrices)
        matrices = torch.cat([matrices, below.expand(len(matrices), *below.shape)], dim=1)
    # Rounding of the taps leaves a gain to constants that are annihilated.
    for constant in problem.null_space_constants if _count_groups(problem) == 1 else ():
        line = to_float64(constant).expand(operator.input_shape).flatten()
        matrices = matrices - (matrices @ line)[..., None] * line / (line @ line)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    kept = s > rcond * s.amax()
    rank = synchronize.as_index(kept.sum(dim=1).amax())
    s = torch.where(kept, s, 0)
    return u[:, :n_outputs, :rank].contiguous(), s[:, :rank].contiguous(), vh[:, :rank].mT.contiguous()


def _restored(factors: Factors, problem: TikhonovProblem, operator: LinearOperator) -> tuple[Tensor, Tensor, Tensor]:
    n_groups = _count_groups(problem)
    rank = factors.tensors["s"].shape[-1] if "s" in factors and factors.tensors["s"].ndim else 0
    n_outputs, n_inputs = math.prod(operator.output_shape), math.prod(operator.input_shape)
    sizes = (("u", (n_groups, n_outputs, rank)), ("s", (n_groups, rank)), ("v", (n_groups, n_inputs, rank)))
    u, s, v = (factors.take(name, shape, torch.float64) for name, shape in sizes)
    return u, s, v
