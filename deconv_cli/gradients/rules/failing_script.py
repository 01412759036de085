"""FAILS: an error ends the script after a backward pass that was checked."""

from __future__ import annotations

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.training.training_evidence import TrainingEvidence

_TWICE = (
    "call backward() once on the sum of the losses, or detach what both go through in one of them: net(fake.detach())"
)
_WRITTEN = "run forward again after the step: what it computed before belongs to the weights of before"
DETACH_CARRIED = (
    "detach what one turn of the loop hands on to the next, such as a state or a running sum: state = state.detach()"
)
_SWITCHED_OFF = (
    "before forward runs, switch gradients on again, torch.set_grad_enabled(True), and let weights that are to be "
    "trained require them, requires_grad_()"
)
_MADE_ONCE = (
    "keep the Parameter itself in self: what __init__ computes of it belongs to the first backward pass and to no other"
)
_SUGGESTIONS = {
    "backward through the graph a second time": _TWICE,
    "modified by an inplace operation": _WRITTEN,
    "does not require grad and does not have a grad_fn": _SWITCHED_OFF,
}


def find_failing_script(evidence: TrainingEvidence) -> list[Finding]:
    """Find that the script itself went no further."""
    failure = evidence.events.failure
    if failure is None:
        return []
    why = f"the script ends here, in its training: {failure.kind}: {failure.message}."
    known = (suggestion for words, suggestion in _SUGGESTIONS.items() if words in failure.message)
    suggestion = next(known, "correct this line")
    is_made_once = any(found.verdict == Verdict.UNREGISTERED for found in evidence.report.general)
    if is_made_once and suggestion == _TWICE:
        suggestion = _MADE_ONCE
    is_carried = evidence.events.carried is not None and suggestion in (_TWICE, _WRITTEN)
    cause = Cause("an error", failure.location, why, DETACH_CARRIED if is_carried else suggestion)
    return [Finding(Verdict.FAILS, (cause,))]
