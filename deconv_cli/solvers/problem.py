"""The problem that every solver solves: min ‖Ax − y‖² + λ·σ²max·‖Lx‖²."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.fourier import SingularSystemError, default_rcond

# A sum of taps whose smallest singular value is below this part of σmax all but annihilates some constant.
MIN_CONSTANT_GAIN = 1e-5
# From this λ on float32 solves a problem to its last digits; below it systems are solved in double precision, and the
# answer is float32's all the same.
MIN_LAMBDA_IN_FLOAT32 = 1e-4


@dataclass(frozen=True)
class TikhonovProblem:
    """Regularized least squares for one convolution.

    Attributes:
        operator: A.
        lam: λ, dimensionless; 0 asks for the Moore–Penrose solution.
        sigma_max: the largest singular value of the symbol; of no consequence for λ = 0.
        penalty: which L.
    """

    operator: Convolution
    lam: float
    sigma_max: float
    penalty: str = "identity"

    @property
    def weight(self) -> float:
        """λ·σ²max, the factor of ‖Lx‖²."""
        return self.lam * self.sigma_max**2

    @cached_property
    def penalty_operator(self) -> LinearOperator:
        """L, on images of A's input shape."""
        penalty, operator = find_penalty(self.penalty), self.operator
        return penalty.operator(operator.input_shape, periodic=operator.boundary.is_periodic)

    def penalty_gram(self, x: Tensor) -> Tensor:
        """Apply λσ²max·LᴴL to `x` of shape `(*batch, C_in, H, W)`."""
        return self.weight * self.penalty_operator.adjoint(self.penalty_operator.forward(x))

    def negative_gradient(self, x: Tensor, residual: Tensor) -> Tensor:
        """Compute Aᴴ(y − Ax) − λσ²max·LᴴLx, which vanishes at the solution."""
        gradient = self.operator.adjoint(residual)
        return gradient if self.weight == 0 else gradient - self.penalty_gram(x)

    @cached_property
    def unseen_constants(self) -> tuple[Tensor, ...]:
        """Constant images that neither A nor the penalty sees, as orthonormal vectors of shape `(C_in, 1, 1)`."""
        if self.lam == 0 or find_penalty(self.penalty).penalizes_constants:
            return ()
        taps = self.operator.kernel
        _, values, vectors = torch.linalg.svd(to_float64(taps).sum(dim=(-2, -1)))
        floor = default_rcond(taps.dtype) * synchronize.as_number(taps.abs().sum())
        candidates = vectors[synchronize.as_index((values > floor).sum()) :].to(taps.dtype)[:, :, None, None]
        # A border of zeros shows constants that the sum of the taps does not.
        largest = floor * math.prod(self.operator.output_shape) ** 0.5
        shape = self.operator.input_shape
        return tuple(
            c for c in candidates if synchronize.as_number(norm(self.operator.forward(c.expand(shape)))) <= largest
        )

    def split_unseen(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split `x`, shape `(*batch, C_in, H, W)`, into what the problem sees and the constants that it does not.

        Returns:
            The two parts; the second is `None`, and the first `x` itself, where the problem sees everything.
        """
        if not self.unseen_constants:
            return x, None
        mean = x.mean(dim=(-2, -1), keepdim=True)
        parts = [constant * (mean * constant).sum(dim=-3, keepdim=True) for constant in self.unseen_constants]
        unseen = torch.stack(parts).sum(dim=0).expand_as(x)
        return x - unseen, unseen

    def certificate(self, x: Tensor, y: Tensor) -> Tensor:
        """Measure how well `x` solves the problem for the data `y`.

        Returns:
            ‖Aᴴ(y − Ax) − λσ²max·LᴴLx‖ / ‖Aᴴy‖, shape `(*batch,)`; 0 where y = 0 and x = 0.
        """
        scale = norm(self.operator.adjoint(y))
        return relative(norm(self.negative_gradient(x, y - self.operator.forward(x))), scale)


def check_constants(problem: TikhonovProblem) -> None:
    """Make sure that on a torus nothing but what the true problem does not see either is left undetermined.

    Under a border of zeros a penalty on differences meets constants, though the sum of the taps does not: there the
    torus is singular where the problem is not.

    Raises:
        SingularSystemError: the sum of the taps is singular under a border of zeros.
    """
    sees_constants = find_penalty(problem.penalty).penalizes_constants
    if problem.lam == 0 or sees_constants or problem.operator.boundary.keeps_constants:
        return
    taps = to_float64(problem.operator.kernel)
    values = torch.linalg.svdvals(taps.sum(dim=(-2, -1)))
    if synchronize.as_number(values.min()) <= MIN_CONSTANT_GAIN * problem.sigma_max:
        raise SingularSystemError("neither the kernel nor the penalty sees constants on a torus")


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over channels and pixels, shape `(*batch,)`, summed in double precision where the device has it."""
    return (a * b).sum(dim=(-3, -2, -1), dtype=accumulation_dtype(a))


def norm(a: Tensor) -> Tensor:
    """Euclidean norm over channels and pixels, shape `(*batch,)`."""
    return inner(a, a).sqrt()


def accumulation_dtype(a: Tensor) -> torch.dtype:
    """Pick the widest real type in which the device can add up."""
    return a.dtype if a.device.type == "mps" else torch.float64


def relative(size: Tensor, scale: Tensor) -> Tensor:
    """Divide norms, leaving those as they are whose scale is zero."""
    return torch.where(scale > 0, size / scale.clamp_min(1e-300), size)
