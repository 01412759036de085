"""FAILS: an error ends the script after a backward pass that was checked."""

from __future__ import annotations

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.training.training_events import Failure, TrainingEvidence

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
_SUGGESTIONS = {
    "backward through the graph a second time": _TWICE,
    "modified by an inplace operation": _WRITTEN,
    "does not require grad and does not have a grad_fn": _SWITCHED_OFF,
    "grad can be implicitly created only for scalar outputs": "reduce the loss to one number: loss.mean().backward()",
}
_WITHOUT_GRADIENT = (Verdict.UNUSED, Verdict.NOT_LOSS, Verdict.DETACHED)


def find_failing_script(evidence: TrainingEvidence) -> list[Finding]:
    """Find that the script itself went no further."""
    failure = evidence.events.failure
    if failure is None or _is_explained(failure, evidence):
        return []
    if failure.reads_missing_gradient:
        return [_of_missing_gradient(failure, evidence)]
    why = f"the script ends here, in its training: {failure.kind}: {failure.message}."
    known = (suggestion for words, suggestion in _SUGGESTIONS.items() if words in failure.message)
    suggestion = next(known, "correct this line")
    is_carried = evidence.events.carried is not None and suggestion in (_TWICE, _WRITTEN)
    cause = Cause("an error", failure.location, why, DETACH_CARRIED if is_carried else suggestion)
    return [Finding(Verdict.FAILS, (cause,))]


def _is_explained(failure: Failure, evidence: TrainingEvidence) -> bool:
    """Tell whether the error follows from what was found of the passes."""
    findings = [*(found for found in evidence.report.parameters if found.is_fault), *evidence.report.general]
    verdicts, message = {found.verdict for found in findings}, failure.message
    is_without = not verdicts.isdisjoint(_WITHOUT_GRADIENT)
    return (
        any(message in cause.why for found in findings for cause in found.causes)
        or (is_without and (failure.reads_missing_gradient or "does not require grad" in message))
        or (Verdict.IN_PLACE in verdicts and "modified by an inplace operation" in message)
        or (Verdict.UNREGISTERED in verdicts and "backward through the graph a second time" in message)
    )


def _of_missing_gradient(failure: Failure, evidence: TrainingEvidence) -> Finding:
    """Explain why a `.grad` that the script reads is None."""
    if failure.cleared_at is not None:
        why = "the gradients are cleared here, after backward() and before the script reads them: .grad is None."
        cause = Cause("zero_grad()", failure.cleared_at, why, "call zero_grad() before backward()")
        return Finding(Verdict.GRADIENT_LOST, (cause,))
    frozen = [found.name for found in evidence.report.parameters if found.verdict == Verdict.FROZEN]
    why = "this line reads .grad of a weight that no backward pass reaches, so it is None"
    suggestion = "read .grad of the model that backward() went through, and leave out weights whose .grad is None"
    if frozen:
        why = f"this line reads .grad of a weight that gets none, so it is None: requires_grad is off for {frozen[0]}"
        suggestion = "leave out weights that are frozen, or let them require gradients, requires_grad_()"
    return Finding(Verdict.FAILS, (Cause("an error", failure.location, f"{why}.", suggestion),))
