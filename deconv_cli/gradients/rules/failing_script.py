"""FAILS: an error ends the script after a backward pass that was checked."""

from __future__ import annotations

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.training.training_evidence import TrainingEvidence

_TWICE = (
    "call backward() once on the sum of the losses, or detach what both go through in one of them: net(fake.detach())"
)
_WRITTEN = "run forward again after the step: what it computed before belongs to the weights of before"
_REMEDIES = {"backward through the graph a second time": _TWICE, "modified by an inplace operation": _WRITTEN}


def find_failing_script(evidence: TrainingEvidence) -> list[Finding]:
    """Find that the script itself went no further."""
    failure = evidence.events.failure
    if failure is None:
        return []
    why = f"the script ends here, in its training: {failure.kind}: {failure.message}."
    remedies = (remedy for words, remedy in _REMEDIES.items() if words in failure.message)
    cause = Cause("an error", failure.location, why, next(remedies, "mend this line"))
    return [Finding(Verdict.FAILS, (cause,))]
