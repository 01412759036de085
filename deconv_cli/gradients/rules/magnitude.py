"""ZERO, VANISHING, EXPLODING, NON-FINITE: the size of gradients, and the operations that make it so.

VANISHING and EXPLODING: ‖gradient‖ / ‖weight‖ is a million times smaller or larger than in the layer next to the loss.
There is no fixed limit, since a small loss has small gradients everywhere. If other weights at least as far from the
loss are sound, a weight lies on a branch of its own, such as the queries and keys of attention. Its gradient may be
smaller then, so the limit is the square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch

from deconv_cli.gradients.evidence import Evidence, Norms, loss_changes_with
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.nested_tensors import norm_of, tensors_in
from deconv_cli.gradients.rules.detached import returning_none
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.code_location import CodeLocation, Operation
from deconv_cli.gradients.tracing.operations import STEPS, words

_SMOOTH_UNITS = "use smooth units, such as SiLU, tanh or softplus, if the loss contains a derivative"
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
        words("softmax log_softmax cross_entropy"),
        "{bare} has a single class, or is saturated by large inputs: it no longer changes in this precision.",
        "for a single class use sigmoid; otherwise scale the inputs of {bare} down, as by 1 / sqrt(width)",
    ),
    (
        words("sigmoid tanh erf"),
        "{bare} is saturated: its inputs are so large that it no longer changes in this precision.",
        "scale the inputs of {bare} down, or normalize them",
    ),
    (
        words("layer_norm group_norm instance_norm batch_norm"),
        "{bare} subtracts the mean, so a single number, or equal numbers, become zero.",
        "normalize over more than one number: check normalized_shape, the groups and the size of the image",
    ),
    (
        words("bernoulli poisson normal"),
        "{bare} draws numbers, through which no gradient passes.",
        "torch.distributions has rsample() for continuous numbers; for others p + (torch.{bare}(p) - p).detach()",
    ),
    (
        words("mul __mul__ rmul multiply linear matmul addmm bmm einsum conv1d conv2d conv3d"),
        "the other factor of {bare} is zero everywhere, so that the gradient is multiplied by zero.",
        "find what makes it zero; if both factors are weights, initialize one of the two with random values",
    ),
    (
        words("cat concat concatenate stack hstack vstack"),
        "the part of {bare}'s result that comes from this parameter does not reach the loss: a slice, an index or a "
        "mask leaves it out.",
        "use that part in the loss, or remove it",
    ),
    (
        frozenset[str](),
        "a gradient enters {bare} and leaves it as zero.",
        "check the values that enter this line: it is constant around them",
    ),
)
"""Operations that make a gradient zero by their bare names, why they do so, and what to write; the last fits any."""


def find_zero(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is zero, if only at initialization, and the operations at which it becomes zero."""
    found = evidence.backward.magnitudes.get(name)
    if found is None or not found.is_zero:
        return None
    if name in evidence.double.minima:
        return None
    origins = evidence.origins_of(name, lambda magnitude: magnitude.is_zero)
    gradient = evidence.double.backward.gradients.get(name)
    norm = norm_of(gradient) if gradient is not None else 0.0
    causes = unique_causes(_cause_of_zero(evidence, origin, underflows=norm > 0) for origin in origins)
    detail = f"in float64 the gradient is not zero but of norm {norm:.2g}: it underflows" if norm else ""
    zero = Finding(Verdict.ZERO, causes, detail)
    return _unless_at_start(Verdict.ZERO_AT_START, zero, evidence, lambda norms: norms.get(name, (0, 0))[0] > 0)


def _cause_of_zero(evidence: Evidence, operation: Operation, *, underflows: bool) -> Cause:
    bare, location = operation.bare_name, operation.location
    name = bare.removesuffix(".apply")
    if any(item.is_missing and item.function == name for item in evidence.double.wrong_inputs):
        return returning_none(operation, evidence)
    if bare in STEPS:
        why = f"{bare} is constant between its steps, so its derivative is zero."
        suggestion = f"for a straight-through gradient: x + (torch.{bare}(x) - x).detach()"
    elif bare != name:
        why = f"the backward of {name} gives zero for this input."
        suggestion = "return the gradient for this input from backward"
    else:
        texts = next(texts for names, *texts in _REASONS if bare in names or not names)
        why, suggestion = (text.format(bare=bare) for text in texts)
        if underflows and texts == list(_REASONS[-1][1:]):
            suggestion = "make the loss larger, as torch.amp.GradScaler does, or compute in bfloat16 or float32"
    return Cause(operation.label, location, why, suggestion)


def find_left_out_of_derivative(evidence: Evidence, name: str) -> Finding | None:
    """Judge a parameter that drops out of a derivative in the loss: a fault only if the loss moves with it."""
    location = evidence.forward.shifted.get(evidence.forward.bit(name))
    found = evidence.backward.magnitudes.get(name)
    if location is None or not evidence.parameters[name].requires_grad or (found is not None and not found.is_zero):
        return None
    if loss_changes_with(evidence.subject, name):
        verdict, suggestion = Verdict.DETACHED, "write backward with torch functions of saved tensors; " + _SMOOTH_UNITS
        why = "the derivative changes with this parameter in steps, or a backward of plain values stands between them."
    else:
        verdict, suggestion = (
            Verdict.ZERO_BY_CONSTRUCTION,
            "nothing, unless the loss should also hold the quantity itself",
        )
        why = "this parameter adds a constant, which a derivative or a difference removes."
    return Finding(verdict, (Cause("torch.autograd.grad(...)", location, why, suggestion),))


def find_zero_by_construction(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose effect a normalization behind it removes, or which a Function ignores."""
    if name not in evidence.double.constants:
        return None
    why = "a normalization or a softmax behind it removes all that this parameter adds, or a Function does not use it."
    suggestion = "nothing; it does no harm, and a layer without it (bias=False) gives the same"
    cause = Cause("a parameter without effect", evidence.module_of(name), why, suggestion)
    return Finding(Verdict.ZERO_BY_CONSTRUCTION, (cause,))


COLLAPSE = 1e-6
"""Ratio to the layer next to the loss that counts as vanished, and its inverse as exploded."""


def find_vanishing(evidence: Evidence, name: str) -> Finding | None:
    """Find a weight whose gradient has faded, if only at initialization, and the layer at which it falls most."""
    why = "the gradient fades on its way back; the largest drop, by {:.2g}, is from '{}' to '{}'."
    suggestion = "use ReLU-like units, residual connections or normalization between the layers"
    found = _find_extreme(Verdict.VANISHING, evidence, name, why, suggestion)

    def is_there(norms: Norms) -> bool:
        pairs = [norms.get(key, (0.0, 0.0)) for key in (name, next(iter(evidence.layers)))]
        (own, weight), (reference, reference_weight) = pairs
        return bool(weight and reference_weight) and own / weight >= COLLAPSE * reference / reference_weight

    return found and _unless_at_start(Verdict.VANISHING_AT_START, found, evidence, is_there)


def find_exploding(evidence: Evidence, name: str) -> Finding | None:
    """Find a weight whose gradient has grown out of bounds, and the layer at which it rises most."""
    why = "the gradient grows on its way back; the largest rise, by {:.2g}, is from '{}' to '{}'."
    suggestion = "start from smaller (orthogonal) weights, or clip with torch.nn.utils.clip_grad_norm_"
    return _find_extreme(Verdict.EXPLODING, evidence, name, why, suggestion)


def _find_extreme(verdict: Verdict, evidence: Evidence, name: str, why: str, suggestion: str) -> Finding | None:
    """Compare ‖gradient‖ / ‖weight‖ of a weight with the layer nearest to the loss, and find the largest step between.

    `why` has places for the factor of that step and the names of the two layers.
    """
    names, ratios = list(evidence.layers), {key: ratio for key, (_, ratio) in evidence.layers.items()}
    if name not in ratios:
        return None
    own, reference = ratios[name], ratios[names[0]]

    def change(ratio: float, nearer: float) -> float:
        return nearer / ratio if verdict == Verdict.VANISHING else ratio / nearer

    farther = (o for o in names if o != name and evidence.layers[o][0] >= evidence.layers[name][0])
    is_branch = any(change(ratios[other], reference) <= 1 / COLLAPSE for other in farther)
    if change(own, reference) <= (1 / COLLAPSE**2 if is_branch else 1 / COLLAPSE):
        return None
    factor, near, far = max((change(ratios[far], ratios[near]), near, far) for near, far in pairwise(names))
    forward = evidence.double.forward
    location = forward.last_use.get(forward.bit(far)) or CodeLocation()
    cause = Cause(f"the gradient of '{far}'", location, why.format(factor, near, far), suggestion)
    detail = f"‖gradient‖ / ‖weight‖ is {own:.2g}, next to the loss it is {reference:.2g}"
    return Finding(verdict, (cause,), detail)


_USUAL_START = "nothing: such a start is usual for the last layer of a branch, and does not hinder training"


def _unless_at_start(
    verdict: Verdict, found: Finding, evidence: Evidence, is_there: Callable[[Norms], bool]
) -> Finding:
    """Excuse a gradient that is there after the first optimizer steps, with a verdict of its own."""
    n_steps = next((n for n, norms in enumerate(evidence.first_steps, start=1) if is_there(norms)), None)
    if n_steps is None:
        return found
    after = "an optimizer step" if n_steps == 1 else f"{n_steps} optimizer steps"
    detail = f"at the start only: after {after} the gradient is there"
    return Finding(verdict, tuple(replace(cause, suggestion=_USUAL_START) for cause in found.causes), detail)


_NOTHING_TARGETED = (
    "make sure that each batch has a target that is not ignored, or divide the sum (reduction='sum') by max(count, 1)"
)
_EQUAL_VALUES = (
    "keep eigenvalues and singular values distinct, for example by adding a small diagonal of different numbers, or "
    "let the loss depend only on the values (eigvalsh, svdvals)"
)
_SINGULAR = (
    (words("sqrt"), "torch.sqrt(x + 1e-12), or torch.where around the input and not around the result"),
    (words("norm vector_norm"), "torch.sqrt(x.square().sum() + 1e-12), with the dim of the norm"),
    (
        words("log"),
        "torch.log(x.clamp_min(1e-12)); for a softmax F.log_softmax, and for a sigmoid F.logsigmoid instead of both",
    ),
    (words("div truediv"), "divide by (x + 1e-12), or select with torch.where before dividing"),
    (words("pow"), "keep the base above zero: x.clamp_min(0) + 1e-12"),
    (words("acos asin"), "clamp the input to (-1 + 1e-7, 1 - 1e-7)"),
    (words("exp"), "torch.exp(x.clamp_max(80.0)), or torch.logsumexp where a logarithm follows"),
    (words("std"), "torch.sqrt(x.var() + 1e-12), with the dim of std, and of more numbers than one"),
    (
        words("softmax scaled_dot_product_attention"),
        "let each query see at least one key, leave at least one number of each row unmasked, or mask with -1e9 "
        "instead of -inf",
    ),
    (words("mean"), "skip the mean of an empty tensor, or divide the sum by max(count, 1)"),
    (words("cross_entropy nll_loss"), _NOTHING_TARGETED),
    (words("eigh svd"), _EQUAL_VALUES),
    (frozenset[str](), "keep the input away from the values at which this line is singular"),
)
"""What to write instead of operations that make NaN or infinity, by their bare names; the last fits any."""


def find_non_finite(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is not finite, or any gradient of a loss that is not: a zero may come from it."""
    if evidence.gradient(name) is None:
        return None
    if not evidence.is_loss_finite:
        why = "{} is the first operation that gives NaN or infinity."
        causes = unique_causes(_cause_of_non_finite(origin, why) for origin in evidence.origins)
        loss = float(evidence.forward.loss.detach())
        return Finding(Verdict.NON_FINITE, causes or (_cause_outside(evidence),), f"the loss is {loss}")
    if evidence.backward.magnitudes[name].is_finite:
        return None
    origins = evidence.origins_of(name, lambda magnitude: not magnitude.is_finite)
    if "where" in evidence.forward.made_by:
        return Finding(Verdict.NON_FINITE, unique_causes(_cause_in_branch(origin) for origin in origins))
    why = "a finite gradient enters {} and leaves it as NaN or infinity: its slope is infinite at this input."
    return Finding(Verdict.NON_FINITE, unique_causes(_cause_of_non_finite(origin, why) for origin in origins))


def _cause_outside(evidence: Evidence) -> Cause:
    """Explain NaN or infinity that no operation makes."""
    where = " and ".join(_non_finite_sources(evidence.subject)) or "what the code keeps outside of the model's tensors"
    why = f"no operation turns finite numbers into NaN or infinity: {where} already contained it."
    return Cause("NaN or infinity", CodeLocation(), why, "find it there with torch.isfinite, and replace it")


_MAX_SOURCES = 3


def _non_finite_sources(subject: Subject) -> tuple[str, ...]:
    """Describe the parameters, buffers, inputs and targets that are not finite, a few words each."""
    given = tensors_in((subject.arguments, subject.keywords))
    named: list[tuple[str, torch.Tensor]] = [
        *((f"the parameter '{name}'", parameter) for name, parameter in subject.parameters.items()),
        *((f"the buffer '{name}'", buffer) for name, buffer in subject.model.named_buffers()),
        *((f"an input of shape {tuple(tensor.shape)}", tensor) for tensor in given),
        *(("the target", tensor) for tensor in tensors_in(subject.target)),
    ]
    found = [words for words, tensor in named if not bool(tensor.detach().isfinite().all())]
    return tuple(dict.fromkeys(found))[:_MAX_SOURCES]


def _cause_in_branch(operation: Operation) -> Cause:
    """Explain an infinite slope in the branch that torch.where does not take: times zero it gives NaN."""
    bare = operation.bare_name
    why = (
        f"the slope of {bare} is infinite or beyond the range at inputs that torch.where may not even select; it "
        "multiplies that slope by zero, which gives NaN."
    )
    suggestion = f"keep the input of {bare} harmless where it is not selected: {bare}(torch.where(mask, x, 0.5))"
    return Cause(operation.label, operation.location, why, suggestion)


def _cause_of_non_finite(operation: Operation, why: str) -> Cause:
    """Explain where NaN or infinity arises; `why` has a place for the bare name of the operation."""
    bare = operation.bare_name
    known = bare.strip("_").removeprefix("linalg_")
    suggestion = next(text for names, text in _SINGULAR if known in names or not names)
    return Cause(operation.label, operation.location, why.format(bare), suggestion)
