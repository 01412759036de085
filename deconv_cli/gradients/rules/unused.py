"""Parameters that take no part in training, weights that the model does not know, misused losses, mixed samples."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.other_data import BatchIndependence
from deconv_cli.gradients.tracing.code_location import CodeLocation, library_class_around
from deconv_cli.gradients.tracing.operations import LossCall, Misuse
from deconv_cli.gradients.unregistered import Unregistered


def find_frozen(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose `requires_grad` is off."""
    return None if evidence.parameters[name].requires_grad else Finding(Verdict.FROZEN)


def find_empty(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without elements, as of a layer of width 0: there is nothing that could be trained."""
    if evidence.parameters[name].numel():
        return None
    why = "it has no elements, so that there is nothing to train."
    suggestion = "nothing, if a width of 0 is meant here"
    return Finding(Verdict.ZERO_BY_CONSTRUCTION, (Cause("no elements", evidence.module_of(name), why, suggestion),))


def find_unused(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient that no operation of forward reads."""
    if evidence.gradient(name) is not None or evidence.forward.log.used & evidence.forward.bit(name):
        return None
    keeper = library_class_around(evidence.model, evidence.parameters[name])
    if keeper:
        why = f"{keeper}, of an installed library, keeps this parameter, and this way of calling it does not read it."
        suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
        return Finding(Verdict.NOT_REACHED, (Cause("not used here", evidence.module_of(name), why, suggestion),))
    why = "no operation of forward reads this parameter."
    suggestion = "use it in forward, or remove it, or pass find_unused_parameters=True to DistributedDataParallel"
    return Finding(Verdict.UNUSED, (Cause("never used", evidence.module_of(name), why, suggestion),))


def find_not_in_loss(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient that is used, but whose value does not reach the loss."""
    if evidence.gradient(name) is not None:
        return None
    location = evidence.forward.log.last_use.get(evidence.forward.bit(name)) or CodeLocation()
    why = "forward uses this parameter here, but its value does not reach the loss."
    suggestion = "return what this line computes and add it to the loss, or leave the line out"
    return Finding(Verdict.NOT_LOSS, (Cause("used, but not in the loss", location, why, suggestion),))


def find_not_reached(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that gets no gradient from this batch and gets one from another, where others get one here."""
    is_any_given = any(magnitude.largest for magnitude in evidence.magnitudes.values())
    if name not in evidence.reached_by_others or not is_any_given:
        return None
    return Finding(Verdict.NOT_REACHED, (used_by_other_data(name),))


def used_by_other_data(name: str) -> Cause:
    """Explain a parameter that this batch does not use."""
    why = "whether this parameter is used depends on the data or on chance: others than these give it a gradient."
    suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
    return Cause("not reached by this batch", CodeLocation(module=name.rpartition(".")[0]), why, suggestion)


_UNREGISTERED = {
    "member": (
        "is a tensor that requires a gradient but no nn.Parameter, so parameters() leaves it out",
        "wrap it: nn.Parameter(torch...)",
    ),
    "buffer": (
        "is a buffer, which is saved with the model, but parameters() leaves it out",
        "make it a parameter: self.name = nn.Parameter(torch...)",
    ),
    "derived": (
        "is what an operation made of an nn.Parameter, and not the Parameter itself, so parameters() leaves it out",
        "keep the Parameter itself in self, made of the tensor after the operation: nn.Parameter(tensor.view(...))",
    ),
    "container": (
        "is a plain Python container, whose modules and parameters parameters() leaves out",
        "use nn.ModuleList, nn.ModuleDict, nn.ParameterList or nn.ParameterDict",
    ),
    "unknown": (
        "are parameters that no module of the model keeps, such as those of a layer that forward makes anew each time",
        "make them in __init__ and keep them in self",
    ),
}


def find_unregistered(evidence: Evidence) -> list[Finding]:
    """Find such weights, once for each member of a module."""
    return [Finding(Verdict.UNREGISTERED, (_cause_of_unregistered(found),)) for found in evidence.unregistered]


def _cause_of_unregistered(found: Unregistered) -> Cause:
    fact, suggestion = _UNREGISTERED[found.kind]
    why = f"{found.owner or 'what this line reads'} {fact}: an optimizer made of parameters() never moves it."
    return Cause(found.owner or "a weight", found.location, why, suggestion)


def find_nothing_trains(evidence: Evidence) -> list[Finding]:
    """Find that no parameter requires a gradient."""
    if any(parameter.requires_grad and parameter.numel() for parameter in evidence.parameters.values()):
        return []
    if any(parameter.requires_grad for parameter in evidence.parameters.values()):
        why = "no parameter that requires a gradient has any elements, so that no step changes anything."
        cause = Cause("no elements", CodeLocation(), why, "give the layers a width above 0")
        return [Finding(Verdict.NOTHING_TRAINS, (cause,))]
    why = f"requires_grad is off for all {len(evidence.parameters)} parameters, so that no step changes anything."
    suggestion = "call requires_grad_() on what is to be trained, after what is to stay was frozen"
    return [Finding(Verdict.NOTHING_TRAINS, (Cause("requires_grad_(False)", CodeLocation(), why, suggestion),))]


def find_loss_input(evidence: Evidence) -> list[Finding]:
    """Find losses that are misused, once for each line."""
    # A softmax over one class is no loss, and may be meant, as in attention to a single token.
    losses = [call for call in evidence.forward.log.loss_calls if not call.name.endswith("softmax")]
    calls = {(str(call.location), call.misuse): call for call in losses}
    return [Finding(Verdict.LOSS_INPUT, (_cause_of_misuse(call),)) for call in calls.values()]


def _cause_of_misuse(call: LossCall) -> Cause:
    why, suggestion = _explain_misuse(call)
    return Cause(f"{call.name.strip('_')}(...)", call.location, why, suggestion)


def _explain_misuse(call: LossCall) -> tuple[str, str]:
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
