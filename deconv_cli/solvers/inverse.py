"""What all inverses have in common: data go in, an estimate comes out, and the normal equations can be solved too."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.solvers.iteration_log import Progress
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import Solution, Status
from deconv_cli.thread_warnings import warnings_here


class Inverse(ABC):
    """The inverse of one problem, built once and ready for many outputs.

    With H = AᴴA + μLᴴL an inverse computes x = H⁺Aᴴy. Its derivatives need H⁺ alone (`differentiation.py`).

    Attributes:
        problem: what is solved.
        rcond: singular values up to this fraction of the largest were dropped; `None` where nothing is truncated.
        rank: how many singular values of A are above it; `None` where they were not counted.
        is_closed_form: whether `apply` computes the estimate in one go, so that a certificate would double the work.
    """

    problem: TikhonovProblem
    is_closed_form = False
    rcond: float | None = None
    rank: int | None = None

    @abstractmethod
    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data.

        Args:
            y: shape `(*batch, C_out, *output_size)`.
            progress: called after every iteration, if there are any.
        """

    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, for data of shape `(*batch, C_out, *output_size)`.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance.
        """
        return self.solve(y).warn_for_status(stacklevel=4).value

    @abstractmethod
    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g with what was factored for `solve`.

        Args:
            g: shape `(*batch, C_in, *size)`: any, not only one that comes from data.

        Returns:
            Of the shape of `g`.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance.
        """

    def approximate_normal(self, g: Tensor) -> Tensor:
        """Compute about H⁺g, for an outer iteration that looks at what is left over itself; by default `solve_normal`.

        Args:
            g: shape `(*batch, C_in, *size)`.

        Returns:
            Of the shape of `g`.
        """
        with warnings_here("ignore"):
            return self.solve_normal(g)

    def factors(self) -> dict[str, Tensor]:
        """Return what was costly to compute, by name: empty where building is cheap.

        `Solver.build` takes them back as `Factors`.
        """
        return {}

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g, the transpose of the inverse.

        Args:
            g: shape `(*batch, C_in, *size)`.

        Returns:
            Shape `(*batch, C_out, *output_size)`.

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
