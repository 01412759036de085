"""DETACHED: the gradient reaches the parameter on some of its paths only."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Finding, Verdict
from deconv_cli.gradients.responses import uses_outside
from deconv_cli.gradients.rules.detached import causes_of_detachments
from deconv_cli.gradients.rules.wrong import describe_difference

_DELIBERATE = ("detach", "detach_", "data", "Variable", "nn.Parameter", "torch.tensor", "torch.as_tensor")


def find_partly_detached(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that differs from finite differences, and an operation that keeps a part of it."""
    difference = describe_difference(evidence, name)
    if evidence.double is None or not difference:
        return None
    forward = evidence.double.forward
    bit = forward.bit(name)
    detachments = [forward.log.detachments[index] for index in sorted(forward.flow.detachments)]
    losing = [found for found in detachments if found.lost & bit]
    deliberate = [found for found in losing if found.name in _DELIBERATE or found.by_mode]
    # A value that only a Python condition reads is the usual way to choose a branch.
    outside = [use for use in uses_outside(forward, bit) if use.name != "__bool__"]
    if not losing and not outside:
        return None
    detail = f"detached on one of several paths, so the gradient is only a part: {difference}"
    return Finding(Verdict.DETACHED, causes_of_detachments(deliberate or losing or outside), detail)
