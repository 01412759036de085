"""BATCH-LEAK: the output of a sample depends on other samples of the batch, in evaluation mode."""

from __future__ import annotations

from deconv_cli.gradients.batch_independence import BatchIndependence
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict

_REDUCING = "let {label} act on the axes of one sample only, for instance dim=-1 instead of dim={axis}"
_SHAPING = "leave axis {axis} as it is in {label}, as x.reshape(len(x), -1) does, and turn the axes of one sample only"
_TIME_FIRST = "{label} takes axis {axis} for time and the next one for the samples, unless it is made with batch_first."
_BATCH_FIRST = "make the layer with batch_first=True"
_OVER_TIME = ("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "transformer_encoder_layer_fwd")
_SHAPES = ("reshape", "view", "flatten", "unflatten", "t", "transpose", "permute", "movedim", "swapaxes", "T", "mT")


def find_batch_leak(evidence: Evidence) -> list[Finding]:
    """Find that samples are mixed, and the first operation that does it."""
    return describe_leak(evidence.batch)


def describe_leak(batch: BatchIndependence) -> list[Finding]:
    """Describe samples that are mixed; nothing where they are not."""
    if not batch.is_mixed:
        return []
    axis = batch.axis
    causes: tuple[Cause, ...] = ()
    if batch.mixer is not None:
        label = batch.mixer.label
        why = f"{label} mixes the samples along axis {axis}: each output then depends on the whole batch."
        suggestion = _SHAPING if batch.mixer.bare_name in _SHAPES else _REDUCING
        if batch.mixer.bare_name in _OVER_TIME:
            why, suggestion = _TIME_FIRST, _BATCH_FIRST
        why, suggestion = (text.format(label=label, axis=axis) for text in (why, suggestion))
        causes = (Cause(label, batch.mixer.location, why, suggestion),)
    detail = f"with sample 0 replaced, the outputs of other samples along axis {axis} change (in evaluation mode)"
    return [Finding(Verdict.BATCH_LEAK, causes, detail)]
