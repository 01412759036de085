"""What the checker finds: a verdict, what causes it, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

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
    """Its value reaches the loss, but an operation cuts the gradient off, wholly or on one of the paths."""
    ZERO = "ZERO"
    """The gradient arrives, and is zero in every element."""
    ZERO_BY_CONSTRUCTION = "ZERO BY CONSTRUCTION"
    """The loss cannot depend on it, as on a bias before batch normalization."""
    NON_FINITE = "NON-FINITE"
    """NaN or infinity, in the gradient or in the loss."""
    WRONG = "WRONG"
    """Autograd and finite differences disagree."""
    NONDIFFERENTIABLE = "NONDIFFERENTIABLE"
    """The loss has a corner here, so there is no one derivative; not a fault."""
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
    NOT_CHECKED = "NOT CHECKED"
    """The gradient arrives, but was not compared with finite differences."""


_UNDECIDED = frozenset({Verdict.NOISY, Verdict.NOT_CHECKED})
_NO_FAULT = _UNDECIDED | {Verdict.OK, Verdict.FROZEN, Verdict.ZERO_BY_CONSTRUCTION, Verdict.NONDIFFERENTIABLE}


@dataclass(frozen=True)
class Cause:
    """An operation that causes a finding.

    Attributes:
        operation: as a person would write it, for instance `.detach()`.
        location: its line.
        why: one sentence.
        suggestion: one line of what to write instead.
    """

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
