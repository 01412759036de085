"""NON-FINITE: NaN or infinity in a gradient or in the loss, and the operation at which it arises."""

from __future__ import annotations

import torch

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.nested_tensors import tensors_in
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import Operation
from deconv_cli.gradients.tracing.operations import words

_NOTHING_TARGETED = (
    "make sure that each batch has a target that counts, or divide the sum (reduction='sum') by max(count, 1)"
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
        why = "NaN or infinity first arises in {}, from inputs without."
        causes = unique_causes(_cause_of_non_finite(evidence, origin, why) for origin in evidence.origins)
        loss = float(evidence.forward.loss.detach())
        return Finding(Verdict.NON_FINITE, causes or (_cause_outside(evidence),), f"the loss is {loss}")
    if evidence.backward.magnitudes[name].is_finite:
        return None
    origins = evidence.origins_of(name, lambda magnitude: not magnitude.is_finite)
    if "where" in evidence.forward.made_by:
        return Finding(Verdict.NON_FINITE, unique_causes(_cause_in_branch(origin) for origin in origins))
    why = "a finite gradient enters {} and leaves it as NaN or infinity: its slope is infinite at this input."
    return Finding(Verdict.NON_FINITE, unique_causes(_cause_of_non_finite(evidence, origin, why) for origin in origins))


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


def _cause_of_non_finite(evidence: Evidence, operation: Operation, why: str) -> Cause:
    """Explain where NaN or infinity arises; `why` has a place for the bare name of the operation."""
    bare = operation.bare_name
    known = bare.strip("_").removeprefix("linalg_")
    suggestion = next(text for names, text in _SINGULAR if known in names or not names)
    return Cause(operation.label, operation.location, why.format(bare), suggestion)
