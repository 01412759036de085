"""What a solver gives back. A numerical outcome is a status, never an exception."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from deconv_cli.errors import UntrustworthyResultError


class Status(StrEnum):
    """How a solve ended; the value is the sentence that a person reads."""

    CLOSED_FORM = "solved in closed form"
    CONVERGED = "converged to the tolerance"
    STOPPED_AT_NOISE = "stopped where a closer fit would have followed the noise"
    STAGNATED = (
        "the arithmetic's precision ran out before the tolerance was reached; "
        "use --dtype float64, a larger λ or a larger --tolerance"
    )
    UNDETERMINED = (
        "the residual is as small as was asked for, but the data leave parts of the image undetermined; "
        "use a λ above 0, or padding valid or full"
    )
    MAX_ITERATIONS = "the iterations ran out before the tolerance was reached; raise --max-iterations, λ or --tolerance"

    @property
    def is_success(self) -> bool:
        """Whether the result answers the problem that was posed."""
        return self in (Status.CLOSED_FORM, Status.CONVERGED, Status.STOPPED_AT_NOISE)


QUADRATIC_OBJECTIVE = "½‖Ax − y‖² + ½λσ²max‖Lx‖²"


@dataclass(frozen=True)
class Solution:
    """The outcome of one solve.

    Attributes:
        value: the estimate, shape `(*batch, C_in, H, W)`.
        status: how the solve ended.
        n_iterations: iterations used; 0 in closed form.
        certificate: ‖Aᴴ(y − Ax) − λσ²max·LᴴLx‖ / ‖Aᴴy‖, computed afresh from `value`; the largest of the batch.
            Where something else was minimized, what its solver says.
        residual_norms: the certificate as the iterations saw it, one number an iteration.
        objective: what `value` minimizes, in words.
        weight: of the prior, where there is one; given, or found from the noise.
    """

    value: Tensor
    status: Status
    n_iterations: int
    certificate: float
    residual_norms: tuple[float, ...] = ()
    objective: str = QUADRATIC_OBJECTIVE
    weight: float | None = None

    def raise_for_status(self) -> Solution:
        """Return the solution itself, if it is to be trusted.

        Raises:
            UntrustworthyResultError: the solver did not reach what was asked for.
        """
        if not self.status.is_success:
            raise UntrustworthyResultError(f"{self.status} (certificate {self.certificate:.2g}).")
        return self

    def warn_for_status(self, stacklevel: int = 2) -> Solution:
        """Return the solution itself, with a warning if it is not to be trusted.

        Args:
            stacklevel: whose line the warning names; 2 is the caller's.

        Warns:
            RuntimeWarning: the solver did not reach what was asked for.
        """
        if not self.status.is_success:
            warnings.warn(
                f"{self.status} (certificate {self.certificate:.2g})", RuntimeWarning, stacklevel=stacklevel + 1
            )
        return self
