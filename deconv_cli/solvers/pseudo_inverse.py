"""The pseudo-inverse of a convolution: built once for a kernel, a size and a boundary, applied to many outputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.choice import build_inverse, choose_method, find_solver, restore_inverse
from deconv_cli.solvers.differentiation import attach_gradient
from deconv_cli.solvers.estimator import Estimator, check_finite, to_unit
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.inverse_state import InverseState, Precomputed
from deconv_cli.solvers.iteration_log import Progress, StoppingRule, default_tolerance
from deconv_cli.solvers.problem import TikhonovProblem, check_weight
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import Size, format_size


class PseudoInverse(Estimator):
    """The map from outputs of a convolution back to images.

    It is differentiable in the outputs and, if the taps require a gradient, in the taps as they were when it was built.

    Args:
        kernel: canonical kernel; its dtype and device are those of the arithmetic.
        image_size: size of the images that are wanted back.
        settings: how to invert.
        precomputed: what an equal inverse has computed already (see `from_state`).

    Attributes:
        problem: what is solved.
        rank: of the operator; `None` where the method does not count it.

    Raises:
        ShapeError: the kernel does not fit the size.
        UsageError: settings that contradict one another.
        TooLargeError: the method does not fit the memory.
    """

    def __init__(
        self, kernel: Kernel, image_size: Size, settings: ResolvedSettings, precomputed: Precomputed | None = None
    ) -> None:
        super().__init__(kernel, image_size, settings)
        self.lam, self.penalty = settings.lam, settings.penalty
        problem = TikhonovProblem(
            self.operator,
            settings.lam,
            None if precomputed is None else precomputed.sigma_max,
            spaced_penalty(settings.penalty, settings.spacing),
            settings.rcond,
        )
        if precomputed is None:
            self.choice = choose_method(problem, settings.method, settings.max_memory)
        else:
            choose_method(problem, precomputed.choice.method)
            self.choice = precomputed.choice
        self.cost = find_solver(self.choice.method).cost(problem)
        self.check_memory(self.cost)
        if precomputed is None and settings.lam > 0:
            problem = replace(problem, known_sigma_max=self.spectrum.sigma_max)
        check_weight(problem)
        self.problem = problem
        self.tolerance = default_tolerance(kernel.taps.dtype) if settings.tolerance is None else settings.tolerance
        rule = StoppingRule(self.tolerance, settings.max_iterations)
        if precomputed is None:
            self._inverse, self.choice = build_inverse(problem, rule, self.choice)
            self.cost = find_solver(self.choice.method).cost(problem)
        else:
            self._inverse = restore_inverse(problem, rule, self.choice.method, precomputed.factors)
        self.rcond, self.rank = self._inverse.rcond, self._inverse.rank

    def __repr__(self) -> str:
        """Describe it in one line: the kernel, both sizes, the boundary, λ and the method."""
        kernel, geometry = tuple(self.operator.kernel.shape), self.geometry
        sizes = f"{format_size(geometry.output_size)} → {format_size(geometry.image_size)}"
        boundary, method = self.settings.boundary, self.choice.method
        return f"PseudoInverse(kernel {kernel}, {sizes}, boundary {boundary}, λ {self.lam:g}, method {method})"

    @property
    def state(self) -> InverseState:
        """All that makes this inverse what it is, as plain tensors and plain words."""
        precomputed = Precomputed(self.choice, self.problem.sigma_max, Factors(self._inverse.factors()))
        taps = self.operator.kernel
        return InverseState(taps, self.kernel.shared, self.geometry.image_size, self.settings, precomputed)

    @classmethod
    def from_state(cls, state: InverseState) -> PseudoInverse:
        """Build an inverse again, without computing what its state holds; it gives bit for bit what the first one gave.

        Args:
            state: its tensors on the device of the arithmetic.

        Raises:
            MalformedInputError: the state contradicts itself, and no inverse ever gave it.
            TooLargeError: the inverse does not fit the memory.
        """
        try:
            kernel = replace(Kernel.from_tensor(state.taps, dimensions=len(state.image_size)), shared=state.is_shared)
            if kernel.shared and kernel.taps.shape[:2] != (1, 1):
                raise MalformedInputError(
                    f"its taps of shape {tuple(kernel.taps.shape)} cannot act on every channel alike."
                )
            inverse = cls(kernel, state.image_size, state.settings, state.precomputed)
        except (UsageError, ShapeError) as error:
            raise MalformedInputError(f"its settings contradict one another: {error}") from error
        unknown = state.precomputed.factors.tensors.keys() - inverse._inverse.factors().keys()
        if unknown:
            raise MalformedInputError(
                f"method {inverse.choice.method} has no use here for its factors {', '.join(sorted(unknown))}."
            )
        return inverse

    def __call__(self, y: Tensor) -> Tensor:
        """Estimate the images that gave the outputs `y`.

        Args:
            y: shape `(C_out, *output_size)` or `(B, C_out, *output_size)`.

        Returns:
            Shape `(C_in, *size)` or `(B, C_in, *size)`; differentiable once in `y` and in the taps.

        Raises:
            ShapeError: `y` is not an output of this convolution.
            UsageError: `y` has another dtype or device than the arithmetic.
            TooLargeError: the batch does not fit the memory.
            MalformedInputError: `y` holds NaN or infinite values.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance; `solve` returns its outcome.
        """
        arranged = self._checked(y)
        if self._inverse.is_closed_form:
            return self.frame(self._attach(self._inverse.apply(arranged.detach()), arranged))
        return self.frame(self._solve(arranged, None).warn_for_status().value)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(C_out, *output_size)`, or a batch of them; see `Estimator.solve`."""
        return self._solve(self._checked(y), progress)

    def _checked(self, y: Tensor) -> Tensor:
        arranged = self.arrange(y)
        check_finite(y)
        self.check_memory(self.cost, self.n_images(arranged))
        return arranged

    def _solve(self, arranged: Tensor, progress: Progress | None) -> Solution:
        data, unit = to_unit(arranged.detach(), self.n_dims)
        solution = self._inverse.solve(data, progress)
        if unit is not None:
            solution = replace(solution, value=unit * solution.value)
        # Constants that nothing determines are left wherever an iteration started: the least estimate has none.
        determined, _ = self.problem.split_null_space(solution.value)
        value = self._attach(determined, arranged)
        return solution if value is solution.value else replace(solution, value=value)

    def _attach(self, value: Tensor, arranged: Tensor) -> Tensor:
        """Make an estimate differentiable in the arranged outputs and in the taps, where they ask for it."""
        taps = self.kernel.taps
        if self.settings.rcond is not None and taps.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                "an inverse that rcond truncates has no derivative in the kernel here; use lambda instead, "
                "or detach the kernel."
            )
        return attach_gradient(value, arranged, taps, self._inverse, self.spectrum if self.problem.lam > 0 else None)
