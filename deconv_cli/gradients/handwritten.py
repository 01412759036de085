"""Check every hand-written backward on its own against autograd of its forward and finite differences."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from deconv_cli.gradients.backward_mistakes import (
    Mistake,
    find_kept_elsewhere,
    find_mistake,
    find_writes,
    find_wrong_second_derivative,
)
from deconv_cli.gradients.function_trial import FunctionTrial, GradientError, compare_input
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.backward_lines import BackwardSource
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, FunctionCall
from deconv_cli.gradients.tracing.interception import trace_forward

_CALLS_PER_FUNCTION = 3


@dataclass(frozen=True, eq=False)
class WrongInput:
    """An input of a Function for which its backward gives a wrong gradient, or None (`is_missing`).

    Attributes:
        location: the line in backward, where backward is written, or where the Function was called.
        error: how the gradient is wrong; None where the mistake is another one.
        parameters: those behind this input.
        mistake: what is done wrong, where that can be told, with a number of samples or of an axis.
        place: of this input among the tensors of a call.
        is_unchanged: forward returns this input as it is, so that the Function is there for its backward alone.
    """

    function: str
    name: str
    location: CodeLocation
    error: GradientError | None
    is_missing: bool
    parameters: frozenset[str]
    mistake: Mistake | None = None
    number: int = 0
    place: int = 0
    is_unchanged: bool = False

    @property
    def is_on_purpose(self) -> bool:
        """Whether the gradient is meant to be another one: a surrogate, or one that is reversed, scaled or limited."""
        is_surrogate = self.error is not None and bool(self.error.surrogate)
        return not self.is_missing and (is_surrogate or self.is_unchanged)


@dataclass(eq=False)
class CheckedFunctions:
    """What was found of all hand-written Functions; sentences on what could not be checked, and on what is no fault."""

    wrong: dict[tuple[CodeLocation, str], WrongInput] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count_behind(self, call: FunctionCall, forward: ForwardTrace) -> None:
        """Count the parameters behind one more call of a Function that was found wrong in another call."""
        for key, item in self.wrong.items():
            if item.function == call.function.__name__:
                behind = _behind(call, forward, item.place)
                self.wrong[key] = replace(item, parameters=item.parameters | behind)


def _behind(call: FunctionCall, forward: ForwardTrace, place: int) -> frozenset[str]:
    """Name the parameters that the gradient of a tensor, counted among the arguments of a call, goes on to."""
    children = [child for child, _ in call.node.next_functions] if call.node is not None else []
    child = children[place] if place < len(children) else None
    reached = forward.graph.parameters_below(child) if child is not None else 0
    return frozenset(name for name in forward.names if forward.bit(name) & reached)


def check_functions(subject: Subject, budget: float, *, second_order: bool) -> CheckedFunctions:
    """Check every hand-written Function on the inputs it is called with, in float64 if possible, in `budget` seconds.

    The batch is whole, since a fault may lie in how samples are summed. A wrong second derivative is a fault with
    `second_order`, or where the model itself differentiates what it differentiated.
    """
    deadline = time.monotonic() + budget
    try:
        with subject.in_double():
            return _check_calls(trace_forward(subject), deadline, second_order=second_order)
    except RuntimeError:
        return _check_calls(trace_forward(subject), deadline, second_order=second_order)


def _check_calls(forward: ForwardTrace, deadline: float, *, second_order: bool) -> CheckedFunctions:
    is_twice = second_order or "grad" in forward.log.names
    found = CheckedFunctions()
    counts: Counter[type] = Counter()
    for call in forward.log.calls:
        counts[call.function] += 1
        if counts[call.function] > _CALLS_PER_FUNCTION:
            found.count_behind(call, forward)
            continue
        try:
            for item in _check_call(call, forward, deadline):
                if item.mistake is Mistake.NOT_TWICE and not is_twice:
                    found.notes += [_describe_lost_second(item)] if counts[call.function] == 1 else []
                else:
                    first = found.wrong.setdefault((item.location, item.name), item)
                    found.wrong[item.location, item.name] = replace(
                        first, parameters=first.parameters | item.parameters
                    )
        except Exception as error:  # noqa: BLE001  whatever a hand-written Function raises is noted, not passed on
            reason = f"could not be run by itself ({type(error).__name__})"
            found.unchecked.append(f"{call.function.__name__} at {call.location} {reason}")
    return found


def _describe_lost_second(item: WrongInput) -> str:
    return (
        f"{item.function}.backward at {item.location} gives no right second derivative and no error; "
        "@once_differentiable above it would say so"
    )


def _check_call(call: FunctionCall, forward: ForwardTrace, deadline: float) -> list[WrongInput]:
    trial = FunctionTrial.of(call)
    compared = ((index, compare_input(trial, index, deadline)) for index in range(len(trial.tensors)))
    errors = {index: error for index, error in compared if error is not None}
    describe = _Describing(call, forward, trial)
    written = find_writes(trial)
    if written is not None:
        # What backward reads after it wrote to that is wrong since then; the incoming gradient it is given anew.
        is_of_incoming = written[0] is Mistake.WRITES_TO_INCOMING
        found = [describe.of_write(*written, {} if is_of_incoming else errors)]
        return [*found, *_explained(describe, trial, errors)] if is_of_incoming and errors else found
    if not errors:
        n_calls = sum(other.function is call.function for other in forward.log.calls)
        kept = find_kept_elsewhere(trial) if n_calls > 1 else None
        if kept is not None:
            return [describe.of_input(kept, None, (Mistake.KEEPS_ELSEWHERE, 0), [kept])]
        lost = find_wrong_second_derivative(trial)
        return [] if lost is None else [describe.of_input(lost, None, (Mistake.NOT_TWICE, 0), [lost])]
    return _explained(describe, trial, errors)


def _explained(describe: _Describing, trial: FunctionTrial, errors: dict[int, GradientError]) -> list[WrongInput]:
    """Tell for each wrong input which mistake is made."""
    mistakes = {index: find_mistake(trial, index) for index in errors}
    describe.errors = errors
    return [
        describe.of_input(index, errors[index], mistake, [n for n in errors if mistakes[n] == mistake])
        for index, mistake in mistakes.items()
    ]


class _Describing:
    """Describes what is wrong with a call, with its names and its lines."""

    def __init__(self, call: FunctionCall, forward: ForwardTrace, trial: FunctionTrial) -> None:
        self._call, self._forward, self._trial = call, forward, trial
        self._names = _input_names(call.function, len(trial.leaves))
        self._source = BackwardSource(call.function)
        self.errors: dict[int, GradientError] = {}

    def of_input(
        self, index: int, error: GradientError | None, mistaken: tuple[Mistake, int] | None, alike: list[int]
    ) -> WrongInput:
        """Describe an input; `alike` are all with the same mistake, which have a line in common."""
        position, (mistake, number) = list(self._trial.tensors)[index], mistaken or (None, 0)
        is_missing = error is not None and self._trial.given[index] is None
        location = self._source.of_change() if mistake is Mistake.NOT_LINEAR else None
        if location is None and not is_missing and error is not None and not error.surrogate:
            location = self._first_mistake
        location = location or self._source.of_gradient([list(self._trial.tensors)[n] for n in alike])
        found = self._item(position, location, error, mistake, number, is_missing=is_missing)
        return replace(found, is_unchanged=error is not None and self._trial.returns(index))

    @cached_property
    def _first_mistake(self) -> CodeLocation | None:
        """The first line of backward that departs from the chain rule."""
        positions = list(self._trial.tensors)
        meant = {n for n, error in self.errors.items() if error.surrogate or self._trial.given[n] is None}
        wrong = [positions[n] for n in self.errors if n not in meant]
        if not wrong:
            return None
        # A gradient that is zero, as that of the weights of a state that is zero, tells nothing of the lines before.
        others = {n: self._trial.given[n] for n in range(len(positions)) if n not in self.errors}
        right = [positions[n] for n, given in others.items() if given is not None and bool(given.any())]
        blocks = {error.block for error in self.errors.values() if error.block and error.n_rows > error.block[1]}
        block = next(iter(blocks)) if len(blocks) == 1 else None
        return self._source.of_first_mistake(self._trial.gradients, self._trial.known_values(), wrong, right, block)

    def of_write(self, mistake: Mistake, position: int, errors: dict[int, GradientError]) -> WrongInput:
        """Describe a write, in forward where that writes to the input at a position."""
        source = self._source if position < 0 else BackwardSource(self._call.function, "forward")
        error = next(iter(errors.values()), None)
        position = position if position >= 0 else next(iter(self._trial.tensors))
        return self._item(position, source.of_write(), error, mistake, 0, is_missing=False)

    def _item(
        self,
        position: int,
        location: CodeLocation,
        error: GradientError | None,
        mistake: Mistake | None,
        number: int,
        *,
        is_missing: bool,
    ) -> WrongInput:
        where = location if location.file else self._call.location
        is_of_input = error is not None or mistake in (Mistake.NOT_TWICE, Mistake.KEEPS_ELSEWHERE)
        behind = self._behind(position) if is_of_input else self._behind_all()
        name = self._call.function.__name__
        place = self._place(position)
        return WrongInput(name, self._names[position], where, error, is_missing, behind, mistake, number, place)

    def _place(self, position: int) -> int:
        return [n for n, leaf in enumerate(self._trial.leaves) if isinstance(leaf, torch.Tensor)].index(position)

    def _behind(self, position: int) -> frozenset[str]:
        """Name the parameters that the gradient of the input at a position goes on to."""
        return _behind(self._call, self._forward, self._place(position))

    def _behind_all(self) -> frozenset[str]:
        return frozenset().union(*map(self._behind, self._trial.tensors))


def _input_names(function: type[torch.autograd.Function], n_inputs: int) -> list[str]:
    names: list[str] = []
    with contextlib.suppress(ValueError, TypeError):
        names = list(inspect.signature(function.forward).parameters)
    if function.setup_context is torch.autograd.Function.setup_context:
        names = names[1:]
    return [names[n] if n < len(names) else f"input {n + 1}" for n in range(n_inputs)]
