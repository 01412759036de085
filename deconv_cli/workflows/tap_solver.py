"""The inversion of convolutions with custom taps: Gauss–Newton steps, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deconv_cli.errors import TooLargeError, UsageError
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.extension import Extension
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.operators.tap_convolution import (
    TapConvolution,
    TapLinearization,
    check_elementwise,
    name_of,
    spread_out,
)
from deconv_cli.regularizers import find_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.fourier import SingularSystemError
from deconv_cli.solvers.gauss_newton import NonlinearProblem, solve_nonlinear, undetermined_share
from deconv_cli.solvers.iteration_log import StoppingRule, default_tolerance
from deconv_cli.solvers.iterative import TorusPreconditioner
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.solver import free_memory
from deconv_cli.vocabulary import Size, format_memory
from deconv_cli.workflows.tap_model import TapModel

SHARE_RULE = StoppingRule(tolerance=1e-4, max_iterations=300)
MAX_SPREAD = 10.0
"""Slopes that differ by more than √(this · λ) between pixels differ from their mean by more than what λ adds."""


@dataclass
class TapSolver:
    """Solves one image after another, and remembers how each went.

    Attributes:
        model: the taps.
        size: pixels of an image.
        settings: what was resolved.
        progress: is called after every step.
        solutions: of all images so far.
        sigma_max: the largest singular value of the convolution near the start, of all images so far.
        undetermined: the largest share that the outputs of an image leave open.
    """

    model: TapModel
    size: Size
    settings: ResolvedSettings
    progress: Callable[[int, float], None] | None
    solutions: list[Solution] = field(default_factory=list)
    sigma_max: float = 0.0
    undetermined: float = 0.0

    def convolution(self, weights: Tensor) -> TapConvolution:
        """Build the convolution for weights `(C_out, C_in, *k)`."""
        return self.model.convolution(self.size, weights)

    def solve(self, weights: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """Solve for one output `(C_out, *size)`; gives the estimate, with its border where that is unknown."""
        operator, settings = self.convolution(weights), self.settings
        self._check_memory(operator)
        check_elementwise(operator.tap, start, weights.flatten(2)[..., 0])
        level = synchronize.as_number(start.mean())
        sigma_max = _gain_near(operator, level)
        weight = settings.lam * sigma_max**2
        penalty = None
        if weight > 0:
            periodic = operator.boundary.is_periodic
            penalty = find_penalty(settings.penalty).operator(operator.input_shape, periodic=periodic)
        if operator.boundary.is_unknown:
            start = Extension(operator.geometry, start.shape[0], as_rule("replicate")).forward(start)
        rule = StoppingRule(settings.tolerance or default_tolerance(y.dtype), settings.max_iterations)
        problem = NonlinearProblem(operator, y, penalty, weight)

        def precondition(jacobian: LinearOperator) -> LinearOperator | None:
            return _near_inverse(operator, jacobian, settings, sigma_max)

        found = solve_nonlinear(problem, start, rule, precondition=precondition, progress=self.progress)
        self.solutions.append(found)
        self.sigma_max = max(self.sigma_max, sigma_max)
        share = undetermined_share(operator.linearize(found.value), found.value, SHARE_RULE)
        self.undetermined = max(self.undetermined, share)
        return found.value

    def solution_of(self, image: Tensor) -> Solution:
        """Describe how all images together went: by the worst status and certificate, and the most iterations."""
        worst = max(self.solutions, key=lambda found: (not found.status.is_success, found.certificate))
        longest = max(self.solutions, key=lambda found: found.n_iterations)
        return replace(worst, value=image, n_iterations=longest.n_iterations)

    def _check_memory(self, operator: TapConvolution) -> None:
        """Refuse images the slopes of whose taps do not fit the memory; products need the other factors too."""
        n_copies = 3 if self.model.reduction == "product" else 1
        n_slopes = operator.kernel.numel() * math.prod(operator.output_shape[1:])
        needed = n_copies * n_slopes * operator.kernel.itemsize
        available = self.settings.max_memory or free_memory(operator.kernel.device)
        if needed > available:
            raise TooLargeError(
                f"the slopes of {operator.kernel.numel()} taps at {math.prod(operator.output_shape[1:])} outputs take "
                f"about {format_memory(needed)}, more than the {format_memory(available)} that may be used; take a "
                "smaller image, fewer taps, or float32."
            )


def _gain_near(operator: TapConvolution, level: float) -> float:
    """Compute σmax of the convolution that the taps are near a level of the pixels.

    Raises:
        UsageError: the tap or its slope is not finite there, or does not depend on the pixel.
    """
    name, at = name_of(operator.tap), f"at the start, where pixels are about {level:g}"
    near = operator.slopes_at(level)
    value = operator.forward(near.new_full(operator.input_shape, level))
    if not synchronize.holds_everywhere(torch.isfinite(near)) or not synchronize.holds_everywhere(
        torch.isfinite(value)
    ):
        raise UsageError(f"the tap '{name}' gives NaN or infinite values {at}; give a start at which it is defined.")
    if not synchronize.holds_anywhere(near != 0):
        raise UsageError(
            f"the tap '{name}' has no slope {at}, so that nothing tells which way to go; give a start at which it "
            "changes with the pixel."
        )
    return kernel_spectrum(near, operator.geometry.image_size).sigma_max


def _near_inverse(
    operator: TapConvolution, jacobian: LinearOperator, settings: ResolvedSettings, sigma_max: float
) -> LinearOperator | None:
    """Precondition by the inverse on a torus of the convolution with the mean slopes, where they are near enough."""
    assert isinstance(jacobian, TapLinearization)
    if settings.lam == 0 or any(step > 1 for step in operator.stride):
        return None
    mean, spread = jacobian.mean_slopes()
    if not spread**2 <= MAX_SPREAD * settings.lam:
        return None
    plain = Convolution.of_geometry(spread_out(mean, operator.dilation), operator.geometry, operator.boundary)
    try:
        return TorusPreconditioner(TikhonovProblem(plain, settings.lam, sigma_max, settings.penalty))
    except SingularSystemError:
        return None
