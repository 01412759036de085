"""Check every hand-written backward on its own against autograd of its forward and finite differences."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections import Counter
from dataclasses import dataclass, replace

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
        location: the line in backward, the first line of backward, or the call of the Function.
        error: how the gradient is wrong; None where its values are right.
        parameters: those behind this input.
        mistake: the mistake of backward, if it is known, with a number of samples or of an axis.
        place: of this input among the tensors of a call.
        is_unchanged: forward returns this input unchanged, so the Function exists for its backward.
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
        """Whether the code means another gradient: a surrogate, or one that is reversed, scaled or limited."""
        is_surrogate = self.error is not None and bool(self.error.surrogate)
        return not self.is_missing and (is_surrogate or self.is_unchanged)


def check_functions(subject: Subject, budget: float, *, second_order: bool) -> tuple[list[WrongInput], list[str]]:
    """Check every hand-written Function on the inputs of its calls, in float64 if possible, in `budget` seconds.

    The batch is whole, since a fault may lie in the sum over samples. A wrong second derivative is a fault with
    `second_order`, or if the model itself differentiates twice.

    Returns:
        The inputs with a wrong gradient, and sentences on calls that could not be checked.
    """
    deadline = time.monotonic() + budget
    try:
        with subject.in_double():
            return _check_calls(trace_forward(subject), deadline, second_order=second_order)
    except RuntimeError:
        return _check_calls(trace_forward(subject), deadline, second_order=second_order)


def _check_calls(forward: ForwardTrace, deadline: float, *, second_order: bool) -> tuple[list[WrongInput], list[str]]:
    is_twice = second_order or "grad" in forward.log.names
    found: dict[tuple[CodeLocation, str], WrongInput] = {}
    unchecked: list[str] = []
    counts: Counter[type] = Counter()
    for call in forward.log.calls:
        counts[call.function] += 1
        if counts[call.function] > _CALLS_PER_FUNCTION:
            # More calls of a wrong Function only add the parameters behind them.
            for key, item in found.items():
                if item.function == call.function.__name__:
                    behind = _behind(call, forward, item.place)
                    found[key] = replace(item, parameters=item.parameters | behind)
            continue
        try:
            wrong = _CheckedCall(call, forward).check(deadline)
        except Exception as error:  # noqa: BLE001  a hand-written Function may raise anything
            reason = f"could not be run on its own ({type(error).__name__})"
            unchecked.append(f"{call.function.__name__} at {call.location} {reason}")
            continue
        for item in wrong:
            if item.mistake is not Mistake.NOT_TWICE or is_twice:
                first = found.setdefault((item.location, item.name), item)
                found[item.location, item.name] = replace(first, parameters=first.parameters | item.parameters)
    return list(found.values()), unchecked


def _behind(call: FunctionCall, forward: ForwardTrace, place: int) -> frozenset[str]:
    """Name the parameters behind a tensor, counted among the arguments of a call."""
    children = [child for child, _ in call.node.next_functions] if call.node is not None else []
    child = children[place] if place < len(children) else None
    reached = forward.graph.parameters_below(child) if child is not None else 0
    return frozenset(name for name in forward.names if forward.bit(name) & reached)


class _CheckedCall:
    """A call of a hand-written Function, which is run again to find the wrong gradients of its inputs."""

    def __init__(self, call: FunctionCall, forward: ForwardTrace) -> None:
        self._call, self._forward = call, forward
        self._trial = FunctionTrial.of(call)
        self._positions = list(self._trial.tensors)
        self._names = _input_names(call.function, len(self._trial.leaves))
        self._source = BackwardSource(call.function)

    def check(self, deadline: float) -> list[WrongInput]:
        """List the inputs with a wrong gradient."""
        trial = self._trial
        compared = ((index, compare_input(trial, index, deadline)) for index in range(len(trial.tensors)))
        errors = {index: error for index, error in compared if error is not None}
        written = find_writes(trial)
        if written is not None:
            # A write spoils the values that backward reads afterwards, but not the incoming gradient of each call.
            mistake, position = written
            is_of_incoming = mistake is Mistake.WRITES_TO_INCOMING
            found = [self._of_write(mistake, position, {} if is_of_incoming else errors)]
            return [*found, *self._of_errors(errors)] if is_of_incoming else found
        if errors:
            return self._of_errors(errors)
        n_calls = sum(other.function is self._call.function for other in self._forward.log.calls)
        index, mistake = (find_kept_elsewhere(trial) if n_calls > 1 else None), Mistake.KEEPS_ELSEWHERE
        if index is None:
            index, mistake = find_wrong_second_derivative(trial), Mistake.NOT_TWICE
        if index is None:
            return []
        position = self._positions[index]
        return [self._item(position, self._source.of_gradient([position]), None, mistake)]

    def _of_errors(self, errors: dict[int, GradientError]) -> list[WrongInput]:
        """Describe the wrong inputs, each with its line and its mistake."""
        mistakes = {index: find_mistake(self._trial, index) for index in errors}
        first_line: CodeLocation | None = None
        meant = {n for n, error in errors.items() if error.surrogate or self._trial.given[n] is None}
        if errors.keys() - meant:
            first_line = self._first_mistake(errors, meant)
        found = []
        for index, error in errors.items():
            mistake, number = mistakes[index] or (None, 0)
            location = self._source.of_change() if mistake is Mistake.NOT_LINEAR else None
            if location is None and index not in meant:
                location = first_line
            if location is None:  # the line that all inputs with this mistake share
                alike = [self._positions[n] for n in errors if mistakes[n] == mistakes[index]]
                location = self._source.of_gradient(alike)
            item = self._item(self._positions[index], location, error, mistake, number)
            is_missing = self._trial.given[index] is None
            found.append(replace(item, is_missing=is_missing, is_unchanged=self._trial.returns(index)))
        return found

    def _first_mistake(self, errors: dict[int, GradientError], meant: set[int]) -> CodeLocation | None:
        """Find the first line of backward that departs from the chain rule."""
        trial, positions = self._trial, self._positions
        # A gradient of zero, as of the weights of a state that is zero, proves nothing about the lines before.
        others = {n: given for n, given in enumerate(trial.given) if n not in errors}
        right = [positions[n] for n, given in others.items() if given is not None and bool(given.any())]
        blocks = {error.block for error in errors.values() if error.block and error.n_rows > error.block[1]}
        block = next(iter(blocks)) if len(blocks) == 1 else None
        wrong = [positions[n] for n in errors if n not in meant]
        return self._source.of_first_mistake(trial.gradients, trial.known_values(), wrong, right, block)

    def _of_write(self, mistake: Mistake, position: int, errors: dict[int, GradientError]) -> WrongInput:
        """Describe a write in backward, or in forward to the input at a position that is not negative."""
        source = self._source if position < 0 else BackwardSource(self._call.function, "forward")
        error = next(iter(errors.values()), None)
        item = self._item(position if position >= 0 else self._positions[0], source.of_write(), error, mistake)
        if error is None:
            everything = (_behind(self._call, self._forward, self._place(p)) for p in self._positions)
            item = replace(item, parameters=frozenset().union(*everything))
        return item

    def _item(
        self,
        position: int,
        location: CodeLocation,
        error: GradientError | None,
        mistake: Mistake | None,
        number: int = 0,
    ) -> WrongInput:
        place = self._place(position)
        return WrongInput(
            self._call.function.__name__,
            self._names[position],
            location if location.file else self._call.location,
            error,
            is_missing=False,
            parameters=_behind(self._call, self._forward, place),
            mistake=mistake,
            number=number,
            place=place,
        )

    def _place(self, position: int) -> int:
        """Count the tensors among the arguments before a position."""
        return sum(isinstance(leaf, torch.Tensor) for leaf in self._trial.leaves[:position])


def _input_names(function: type[torch.autograd.Function], n_inputs: int) -> list[str]:
    names: list[str] = []
    with contextlib.suppress(ValueError, TypeError):
        names = list(inspect.signature(function.forward).parameters)
    if function.setup_context is torch.autograd.Function.setup_context:
        names = names[1:]
    return [names[n] if n < len(names) else f"input {n + 1}" for n in range(n_inputs)]
