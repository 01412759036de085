"""The report of the gradient checker."""

from __future__ import annotations

from dataclasses import dataclass, field

from deconv_cli.gradients.finding import Cause, Finding
from deconv_cli.gradients.finite_differences.comparison import Comparison
from deconv_cli.gradients.recurrence.time_series import TimeSeries


@dataclass(frozen=True)
class ParameterFinding(Finding):
    """What is found for one parameter, and its numbers.

    Attributes:
        name: as in the state dict.
        shape: its shape.
        gradient_norm: ‖gradient‖, None where none arrives or it is not finite.
        weight_norm: ‖parameter‖.
        comparison: against finite differences, None where it was not compared.
        second_order: the same for second derivatives, None where they were not compared.
        gates: norms of the gradient by gate, for recurrent layers.
    """

    name: str = ""
    shape: tuple[int, ...] = ()
    gradient_norm: float | None = None
    weight_norm: float = 0.0
    comparison: Comparison | None = None
    second_order: Comparison | None = None
    gates: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """‖gradient‖ / ‖parameter‖."""
        return None if self.gradient_norm is None or not self.weight_norm else self.gradient_norm / self.weight_norm


@dataclass(frozen=True)
class Fault:
    """Parameters with one fault of the same cause."""

    verdict: str
    causes: tuple[Cause, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class GradientReport:
    """All that was found.

    Attributes:
        parameters: one finding for each parameter.
        general: findings of the model as a whole.
        recurrent: gradients through time.
        loss: the value of the loss, None where it is not finite.
        dtype: the precision in which finite differences were taken, None where none were.
        notes: what was assumed, a sentence each.
        not_checked: what was left out and why, a sentence each.
        n_evaluations: forward passes spent on finite differences.
        time_s: seconds in all.
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

    def faults(self) -> list[Fault]:
        """Gather the parameters of each fault by source line."""
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[ParameterFinding]] = {}
        for finding in self.parameters:
            if finding.is_fault:
                lines = tuple((cause.operation, str(cause.location)) for cause in finding.causes)
                groups.setdefault((finding.verdict, lines), []).append(finding)
        return [
            Fault(
                verdict,
                tuple(dict.fromkeys(cause for finding in group for cause in finding.causes)),
                tuple(finding.name for finding in group),
            )
            for (verdict, _), group in groups.items()
        ]
