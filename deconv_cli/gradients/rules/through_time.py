"""EXPLODING through time: the gradient grows a million times on its way back through the steps of a recurrence."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.recurrence.time_series import TimeSeries


def find_exploding_through_time(evidence: Evidence) -> list[Finding]:
    """Find a recurrence whose early steps rule the gradient."""
    series = evidence.double.series if evidence.double is not None else ()
    return [Finding(Verdict.EXPLODING, (_cause(found),)) for found in series if found.trend == "explodes"]


def _cause(found: TimeSeries) -> Cause:
    late = next((norm for norm in reversed(found.norms) if norm), 1.0)
    why = (
        f"‖∂loss/∂{found.name}‖ grows from {late:.2g} at the last of {len(found.norms)} steps to "
        f"{max(found.norms):.2g} at step {found.step}: a small step of training moves the loss out of bounds."
    )
    suggestion = "start recurrent weights orthogonal and small, use an LSTM or GRU, or shorten the steps; and clip"
    return Cause(f"the steps of {found.name}", found.location, why, suggestion)
