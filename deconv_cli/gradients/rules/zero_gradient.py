"""ZERO, ZERO BY CONSTRUCTION: the gradient is zero in every element, or the loss cannot depend on the parameter."""

from __future__ import annotations

from deconv_cli.gradients.cures import straight_through
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.tensors_in import norm_of
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace
from deconv_cli.gradients.tracing.forward_trace import Operation
from deconv_cli.gradients.tracing.loss_calls import Misuse
from deconv_cli.gradients.tracing.operations import STEPS

_SMOOTH = "replace the step by a smooth function; a straight-through gradient was tried, and does not arrive either"
_SMOOTH_UNITS = "use smooth units, such as SiLU, tanh or softplus, where the loss holds a derivative"
_NORMALIZING = ("BatchNorm", "LayerNorm", "GroupNorm", "Softmax", "ScaledDot")
_MAX_NODES = 200
_LIMITED = ("clamp", "clip", "hardtanh", "clamp_max", "hardsigmoid")
_SATURATING = ("softmax", "log_softmax", "cross_entropy", "sigmoid", "tanh", "erf")
_PRODUCTS = (
    *("mul", "__mul__", "rmul", "multiply", "linear", "matmul", "addmm", "bmm", "einsum"),
    *("conv1d", "conv2d", "conv3d"),
)


def find_zero(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is zero, and the operations at which it becomes so."""
    if evidence.backward is None or name not in evidence.magnitudes or not evidence.magnitudes[name].is_zero:
        return None
    origins = evidence.origins_of(name, lambda magnitude: magnitude.is_zero)
    single = {str(call.location) for call in evidence.forward.log.loss_calls if call.misuse is Misuse.ONE_CLASS}
    causes = unique_causes(_of_one_class(op) if str(op.location) in single else _cause(evidence, op) for op in origins)
    return Finding(Verdict.ZERO, causes, _describe_underflow(evidence, name))


def _of_one_class(operation: Operation) -> Cause:
    why = "there is one class only, whose probability is 1 whatever comes in: the gradient is zero."
    suggestion = "use sigmoid, or F.binary_cross_entropy_with_logits for a loss; softmax is for two classes or more"
    return Cause(operation.label, operation.location, why, suggestion)


def _describe_underflow(evidence: Evidence, name: str) -> str:
    gradient = evidence.double.backward.gradients.get(name) if evidence.double is not None else None
    norm = norm_of(gradient) if gradient is not None else 0.0
    return f"in float64 the gradient is not zero but of norm {norm:.2g}: it underflows" if norm else ""


def _cause(evidence: Evidence, operation: Operation) -> Cause:
    why, suggestion = _reason(operation.bare_name)
    if operation.bare_name in STEPS and str(operation.location) in evidence.failing_fixes:
        suggestion = _SMOOTH
    return Cause(operation.label, operation.location, why, suggestion)


def _reason(bare: str) -> tuple[str, str]:
    """Give the reason why an operation makes a gradient zero, and what to do, by its bare name."""
    if bare in STEPS:
        return (
            f"{bare} is constant between its steps, so its derivative is zero everywhere.",
            straight_through(bare).text,
        )
    if bare == "ThresholdBackward":
        return "the derivative of relu is a step, so the derivative of that is zero everywhere.", _SMOOTH_UNITS
    if "relu" in bare or bare in ("threshold", "clamp_min"):
        return (
            f"every input of {bare} that this parameter reaches is negative: the units are dead for this data.",
            "use F.leaky_relu, or start from smaller weights and a bias that is not negative",
        )
    if bare in _LIMITED:
        return (
            f"every input of {bare} lies outside of its limits, where it is constant.",
            "widen the limits, or scale the input",
        )
    if bare in _SATURATING:
        return (
            f"{bare} is saturated: its inputs are so large that it no longer changes in this precision.",
            f"scale the inputs of {bare} down, as by 1 / sqrt(width), or normalize them",
        )
    if bare in _PRODUCTS:
        return (
            f"the other factor of {bare} is zero everywhere, so that the gradient is multiplied by zero.",
            "start one of the two factors from random values; the other one may stay at zero, but not both",
        )
    if bare.endswith(".apply"):
        return (
            f"the backward of {bare.removesuffix('.apply')} gives zero for this input.",
            "return the gradient for this input from backward",
        )
    return (
        f"a gradient enters {bare} and leaves it as zero.",
        "look at the values that enter this line: it is constant around them",
    )


def find_left_out_of_derivative(evidence: Evidence, name: str) -> Finding | None:
    """Tell a parameter that drops out of a derivative from one that moves it, smoothly or in steps.

    Moved smoothly it is DETACHED, moved in steps its gradient is ZERO, not moved it is ZERO BY CONSTRUCTION.
    """
    response = evidence.responses.get(name)
    if response is None:
        return None
    location = evidence.forward.log.shifted[evidence.forward.bit(name)]
    if response.is_smooth:
        verdict = Verdict.DETACHED
        why = "the derivative depends on this parameter, but a hand-written backward on the way gives plain values."
        suggestion = "write that backward with torch functions of saved tensors"
    elif response.is_moved:
        verdict, suggestion = Verdict.ZERO, _SMOOTH_UNITS
        why = "the loss holds only a derivative, and that changes with this parameter in steps: its slope is zero."
    else:
        verdict = Verdict.ZERO_BY_CONSTRUCTION
        why = "the loss holds only a derivative, from which this parameter drops out: it shifts what is differentiated."
        suggestion = "nothing, unless what is differentiated belongs in the loss as well"
    return Finding(verdict, (Cause("torch.autograd.grad(...)", location, why, suggestion),))


def find_zero_by_construction(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that what follows takes away again."""
    double = evidence.double
    if double is None or name not in double.constants:
        return None
    follower = _follower(evidence, name, double.backward)
    why = f"{follower} takes away whatever this parameter adds, so the loss does not depend on it."
    suggestion = "leave it out (bias=False); it costs memory and does nothing"
    return Finding(Verdict.ZERO_BY_CONSTRUCTION, (Cause(follower, evidence.module_of(name), why, suggestion),))


def _follower(evidence: Evidence, name: str, backward: BackwardTrace) -> str:
    """Name the nearest normalization behind a parameter."""
    waiting = [node for node, _ in backward.readers_of(evidence.parameters[name])]
    for node in waiting:
        kind = type(node).__name__
        if any(word in kind for word in _NORMALIZING):
            return kind.removesuffix("0").removesuffix("Backward").removeprefix("Native")
        if len(waiting) < _MAX_NODES:
            waiting += [reader for reader, _ in backward.consumers.get(node, []) if reader not in waiting]
    return "what follows"
