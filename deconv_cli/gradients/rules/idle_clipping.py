"""CLIPPING: a call that is to limit gradients limits none that a step goes by, or to much less than it says."""

from __future__ import annotations

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.training.training_events import IdleReason
from deconv_cli.gradients.training.training_evidence import TrainingEvidence

_BETWEEN = "call it between loss.backward() and optimizer.step()"
_EXPLANATIONS = {
    IdleReason.NO_WEIGHTS: (
        "it is given an iterator that was used up before, as by the optimizer, so that it limits no gradient.",
        "call parameters() again: clip_grad_norm_(model.parameters(), ...)",
    ),
    IdleReason.NO_GRADIENTS: (
        "no weight that it is given has a gradient then, so that the step goes by gradients without a limit.",
        f"{_BETWEEN}, for the weights that the optimizer holds",
    ),
    IdleReason.TOO_EARLY: (
        "a later backward pass adds to the gradients that it limits, so that the step goes by more than the limit.",
        "call it after the last loss.backward() before optimizer.step()",
    ),
    IdleReason.USED: ("the step has used these gradients already, without a limit.", _BETWEEN),
    IdleReason.SCALED: (
        "the gradients are still multiplied by the scale of the GradScaler, by which the step divides them afterwards: "
        "they end as much smaller than the limit.",
        "call scaler.unscale_(optimizer) right before it",
    ),
}


def find_idle_clipping(evidence: TrainingEvidence) -> list[Finding]:
    """Find such calls, once for each line."""
    return [
        Finding(Verdict.CLIPPING, (Cause("clipping", found.location, *_EXPLANATIONS[found.reason]),))
        for found in evidence.events.idle_clippings.values()
    ]
