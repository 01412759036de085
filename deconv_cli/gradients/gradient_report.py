"""The report of the gradient checker: what was found for each parameter, for the model as a whole, and through time."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.gradients.findings import Fault, Finding, ParameterFinding, grouped
from deconv_cli.gradients.recurrence.time_series import TimeSeries
from deconv_cli.gradients.report_text import write_html, write_report


@dataclass(frozen=True)
class GradientReport:
    """All that was found: for each parameter, for the model as a whole (`general`), and through time (`recurrent`).

    Attributes:
        loss: the value of the loss, None where it is not finite.
        dtype: the precision in which finite differences were taken, None where none were.
        notes: what was assumed, a sentence each.
        not_checked: what was left out and why, a sentence each.
        n_evaluations: forward passes spent on finite differences.
        time_s: seconds in all.
        noun: what gradients are by, `parameter` or `input`.
    """

    parameters: tuple[ParameterFinding, ...]
    general: tuple[Finding, ...]
    recurrent: tuple[TimeSeries, ...]
    loss: float | None
    dtype: str | None
    notes: tuple[str, ...]
    not_checked: tuple[str, ...]
    n_evaluations: int
    time_s: float
    noun: str = "parameter"

    def __str__(self) -> str:
        """Write the report as text."""
        return write_report(self.parameters, self.general, self.noun)

    def _repr_html_(self) -> str:
        return write_html(self.parameters, self.general, self.noun)

    def faults(self) -> list[Fault]:
        """Gather the parameters of each fault by source line."""
        return grouped(finding for finding in self.parameters if finding.is_fault)

    def remarks(self) -> list[Fault]:
        """Gather by source line the parameters of what is no fault but has a reason, such as a zero at the start."""
        return grouped(finding for finding in self.parameters if finding.causes and not finding.is_fault)
