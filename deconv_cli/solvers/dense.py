"""Small problems: the operator written out as a matrix, and its singular values and vectors with it.

Nothing of the operator's structure is used, so that it may be any, with any number of outputs, well-posed or not:

    [A; √μ L] = U S Vᵀ,    x = V S⁺ U_Aᵀ y,    (AᵀA + μLᵀL)⁺ = V (S⁺)² Vᵀ,

where U_A are the rows of U that stand beside A. Groups of channels that a layer does not mix have a matrix each, which
are decomposed as one batch. With μ = 0 that is the Moore–Penrose inverse, and singular values that
are no larger than the rounding of the largest one count as zero (Golub and Van Loan, Matrix Computations, 2013, section
5.5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.layer_convolution import GroupedLayer, LayerConvolution
from deconv_cli.operators.linear_operator import LinearOperator, Shape
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.inverse import ClosedFormInverse, Inverse
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.norms import norm, relative
from deconv_cli.solvers.problem import TikhonovProblem, check_ramps
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
        del rule
        if factors is None:
            check_ramps(problem)
        return DenseInverse(problem, factors)


DENSE = DenseSolver()


def _count_groups(problem: TikhonovProblem) -> int:
    operator = problem.operator
    return operator.options.groups if isinstance(operator, LayerConvolution) else 1


def _matrix_size(problem: TikhonovProblem) -> tuple[int, int, int]:
    """Count the groups of channels, and the rows and columns of [A; √μ L] of each."""
    operator, n_groups = problem.operator, _count_groups(problem)
    n_columns = math.prod(operator.input_shape) // n_groups
    n_rows = math.prod(operator.output_shape) // n_groups
    if problem.lam > 0:
        n_rows += n_columns * len(find_penalty(problem.penalty).terms(len(operator.input_shape) - 1))
    return n_groups, n_rows, n_columns


class DenseSystem:
    """The decomposition of [A; √μ L] for any two operators, in double precision.

    Args:
        operator: A; of a `GroupedLayer` its groups are a batch of their own, ahead of the input shape.
        penalty: L, on tensors of A's input shape; of no consequence for μ = 0.
        weight: μ ≥ 0.
        rcond: singular values up to this fraction of the largest count as zero.
        factors: those of an equal system, which are then not computed.
        excluded: constants of A's input that count as annihilated, though rounding of the taps leaves them a gain.

    Attributes:
        input_shape: of what A takes.
        output_shape: of what A gives.
        least: the smallest singular value that is not zero; 1 where there is none.
        rank: how many are not zero, in all groups.
    """

    def __init__(
        self,
        operator: LinearOperator,
        penalty: LinearOperator | None = None,
        weight: float = 0.0,
        *,
        rcond: float,
        factors: Factors | None = None,
        excluded: tuple[Tensor, ...] = (),
    ) -> None:
        whole = operator.layer if isinstance(operator, GroupedLayer) else operator
        self.input_shape, self.output_shape = tuple(whole.input_shape), tuple(whole.output_shape)
        self._u, self._s, self._v = (
            _decompose(operator, penalty, weight, rcond, excluded) if factors is None else _restored(factors, operator)
        )
        kept = self._s[self._s > 0]
        self.rank = len(kept)
        self.least = synchronize.as_number(kept.min()) if len(kept) else 1.0
        self._inverse = torch.where(self._s > 0, 1 / self._s, 0)

    def factors(self) -> dict[str, Tensor]:
        """Return U, S and V, zeros for what was dropped: shapes `(groups, n, r)`, `(groups, r)`, `(groups, m, r)`."""
        return {"u": self._u, "s": self._s, "v": self._v}

    def estimate(self, y: Tensor) -> Tensor:
        """Compute H⁺Aᵀy for `y` of shape `(*batch, *output_shape)`; shape `(*batch, *input_shape)`."""
        return self._apply(self._u, self._inverse, self._v, y, self.input_shape)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, *input_shape)`."""
        return self._apply(self._v, self._inverse.square(), self._v, g, self.input_shape)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, *input_shape)`; shape `(*batch, *output_shape)`."""
        return self._apply(self._v, self._inverse, self._u, g, self.output_shape)

    def _apply(self, before: Tensor, factor: Tensor, after: Tensor, x: Tensor, shape: Shape) -> Tensor:
        """Multiply `x` of shape `(*batch, *any)` by `after · diag(factor) · beforeᵀ`; shape `(*batch, *shape)`."""
        n_groups, n_numbers = before.shape[:2]
        rows = to_float64(x).reshape(-1, n_groups, n_numbers).transpose(0, 1)
        found = (((rows @ before) * factor[:, None]) @ after.mT).transpose(0, 1)
        batch = x.shape[: x.ndim - len(shape)]
        return found.reshape(*batch, *shape).to(x.dtype)


def _decompose(
    operator: LinearOperator,
    penalty: LinearOperator | None,
    weight: float,
    rcond: float,
    excluded: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    matrices = to_float64(operator.as_matrices() if isinstance(operator, GroupedLayer) else operator.as_matrix()[None])
    n_outputs = matrices.shape[1]
    if weight > 0:
        assert penalty is not None
        below = weight**0.5 * penalty.as_matrix().to(matrices)
        matrices = torch.cat([matrices, below.expand(len(matrices), *below.shape)], dim=1)
    for constant in excluded:
        line = to_float64(constant).expand(operator.input_shape).flatten()
        matrices = matrices - (matrices @ line)[..., None] * line / (line @ line)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    kept = s > rcond * s.amax()
    rank = synchronize.as_index(kept.sum(dim=1).amax())
    s = torch.where(kept, s, 0)
    return u[:, :n_outputs, :rank].contiguous(), s[:, :rank].contiguous(), vh[:, :rank].mT.contiguous()


def _restored(factors: Factors, operator: LinearOperator) -> tuple[Tensor, Tensor, Tensor]:
    n_groups = operator.n_groups if isinstance(operator, GroupedLayer) else 1
    rank = factors.tensors["s"].shape[-1] if "s" in factors and factors.tensors["s"].ndim else 0
    n_outputs, n_inputs = math.prod(operator.output_shape), math.prod(operator.input_shape)
    sizes = (("u", (n_groups, n_outputs, rank)), ("s", (n_groups, rank)), ("v", (n_groups, n_inputs, rank)))
    u, s, v = (factors.take(name, shape, torch.float64) for name, shape in sizes)
    return u, s, v


class DenseInverse(ClosedFormInverse):
    """Inverse of one small problem, ready for many outputs.

    Args:
        problem: one that `DENSE` covers.
        factors: those of an equal inverse, which are then not computed.
    """

    def __init__(self, problem: TikhonovProblem, factors: Factors | None = None) -> None:
        self.problem = problem
        rcond = default_rcond(problem.operator.kernel.dtype)
        self.rcond = rcond if problem.lam == 0 else None
        # What a penalty holds is no rounding of the data, however small it is.
        rcond = rcond if problem.lam == 0 else default_rcond(torch.float64)
        wide = problem.operator.in_float64()
        operator = GroupedLayer(wide) if isinstance(wide, LayerConvolution) else wide
        penalty = find_penalty(problem.penalty).operator(operator.input_shape, periodic=wide.boundary.is_periodic)
        excluded = problem.null_space_constants if _count_groups(problem) == 1 else ()
        self._system = DenseSystem(operator, penalty, problem.weight, rcond=rcond, factors=factors, excluded=excluded)
        self.rank = self._system.rank if problem.lam == 0 else None

    def factors(self) -> dict[str, Tensor]:
        """Return the singular values and vectors."""
        return self._system.factors()

    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, without its certificate."""
        return self._system.estimate(y)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, *size)`."""
        return self._system.solve_normal(g)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, *size)`."""
        return self._system.solve_transposed(g)

    def _bound_rounding(self, x: Tensor, y: Tensor) -> float:
        """Estimate what rounding does to x = By, relative to ‖x‖: √n units in the last place of ‖B‖‖y‖, and of ‖x‖."""
        n_dims = self.problem.n_dims
        wide = torch.finfo(torch.float64).eps * math.prod(self._system.input_shape) ** 0.5
        ratio = synchronize.as_number(relative(norm(y, n_dims), norm(x, n_dims)).max())
        return wide * ratio / self._system.least + torch.finfo(x.dtype).eps
