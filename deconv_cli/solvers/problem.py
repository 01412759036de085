"""The problem that every solver solves: min ‖Ax − y‖² + λ·σ²max·‖Lx‖², and about its condition number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import norm, relative, space_axes
from deconv_cli.operators.circulant import to_float64, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.operators.spectrum import affordable_grid, has_one_sign, single_threaded, singular_values
from deconv_cli.regularizers import PenaltyLike, find_penalty, is_determined
from deconv_cli.solvers.fourier import SingularSystemError, default_rcond

# An estimate is good enough on few frequencies: more, or wider blocks, would take as long as solving.
MAX_FREQUENCIES = 2**12
MAX_BLOCK_OPERATIONS = 1e7


# Under borders that copy pixels the condition number of AᴴA is this many times the bound under zeros at most: measured
# for 1,076 random kernels with a definite Hermitian part, 98 % of which keep it.
COPIES_FACTOR = 4


def exact_condition_number(operator: Convolution) -> float:
    """Bound the condition number of AᴴA, as a grid of frequencies shows it; infinite if nothing is known.

    Something is known of an output of unchanged size whose symbol has a definite Hermitian part. Under zeros ‖Ax‖‖x‖ ≥
    |⟨x, Ax⟩|, and the border only restricts x. Where the border copies pixels the bound is an estimate.
    """
    boundary = operator.boundary
    is_known = boundary.is_zero or (boundary.copies_pixels and not boundary.has_factors)
    if not is_known or operator.output_shape != operator.input_shape:
        return math.inf
    taps, geometry = to_float64(operator.kernel), operator.geometry
    grid = affordable_grid(geometry.extended_size, taps.shape[:2], MAX_FREQUENCIES, MAX_BLOCK_OPERATIONS)
    symbol = torus_symbol(taps, grid, geometry.pads.before)
    with single_threaded(symbol.device):
        values = torch.linalg.eigvalsh((symbol + symbol.mH) / 2)
    low, high = synchronize.as_numbers(torch.stack(values.aminmax()))
    largest = synchronize.as_number(singular_values(symbol).max())
    factor = 1 if boundary.is_zero else COPIES_FACTOR
    return factor * (largest / min(abs(low), abs(high))) ** 2 if low * high > 0 else math.inf


# A sum of taps whose smallest singular value is below this part of σmax nearly annihilates some constant.
MIN_CONSTANT_GAIN = 1e-5
# From this λ on float32 solves a problem to its last digits; below it systems are solved in double precision, and the
# answer is float32's all the same.
MIN_LAMBDA_IN_FLOAT32 = 1e-4
# Up to this λ rounding of a penalty on differences does not exceed that of the data.
MAX_LAMBDA_IN_FLOAT32 = 1.0


@dataclass(frozen=True)
class TikhonovProblem:
    """Regularized least squares for one convolution.

    Attributes:
        operator: A.
        lam: λ, dimensionless; 0 asks for the Moore–Penrose solution.
        known_sigma_max: largest singular value of the symbol, if it is known already.
        penalty: which L.
    """

    operator: Convolution
    lam: float
    known_sigma_max: float | None = None
    penalty: PenaltyLike = "identity"

    @cached_property
    def sigma_max(self) -> float:
        """The largest singular value of the symbol; 1 for λ = 0, where it does not matter, unless it is known."""
        if self.known_sigma_max is not None:
            return self.known_sigma_max
        return self.operator.spectrum.sigma_max if self.lam > 0 else 1.0

    @property
    def weight(self) -> float:
        """λ·σ²max, the factor of ‖Lx‖²."""
        return self.lam * self.sigma_max**2

    @property
    def n_outputs(self) -> int:
        """Output channels."""
        return self.operator.output_shape[0]

    @property
    def n_inputs(self) -> int:
        """Input channels."""
        return self.operator.input_shape[0]

    @property
    def n_dims(self) -> int:
        """Axes of one image: its channels and those of space."""
        return len(self.operator.input_shape)

    @property
    def is_determined(self) -> bool:
        """Whether kernel and penalty together determine every constant image."""
        return is_determined(self.lam, self.penalty, self.n_outputs, self.n_inputs)

    @property
    def has_full_rank_by_shape(self) -> bool:
        """Whether, by their numbers alone, the outputs determine the image, or the image has room for every output.

        The image has no such room if pixels outside it repeat others.
        """
        operator, geometry = self.operator, self.operator.geometry
        n_more = [o - i for o, i in zip(operator.output_shape[1:], operator.input_shape[1:], strict=True)]
        if self.n_outputs >= self.n_inputs and min(n_more) >= 0:
            return True
        repeats = operator.boundary.copies_pixels and any(geometry.pads.total)
        return self.n_outputs <= self.n_inputs and max(n_more) <= 0 and not repeats

    @property
    def runs_in_own_precision(self) -> bool:
        """Whether float32 data can be solved in float32."""
        return self.lam == 0 or MIN_LAMBDA_IN_FLOAT32 <= self.lam <= MAX_LAMBDA_IN_FLOAT32

    @property
    def taps_to_factor(self) -> Tensor:
        """The taps in the precision to factor them in: double, since float32 loses the small singular values.

        A blur of one channel keeps its own unless λ is tiny: its divisor is a sum of squares, large where L is zero.
        """
        taps = self.operator.kernel
        return taps if has_one_sign(taps) and self.lam >= MIN_LAMBDA_IN_FLOAT32 else to_float64(taps)

    @cached_property
    def condition(self) -> float:
        """About the condition number of AᴴA + μLᴴL; for λ > 0 as if kernel or border lost something."""
        return (1 + self.lam) / self.lam if self.lam > 0 else exact_condition_number(self.operator)

    @property
    def least_eigenvalue(self) -> float:
        """About that of AᴴA + μLᴴL for λ > 0, if images without a constant have a penalty of at least their norm."""
        return min(self.weight, self.least_constant_gain**2)

    @cached_property
    def penalty_operator(self) -> LinearOperator:
        """L, on images of A's input shape."""
        penalty, operator = find_penalty(self.penalty), self.operator
        return penalty.operator(operator.input_shape, periodic=operator.wraps)

    def penalty_gram(self, x: Tensor) -> Tensor:
        """Apply λσ²max·LᴴL to `x` of shape `(*batch, C_in, *size)`."""
        return self.weight * self.penalty_operator.apply_gram(x)

    @cached_property
    def least_constant_gain(self) -> float:
        """The smallest gain of a constant image outside the null space; infinite if all constants are penalized."""
        if find_penalty(self.penalty).penalizes_constants:
            return math.inf
        taps = to_float64(self.operator.kernel)
        values = torch.linalg.svdvals(self.operator.constant_gains)
        floor = default_rcond(self.operator.kernel.dtype) * taps.abs().sum()
        return synchronize.as_number(torch.where(values > floor, values, math.inf).min())

    @cached_property
    def null_space_constants(self) -> tuple[Tensor, ...]:
        """Constant images that A and the penalty both annihilate: orthonormal, of shape `(C_in, 1, …, 1)`."""
        if self.lam == 0 or find_penalty(self.penalty).penalizes_constants:
            return ()
        taps, axes = self.operator.kernel, space_axes(self.n_dims - 1)
        _, values, vectors = torch.linalg.svd(self.operator.constant_gains)
        floor = default_rcond(taps.dtype) * synchronize.as_number(taps.abs().sum())
        candidates = vectors[synchronize.as_index((values > floor).sum()) :].to(taps.dtype)
        candidates = candidates.reshape(*candidates.shape, *[1] * len(axes))
        # A border of zeros shows constants that the sum of the taps does not.
        largest = floor * math.prod(self.operator.output_shape) ** 0.5
        shape = self.operator.input_shape
        images = (self.operator.forward(c.expand(shape)) for c in candidates)
        return tuple(
            c
            for c, image in zip(candidates, images, strict=True)
            if synchronize.as_number(norm(image, self.n_dims)) <= largest
        )

    def split_null_space(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split `x`, shape `(*batch, C_in, *size)`, into its determined part and constants in the null space.

        The second part is `None` if the null space holds no constant.
        """
        if not self.null_space_constants:
            return x, None
        mean = x.mean(dim=space_axes(self.n_dims - 1), keepdim=True)
        parts = [c * (mean * c).sum(dim=-self.n_dims, keepdim=True) for c in self.null_space_constants]
        lost = torch.stack(parts).sum(dim=0).expand_as(x)
        return x - lost, lost

    def certificate(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute ‖Aᴴ(y − Ax) − λσ²max·LᴴLx‖ / ‖Aᴴy‖, shape `(*batch,)`; 0 if y = 0 and x = 0."""
        gradient = self.operator.adjoint(y - self.operator.forward(x))
        if self.weight > 0:
            gradient = gradient - self.penalty_gram(x)
        return relative(norm(gradient, self.n_dims), norm(self.operator.adjoint(y), self.n_dims))


def check_constants(problem: TikhonovProblem) -> None:
    """Refuse a torus that leaves constants undetermined, by `SingularSystemError`, where the true problem does not.

    With zeros outside, A need not annihilate constants even if the taps sum to zero, but the torus does.
    """
    sees_constants = find_penalty(problem.penalty).penalizes_constants
    if problem.lam == 0 or sees_constants or problem.operator.boundary.keeps_constants:
        return
    values = torch.linalg.svdvals(problem.operator.constant_gains)
    if synchronize.as_number(values.min()) <= MIN_CONSTANT_GAIN * problem.sigma_max:
        raise SingularSystemError("neither the kernel nor the penalty determines constants under a circular boundary")


def check_ramps(problem: TikhonovProblem) -> None:
    """Refuse, by `UsageError`, a penalty on curvature with a kernel that annihilates constants, and perhaps ramps."""
    operator = problem.operator
    keeps_constants = operator.boundary.keeps_constants or not any(operator.geometry.pads.total)
    if problem.lam == 0 or find_penalty(problem.penalty).penalizes_ramps or not keeps_constants:
        return
    taps = operator.kernel
    values = torch.linalg.svdvals(operator.constant_gains)
    if synchronize.as_number(values.min()) <= MIN_CONSTANT_GAIN * synchronize.as_number(taps.abs().sum()):
        raise UsageError(
            f"penalty {problem.penalty} does not determine images that change at a constant rate, and this kernel, "
            "whose taps sum to zero, may not determine them either; use penalty gradient or identity."
        )


def check_weight(problem: TikhonovProblem) -> None:
    """Refuse, by `UsageError`, a λ so large that squares of λ·σ²max or of its inverse leave the arithmetic's range."""
    taps = problem.operator.kernel
    largest = torch.finfo(taps.dtype).max ** 0.25 / max(problem.sigma_max, 1.0) ** 2
    if problem.lam > largest:
        dtype = str(taps.dtype).removeprefix("torch.")
        raise UsageError(
            f"λ must be at most {largest:.2g} for this kernel in {dtype}, but is {problem.lam:g}; even far below this "
            "value, rounding leaves only the penalty."
        )
