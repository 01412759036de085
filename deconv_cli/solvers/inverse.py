"""What all inverses have in common: data go in, an estimate comes out, and the normal equations can be solved too."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.refinement import Progress
from deconv_cli.solvers.solution import Solution


class Inverse(ABC):
    """The inverse of one problem, built once and ready for many outputs.

    With H = AᴴA + μLᴴL an inverse computes x = H⁺Aᴴy. Its derivatives need H⁺ alone (`differentiation.py`).

    Attributes:
        problem: what is solved.
    """

    problem: TikhonovProblem

    @abstractmethod
    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data.

        Args:
            y: shape `(*batch, C_out, H_y, W_y)`.
            progress: told of every iteration, if there are any.
        """

    @abstractmethod
    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g with what was factored for `solve`.

        Args:
            g: shape `(*batch, C_in, H, W)`: any, not only one that comes from data.

        Returns:
            Of the shape of `g`.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance.
        """

    def factors(self) -> dict[str, Tensor]:
        """Give what was costly to compute, by name: empty where building is cheap.

        The constructor of an inverse that has any takes them back as `Factors`.
        """
        return {}

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g, the transpose of the inverse.

        Args:
            g: shape `(*batch, C_in, H, W)`.

        Returns:
            Shape `(*batch, C_out, H_y, W_y)`.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance.
        """
        return self.problem.operator.forward(self.solve_normal(g))
