"""NON-FINITE: NaN or infinity, in the gradient or in the loss."""

from __future__ import annotations

from deconv_cli.gradients.cure_trial import ADVICE, SINGULAR, harmless_input
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import Operation

_KEEP_AWAY = "keep the input away from where this line is singular"
_NOT_ENOUGH = f"{_KEEP_AWAY}; a small number added to it was tried, and does not help alone"


def find_non_finite(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is not finite, or one of a loss that is not: a gradient may be zero there because of it."""
    if evidence.gradient(name) is None:
        return None
    if not evidence.is_loss_finite:
        why = "NaN or infinity first arises in {}, from inputs without."
        causes = unique_causes(_cause(evidence, origin, why) for origin in evidence.origins)
        loss = float(evidence.forward.loss.detach())
        return Finding(Verdict.NON_FINITE, causes or (_from_outside(evidence),), f"the loss is {loss}")
    if evidence.magnitudes[name].is_finite or evidence.backward is None:
        return None
    origins = evidence.origins_of(name, lambda magnitude: not magnitude.is_finite)
    if "where" in evidence.forward.log.names:
        causes = unique_causes(_cause_in_branch(origin) for origin in origins)
        return Finding(Verdict.NON_FINITE, causes)
    why = "a finite gradient enters {} and leaves it as NaN or infinity: its slope is infinite at this input."
    return Finding(Verdict.NON_FINITE, unique_causes(_cause(evidence, origin, why) for origin in origins))


def _from_outside(evidence: Evidence) -> Cause:
    """Explain NaN or infinity that no operation makes."""
    where = " and ".join(evidence.non_finite_sources) or "what the code keeps outside of the model's tensors"
    why = f"no operation makes NaN or infinity of finite numbers: {where} held it before."
    return Cause("NaN or infinity", CodeLocation(), why, "find it there with torch.isfinite, and replace it")


def _cause_in_branch(operation: Operation) -> Cause:
    """Explain a slope that torch.where multiplies by zero in the branch that is not taken, which gives NaN."""
    bare = operation.bare_name
    why = (
        f"the slope of {bare} is infinite or beyond the range at inputs that torch.where may not even select; it "
        "multiplies that slope by zero, which gives NaN."
    )
    fill = harmless_input(bare)
    suggestion = f"keep the input of {bare} harmless where it is not selected: {bare}(torch.where(mask, x, {fill}))"
    return Cause(operation.label, operation.location, why, suggestion)


def _cause(evidence: Evidence, operation: Operation, why: str) -> Cause:
    """Explain where NaN or infinity arises; `why` has a place for the bare name of the operation."""
    bare = operation.bare_name
    cure = SINGULAR.get(bare.strip("_"))
    suggestion = cure.text if cure is not None else ADVICE.get(bare.strip("_").removeprefix("linalg_"), _KEEP_AWAY)
    if str(operation.location) in evidence.failing_fixes:
        suggestion = ADVICE.get(bare, _NOT_ENOUGH)
    return Cause(operation.label, operation.location, why.format(bare), suggestion)
