"""LOSS INPUT: a loss is given something other than what its formula is for; it trains, but badly."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.loss_calls import LossCall, Misuse


def find_loss_input(evidence: Evidence) -> list[Finding]:
    """Find losses that are misused, once for each line."""
    # A softmax over one class is no loss, and may be meant, as in attention to a single token.
    losses = [call for call in evidence.forward.log.loss_calls if not call.name.endswith("softmax")]
    calls = {(str(call.location), call.misuse): call for call in losses}
    return [Finding(Verdict.LOSS_INPUT, (_cause(call),)) for call in calls.values()]


def _cause(call: LossCall) -> Cause:
    why, suggestion = _explain(call)
    return Cause(f"{call.name.strip('_')}(...)", call.location, why, suggestion)


def _explain(call: LossCall) -> tuple[str, str]:
    first, second = call.shapes
    if call.misuse is Misuse.ONE_CLASS:
        return (
            "there is one class only, whose probability is 1 whatever the model gives: the loss is constant.",
            "for two classes with one output use F.binary_cross_entropy_with_logits and targets of 0.0 and 1.0",
        )
    if call.misuse is Misuse.BROADCAST:
        return (
            f"shapes {first} and {second} broadcast, so that every prediction is compared with every target.",
            "give both one shape, for instance with prediction.squeeze(-1); the value of the loss changes",
        )
    if call.misuse is Misuse.NOT_SIGNS:
        return (
            f"{call.name} wants targets of -1 and 1, but gets 0 and 1: those of 0 count for nothing, or for something "
            "else.",
            "give it 2 * target - 1; the value of the loss changes",
        )
    if call.misuse is Misuse.OTHER_AXIS:
        return (
            f"{call.name} takes classes along axis 1 of {first}, but the softmax was taken along another axis: the "
            "probabilities of the classes of a sample do not add up to 1.",
            "take log_softmax(..., dim=1), or give the scores themselves to F.cross_entropy",
        )
    if call.misuse is Misuse.MIXED:
        return (
            f"a view makes shape {first} by reading on in memory: scores of several places become the classes of one.",
            "move the axis of classes: scores.transpose(1, 2), or scores.permute(0, 2, 3, 1).reshape(-1, C)",
        )
    if call.misuse is Misuse.NOT_LOG:
        return (
            f"{call.name} wants logarithms of probabilities, which are never above zero, but gets something else.",
            "give it F.log_softmax(scores, dim=1), or give the scores themselves to F.cross_entropy",
        )
    return (
        f"{call.name} turns its input into probabilities itself, but gets probabilities: taken twice, gradients are "
        "small and the loss cannot come near zero.",
        "give it the scores before softmax or sigmoid; the value of the loss changes",
    )
