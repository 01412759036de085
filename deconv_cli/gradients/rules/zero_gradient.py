"""ZERO: the gradient arrives, and is zero in every element."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.gradient_report import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.rules.left_out_of_derivative import SMOOTH_UNITS
from deconv_cli.gradients.tensors_in import norm_of
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.operations import STEPS

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
    graph = evidence.forward.graph
    nodes = evidence.backward.origins(evidence.parameters[name], lambda magnitude: magnitude.is_zero)
    causes = unique_causes(_cause(graph.label_of(node), graph.location_of(node)) for node in nodes)
    return Finding(Verdict.ZERO, causes, _describe_underflow(evidence, name))


def _describe_underflow(evidence: Evidence, name: str) -> str:
    gradient = evidence.double.backward.gradients.get(name) if evidence.double is not None else None
    norm = norm_of(gradient) if gradient is not None else 0.0
    return f"in float64 the gradient is not zero but of norm {norm:.2g}: it underflows" if norm else ""


def _cause(label: str, location: CodeLocation) -> Cause:
    bare = label.removesuffix("(...)").strip("_.").removesuffix("()")
    why, suggestion = _reason(bare)
    return Cause(label, location, why, suggestion)


def _reason(bare: str) -> tuple[str, str]:
    """Give the reason why an operation makes a gradient zero, and what to do, by its bare name."""
    if bare in STEPS:
        return (
            f"{bare} is constant between its steps, so its derivative is zero everywhere.",
            f"for a straight-through gradient: x + (torch.{bare}(x) - x).detach()",
        )
    if bare == "ThresholdBackward":
        return "the derivative of relu is a step, so the derivative of that is zero everywhere.", SMOOTH_UNITS
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
            "start the other factor from values that are not zero",
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
