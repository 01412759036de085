"""The common base of all inverses: data in, estimate out; with the factors that a saved inverse keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError
from deconv_cli.operators import synchronize
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import Progress, Solution, Status
from deconv_cli.thread_warnings import warnings_here


@dataclass(frozen=True, eq=False)
class Factors:
    """Tensors by name that are costly to compute: `Inverse.factors` returns them, `Solver.build` takes them back.

    The rest of an inverse is cheap and follows from the kernel and the settings. Memory layouts belong to the factors:
    with another one the same arithmetic may round differently.
    """

    tensors: Mapping[str, Tensor]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the tensor of a name, which kernel and settings say must have this shape and dtype.

        Raises:
            MalformedInputError: it is missing, or differs.
        """
        found = self.tensors.get(name)
        if found is None or tuple(found.shape) != shape or found.dtype != dtype:
            what = "is missing" if found is None else f"is {found.dtype} of shape {tuple(found.shape)}"
            raise MalformedInputError(f"its factor '{name}' should be {dtype} of shape {shape}, but {what}.")
        return found

    def take_pivots(self, n: int) -> Tensor:
        """Return the row exchanges of an LU factorization of `n` rows, shape `(n,)`.

        Raises:
            MalformedInputError: they are missing or invalid: LAPACK would write outside of the matrix.
        """
        pivots = self.take("pivots", (n,), torch.int32)
        if not synchronize.holds_everywhere((pivots >= 1) & (pivots <= n)):
            raise MalformedInputError(f"its factor 'pivots' should name rows from 1 to {n}, but names others.")
        return pivots


class Inverse(ABC):
    """The inverse of one problem, built once and ready for many outputs.

    With H = AᴴA + μLᴴL an inverse computes x = H⁺Aᴴy. Its derivatives need H⁺ alone (`pseudo_inverse.py`).

    Attributes:
        problem: the problem.
        rcond: singular values up to this fraction of the largest were dropped; `None` if nothing is truncated.
        rank: how many singular values of A are above it; `None` if they were not counted.
        is_closed_form: whether `apply` computes the estimate in one go, so that a certificate would double the work.
    """

    problem: TikhonovProblem
    is_closed_form = False
    rcond: float | None = None
    rank: int | None = None

    @abstractmethod
    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`; `progress` is called after every iteration."""

    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, for data of shape `(*batch, C_out, *output_size)`.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance.
        """
        return self.solve(y).warn_for_status(stacklevel=4).value

    @abstractmethod
    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for any `g` of shape `(*batch, C_in, *size)`.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance.
        """

    def approximate_normal(self, g: Tensor) -> Tensor:
        """Compute about H⁺g, for an outer iteration that corrects the rest itself; by default `solve_normal`."""
        with warnings_here("ignore"):
            return self.solve_normal(g)

    def factors(self) -> dict[str, Tensor]:
        """Return tensors that are costly to compute, by name; empty if building is cheap."""
        return {}

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g, shape `(*batch, C_out, *output_size)`, for `g` of shape `(*batch, C_in, *size)`.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance.
        """
        return self.problem.operator.forward(self.solve_normal(g))


class ClosedFormInverse(Inverse):
    """An inverse that is applied in one go, without iterations."""

    is_closed_form = True

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`; without iterations there is no progress."""
        del progress
        x = self.apply(y)
        certificate = synchronize.as_number(self.problem.certificate(x, y).max())
        return Solution(x, Status.CLOSED_FORM, 0, certificate, distance_bound=self._bound_rounding(x, y))

    @abstractmethod
    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, without its certificate."""

    @abstractmethod
    def _bound_rounding(self, x: Tensor, y: Tensor) -> float:
        """Bound or estimate what rounding does to the estimate `x` of the data `y`, relative to ‖x‖."""
