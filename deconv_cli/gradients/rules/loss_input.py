"""LOSS INPUT, BATCH-LEAK: a loss gets the wrong kind of input, or samples of a batch mix; both train, but badly."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.other_data import BatchIndependence
from deconv_cli.gradients.tracing.operations import Misuse

_EXPLANATIONS = {
    Misuse.ONE_CLASS: (
        "there is one class only, whose probability is 1 whatever the model gives: the loss is constant.",
        "for two classes with one output use F.binary_cross_entropy_with_logits and targets of 0.0 and 1.0",
    ),
    Misuse.BROADCAST: (
        "shapes {first} and {second} broadcast, so every prediction is compared with every target.",
        "give both one shape, for instance with prediction.squeeze(-1); the value of the loss changes",
    ),
    Misuse.NOT_SIGNS: (
        "{name} wants targets of -1 and 1, but gets 0 and 1: targets of 0 count for nothing, or as another class.",
        "give it 2 * target - 1; the value of the loss changes",
    ),
    Misuse.OTHER_AXIS: (
        "{name} takes classes along axis 1 of {first}, but the softmax was taken along another axis: the "
        "probabilities of the classes of a sample do not add up to 1.",
        "take log_softmax(..., dim=1), or give the scores themselves to F.cross_entropy",
    ),
    Misuse.MIXED: (
        "a view makes shape {first} by reading on in memory: scores of several places become the classes of one.",
        "move the axis of classes: scores.transpose(1, 2), or scores.permute(0, 2, 3, 1).reshape(-1, C)",
    ),
    Misuse.NOT_LOG: (
        "{name} wants logarithms of probabilities, which are never above zero, but gets something else.",
        "give it F.log_softmax(scores, dim=1), or give the scores themselves to F.cross_entropy",
    ),
    Misuse.PROBABILITIES: (
        "{name} turns its input into probabilities itself, but gets probabilities: taken twice, gradients are "
        "small and the loss cannot approach zero.",
        "give it the scores before softmax or sigmoid; the value of the loss changes",
    ),
}
"""Why a loss is misused, and what to write."""


def find_loss_input(evidence: Evidence) -> list[Finding]:
    """Find misused losses, one finding for each line."""
    findings = {}
    for call in evidence.forward.log.loss_calls:
        if call.name.endswith("softmax"):
            continue  # a softmax over one class is no loss, and may be meant, as in attention to a single token
        first, second = call.shapes
        why, suggestion = (
            text.format(name=call.name, first=first, second=second) for text in _EXPLANATIONS[call.misuse]
        )
        cause = Cause(f"{call.name.strip('_')}(...)", call.location, why, suggestion)
        findings[str(call.location), call.misuse] = Finding(Verdict.LOSS_INPUT, (cause,))
    return list(findings.values())


_OVER_TIME = ("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "transformer_encoder_layer_fwd")
_SHAPES = ("reshape", "view", "flatten", "unflatten", "t", "transpose", "permute", "movedim", "swapaxes", "T", "mT")


def find_batch_leak(evidence: Evidence) -> list[Finding]:
    """Find that samples mix in evaluation mode, and the first operation that mixes them."""
    return describe_leak(evidence.batch)


def describe_leak(batch: BatchIndependence) -> list[Finding]:
    """Describe samples that mix; an empty list where they do not."""
    if not batch.is_mixed:
        return []
    axis, causes = batch.axis, []
    if batch.mixer is not None:
        label, bare = batch.mixer.label, batch.mixer.bare_name
        why = f"{label} mixes the samples along axis {axis}: each output then depends on the whole batch."
        suggestion = f"let {label} act on the axes of one sample only, for instance dim=-1 instead of dim={axis}"
        if bare in _SHAPES:
            suggestion = f"leave axis {axis} as it is in {label}, as x.reshape(len(x), -1) does"
        elif bare in _OVER_TIME:
            why = f"{label} reads axis {axis} as time and the next one as samples, unless batch_first is set."
            suggestion = "make the layer with batch_first=True"
        causes = [Cause(label, batch.mixer.location, why, suggestion)]
    detail = f"with sample 0 replaced, the outputs of other samples along axis {axis} change (in evaluation mode)"
    return [Finding(Verdict.BATCH_LEAK, tuple(causes), detail)]
