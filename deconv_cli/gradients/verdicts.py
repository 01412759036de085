"""The words of the doctor: verdicts, places in code, causes, and what is said of each parameter."""

from __future__ import annotations

import io
import linecache
import tokenize
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What is found for a parameter, or for the model as a whole."""

    OK = "OK"
    """The gradient arrives, and agrees with finite differences."""
    FROZEN = "FROZEN"
    """`requires_grad` is off."""
    UNUSED = "UNUSED"
    """Never used in forward."""
    NOT_LOSS = "NOT-LOSS"
    """Used, but its value does not reach the loss."""
    CUT = "CUT"
    """Its value reaches the loss, but an operation cuts the gradient off, wholly or on one of the ways."""
    ZERO = "ZERO"
    """The gradient arrives, and is zero in every element."""
    ZERO_BY_CONSTRUCTION = "ZERO BY CONSTRUCTION"
    """The loss cannot depend on it, as on a bias before batch normalization."""
    NON_FINITE = "NON-FINITE"
    """NaN or infinity, in the gradient or in the loss."""
    WRONG = "WRONG"
    """Autograd and finite differences disagree."""
    KINK = "KINK"
    """The loss has a corner here, so there is no one derivative; not a fault."""
    VANISHING = "VANISHING"
    EXPLODING = "EXPLODING"
    NOISY = "NOISY"
    """The loss differs from run to run, so nothing can be said of its derivative."""
    IN_PLACE = "IN-PLACE"
    """A tensor that backward needs was overwritten."""
    BATCH_LEAK = "BATCH-LEAK"
    """The output of one sample depends on another sample of the batch."""
    NOT_CHECKED = "NOT CHECKED"
    """The gradient arrives, but was not compared with finite differences."""

    @property
    def is_fault(self) -> bool:
        """True where training cannot work as written."""
        return self not in _NO_FAULT

    @property
    def is_undecided(self) -> bool:
        """True where nothing can be said."""
        return self in (Verdict.NOISY, Verdict.NOT_CHECKED)


_NO_FAULT = frozenset(
    {
        Verdict.OK,
        Verdict.FROZEN,
        Verdict.ZERO_BY_CONSTRUCTION,
        Verdict.KINK,
        Verdict.NOISY,
        Verdict.NOT_CHECKED,
    }
)


_SAME_FACTOR = 0.01


@dataclass(frozen=True)
class Place:
    """A place in code: file and line where they are known, and the module of the model that was running.

    Attributes:
        file: path of the source file, or None where the model carries no source.
        line: line number from 1.
        function: name of the function around the line.
        module: dotted name of the innermost module, empty for the model itself or outside of it.
        text: the source line, where the model file itself tells it.
        turn: the same for the same instruction reached by the same calls, as in each turn of a loop.
    """

    file: str | None = None
    line: int | None = None
    function: str | None = None
    module: str = ""
    text: str | None = None
    turn: int = field(default=0, compare=False, repr=False)

    @property
    def source(self) -> str:
        """The source line, stripped; empty where it is not known."""
        if self.text is not None:
            return self.text.strip()
        return linecache.getline(self.file, self.line).strip() if self.file and self.line else ""

    @property
    def code(self) -> str:
        """The source line without its comment."""
        source = self.source
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        except (tokenize.TokenError, SyntaxError):
            tokens = []
        comments = [token.start[1] for token in tokens if token.type == tokenize.COMMENT]
        # A line that opens a bracket or a block is no whole piece of Python, so its comment is found by its look.
        return source[: comments[0]].rstrip() if comments else source.partition("  # ")[0]

    def __str__(self) -> str:
        """Write `file.py:12`, or the name of the module."""
        if self.file and self.line:
            return f"{self.file}:{self.line}"
        return f"module {self.module}" if self.module else "the model"


@dataclass(frozen=True)
class Cause:
    """What is to blame.

    Attributes:
        operation: as a person would write it, for instance `.detach()`.
        place: where it stands.
        why: one sentence.
        remedy: one line of what to write instead.
    """

    operation: str
    place: Place
    why: str
    remedy: str


@dataclass(frozen=True)
class Comparison:
    """Autograd against finite differences.

    Attributes:
        autograd: derivative by autograd, in loss per unit of step along the direction.
        numeric: the same by finite differences.
        error_bar: how far the numeric value can be off.
        resolution: smallest relative error of the gradient that would have been noticed.
        element: index of the element that is wrong, None for a direction through the whole tensor.
        n_wrong: how many of `n_tried` elements were found wrong, one by one.
        n_tried: elements that were looked at one by one.
        ratio: median of autograd / numeric over the wrong elements.
        ratio_range: the smallest and the largest of these ratios.
    """

    autograd: float
    numeric: float
    error_bar: float
    resolution: float
    element: tuple[int, ...] | None = None
    n_wrong: int = 0
    n_tried: int = 0
    ratio: float | None = None
    ratio_range: tuple[float, float] | None = None


def is_one_factor(ratio: float, ratio_range: tuple[float, float] | None) -> bool:
    """Tell whether ratios are one and the same factor, to within 1 % of their median."""
    return ratio_range is None or ratio_range[1] - ratio_range[0] <= _SAME_FACTOR * abs(ratio)


def told_factor(ratio: float, ratio_range: tuple[float, float] | None) -> str:
    """Write by what the wrong elements are off: a factor, or the factors around a median."""
    if is_one_factor(ratio, ratio_range) or ratio_range is None:
        return f"by a factor of {ratio:.4g}"
    low, high = ratio_range
    return f"by factors around {ratio:.4g} (from {low:.4g} to {high:.4g})"


@dataclass
class ParameterFinding:
    """What is said of one parameter.

    Attributes:
        name: as in the state dict.
        shape: its shape.
        verdict: the one word.
        causes: what is to blame; empty where nothing is.
        detail: a sentence with the numbers, where there is more to say.
        gradient_norm: ‖gradient‖, None where none arrives or it is not finite.
        weight_norm: ‖parameter‖.
        comparison: against finite differences, None where it was not compared.
        second_order: the same for second derivatives, None where they were not asked for.
        blocks: norms of the gradient by gate, for recurrent layers.
    """

    name: str
    shape: tuple[int, ...]
    verdict: Verdict = Verdict.NOT_CHECKED
    causes: tuple[Cause, ...] = ()
    detail: str = ""
    gradient_norm: float | None = None
    weight_norm: float = 0.0
    comparison: Comparison | None = None
    second_order: Comparison | None = None
    blocks: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """‖gradient‖ / ‖parameter‖."""
        return None if self.gradient_norm is None or not self.weight_norm else self.gradient_norm / self.weight_norm


@dataclass(frozen=True)
class GeneralFinding:
    """A fault of the model as a whole: a batch leak, an in-place write, noise."""

    verdict: Verdict
    causes: tuple[Cause, ...]
    detail: str


@dataclass(frozen=True)
class TimeSeries:
    """The gradient of the loss on its way back through the steps of a recurrence.

    Attributes:
        name: the module, or the line of a hand-written loop.
        place: where it stands.
        norms: ‖∂loss/∂h_t‖ for t = 0, 1, ...
        trend: `fades`, `explodes` or `steady`, seen backwards in time.
        step: the last step, counted from the first, at which the norm is below a millionth of the largest (fades), or
            the step at which it is largest (explodes); None for steady.
    """

    name: str
    place: Place
    norms: tuple[float, ...]
    trend: str
    step: int | None


@dataclass
class Examination:
    """All that was found.

    Attributes:
        parameters: one finding for each parameter.
        general: faults of the model as a whole.
        recurrent: gradients through time.
        loss: the value of the loss.
        dtype: the precision in which finite differences were taken.
        notes: what was assumed, a sentence each.
        not_checked: what was left out and why, a sentence each.
        n_evaluations: forward passes spent on finite differences.
        time_s: seconds in all.
    """

    parameters: list[ParameterFinding]
    general: list[GeneralFinding] = field(default_factory=list)
    recurrent: list[TimeSeries] = field(default_factory=list)
    loss: float | None = None
    dtype: str = "float64"
    notes: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    n_evaluations: int = 0
    time_s: float = 0.0

    def faults(self) -> list[tuple[Verdict, tuple[Cause, ...], list[str]]]:
        """Gather the parameters of each fault by source line: verdict, causes, names of parameters."""
        groups: dict[Any, tuple[Verdict, list[Cause], list[str]]] = {}
        for finding in self.parameters:
            if not finding.verdict.is_fault:
                continue
            places = tuple((cause.operation, str(cause.place)) for cause in finding.causes)
            _, causes, names = groups.setdefault((finding.verdict, places), (finding.verdict, [], []))
            causes += [cause for cause in finding.causes if cause not in causes]
            names.append(finding.name)
        return [(verdict, tuple(causes), names) for verdict, causes, names in groups.values()]
