"""ZERO, ZERO BY CONSTRUCTION, NON-FINITE: gradients that are zero, NaN or infinite, and what makes them so."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.nested_tensors import norm_of
from deconv_cli.gradients.replacements import ADVICE, SINGULAR, straight_through
from deconv_cli.gradients.rules.detached import returning_none
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_function
from deconv_cli.gradients.tracing.forward_trace import Operation
from deconv_cli.gradients.tracing.operations import STEPS, Misuse, words

_SMOOTH = "replace the step by a smooth function; a straight-through gradient was tried, and does not arrive either"
_SMOOTH_UNITS = "use smooth units, such as SiLU, tanh or softplus, where the loss holds a derivative"
_NORMALIZING = ("BatchNorm", "LayerNorm", "GroupNorm", "Softmax", "ScaledDot")
_MAX_NODES = 200
_REASONS = (
    (
        words("ThresholdBackward"),
        "the derivative of relu is a step, so its second derivative is zero everywhere.",
        _SMOOTH_UNITS,
    ),
    (
        words("relu relu6 relu_ leaky_relu threshold clamp_min"),
        "every input of {bare} that this parameter reaches is negative: the units are dead for this data.",
        "use F.leaky_relu, or start from smaller weights and a bias that is not negative",
    ),
    (
        words("clamp clip hardtanh clamp_max hardsigmoid"),
        "every input of {bare} lies outside of its limits, where it is constant.",
        "widen the limits, or scale the input",
    ),
    (
        words("softmax log_softmax cross_entropy sigmoid tanh erf"),
        "{bare} is saturated: its inputs are so large that it no longer changes in this precision.",
        "scale the inputs of {bare} down, as by 1 / sqrt(width), or normalize them",
    ),
    (
        words("layer_norm group_norm instance_norm batch_norm"),
        "{bare} subtracts the mean, so nothing remains of a single number or of equal ones.",
        "normalize over more than one number: look at normalized_shape, the groups and the size of the image",
    ),
    (
        words("grid_sample grid_sampler"),
        "{bare} with mode='nearest' has steps, and outside of the image nothing changes.",
        "use mode='bilinear', and begin with places between -1 and 1",
    ),
    (
        words("atan2 arctan2 norm vector_norm linalg_norm linalg_vector_norm dist cdist hypot"),
        "{bare} is taken at the origin, where it has no slope, and torch gives zero.",
        "keep its input away from the origin",
    ),
    (
        words("half bfloat16 to type"),
        "the gradient is too small for the narrow type that {bare} converts to.",
        "scale the loss, as torch.amp.GradScaler does, or stay in float32 here",
    ),
    (
        words("bernoulli poisson"),
        "{bare} draws whole numbers, through which no gradient passes.",
        "for a straight-through gradient: p + (torch.{bare}(p) - p).detach()",
    ),
    (
        words("normal"),
        "{bare} draws numbers, and gives its mean and deviation no gradient.",
        "mean + deviation * torch.randn_like(mean), or torch.distributions.Normal(...).rsample()",
    ),
    (
        words("ctc_loss"),
        "the targets of every sample are longer than its input, and zero_infinity hides that its loss is infinite.",
        "give it inputs that are longer than the targets, with a blank between equal ones, or drop these samples",
    ),
    (
        words("scaled_dot_product_attention multi_head_attention_forward"),
        "every query sees one key or none, or all scores are so large that attention no longer changes.",
        "look at the number of keys and at attn_mask: True hides a key in nn.MultiheadAttention, and shows it in "
        "scaled_dot_product_attention",
    ),
    (
        words("embedding embedding_bag"),
        "every index is padding_idx, whose row gets no gradient.",
        "look at padding_idx, and at the indices of this batch",
    ),
    (
        words(
            "triplet_margin_loss triplet_margin_with_distance_loss margin_ranking_loss hinge_embedding_loss "
            "multi_margin_loss cosine_embedding_loss multilabel_margin_loss"
        ),
        "every sample of this batch keeps the margin, beyond which {bare} is constant.",
        "take samples that are harder to tell apart, or a larger margin",
    ),
    (words("dropout"), "dropout drops everything.", "give dropout a share below 1"),
    (
        words("mul __mul__ rmul multiply linear matmul addmm bmm einsum conv1d conv2d conv3d"),
        "the other factor of {bare} is zero everywhere, so that the gradient is multiplied by zero.",
        "find what makes it zero; where both factors are weights, start one of the two from random values",
    ),
    (
        frozenset[str](),
        "a gradient enters {bare} and leaves it as zero.",
        "look at the values that enter this line: it is constant around them",
    ),
)
"""Operations that make a gradient zero by their bare names, why they do so, and what to write; the last fits any."""


def find_zero(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is zero, and the operations at which it becomes zero."""
    found = evidence.backward.magnitudes.get(name)
    if found is None or not found.is_zero:
        return None
    if name in evidence.double.minima:
        return None
    origins = evidence.origins_of(name, lambda magnitude: magnitude.is_zero)
    hooks = _hooks_that_zero(evidence, name, origins)
    if hooks:
        why = "a hook gives zero for the gradient that passes it, so that nothing gets past it."
        suggestion = "remove the hook, or let it return None: the gradient as it is"
        return Finding(Verdict.ZERO, unique_causes(Cause("a gradient hook", at, why, suggestion) for at in hooks))
    causes = unique_causes(_cause_of_zero(evidence, origin) for origin in origins)
    canceling = evidence.forward.operations(evidence.backward.canceling(evidence.parameters[name]))
    causes = causes or unique_causes(_cause_of_cancellation(operation) for operation in canceling)
    gradient = evidence.double.backward.gradients.get(name)
    norm = norm_of(gradient) if gradient is not None else 0.0
    detail = f"in float64 the gradient is not zero but of norm {norm:.2g}: it underflows" if norm else ""
    return Finding(Verdict.ZERO, causes, detail)


def _hooks_that_zero(evidence: Evidence, name: str, origins: list[Operation]) -> list[CodeLocation]:
    """List the hooks on modules, or on tensors where no operation is at fault, that make a gradient zero."""
    if origins and all(operation.bare_name == "BackwardHookFunction.apply" for operation in origins):
        hooks = [hook for module in evidence.model.modules() for hook in module._backward_hooks.values()]
        return [location_of_function(hook) or origins[0].location for hook in hooks]
    own, log = evidence.forward.bit(name), evidence.forward.log
    return [] if origins else [hook.location for hook in log.hooks if hook.changes and hook.parameters & own]


def _cause_of_cancellation(operation: Operation) -> Cause:
    why = f"gradients come by several ways through {operation.bare_name} and add up to zero: the loss stays the same."
    suggestion = "hold one of the ways constant, as the old one in a ratio of new to old: torch.exp(new - old.detach())"
    return Cause(operation.label, operation.location, why, suggestion)


def _cause_of_zero(evidence: Evidence, operation: Operation) -> Cause:
    bare, location = operation.bare_name, operation.location
    name = bare.removesuffix(".apply")
    calls = evidence.forward.log.loss_calls
    if str(location) in {str(call.location) for call in calls if call.misuse is Misuse.ONE_CLASS}:
        why = "there is one class only, whose probability is 1 whatever comes in: the gradient is zero."
        suggestion = "use sigmoid, or F.binary_cross_entropy_with_logits for a loss; softmax is for two classes or more"
    elif any(item.is_missing and item.function == name for item in evidence.wrong_inputs):
        return returning_none(operation, evidence)
    elif bare in STEPS:
        why = f"{bare} is constant between its steps, so its derivative is zero."
        suggestion = _SMOOTH if str(location) in evidence.failing_fixes else straight_through(bare).text
    elif bare != name:
        why = f"the backward of {name} gives zero for this input."
        suggestion = "return the gradient for this input from backward"
    else:
        texts = next(texts for names, *texts in _REASONS if bare in names or not names)
        why, suggestion = (text.format(bare=bare) for text in texts)
    return Cause(operation.label, location, why, suggestion)


def find_left_out_of_derivative(evidence: Evidence, name: str) -> Finding | None:
    """Judge a parameter that drops out of a derivative in the loss.

    DETACHED if the loss moves smoothly with it, ZERO if it moves in steps, ZERO BY CONSTRUCTION if it does not move.
    """
    response = evidence.responses.get(name)
    if response is None:
        return None
    location = evidence.forward.log.shifted[evidence.forward.bit(name)]
    if response == "smooth":
        verdict = Verdict.DETACHED
        why = "the derivative depends on this parameter, but a hand-written backward on the way gives plain values."
        suggestion = "write that backward with torch functions of saved tensors"
    elif response == "steps":
        verdict, suggestion = Verdict.ZERO, _SMOOTH_UNITS
        why = "the loss holds only a derivative, and that changes with this parameter in steps: its slope is zero."
    else:
        verdict = Verdict.ZERO_BY_CONSTRUCTION
        why = "the loss holds only a derivative, from which this parameter drops out: it shifts what is differentiated."
        suggestion = "nothing, unless what is differentiated belongs in the loss as well"
    return Finding(verdict, (Cause("torch.autograd.grad(...)", location, why, suggestion),))


def find_zero_by_construction(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose effect a normalization behind it removes."""
    double = evidence.double
    if name not in double.constants:
        return None
    follower = _normalization_behind(evidence, name, double.backward)
    why = f"{follower} takes away whatever this parameter adds, so the loss does not depend on it."
    suggestion = "nothing; it does no harm, and a layer without it (bias=False) gives the same"
    return Finding(Verdict.ZERO_BY_CONSTRUCTION, (Cause(follower, evidence.module_of(name), why, suggestion),))


def _normalization_behind(evidence: Evidence, name: str, backward: BackwardTrace) -> str:
    """Name the nearest normalization behind a parameter."""
    waiting = [node for node, _ in backward.readers_of(evidence.parameters[name])]
    for node in waiting:
        kind = type(node).__name__
        if any(word in kind for word in _NORMALIZING):
            return kind.removesuffix("0").removesuffix("Backward").removeprefix("Native")
        if len(waiting) < _MAX_NODES:
            waiting += [reader for reader, _ in backward.consumers.get(node, []) if reader not in waiting]
    return "what follows"


_KEEP_AWAY = "keep the input away from where this line is singular"
_NOT_ENOUGH = f"{_KEEP_AWAY}; a small number added to it was tried, and does not help alone"


def find_non_finite(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is not finite, or any gradient of a loss that is not: a zero may come from it."""
    if evidence.gradient(name) is None:
        return None
    if not evidence.is_loss_finite:
        why = "NaN or infinity first arises in {}, from inputs without."
        causes = unique_causes(_cause_of_non_finite(evidence, origin, why) for origin in evidence.origins)
        loss = float(evidence.forward.loss.detach())
        return Finding(Verdict.NON_FINITE, causes or (_cause_outside(evidence),), f"the loss is {loss}")
    if evidence.backward.magnitudes[name].is_finite:
        return None
    origins = evidence.origins_of(name, lambda magnitude: not magnitude.is_finite)
    if "where" in evidence.forward.log.names:
        return Finding(Verdict.NON_FINITE, unique_causes(_cause_in_branch(origin) for origin in origins))
    why = "a finite gradient enters {} and leaves it as NaN or infinity: its slope is infinite at this input."
    return Finding(Verdict.NON_FINITE, unique_causes(_cause_of_non_finite(evidence, origin, why) for origin in origins))


def _cause_outside(evidence: Evidence) -> Cause:
    """Explain NaN or infinity that no operation makes."""
    where = " and ".join(evidence.non_finite_sources) or "what the code keeps outside of the model's tensors"
    why = f"no operation makes NaN or infinity of finite numbers: {where} held it before."
    return Cause("NaN or infinity", CodeLocation(), why, "find it there with torch.isfinite, and replace it")


def _cause_in_branch(operation: Operation) -> Cause:
    """Explain an infinite slope in the branch that torch.where does not take: times zero it gives NaN."""
    bare = operation.bare_name
    why = (
        f"the slope of {bare} is infinite or beyond the range at inputs that torch.where may not even select; it "
        "multiplies that slope by zero, which gives NaN."
    )
    suggestion = f"keep the input of {bare} harmless where it is not selected: {bare}(torch.where(mask, x, 0.5))"
    return Cause(operation.label, operation.location, why, suggestion)


def _cause_of_non_finite(evidence: Evidence, operation: Operation, why: str) -> Cause:
    """Explain where NaN or infinity arises; `why` has a place for the bare name of the operation."""
    bare = operation.bare_name
    known = SINGULAR.get(bare.strip("_"))
    suggestion = known.text if known else ADVICE.get(bare.strip("_").removeprefix("linalg_"), _KEEP_AWAY)
    if str(operation.location) in evidence.failing_fixes:
        suggestion = ADVICE.get(bare, _NOT_ENOUGH)
    return Cause(operation.label, operation.location, why.format(bare), suggestion)
