"""NOT-LOSS: the parameter is used, but its value does not reach the loss."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.code_location import CodeLocation


def find_not_in_loss(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient whose value goes nowhere."""
    if evidence.gradient(name) is not None:
        return None
    location = evidence.forward.log.last_use.get(evidence.forward.bit(name)) or CodeLocation()
    why = "forward uses this parameter here, but its value does not reach the loss."
    suggestion = "return what this line computes and add it to the loss, or leave the line out"
    return Finding(Verdict.NOT_LOSS, (Cause("used, but not in the loss", location, why, suggestion),))
