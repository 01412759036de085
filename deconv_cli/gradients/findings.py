"""The findings of the checker, and the report in plain words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deconv_cli.gradients.finite_differences import Comparison
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.vocabulary import counted, name_some

_MAX_CAUSES = 3


class Verdict(StrEnum):
    """The verdict on a parameter, or on the model as a whole. Rules of your own may use other words."""

    OK = "OK"
    """The gradient arrives, and agrees with finite differences."""
    FROZEN = "FROZEN"
    """`requires_grad` is off, or it has no elements."""
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
    """The gradient is zero, but no longer after an optimizer step or two; not a fault."""
    NOT_REACHED = "NOT REACHED"
    """This batch does not use it, as an expert without samples, but other data or another loss do; not a fault."""
    NON_FINITE = "NON-FINITE"
    """NaN or infinity, in the gradient or in the loss."""
    SUBSTITUTED = "SUBSTITUTED"
    """Code replaces the derivative by another gradient on purpose; not a fault."""
    WRONG = "WRONG"
    """Autograd and finite differences disagree."""
    NONDIFFERENTIABLE = "NONDIFFERENTIABLE"
    """The loss has a corner here, so there is no one derivative; not a fault."""
    PARTLY_DETACHED = "PARTLY DETACHED"
    """Code detaches on purpose, and every parameter behind it reaches the loss in another way; not a fault."""
    VANISHING_AT_START = "VANISHING AT START"
    """The gradient is tiny, but no longer after an optimizer step or two; not a fault."""
    VANISHING = "VANISHING"
    """The gradient is tiny beside the weight, compared with the layer next to the loss."""
    EXPLODING = "EXPLODING"
    """The gradient is huge beside the weight, compared with the layer next to the loss."""
    NOISY = "NOISY"
    """The loss differs from run to run, so its derivative cannot be checked."""
    IN_PLACE = "IN-PLACE"
    """A tensor that backward needs was overwritten."""
    BATCH_LEAK = "BATCH-LEAK"
    """The output of one sample depends on another sample of the batch."""
    NOTHING_TRAINS = "NOTHING TRAINS"
    """No parameter requires a gradient."""
    UNREGISTERED = "UNREGISTERED"
    """The loss depends on a weight that the model does not register, so no optimizer gets it."""
    OVERWRITTEN = "OVERWRITTEN"
    """Forward writes to the parameter, so the step of an optimizer is lost."""
    LOSS_INPUT = "LOSS INPUT"
    """A loss gets the wrong kind of input."""
    OPTIMIZER = "OPTIMIZER"
    """The optimizer does not hold the weights that are trained, or its step changes nothing."""
    ACCUMULATED = "ACCUMULATED"
    """Gradients are added to those of the step before, which were not cleared."""
    GRADIENT_LOST = "GRADIENT LOST"
    """Gradients are cleared or clipped to nothing between backward and the step."""
    FAILS = "FAILS"
    """A script ends with an error in its training."""
    NOT_CHECKED = "NOT CHECKED"
    """The gradient arrives, but was not compared with finite differences."""


WITHOUT_GRADIENT = (Verdict.UNUSED, Verdict.NOT_LOSS, Verdict.DETACHED)
"""Verdicts on parameters whose gradient is None."""


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
    """An operation that causes a finding, with its line, the reason, and what to write instead."""

    operation: str
    location: CodeLocation
    why: str
    suggestion: str


@dataclass(frozen=True)
class Finding:
    """The finding of a rule.

    Attributes:
        verdict: one of `Verdict`, or another word of the rule, which counts as a fault.
        causes: operations to look at, possibly none.
        detail: a sentence with the numbers, possibly empty.
        is_excused: no fault here, though the verdict is one elsewhere; the causes say why.
    """

    verdict: str
    causes: tuple[Cause, ...] = ()
    detail: str = ""
    is_excused: bool = False

    @property
    def is_fault(self) -> bool:
        """True where training cannot work as written."""
        return self.verdict not in _NO_FAULT and not self.is_excused

    @property
    def is_undecided(self) -> bool:
        """True where no verdict is possible."""
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
    """The finding for one parameter, and its numbers.

    Attributes:
        gradient_norm: ‖gradient‖, None where no finite gradient arrives.
        weight_norm: ‖parameter‖.
        comparison: with finite differences, None where there was no comparison.
    """

    name: str = ""
    shape: tuple[int, ...] = ()
    gradient_norm: float | None = None
    weight_norm: float = 0.0
    comparison: Comparison | None = None

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
    """Group findings of one verdict by their lines, or by their reason if they have no line."""
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


@dataclass(frozen=True, repr=False)
class GradientReport:
    """The findings for each parameter, and for the model as a whole (`general`); it prints as text.

    Attributes:
        loss: the value of the loss, None where it is not finite.
        dtype: the precision of finite differences, None without any.
        notes: assumptions, a sentence each.
        not_checked: unchecked things with the reason, a sentence each.
        n_evaluations: forward passes spent on finite differences.
        time_s: seconds in all.
    """

    parameters: tuple[ParameterFinding, ...]
    general: tuple[Finding, ...]
    loss: float | None
    dtype: str | None
    notes: tuple[str, ...]
    not_checked: tuple[str, ...]
    n_evaluations: int
    time_s: float

    def __repr__(self) -> str:
        return write_report(self.parameters, self.general)

    def faults(self) -> list[Fault]:
        """Gather the parameters of each fault by source line."""
        return grouped(finding for finding in self.parameters if finding.is_fault)

    def remarks(self) -> list[Fault]:
        """Gather by source line the parameters with a reason but no fault, such as a zero at the start."""
        return grouped(finding for finding in self.parameters if finding.causes and not finding.is_fault)


_GETS_NOTHING = ("UNUSED", "NOT-LOSS", "DETACHED", "ZERO", "OVERWRITTEN", "IN-PLACE")
_OF_ALL = {
    "NOTHING TRAINS": "all parameters are frozen",
    "UNREGISTERED": "the loss depends on weights that no optimizer holds",
    "OVERWRITTEN": "weights are set back after the optimizer changed them",
    "LOSS INPUT": "the loss gets the wrong kind of input",
    "OPTIMIZER": "the optimizer does not change the weights as it should",
    "ACCUMULATED": "gradients of earlier passes are used again",
    "GRADIENT LOST": "gradients are lost before the step",
    "FAILS": "the script ends with an error",
    "BATCH-LEAK": "samples leak into one another",
    "DETACHED": "a random draw passes no gradient on",
    "WRONG": "a hand-written backward is wrong",
}
"""Faults of the model as a whole, in plain words."""
_SLOWING = ("LOSS INPUT", "ACCUMULATED")
"""Faults under which the loss still falls."""


def summarize(
    parameters: Sequence[ParameterFinding], general: Sequence[Finding], expected: frozenset[str] = frozenset()
) -> str:
    """Say in one line whether training would work.

    Args:
        parameters: the findings for each parameter.
        general: the findings for the model as a whole.
        expected: names of parameters, and verdicts on the model as a whole, that the user accepts.
    """
    trainable = [found for found in parameters if found.verdict != "FROZEN"]
    rest = [found for found in trainable if found.name not in expected]
    without = [found for found in rest if found.is_fault and found.verdict in _GETS_NOTHING]
    others = [found for found in rest if found.is_fault and found not in without]
    of_all = [found for found in general if found.is_fault and found.verdict not in expected]
    if not trainable or len(without) == len(trainable):
        whole = "its whole" if any(found.gradient_norm for found in without) else "a"  # cut on one of its ways
        return f"Training would not work: no parameter gets {whole} gradient."
    sentences, of_trainable = [], f"of {counted(len(trainable), 'parameter')}"
    if without:
        sentences.append(f"{len(without)} {of_trainable} would not train")
    if others:
        verdicts = ", ".join(dict.fromkeys(str(found.verdict) for found in others))
        sentences.append(f"{len(others)} {of_trainable} would train badly ({verdicts})")
    if of_all:
        sentences += dict.fromkeys(
            f"{_OF_ALL.get(found.verdict, 'there is a fault')} ({found.verdict})" for found in of_all
        )
    if sentences:
        is_slow = not without and not others and all(found.verdict in _SLOWING for found in of_all)
        trained = (
            "Training runs, but more slowly or to a worse result" if is_slow else "Training would not work as meant"
        )
        return f"{trained}: {'; '.join(sentences)}."
    unknown = [found for found in trainable if found.is_undecided]
    if unknown:
        return f"Gradients arrive, but {len(unknown)} of {len(trainable)} could not be checked."
    substituted = [found for found in trainable if found.verdict == "SUBSTITUTED"]
    if substituted:
        share = f"{len(substituted)} of {len(trainable)}"
        return f"Training can work: every gradient arrives and is right, except for {share} that the code substitutes."
    if len(rest) < len(trainable) or any(found.verdict in expected for found in general):
        return "Training can work except for the expected findings; every other gradient arrives and is right."
    return "Training can work: every trainable parameter gets a correct gradient."


def write_report(parameters: Sequence[ParameterFinding], general: Sequence[Finding]) -> str:
    """Write the report as text: the summary, then each fault with its line, its reason and what to write instead."""
    blocks = [summarize(parameters, general)]
    for fault in grouped(found for found in parameters if found.is_fault):
        blocks.append("\n".join([f"{fault.verdict}: {name_some(fault.parameters)}", *explain(fault.causes)]))
    for found in general:
        blocks.append("\n".join([f"{found.verdict}: the model", *explain(found.causes)]))
    return "\n\n".join(blocks)


def explain(causes: Iterable[Cause]) -> list[str]:
    """Write what is at fault, why, and what to write instead; files below the current folder without it."""
    lines = []
    for cause in causes:
        source = f"    {cause.location.source}" if cause.location.source else ""
        where = str(cause.location).removeprefix(f"{Path.cwd()}{os.sep}")
        lines += [f"  at       {where}  {cause.operation}{source}", f"  why      {cause.why}"]
        lines.append(f"  instead  {cause.suggestion}")
    return lines
