"""PARTLY DETACHED: code detaches on purpose, and what lies behind it has another way to the loss."""

from __future__ import annotations

from deconv_cli.gradients.detachment_causes import explain_detachment
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.forward_trace import Detachment

_MAX_LINES = 3
_DISCRETE = ("multinomial", "bernoulli", "poisson")


def find_detached_on_purpose(evidence: Evidence) -> list[Finding]:
    """Find `.detach()` and `no_grad` in the user's own code, a finding for each line."""
    forward = evidence.forward
    trained = sum(forward.bit(name) for name in evidence.magnitudes)
    lines: dict[str, Detachment] = {}
    for index in sorted(forward.flow.detachments):
        found = forward.log.detachments[index]
        is_plain = found.is_deliberate and not found.by_library and found.location.file
        if is_plain and found.lost & trained:
            lines.setdefault(str(found.location), found)
    return [*_drawn(evidence, trained), *(_finding(evidence, found) for found in list(lines.values())[:_MAX_LINES])]


def _drawn(evidence: Evidence, trained: int) -> list[Finding]:
    """Find continuous draws without a gradient that a layer goes on with, and that no log_prob is taken of."""
    log, flow = evidence.forward.log, evidence.forward.flow
    is_discrete = {str(draw.location): draw.bare_name in _DISCRETE for draw in log.random}
    cuts = (log.detachments[index] for index in sorted(flow.detachments) if index in log.read_on)
    lines = {
        str(found.location): explain_detachment(found)
        for found in cuts
        if found.is_draw and found.lost & trained and not is_discrete.get(str(found.location), True)
    }
    return [] if log.takes_likelihood else [Finding(Verdict.DETACHED, (cause,)) for cause in lines.values()]


def _finding(evidence: Evidence, found: Detachment) -> Finding:
    names = [name for name in evidence.magnitudes if evidence.forward.bit(name) & found.lost]
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    label = "no_grad" if found.by_mode else found.label
    why = (
        f"{names[0]}{others} reach the loss by this line too, but get gradients on other ways only; the value here "
        "was held constant in finite differences."
    )
    suggestion = "nothing, if that is meant, as for a target or a straight-through gradient; else take it out"
    return Finding(Verdict.PARTLY_DETACHED, (Cause(label, found.location, why, suggestion),))
