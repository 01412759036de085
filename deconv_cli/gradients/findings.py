"""What the checker finds: a verdict, what causes it, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from deconv_cli.gradients.finite_differences.directional import Comparison
from deconv_cli.gradients.tracing.code_location import CodeLocation

_MAX_CAUSES = 3


class Verdict(StrEnum):
    """What is found for a parameter, or for the model as a whole. Rules of your own may use words of their own."""

    OK = "OK"
    """The gradient arrives, and agrees with finite differences."""
    FROZEN = "FROZEN"
    """`requires_grad` is off."""
    UNUSED = "UNUSED"
    """Never used in forward."""
    NOT_LOSS = "NOT-LOSS"
    """Used, but its value does not reach the loss."""
    DETACHED = "DETACHED"
    """Its value reaches the loss, but an operation cuts the gradient off, wholly or on some of its paths."""
    ZERO = "ZERO"
    """The gradient arrives, and is zero in every element."""
    ZERO_BY_CONSTRUCTION = "ZERO BY CONSTRUCTION"
    """The loss cannot depend on it, as on a bias before batch normalization."""
    ZERO_AT_START = "ZERO AT START"
    """The gradient is zero, and no longer so after an optimizer step or two; not a fault."""
    NOT_REACHED = "NOT REACHED"
    """Nothing in this batch uses it, as an expert that no sample is sent to; other data do; not a fault."""
    NON_FINITE = "NON-FINITE"
    """NaN or infinity, in the gradient or in the loss."""
    SUBSTITUTED = "SUBSTITUTED"
    """Code puts another gradient in the place of the derivative on purpose; not a fault."""
    SYMMETRIC = "SYMMETRIC"
    """The units of a layer are all the same, and so are their gradients: they stay the same for ever."""
    WRONG = "WRONG"
    """Autograd and finite differences disagree."""
    NONDIFFERENTIABLE = "NONDIFFERENTIABLE"
    """The loss has a corner here, so there is no one derivative; not a fault."""
    PARTLY_DETACHED = "PARTLY DETACHED"
    """Code detaches on purpose, and every parameter behind it has another way to the loss; not a fault."""
    VANISHING_AT_START = "VANISHING AT START"
    """The gradient is tiny, and no longer so after an optimizer step or two; not a fault."""
    VANISHING = "VANISHING"
    """The gradient is tiny beside the weight, compared with the layer next to the loss."""
    EXPLODING = "EXPLODING"
    """The gradient is huge beside the weight, compared with the layer next to the loss."""
    NOISY = "NOISY"
    """The loss differs from run to run, so nothing can be said of its derivative."""
    IN_PLACE = "IN-PLACE"
    """A tensor that backward needs was overwritten."""
    BATCH_LEAK = "BATCH-LEAK"
    """The output of one sample depends on another sample of the batch."""
    NOTHING_TRAINS = "NOTHING TRAINS"
    """No parameter requires a gradient."""
    UNREGISTERED = "UNREGISTERED"
    """The loss depends on a weight that the model does not know, so that no optimizer is given it."""
    OVERWRITTEN = "OVERWRITTEN"
    """Forward writes to the parameter, so that what an optimizer does to it is lost."""
    LOSS_INPUT = "LOSS INPUT"
    """A loss is given something other than what its formula is for."""
    OPTIMIZER = "OPTIMIZER"
    """The optimizer does not hold the weights that are trained, or its step changes nothing."""
    ACCUMULATED = "ACCUMULATED"
    """Gradients are added to those of the step before, which nothing cleared."""
    GRADIENT_LOST = "GRADIENT LOST"
    """Gradients are cleared, clipped to nothing or skipped between backward and the step."""
    CLIPPING = "CLIPPING"
    """Gradients are to be limited, but none are that a step goes by, or to much less than the limit says."""
    FAILS = "FAILS"
    """A script ends with an error in its training."""
    NOT_CHECKED = "NOT CHECKED"
    """The gradient arrives, but was not compared with finite differences."""


_UNDECIDED = frozenset({Verdict.NOISY, Verdict.NOT_CHECKED})
_NO_FAULT = _UNDECIDED | {
    Verdict.OK,
    Verdict.FROZEN,
    Verdict.ZERO_BY_CONSTRUCTION,
    Verdict.ZERO_AT_START,
    Verdict.NOT_REACHED,
    Verdict.NONDIFFERENTIABLE,
    Verdict.PARTLY_DETACHED,
    Verdict.SUBSTITUTED,
    Verdict.VANISHING_AT_START,
}


@dataclass(frozen=True)
class Cause:
    """An operation that causes a finding, as code writes it, with its line, the reason, and what to write instead."""

    operation: str
    location: CodeLocation
    why: str
    suggestion: str


@dataclass(frozen=True)
class Finding:
    """What a rule finds.

    Attributes:
        verdict: one of `Verdict`, or a word of the rule's own, which counts as a fault.
        causes: operations to look at; empty where there are none.
        detail: a sentence with the numbers, where there is more to say.
    """

    verdict: str
    causes: tuple[Cause, ...] = ()
    detail: str = ""

    @property
    def is_fault(self) -> bool:
        """True where training cannot work as written."""
        return self.verdict not in _NO_FAULT

    @property
    def is_undecided(self) -> bool:
        """True where nothing can be said."""
        return self.verdict in _UNDECIDED


def unique_causes(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Keep the first cause of each line, three at most."""
    kept: dict[str, Cause] = {}
    for cause in causes:
        where = str(cause.location)
        kept.setdefault(where if cause.location.file else f"{where} {cause.operation}", cause)
    return tuple(list(kept.values())[:_MAX_CAUSES])


def first_line(error: BaseException) -> str:
    """Quote the first line of an error's message, without its final stop."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".")[:240] if lines else type(error).__name__


@dataclass(frozen=True)
class ParameterFinding(Finding):
    """What is found for one parameter, and its numbers.

    Attributes:
        gradient_norm: ‖gradient‖, None where none arrives or it is not finite.
        weight_norm: ‖parameter‖.
        comparison: against finite differences, None where it was not compared.
        second_order: the same for second derivatives.
        gates: norms of the gradient by gate, for recurrent layers.
    """

    name: str = ""
    shape: tuple[int, ...] = ()
    gradient_norm: float | None = None
    weight_norm: float = 0.0
    comparison: Comparison | None = None
    second_order: Comparison | None = None
    gates: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """‖gradient‖ / ‖parameter‖."""
        return None if self.gradient_norm is None or not self.weight_norm else self.gradient_norm / self.weight_norm


@dataclass(frozen=True)
class Fault:
    """Parameters with one fault of the same cause."""

    verdict: str
    causes: tuple[Cause, ...]
    parameters: tuple[str, ...]


def grouped(findings: Iterable[ParameterFinding]) -> list[Fault]:
    """Gather findings of one verdict that have the same lines; without a line, those that have the same reason."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[ParameterFinding]] = {}
    for finding in findings:
        lines = tuple(
            (cause.operation, str(cause.location) if cause.location.file else cause.why) for cause in finding.causes
        )
        groups.setdefault((finding.verdict, lines), []).append(finding)
    return [
        Fault(verdict, unique_causes(group[0].causes), tuple(finding.name for finding in group))
        for (verdict, _), group in groups.items()
    ]
