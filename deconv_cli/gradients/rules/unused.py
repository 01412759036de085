"""UNUSED: no operation of forward reads the parameter."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Cause, Finding, Verdict


def find_unused(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient that nothing reads."""
    if evidence.gradient(name) is not None or evidence.forward.log.used & evidence.forward.bit(name):
        return None
    why = "no operation of forward reads this parameter."
    suggestion = "use it in forward, or remove it, or pass find_unused_parameters=True to DistributedDataParallel"
    return Finding(Verdict.UNUSED, (Cause("never used", evidence.module_of(name), why, suggestion),))
