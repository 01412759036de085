"""The outcome of a solve: when an iteration stops, what it records, and its status."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from deconv_cli.errors import UntrustworthyResultError
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import relative
from deconv_cli.parts import ShownInNotebook

Progress = Callable[[int, float], None]
"""Called after each iteration with its number and the certificate so far."""


@dataclass(frozen=True)
class StoppingRule:
    """When an iteration ends.

    Attributes:
        tolerance: certificate to reach.
        max_iterations: iterations at most, all rounds together.
        deadline: time of `time.monotonic` after which no iteration begins, in seconds.
    """

    tolerance: float
    max_iterations: int
    deadline: float = math.inf

    @property
    def is_overdue(self) -> bool:
        """Whether the time has run out."""
        return time.monotonic() >= self.deadline


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the certificate that an iteration of this precision should reach."""
    return 1e-10 if dtype == torch.float64 else 1e-6


@dataclass
class IterationLog:
    """The iterations of one solve, all rounds together.

    `history` is the certificate after every iteration, or after every step of several; `n_inner` counts iterations
    within the steps, which have no certificate of their own.
    """

    rule: StoppingRule
    progress: Progress | None = None
    history: list[float] = field(default_factory=list)
    n_inner: int = 0

    @property
    def n_iterations(self) -> int:
        """Number of iterations, those within steps included."""
        return len(self.history) + self.n_inner

    @property
    def is_spent(self) -> bool:
        """Whether the iterations, or the time, have run out."""
        return self.n_iterations >= self.rule.max_iterations or self.rule.is_overdue

    def rest(self, accuracy: float, max_iterations: float = math.inf) -> StoppingRule:
        """Give the rule of an iteration within a step: it may take the iterations that are left, or fewer."""
        left = max(1, self.rule.max_iterations - self.n_iterations)
        return StoppingRule(accuracy, int(min(left, max_iterations)), self.rule.deadline)

    def record(self, certificate: float) -> None:
        """Record an iteration."""
        self.history.append(certificate)
        if self.progress is not None:
            self.progress(self.n_iterations, certificate)

    def skip(self) -> None:
        """Count an iteration that computes no certificate: the last one still holds."""
        self.n_inner += 1
        if self.progress is not None and self.history:
            self.progress(self.n_iterations, self.history[-1])


class GradientLog(IterationLog):
    """The iterations of one solve of normal equations.

    `scale` is the norm of the right-hand side, ‖Aᴴy‖ for data, shape `(*batch,)`, and `goal` the norm of the gradient
    to be reached.
    """

    def __init__(self, rule: StoppingRule, scale: Tensor, progress: Progress | None = None) -> None:
        super().__init__(rule, progress)
        self.scale = scale
        self.goal = rule.tolerance * scale

    def add(self, remaining: Tensor) -> None:
        """Record an iteration that left a gradient of norm `remaining`, shape `(*batch,)`."""
        self.record(synchronize.as_number(relative(remaining, self.scale).max()))


class Status(StrEnum):
    """How a solve ended; the value is the sentence of the report."""

    CLOSED_FORM = "solved in closed form"
    CONVERGED = "converged to the tolerance"
    STOPPED_AT_NOISE = "stopped before the fit followed the noise"
    ALL_ITERATIONS = "all requested iterations were done"
    FIXED_STEPS = "a fixed number of steps was done, without reaching a minimum; judge the result by its residual"
    INACCURATE = (
        "the tolerance was reached, but λ is so small that the estimate may be more than 1 % away from the solution; "
        'use dtype="float64", a larger λ or a larger max_iterations'
    )
    STAGNATED = (
        "the arithmetic's precision ran out before the tolerance was reached; "
        'use dtype="float64", a larger tolerance, or a λ nearer to 1'
    )
    MAX_ITERATIONS = "the iterations ran out before the tolerance was reached; raise max_iterations, λ or tolerance"
    TIME_LIMIT = (
        "the time ran out before the tolerance was reached, and this is the best estimate so far; raise time_limit"
    )
    LOCAL_MINIMUM = (
        "the iteration ended at a local minimum that does not explain the data; use fewer layers at once, or data "
        "with more channels"
    )
    NOISE_NOT_REACHED = (
        "no weight leaves only the noise unexplained, so the kernel or the boundary does not fit the data; check "
        "them, or give a weight"
    )

    @property
    def is_success(self) -> bool:
        """Whether the result solves the problem as it was set."""
        ends = (Status.CLOSED_FORM, Status.CONVERGED, Status.STOPPED_AT_NOISE, Status.ALL_ITERATIONS)
        return self in ends or not self.has_certificate

    @property
    def has_certificate(self) -> bool:
        """Whether a minimum was looked for, so that the certificate says how near it is."""
        return self is not Status.FIXED_STEPS


_WITHOUT_LAMBDA = {
    Status.STAGNATED: 'check the kernel, or use dtype="float64" or a larger tolerance',
    Status.MAX_ITERATIONS: "raise max_iterations or tolerance",
}
"""What helps where the objective has no λ."""

QUADRATIC_OBJECTIVE = "½‖Ax − y‖² + ½λσ²max‖Lx‖²"


@dataclass(frozen=True)
class Solution(ShownInNotebook):
    """The outcome of one solve.

    Attributes:
        value: the estimate, shape `(*batch, C_in, *size)`.
        status: how the solve ended.
        n_iterations: iterations used; 0 in closed form.
        certificate: ‖Aᴴ(y − Ax) − λσ²max·LᴴLx‖ / ‖Aᴴy‖, computed again from `value`; the largest of the batch. For
            other objectives their solvers document it.
        residual_norms: the certificate after the iterations that computed one, as the iteration itself computed it.
        objective: the objective that `value` minimizes, in words.
        weight: of the prior, if it has one; given, or derived from the noise.
        n_steps: if the noise decides when to stop, the number of steps that led to `value`, without those spent on
            finding this number; `None` for others.
        noise_levels: of a block that prior photo restored, the noise of each channel in stored values; else empty.
        distance_bound: upper bound of ‖value − minimizer‖, relative to ‖value‖; the largest of the batch.
            With penalty `identity` it is the bound ‖gradient‖ / (λσ²max), and in closed form a bound of the rounding.
            With other penalties it is an estimate from the smallest Ritz value of the iteration, for λ below 1e-4 also
            of one for random numbers. `None` if nothing is known, as for λ = 0 of plain convolutions under other
            boundaries than `circular`.
        left_over: `value` as the solver found it and its y − Ax, if the solver had it at its end.
    """

    value: Tensor
    status: Status
    n_iterations: int
    certificate: float
    residual_norms: tuple[float, ...] = ()
    objective: str = QUADRATIC_OBJECTIVE
    weight: float | None = None
    distance_bound: float | None = None
    n_steps: int | None = None
    noise_levels: tuple[float, ...] = ()
    left_over: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def residual(self) -> Tensor | None:
        """The residual y − Ax of `value`; `None` if it is unknown or the value has changed since."""
        value, residual = self.left_over or (None, None)
        return residual if value is self.value else None

    def __repr__(self) -> str:
        """Describe it in one line: the shape of the value, how the solve ended, and how near it came."""
        return f"Solution(value {tuple(self.value.shape)}, {self.status.name.lower()}, {self._measures})"

    @property
    def ending(self) -> str:
        """How the solve ended, with advice, in a sentence; it mentions λ or a weight only if there is one."""
        has_lambda, sentence = "λ" in self.objective or "μ" in self.objective, self.status.value
        if not has_lambda and self.status in _WITHOUT_LAMBDA:
            another = "" if self.weight is None else ", or take another weight"
            sentence = f"{sentence.partition('; ')[0]}; {_WITHOUT_LAMBDA[self.status]}{another}"
        if self.value.dtype == torch.float64:
            sentence = sentence.replace('dtype="float64" or ', "").replace('dtype="float64", ', "")
        return sentence

    def raise_for_status(self) -> Solution:
        """Return the solution itself if its status is a success.

        Raises:
            UntrustworthyResultError: the solver did not reach its tolerance.
        """
        if not self.status.is_success:
            raise UntrustworthyResultError(f"{self.ending} ({self._measures}).")
        return self

    def warn_for_status(self, stacklevel: int = 2) -> Solution:
        """Return the solution itself, with a warning unless its status is a success.

        Args:
            stacklevel: whose line the warning names; 2 is the caller's.

        Warns:
            RuntimeWarning: the solver did not reach its tolerance.
        """
        if not self.status.is_success:
            warnings.warn(f"{self.ending} ({self._measures})", RuntimeWarning, stacklevel=stacklevel + 1)
        return self

    @property
    def _measures(self) -> str:
        distance = "" if self.distance_bound is None else f", distance up to {self.distance_bound:.2g} of the estimate"
        return f"certificate {self.certificate:.2g}{distance}"
