"""Undo a chain of layers: from an activation of a network back to the input of the network.

One method undoes every chain: damped Gauss–Newton steps on the layers as they are. If all layers are affine, the first
step is the pseudo-inverse. Other chains may have local minima: the residual shows them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from deconv_cli.chains.chain_layers import Layers, Part, compose, input_shape_of, list_parts
from deconv_cli.diagnostics.conditioning import MAX_DENSE_ENTRIES, DeterminedShare, determined_share
from deconv_cli.errors import UsageError
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import relative
from deconv_cli.operators.linear_operator import Function, Linearization, LinearOperator, check_image
from deconv_cli.regularizers import find_penalty
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.solvers.solution import Solution, Status, StoppingRule, default_tolerance
from deconv_cli.solvers.solve import NonlinearProblem, largest_singular_value_of, solve_nonlinear
from deconv_cli.vocabulary import Size, counted, format_percent
from deconv_cli.workflows.arithmetic import pick_dtype
from deconv_cli.workflows.trust import MAX_RELATIVE_RESIDUAL, Doubt, DoubtReason, doubt_solver

TAKEN = ("defaults", "input_size", "lam", "penalty", "tolerance", "max_iterations", "dtype")
"""The settings that the inversion of a chain uses."""

MAX_AMPLIFICATION = 100.0
"""An estimate that is larger than the data need by this factor is doubted if they do not determine it."""
FULL_SHARE = 0.999
"""Share from which on the data determine an input."""
ROUNDING = 8.0
"""Residuals below this multiple of the distance of neighboring numbers in the data's type are rounding errors."""


class ChainMethod(StrEnum):
    """How a chain was undone, in the words of the report."""

    LEAST_SQUARES = "one affine operator, by least squares of least norm"
    GAUSS_NEWTON = "as a whole, by damped Gauss–Newton steps"


@dataclass(frozen=True)
class ChainLayer:
    """One layer: its name, torch's description of it, and whether it is affine."""

    name: str
    description: str
    treatment: str


@dataclass(frozen=True, eq=False)
class ChainInversion:
    """An estimate of the input of a chain of layers.

    Attributes:
        image: the estimate, shape `(C, *size)`, or `(B, C, *size)` if the data have a batch axis.
        solution: of all images together: the worst status and certificate, the most iterations.
        layers: the chain, in order.
        method: how it was undone.
        lam: λ of the penalty λσ²max‖Lx‖², with the largest singular value of the derivative at zero.
        penalty: the name of L.
        residual: y − f(x̂) through the chain itself, of the shape of the data.
        relative_residual: ‖f(x̂) − y‖ / ‖y‖, the largest of the batch.
        determined: the share of the input that the data determine around the estimate, the least of the batch.
        amplification: ‖J‖‖x̂‖ / ‖f(x̂)‖ with the derivative J at the estimate, the largest of the batch: the factor by
            which the estimate is larger than the data need.
    """

    image: Tensor
    solution: Solution
    layers: tuple[ChainLayer, ...]
    method: ChainMethod
    lam: float
    penalty: str
    residual: Tensor
    relative_residual: float
    determined: DeterminedShare
    amplification: float

    @property
    def ending(self) -> str:
        """How the iteration ended; a minimum that does not reach the data is named as such."""
        if self.solution.status is not Status.CONVERGED or self.relative_residual <= MAX_RELATIVE_RESIDUAL:
            return self.solution.ending
        steps, left = counted(self.solution.n_iterations, "iteration"), format_percent(self.relative_residual, 3)
        return f"stopped after {steps} at a minimum; {left} of the data remain unexplained"

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """Why the estimate cannot be trusted as it is; empty if nothing speaks against it."""
        found = doubt_solver(self.solution)
        if self.relative_residual > MAX_RELATIVE_RESIDUAL and self.lam == 0:
            found.append(
                Doubt(
                    DoubtReason.RESIDUAL,
                    f"the estimate does not reproduce the data: {format_percent(self.relative_residual)} of them "
                    "remain unexplained; check that the data are the output of these layers in evaluation mode",
                )
            )
        if self.amplification > MAX_AMPLIFICATION and self.determined.share < FULL_SHARE:
            found.append(
                Doubt(
                    DoubtReason.AMPLIFICATION,
                    f"the estimate is {self.amplification:.2g} times as large as the data need, in directions that "
                    "they do not determine; use λ > 0 to keep these small",
                )
            )
        return tuple(found)


def invert_chain(
    y: Tensor,
    layers: Layers,
    *,
    settings: ReconstructionSettings | None = None,
    time_limit: float | None = None,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,  # noqa: ANN401
) -> ChainInversion:
    """Estimate the images that a chain of layers turned into `y`, and how much of them `y` determines.

    Layers act in evaluation mode, on each image separately. The arithmetic runs in float64 by default.

    Args:
        y: the output of the last layer, shape `(C, *size)` or `(B, C, *size)`.
        layers: a module, or modules in order with or without names; an `nn.Sequential` is opened. Any function that
            torch differentiates is a layer.
        settings: how to undo it; or give its fields one by one.
        time_limit: seconds after which iterations end with the best estimate so far; `None` for none.
        progress: is called after every step with the iterations so far and the certificate.
        options: those fields of `ReconstructionSettings` that `TAKEN` lists; λ is 0 by default. `input_size` are the
            pixels of the input, or channels and pixels; by default the stride times the size of `y` if that is
            possible, otherwise the smallest possible size.

    Raises:
        ShapeError: no input of the chain gives data of this shape.
        UsageError: a setting has no use here, or torch does not differentiate a layer.
        MalformedInputError: the data are not finite.
    """
    if settings is not None and options:
        raise UsageError(f"settings were given both as a record and as {next(iter(options))}; use one or the other.")
    settings = ReconstructionSettings.of(**options) if settings is None else settings
    lam = _checked(settings)
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"time_limit must be a positive number of seconds, but is {time_limit!r}.")
    check_image(y, "the output to invert")
    wide = torch.float32 if y.device.type == "mps" else torch.float64
    data = y.detach().to(pick_dtype(settings.dtype or wide, y, y.device))
    eps = torch.finfo(y.dtype if y.is_floating_point() else data.dtype).eps
    rule = StoppingRule(settings.tolerance or default_tolerance(data.dtype), settings.max_iterations)
    parts, penalty = list_parts(layers, data), settings.penalty or "identity"
    whole = compose(parts)
    shape = input_shape_of(whole, tuple(y.shape), settings.input_size)
    start = data.new_zeros(shape)
    with torch.no_grad():
        batch = data.shape[: data.ndim - whole(start[None])[0].ndim]
    problem = _Chain(parts, start, lam, penalty, eps)
    images = data.reshape(-1, *data.shape[len(batch) :])
    found, end = [], math.inf if time_limit is None else time.monotonic() + time_limit
    for n_left, one in zip(range(len(images), 0, -1), images, strict=True):  # with an equal share of the remaining time
        now = time.monotonic()
        found.append(problem.undo(one, replace(rule, deadline=now + (end - now) / n_left), progress))
    solutions, residuals, relative_residuals, determined, amplifications = zip(*found, strict=True)
    worst = max(solutions, key=lambda one: (not one.status.is_success, one.certificate))
    return ChainInversion(
        image=torch.stack([one.value for one in solutions]).reshape(*batch, *shape),
        solution=replace(worst, n_iterations=max(one.n_iterations for one in solutions)),
        layers=tuple(
            ChainLayer(part.name, part.description, "affine" if part.is_affine else "not affine") for part in parts
        ),
        method=ChainMethod.LEAST_SQUARES if problem.is_affine else ChainMethod.GAUSS_NEWTON,
        lam=lam,
        penalty=penalty,
        residual=torch.stack(residuals).reshape(data.shape),
        relative_residual=max(relative_residuals),
        determined=min(determined, key=lambda one: one.share),
        amplification=max(amplifications),
    )


def chain_input_shape(y: Tensor, layers: Layers, input_size: Size | None = None) -> Size:
    """Find the shape `(C, *size)` of the images that `invert_chain` would return, without computing them."""
    check_image(y, "the output to invert")
    return input_shape_of(compose(list_parts(layers, y.new_zeros(()).double())), tuple(y.shape), input_size)


def _checked(settings: ReconstructionSettings) -> float:
    """Refuse settings that have no effect for chains; return λ."""
    idle = [f.name for f in fields(settings) if f.name not in TAKEN and getattr(settings, f.name) != f.default]
    if idle:
        raise UsageError(f"{idle[0]} has no effect for a chain of layers; leave it out.")
    if isinstance(settings.lam, str | tuple):
        raise UsageError(f"lambda must be zero or a positive number for a chain of layers, but is {settings.lam!r}.")
    return settings.lam or 0.0


class _Chain:
    """A chain of layers with its penalty λ‖Lx‖², for images like `zeros`; `eps` is that of the type of the data."""

    def __init__(self, parts: list[Part], zeros: Tensor, lam: float, penalty: str, eps: float) -> None:
        self._parts, self._zeros, self._eps = parts, zeros, eps
        self._function: Function = compose(parts)
        self._penalty: LinearOperator | None = None
        self._weight = 0.0
        if lam > 0:
            self._penalty = find_penalty(penalty).operator(tuple(zeros.shape), periodic=False)
            self._weight = lam * largest_singular_value_of(Linearization(self._function, zeros), zeros) ** 2

    @property
    def is_affine(self) -> bool:
        """Whether all layers are affine."""
        return all(part.is_affine for part in self._parts)

    def undo(
        self, y: Tensor, rule: StoppingRule, progress: Callable[[int, float], None] | None
    ) -> tuple[Solution, Tensor, float, DeterminedShare, float]:
        """Estimate the image that the chain turned into `y`.

        Returns:
            The solution, the residual y − f(x̂), its relative size, the share that `y` determines, the amplification.
        """
        problem = NonlinearProblem(self._function, y, self._penalty, self._weight)
        start = self._least_squares(y) if self.is_affine else self._zeros
        solution = solve_nonlinear(problem, start, rule, progress)
        derivative = Linearization(self._function, solution.value)
        residual = y - derivative.value
        relative_residual = synchronize.as_number(relative(residual.norm(), y.norm()))
        if relative_residual <= ROUNDING * self._eps and not solution.status.is_success:
            solution = replace(solution, status=Status.CONVERGED)
        size = largest_singular_value_of(derivative, y) * solution.value.norm()
        amplification = synchronize.as_number(relative(size, derivative.value.norm()))
        return solution, residual, relative_residual, determined_share(derivative, solution.value), amplification

    def _least_squares(self, y: Tensor) -> Tensor:
        """Solve a small affine chain by the singular values of its matrix; return zeros for a larger one."""
        if self._zeros.numel() * y.numel() > MAX_DENSE_ENTRIES:
            return self._zeros
        derivative = Linearization(self._function, self._zeros)
        matrix, target = derivative.as_matrix(), (y - derivative.value).flatten()
        if self._penalty is not None:
            rows = self._weight**0.5 * self._penalty.as_matrix().to(matrix)
            matrix, target = torch.cat([matrix, rows]), torch.cat([target, target.new_zeros(len(rows))])
        return (torch.linalg.pinv(matrix) @ target).reshape(self._zeros.shape)
