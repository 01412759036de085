"""What a solver gives back. A numerical outcome is a status, never an exception."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from deconv_cli.errors import UntrustworthyResultError


class Status(StrEnum):
    """How a solve ended; the value is the sentence of the report."""

    CLOSED_FORM = "solved in closed form"
    CONVERGED = "converged to the tolerance"
    STOPPED_AT_NOISE = "stopped where a closer fit would have followed the noise"
    ALL_ITERATIONS = "all iterations that were asked for were taken"
    FIXED_STEPS = "a fixed number of steps was taken and no minimum is claimed; judge by the residual"
    INACCURATE = (
        "the tolerance was reached, but λ is so small that the estimate may be more than 1 % away from the solution; "
        'use dtype="float64", a larger λ or a larger max_iterations'
    )
    STAGNATED = (
        "the arithmetic's precision ran out before the tolerance was reached; "
        'use dtype="float64", a larger tolerance, or a λ nearer to 1'
    )
    UNDETERMINED = (
        "the residual is as small as the tolerance, but the data leave parts of the image undetermined; "
        "use a λ above 0, or padding valid or full"
    )
    MAX_ITERATIONS = "the iterations ran out before the tolerance was reached; raise max_iterations, λ or tolerance"
    TIME_LIMIT = (
        "the time ran out before the tolerance was reached, and this is the best estimate until then; raise time_limit"
    )
    LOCAL_MINIMUM = (
        "the iteration ended where no small change of the estimate comes nearer to the data, which it does not meet; "
        "take fewer layers at once, or data of more channels"
    )
    NOISE_NOT_REACHED = (
        "no weight leaves only the noise unexplained, so that kernel and boundary cannot be those of the data; "
        "check them, or give a weight"
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
    Status.STAGNATED: 'use dtype="float64" or a larger tolerance',
    Status.MAX_ITERATIONS: "raise max_iterations or tolerance",
}
"""What helps where the objective has no λ."""

QUADRATIC_OBJECTIVE = "½‖Ax − y‖² + ½λσ²max‖Lx‖²"


@dataclass(frozen=True)
class Solution:
    """The outcome of one solve.

    Attributes:
        value: the estimate, shape `(*batch, C_in, *size)`.
        status: how the solve ended.
        n_iterations: iterations used; 0 in closed form.
        certificate: ‖Aᴴ(y − Ax) − λσ²max·LᴴLx‖ / ‖Aᴴy‖, computed afresh from `value`; the largest of the batch.
            For other objectives their solvers document it.
        residual_norms: the certificate after every iteration, as the iteration itself computed it.
        objective: what `value` minimizes, in words.
        weight: of the prior, where there is one; given, or found from the noise.
        rho: the last ρ of an iteration by ADMM; `None` for others.
        n_steps: of an iteration that the noise ends, those that led to `value`, without the ones that looked for their
            number; `None` for others.
        noise_levels: of a block that prior photo restored, the noise of each channel in stored values; else empty.
        distance_bound: how far `value` is from the minimizer at most, relative to ‖value‖; the largest of the batch.
            With penalty `identity` it is a bound, ‖gradient‖ / (λσ²max), and in closed form one of what rounding may
            do. With other penalties it is an estimate, from the smallest Ritz value of the iteration, for λ below 1e-4
            also of one for random numbers. `None` where nothing is known, as for λ = 0 of plain convolutions under
            other boundaries than `circular`.
        left_over: `value` as the solver found it, and y − Ax of that, where the solver had it at its end.
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
    rho: float | None = None
    noise_levels: tuple[float, ...] = ()
    left_over: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def residual(self) -> Tensor | None:
        """The residual y − Ax of `value`; `None` where it is not known, or the value is no longer what was found."""
        value, residual = self.left_over or (None, None)
        return residual if value is self.value else None

    @property
    def ending(self) -> str:
        """How the solve ended, and what helps, in a sentence: another λ or weight only where there is one."""
        has_lambda = "λ" in self.objective or "μ" in self.objective
        if has_lambda or self.status not in _WITHOUT_LAMBDA:
            return self.status.value
        another = "" if self.weight is None else ", or take another weight"
        return f"{self.status.value.partition('; ')[0]}; {_WITHOUT_LAMBDA[self.status]}{another}"

    def raise_for_status(self) -> Solution:
        """Return the solution itself, if it is to be trusted.

        Raises:
            UntrustworthyResultError: the solver did not reach its tolerance.
        """
        if not self.status.is_success:
            raise UntrustworthyResultError(f"{self.ending} ({self._measures}).")
        return self

    def warn_for_status(self, stacklevel: int = 2) -> Solution:
        """Return the solution itself, with a warning if it is not to be trusted.

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
