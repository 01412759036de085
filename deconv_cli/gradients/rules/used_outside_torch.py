"""DETACHED: the parameter's value reaches the loss as a plain number, a list or an array."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Finding, Verdict
from deconv_cli.gradients.responses import uses_outside
from deconv_cli.gradients.rules.detached import causes_of_detachments


def find_used_outside_torch(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient on which the loss depends by way of plain values.

    A loss that autograd reaches nothing from is made of what left torch, even if it stands still on these data.
    """
    forward, bit = evidence.forward, evidence.forward.bit(name)
    uses = uses_outside(forward, bit)
    if evidence.gradient(name) is not None or not uses:
        return None
    if forward.reached and name not in evidence.moved_from_outside:
        return None
    detachments = [forward.log.detachments[index] for use in uses for index in use.before]
    before = [found for found in detachments if found.lost & bit]
    return Finding(Verdict.DETACHED, causes_of_detachments(before or uses))
